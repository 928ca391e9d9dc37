"""In which forms a prompt may travel, and in which order they are tried. Real servers: tests/vllm."""

import openai
import pytest
import torch

from spring_rag.backends.base import Request
from spring_rag.backends.vllm.checkpoint import CheckpointEmbedding
from spring_rag.backends.vllm.failures import NoEmbeddingsError
from spring_rag.backends.vllm.forms import Forms, not_light
from spring_rag.backends.vllm.server import Server
from spring_rag.encoding import encode
from spring_rag.prompt import RagPrompt

PROMPT = RagPrompt("Who built it?", ["Hale built it."]).to_prompt()


@pytest.fixture
def server():
    url = "http://localhost:8000/v1"
    return Server(url, openai.AsyncOpenAI(base_url=url, api_key="none"), 1.0, raw=True)


@pytest.fixture
def travels(llama, tokenizer, server):
    """The calls for a prompt with k virtual tokens, by their forms."""
    embedding = CheckpointEmbedding(llama.get_input_embeddings().weight.data, llama.config)

    def travels(wish, k, prompt=PROMPT, text=True):
        encoded = encode(prompt, tokenizer)
        request = Request(encoded, prompt=prompt if text else None)
        rows = torch.zeros(k, embedding.hidden_size)
        calls = list(Forms(tokenizer, embedding, wish).calls(server, request, rows))
        for call in calls:
            length = {"exact": len(encoded.ids), "light": len(encoded.suffix_ids)}.get(call.form)
            assert call.form == "ids" or call.embeddings.shape == (k + length, embedding.hidden_size)
        return [call.form for call in calls]

    return travels


def test_the_lightest_first(travels):
    assert travels("auto", 3) == ["light", "exact"]


def test_nothing_virtual_goes_as_ids(travels):
    assert travels("auto", 0) == ["ids"]
    assert travels("exact", 0, prompt=RagPrompt("Who?", ["Hale."]).to_prompt()) == ["exact"]


def test_only_what_was_wished_for(travels):
    assert travels("light", 3) == ["light"]
    assert travels("exact", 3) == ["exact"]


def test_a_server_that_lays_chats_out_otherwise_gets_embeddings(travels, server):
    server.raw = False
    assert travels("auto", 3) == ["exact"]


def test_without_text_there_is_nothing_light(travels, tokenizer):
    assert travels("auto", 3, text=False) == ["exact"]
    assert travels("light", 3, text=False) == []
    encoded = encode(PROMPT, tokenizer)
    assert "the request has no text" in str(not_light(Request(encoded)))
    assert "control string" in str(not_light(Request(encoded, prompt=PROMPT)))


def test_a_server_that_takes_no_embeddings_gets_ids_or_nothing(travels, server):
    server.refusal = NoEmbeddingsError("no")
    assert travels("auto", 0) == ["ids"]
    with pytest.raises(NoEmbeddingsError):
        travels("auto", 3)
