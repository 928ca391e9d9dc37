"""The six tables that the authors of SPRING published, and the backbones that they were trained on."""

from dataclasses import dataclass

PUBLISHED_REPO = "yutaozhu94/SPRING"
PUBLISHED_NUM_TOKENS = 50


@dataclass(frozen=True, slots=True)
class PublishedTable:
    """One published file.

    Args:
        filename: its path in `PUBLISHED_REPO`.
        backbone: Hub id of the model that it was trained on.
        hidden_size: width of that model's embedding table.
    """

    filename: str
    backbone: str
    hidden_size: int


PUBLISHED = {
    "mistral-7b-instruct": PublishedTable(
        "mistral.7b.instruct.added_token_embeddings.pt", "mistralai/Mistral-7B-Instruct-v0.1", 4096
    ),
    "mistral-7b": PublishedTable(
        "mistral.7b.base.added_token_embeddings.pt", "mistralai/Mistral-7B-v0.1", 4096
    ),
    "llama-2-7b-chat": PublishedTable(
        "llama2.7b.chat.added_token_embeddings.pt", "meta-llama/Llama-2-7b-chat-hf", 4096
    ),
    "llama-2-7b": PublishedTable(
        "llama2.7b.base.added_token_embeddings.pt", "meta-llama/Llama-2-7b-hf", 4096
    ),
    "llama-2-13b-chat": PublishedTable(
        "llama2.13b.chat.added_token_embeddings.pt", "meta-llama/Llama-2-13b-chat-hf", 5120
    ),
    "llama-2-13b": PublishedTable(
        "llama2.13b.base.added_token_embeddings.pt", "meta-llama/Llama-2-13b-hf", 5120
    ),
}
