"""Parts that the tests of the LangChain integration share: a tiny backbone that chats, and words as embeddings."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
from langchain_core.embeddings import Embeddings
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from chroma_spring_rag import HashedWords
from spring_rag.model import SpringModel
from spring_rag.tokens import VirtualTokens

CHAT_TEMPLATE = (
    "{% for message in messages %}<s>{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant:{% endif %}"
)
TURNS_ONLY_TEMPLATE = (
    "{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate user/assistant') }}{% endif %}"
    "[{{ message['role'] }}]{{ message['content'] }}{% endfor %}"
)


@pytest.fixture(scope="session")
def make_spring_model(
    build_model: Callable[..., PreTrainedModel],
    tokenizer: PreTrainedTokenizerFast,
    make_tokens: Callable[..., VirtualTokens],
) -> Callable[..., SpringModel]:
    """`make_spring_model(template=CHAT_TEMPLATE)`: a tiny Llama with two sets of virtual tokens, "default" and "other"."""

    def make(template: str | None = CHAT_TEMPLATE) -> SpringModel:
        hf_model = build_model("llama", tied=False, seed=1)
        hf_model.config.max_position_embeddings = 1024
        chatting = copy.deepcopy(tokenizer)
        chatting.chat_template = template
        with pytest.warns(UserWarning, match="don't record their backbone"):
            model = SpringModel(hf_model, chatting, tokens=make_tokens(6, seed=1))
            model.add_tokens("other", make_tokens(4, seed=2))
        return model

    return make


@pytest.fixture(scope="session")
def spring_model(make_spring_model: Callable[..., SpringModel]) -> SpringModel:
    """One for all tests that only ask it."""
    return make_spring_model()


class WordEmbeddings(Embeddings):
    """The offline embedding function of chroma_spring_rag, as LangChain wants it."""

    def __init__(self) -> None:
        self._embed = HashedWords()

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        return [vector.tolist() for vector in self._embed(texts)]

    def embed_query(self, text: str) -> list[float]:
        return self._embed.embed_query([text])[0].tolist()
