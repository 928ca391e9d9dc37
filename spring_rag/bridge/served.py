"""A prompt as messages that a vLLM server takes from a framework's own client, virtual tokens included."""

from __future__ import annotations

from typing import Any

from spring_rag.backends.base import Backend, Request
from spring_rag.encoding import encode
from spring_rag.errors import PromptError
from spring_rag.prompt import Prompt


def served_messages(
    backend: Backend, prompt: Prompt, tokens: str | None, num_tokens: int | None
) -> list[dict[str, Any]]:
    """The messages of a request, with virtual tokens as content parts.

    Raises:
        PromptError: the backend is no vLLM server, or the server would read something else than this prompt, as where a document holds a
            control string.
        TokensError: an unknown set, or more virtual tokens than it has.
    """
    from spring_rag.backends.vllm import VLLMBackend

    if not isinstance(backend, VLLMBackend):
        msg = "virtual tokens can be sent only by a model on a vLLM server: SpringModel.from_pretrained(…, base_url=…)"
        raise PromptError(msg)
    request = Request(encode(prompt, backend.tokenizer), tokens, num_tokens, prompt)
    return backend.messages(request)
