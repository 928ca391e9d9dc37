"""Running servers: what each can do, found out by asking it, and the next one where one fails."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Sequence
from contextlib import aclosing, contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import openai
import torch

from spring_rag.backends.vllm.calls import Call, pack
from spring_rag.backends.vllm.checkpoint import CheckpointEmbedding
from spring_rag.backends.vllm.failures import NoEmbeddingsError, RefusedError, UnreachableError, explain
from spring_rag.backends.vllm.layouts import ServerTokenizer
from spring_rag.errors import SpringError

T = TypeVar("T")

_REST_SECONDS = 5.0
"""How long a server that failed comes last."""

_PROBES, _PROBE_LENGTH, _PROBE_ANSWER = 3, 12, 6


@dataclass
class Server:
    """One vLLM server.

    Attributes:
        url: base URL, which ends in /v1.
        client: the openai library's, which doesn't retry by itself and has no limit of time.
        timeout: seconds that an answer, or the next part of one, may take.
        model: what it calls the backbone; None until it was asked, where the user didn't name it.
        context_length: most tokens of prompt and answer; None until it was asked, or where it doesn't say.
        refusal: why it takes no embeddings; None if it does.
        raw: whether its chat template knows messages that stand in the prompt as they are.
        templated: whether it lays other chats out as the tokenizer's template does, as far as is known.
        known: whether all of this was found out.
    """

    url: str
    client: openai.AsyncOpenAI
    timeout: float
    model: str | None = None
    context_length: int | None = None
    refusal: NoEmbeddingsError | None = None
    raw: bool = False
    templated: bool = True
    known: bool = False
    failed_at: float = float("-inf")
    _asking: asyncio.Task[None] | None = None
    _chosen: bool = False
    """Whether `model` is what the server happened to serve; another name may be right once it comes back."""

    async def ask(self, embedding: CheckpointEmbedding, tokenizer: ServerTokenizer) -> None:
        """Find out what the server serves, and make sure that its embeddings are those of the checkpoint; once.

        Raises:
            openai.OpenAIError: it isn't there, or refuses.
            TimeoutError: it takes longer than its `timeout`.
            RefusedError: it serves another model.
        """
        if self.known:
            return
        # Many requests may want to know at once; one asks.
        if self._asking is None or self._asking.done():
            self._asking = asyncio.create_task(self._find_out(embedding, tokenizer))
        await asyncio.shield(self._asking)

    def failed(self, problem: SpringError) -> None:
        """Note a problem: after some the server is another one, or will be."""
        if isinstance(problem, (UnreachableError, RefusedError)):
            self.failed_at = time.monotonic()
            self.known = False

    def misread(self, call: Call) -> None:
        """Note that the server read something else than `call` meant; it would do so again."""
        assert call.layout is not None
        if call.layout.is_raw:
            self.raw = False
        else:
            self.templated = False

    async def _find_out(self, embedding: CheckpointEmbedding, tokenizer: ServerTokenizer) -> None:
        async with asyncio.timeout(self.timeout):
            await self._ask_model()
            await self._prove(embedding)
            self.raw = self.refusal is None and await self._knows_raw(embedding, tokenizer)
        self.templated = True
        self.known = True

    async def _ask_model(self) -> None:
        served = [model async for model in self.client.models.list()]
        names = [model.id for model in served]
        if self.model is None or self._chosen:
            # Adapters are listed beside the model that they belong to, and name it.
            bases = [model.id for model in served if getattr(model, "parent", None) is None]
            if len(bases) != 1:
                msg = f"the vLLM server at {self.url} serves {', '.join(names) or 'nothing'}; say which model with served_model=…"
                raise RefusedError(msg)
            self.model, self._chosen = bases[0], True
        elif self.model not in names:
            msg = f"the vLLM server at {self.url} doesn't serve {self.model!r}; it serves {', '.join(names)}"
            raise RefusedError(msg)
        served_as = served[names.index(self.model)]
        self.context_length = getattr(served_as, "max_model_len", None)

    async def _prove(self, embedding: CheckpointEmbedding) -> None:
        """Compare what the server answers to some ids and to their embeddings.

        Some must be answered alike: arithmetic in 16 bits may break a tie between tokens otherwise, but not each time.
        """
        self.refusal = None
        generator = torch.Generator().manual_seed(0)
        ids = torch.randint(embedding.vocab_size, (_PROBES, _PROBE_LENGTH), generator=generator)
        try:
            reply = await self.client.completions.create(
                model=self.model or "",
                prompt=ids.tolist(),
                max_tokens=_PROBE_ANSWER,
                temperature=0.0,
                extra_body={
                    "prompt_embeds": [pack(embedding.embed(row)) for row in ids],
                    "ignore_eos": True,
                    "return_token_ids": True,
                },
            )
        except openai.BadRequestError as error:
            refusal = explain(error, self.url, self.model)
            if not isinstance(refusal, NoEmbeddingsError):
                raise
            self.refusal = refusal
            return
        answers: list[Any] = [getattr(choice, "token_ids", None) for choice in reply.choices]
        from_embeddings, from_ids = answers[:_PROBES], answers[_PROBES:]
        if from_embeddings != from_ids and not any(map(list.__eq__, from_embeddings, from_ids)):
            msg = (
                f"the model {self.model!r} on the vLLM server at {self.url} answers otherwise to token ids than to their embeddings "
                "in this checkpoint: it serves another model, or one whose look-up of embeddings isn't known here"
            )
            raise RefusedError(msg)

    async def _knows_raw(self, embedding: CheckpointEmbedding, tokenizer: ServerTokenizer) -> bool:
        layout = tokenizer.probe()
        if layout is None:
            return False
        call = Call("light", embeddings=embedding.embed(torch.tensor(layout.embedded)), layout=layout)
        try:
            reply = await call.send(self.client, self.model or "", {"max_tokens": 1, "temperature": 0.0})
        except openai.BadRequestError:
            return False  # its template refuses the message, or it knows no such part
        return call.read_rightly(reply.prompt_ids)


class Servers:
    """Servers of one model, which take turns.

    Args:
        servers: at least one.
        ask: what to do before a server's first request, and again after it failed.
        max_retries: how often the openai library tries again before a request counts as failed.
    """

    def __init__(
        self, servers: Sequence[Server], ask: Callable[[Server], Awaitable[None]], max_retries: int
    ) -> None:
        self.all = tuple(servers)
        self._ask = ask
        self._max_retries = max_retries
        self._turn = 0

    def _tries(self) -> Iterator[tuple[Server, openai.AsyncOpenAI]]:
        """One server with retries; of several each once, those that failed a moment ago last, then one with retries."""
        self._turn = (self._turn + 1) % len(self.all)
        turned = [*self.all[self._turn :], *self.all[: self._turn]]
        now = time.monotonic()
        turned.sort(key=lambda server: now - server.failed_at < _REST_SECONDS)
        if len(turned) > 1:
            yield from ((server, server.client) for server in turned)
        yield turned[0], turned[0].client.with_options(max_retries=self._max_retries)

    async def run(self, action: Callable[[Server, openai.AsyncOpenAI], Awaitable[T]]) -> T:
        """What an action gives on the first server that can be reached.

        Raises:
            UnreachableError: none can.
            SpringError: a server refuses, or the action itself raises.
        """
        problems: list[UnreachableError] = []
        for server, client in self._tries():
            try:
                with explained(server):
                    await self._ask(server)
                    async with asyncio.timeout(server.timeout):
                        return await action(server, client)
            except UnreachableError as error:
                problems.append(error)
        raise problems[-1]

    async def stream(
        self, action: Callable[[Server, openai.AsyncOpenAI], AsyncGenerator[T, None]]
    ) -> AsyncGenerator[T, None]:
        """The same for something that comes in pieces, each `in_time`. Once there was a piece, no other server is tried."""
        problems: list[UnreachableError] = []
        for server, client in self._tries():
            begun = False
            try:
                with explained(server):
                    await self._ask(server)
                    async with aclosing(action(server, client)) as items:
                        async for item in items:
                            begun = True
                            yield item
                    return
            except UnreachableError as error:
                if begun:
                    raise
                problems.append(error)
        raise problems[-1]


async def in_time(items: AsyncGenerator[T, None], seconds: float) -> AsyncGenerator[T, None]:
    """The same items, none of them None.

    Raises:
        TimeoutError: the next one takes longer, even if something arrives meanwhile that doesn't make up an item.
    """
    async with aclosing(items):
        while True:
            async with asyncio.timeout(seconds):
                item = await anext(items, None)
            if item is None:
                return
            yield item


@contextmanager
def explained(server: Server) -> Iterator[None]:
    """The openai library's errors, and lacking time, as ours. A server that failed is asked anew: it may come back as another."""
    try:
        yield
    except TimeoutError as error:
        late = UnreachableError(
            f"the vLLM server at {server.url} took longer than the timeout of {server.timeout:g} s to answer; it is overloaded or hangs: "
            "raise `timeout`, or look at its log"
        )
        server.failed(late)
        raise late from error
    except openai.OpenAIError as error:
        problem = explain(error, server.url, server.model)
        server.failed(problem)
        raise problem from error
    except SpringError as problem:
        server.failed(problem)
        raise
    except (ValueError, TypeError, AttributeError, LookupError) as error:
        # The openai library reads whatever comes: a page in HTML, half an object of JSON.
        strange = RefusedError(
            f"{server.url} doesn't answer as vLLM does ({' '.join(str(error).split())}); the address of vLLM's API ends in /v1"
        )
        server.failed(strange)
        raise strange from error
