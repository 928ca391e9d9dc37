"""The forms in which a prompt may travel to a server, lightest first."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal

from spring_rag.backends.vllm.calls import Call
from spring_rag.backends.vllm.layouts import ServerTokenizer
from spring_rag.encoding import Encoded
from spring_rag.errors import PromptError
from spring_rag.splice import splice_batch

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

    from spring_rag.backends.base import Request
    from spring_rag.backends.vllm.checkpoint import CheckpointEmbedding
    from spring_rag.backends.vllm.server import Server

Wish = Literal["auto", "light", "exact"]


class Forms:
    """Writes a prompt as calls of a server, in each form that it may travel in.

    Args:
        tokenizer: the backbone's.
        embedding: of the backbone.
        wish: "light" or "exact" allow this form only, for prompts with virtual tokens.

    Attributes:
        server_tokenizer: what the server does with text.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, embedding: CheckpointEmbedding, wish: Wish
    ) -> None:
        self.server_tokenizer = ServerTokenizer(tokenizer)
        self._embedding = embedding
        self._wish = wish

    def calls(self, server: Server, request: Request, rows: Tensor) -> Iterator[Call]:
        """The calls to try one after the other, lightest first.

        Args:
            server: that is to answer.
            request: the prompt.
            rows: its virtual tokens, shape `[k, hidden_size]`.

        Raises:
            NoEmbeddingsError: there are virtual tokens, and the server takes none.
        """
        encoded = request.encoded
        if encoded.slot is None or (not len(rows) and self._wish == "auto"):
            yield Call("ids", prompt=encoded.ids)
            return
        if server.refusal is not None:
            raise server.refusal
        if self._wish != "exact":
            yield from self.light(server, request, rows)
        if self._wish != "light":
            yield Call("exact", embeddings=self._spliced(encoded, rows), virtual=len(rows))

    def light(self, server: Server, request: Request, rows: Tensor) -> Iterator[Call]:
        """Those of the calls that carry the context as text, for a server that takes embeddings; arguments as those of `calls`."""
        if request.prompt is None:
            return
        for known, lay_out in (
            (server.raw, self.server_tokenizer.raw),
            (server.templated, self.server_tokenizer.templated),
        ):
            layout = lay_out(request.prompt, request.encoded) if known else None
            if layout is not None and (len(rows) or layout.embedded):
                spliced = self._spliced(Encoded(layout.embedded, 0), rows)
                yield Call("light", embeddings=spliced, layout=layout, virtual=len(rows))

    def _spliced(self, encoded: Encoded, rows: Tensor) -> Tensor:
        return splice_batch(self._embedding, [encoded], [rows]).inputs_embeds[0]


def not_light(request: Request) -> PromptError:
    """Why a prompt's context can't travel as text."""
    why = (
        "the request has no text"
        if request.prompt is None
        else "the server would read other tokens from its text, because of a control string in it (take it out), or of the "
        "server's chat template (start the server with `spring-rag serve`)"
    )
    return PromptError(f"the context of this prompt can't be sent as text: {why}")
