"""A backbone on running vLLM servers."""

from __future__ import annotations

import asyncio
import os
import weakref
from collections.abc import AsyncGenerator, AsyncIterator, Generator, Sequence
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

import openai
import torch

from spring_rag.backbone import quantization_of
from spring_rag.backends.base import Backend, Generation, GenerationSettings, Request
from spring_rag.backends.checks import fitting_rows, virtual_rows
from spring_rag.backends.decoding import TextStreamer, cut, decoder, usage
from spring_rag.backends.vllm import loop
from spring_rag.backends.vllm.calls import Call, Reply, pack, server_settings
from spring_rag.backends.vllm.checkpoint import CheckpointEmbedding, load_checkpoint
from spring_rag.backends.vllm.checks import check_arguments, embeddings_dtype
from spring_rag.backends.vllm.failures import RefusedError, UnreachableError, all_answered
from spring_rag.backends.vllm.forms import Forms, Wish, not_light
from spring_rag.backends.vllm.server import Server, Servers, in_time
from spring_rag.errors import BackendError, PromptError
from spring_rag.loading import split_arguments
from spring_rag.splice import TokenBank
from spring_rag.stream import Stream

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase

_ONE_TOKEN = GenerationSettings(max_new_tokens=1)

BROKEN_OFF = "the vLLM server broke off its answer; look at its log"


class VLLMBackend(Backend):
    """A backbone on one vLLM server, or on several that take turns.

    Of the checkpoint only tokenizer, config and the rows of the embedding table that occur are read here. Prompts travel in the lightest
    form that gives the server exactly the prompt that a local backbone would see, and each answer says which (`Generation.form`):

    - "ids", where no virtual tokens are used.
    - "light": the context as text, so that a request stays small; the virtual tokens and what follows as embeddings. The server
      says which ids it read, and an answer counts only if they are the right ones.
    - "exact": the whole prompt as embeddings, where text would be read otherwise: a control string in a document, a chat template
      that trims, a server without a chat template that knows prompts as they are (`spring-rag serve` gives it one).

    Greedy answers are those of the local backend, in float32 token by token. Sampling draws on the server: a seed repeats there,
    but not what the local backend draws. A `repetition_penalty` of the model's generation_config sees only what travels as ids or text.

    Several threads may call at once. Requests in flight when a server dies are tried on the next one, or again on the same.

    Args:
        tokenizer: the backbone's.
        config: its config.
        table: its input-embedding table, shape `[vocab, hidden_size]`, on the CPU.
        base_url: of the servers, as "http://localhost:8000/v1".
        api_key: for all of them; without one the environment variable VLLM_API_KEY or OPENAI_API_KEY is used.
        model_id: Hub id or path of the backbone.
        served_model: what the servers call it; may be left out where they serve one model.
        dtype: of the embeddings that are sent. "auto" is float32, which any server rounds to its own; its own dtype ("bfloat16")
            halves the traffic, and repeats the server's rounding where it scales embeddings (Gemma).
        timeout: seconds that an answer may take, tries again included, or the next token of a stream.
        max_retries: how often a request is tried again after a failed connection, a time-out or an overloaded server.
        concurrency: requests in flight at each server.
        form: "light" or "exact" allow this form only, for prompts with virtual tokens.

    Raises:
        BackendError: no server can be reached, or one refuses; says why.
        UnsupportedBackboneError: the backbone's layers need more than input embeddings.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        config: PreTrainedConfig,
        table: Tensor,
        base_url: str | Sequence[str],
        *,
        api_key: str | None = None,
        model_id: str | None = None,
        served_model: str | None = None,
        dtype: str | torch.dtype = "auto",
        timeout: float = 60.0,
        max_retries: int = 3,
        concurrency: int = 64,
        form: Wish = "auto",
    ) -> None:
        urls = [base_url] if isinstance(base_url, str) else list(base_url)
        key = api_key or os.environ.get("VLLM_API_KEY") or os.environ.get("OPENAI_API_KEY") or "none"
        check_arguments(urls, key, concurrency, form, timeout)
        self.tokenizer = tokenizer
        self.model_id = model_id
        self.embedding = CheckpointEmbedding(table, config, embeddings_dtype(dtype))
        self.hidden_size = self.embedding.hidden_size
        self.concurrency = concurrency * len(urls)
        self.bank = TokenBank(self.embedding, model_id=model_id, quantization=quantization_of(config))
        self._forms = Forms(tokenizer, self.embedding, form)
        self._decode = decoder(tokenizer)
        eos = tokenizer.eos_token_id
        self._eos_ids = [eos] if isinstance(eos, int) else []
        self._servers = Servers(
            [_server(url, key, served_model, timeout) for url in urls], self._ask, max_retries
        )
        self._slots = asyncio.Semaphore(self.concurrency)
        self.context_length = loop.run(self._servers.run(_context_length))

    @classmethod
    def from_pretrained(
        cls,
        backbone: str | Path,
        base_url: str | Sequence[str],
        *,
        revision: str | None = None,
        **settings: Any,
    ) -> VLLMBackend:
        """Read what is needed of a checkpoint, and find out what the servers can do.

        Args:
            backbone: folder or Hub id of the checkpoint that the servers run, in safetensors; or the GGUF that `spring-rag serve`
                was given, of which they run the unpacked form.
            base_url: of the servers.
            revision: branch, tag or commit on the Hub.
            settings: further arguments of the class, and those of transformers that say where a checkpoint is found (`token`,
                `subfolder`, `cache_dir`, `gguf_file`, …).

        Raises:
            MissingExtraError: it is a GGUF, and the package `gguf` isn't installed.
            BackendError: the checkpoint can't be read, no server can be reached, or one refuses.
            UnsupportedBackboneError: the backbone can't take virtual tokens.
        """
        where, settings = split_arguments(settings)
        tokenizer, config, table = load_checkpoint(backbone, revision=revision, **where)
        return cls(
            tokenizer, config, table, base_url, model_id=config.name_or_path or str(backbone), **settings
        )

    def generate(self, requests: Sequence[Request], settings: GenerationSettings) -> list[Generation]:
        """Answer all requests, `concurrency` at once, results in their order.

        Raises:
            PromptTooLongError: prompt and `max_new_tokens` don't fit the context; says by how much.
            PromptError: an empty prompt, or one that another tokenizer encoded.
            TokensError: an unknown set, or more virtual tokens than it has.
            BackendError: a server refuses or can't be reached. Where others of the requests were answered it is a `PartlyAnsweredError`.
        """
        return loop.run(self._all(requests, settings))

    async def agenerate(self, requests: Sequence[Request], settings: GenerationSettings) -> list[Generation]:
        """The same, in async code of any event loop. Cancelling it drops the requests on the server too."""
        return await asyncio.wrap_future(loop.submit(self._all(requests, settings)))

    def stream(self, request: Request, settings: GenerationSettings) -> Stream:
        """Answer one request in pieces of text that concatenate to the text that `generate` gives.

        Closing the stream closes the connection, which stops the server's work on it. Raises what `generate` raises, some of it at
        once.
        """
        rows = fitting_rows(self, request, settings)
        return Stream(self._items(request, rows, settings))

    def _items(
        self, request: Request, rows: Tensor, settings: GenerationSettings
    ) -> Generator[str | Generation, None, None]:
        items: SimpleQueue[str | Generation | BaseException] = SimpleQueue()
        work = loop.Forwarding(self._pieces(request, rows, settings), items.put, _is_answer)
        try:
            while isinstance(item := items.get(), str):
                yield item
            if isinstance(item, BaseException):
                raise item
            yield item
        finally:
            work.stop()

    async def astream(
        self, request: Request, settings: GenerationSettings
    ) -> AsyncGenerator[str | Generation, None]:
        """The same in async code of any event loop: pieces of text, and as the last item the whole answer."""
        rows = fitting_rows(self, request, settings)
        items: asyncio.Queue[str | Generation | BaseException] = asyncio.Queue()
        here = asyncio.get_running_loop()

        def put(item: str | Generation | BaseException) -> None:
            here.call_soon_threadsafe(items.put_nowait, item)

        work = loop.Forwarding(self._pieces(request, rows, settings), put, _is_answer)
        try:
            while isinstance(item := await items.get(), str):
                yield item
            if isinstance(item, BaseException):
                raise item
            yield item
        finally:
            work.stop()

    def messages(self, request: Request) -> list[dict[str, Any]]:
        """A prompt as messages of OpenAI's chat API, virtual tokens included, for a client of one's own.

        Such a client can't see whether the server read the prompt as it was meant, so there is nothing to fall back to.

        Raises:
            PromptError: the server would read something else: a control string in a document or question, a chat template that
                trims or that doesn't concatenate content parts; or the prompt has no slot.
            TokensError: an unknown set, or more virtual tokens than it has.
            BackendError: no server can be reached, or one takes no embeddings.
        """
        if request.encoded.slot is None:
            msg = "this prompt has no slot for virtual tokens; give it one, or send it without them"
            raise PromptError(msg)
        rows = virtual_rows(self.bank, request, self.hidden_size)

        async def on(server: Server, client: openai.AsyncOpenAI) -> list[dict[str, Any]]:  # noqa: ARG001
            if server.refusal is not None:
                raise server.refusal
            for call in self._forms.light(server, request, rows):
                assert call.layout is not None
                assert call.embeddings is not None
                if call.layout.arguments:
                    msg = (
                        f"this server lays chats out by itself, and a client of your own doesn't tell its chat template {call.layout.arguments}; "
                        "start the server with `spring-rag serve`, or leave that to the template (thinking=None)"
                    )
                    raise PromptError(msg)
                return call.layout.filled(pack(call.embeddings))
            raise not_light(request)

        return loop.run(self._servers.run(on))

    async def _ask(self, server: Server) -> None:
        await server.ask(self.embedding, self._forms.server_tokenizer)

    async def _all(self, requests: Sequence[Request], settings: GenerationSettings) -> list[Generation]:
        rows = [fitting_rows(self, request, settings) for request in requests]
        fatal: list[BackendError] = []

        async def answer(request: Request, virtual: Tensor) -> Generation:
            async with self._slots:
                if fatal:  # nothing that still waits would fare better
                    raise fatal[0]
                try:
                    return await self._one(request, virtual, settings)
                except (UnreachableError, RefusedError) as error:
                    fatal.append(error)
                    raise

        found = await asyncio.gather(*map(answer, requests, rows), return_exceptions=True)
        return all_answered(found)

    async def _one(self, request: Request, rows: Tensor, settings: GenerationSettings) -> Generation:
        told = server_settings(_ONE_TOKEN if request.choices else settings, self._eos_ids)

        async def on(server: Server, client: openai.AsyncOpenAI) -> Generation:
            for call in self._forms.calls(server, request, rows):
                reply = await call.send(client, server.model or "", told, request.choices, settings.logprob)
                if call.read_rightly(reply.prompt_ids):
                    if request.choices:
                        used = usage(request.encoded, call.virtual, 0)
                        return Generation("", "length", used, (), call.form, logprobs=reply.logprobs)
                    answer = self._answer(request, call, reply.ids, reply.finish_reason, settings)
                    if settings.logprob and reply.logprobs:
                        return replace(answer, logprob=sum(reply.logprobs[: len(answer.token_ids)]))
                    return answer
                server.misread(call)
            raise not_light(request)

        return await self._servers.run(on)

    async def _pieces(
        self, request: Request, rows: Tensor, settings: GenerationSettings
    ) -> AsyncGenerator[str | Generation, None]:
        told = server_settings(settings, self._eos_ids)

        async def on(server: Server, client: openai.AsyncOpenAI) -> AsyncGenerator[str | Generation, None]:
            for call in self._forms.calls(server, request, rows):
                arriving = in_time(call.stream(client, server.model or "", told), server.timeout)
                async with aclosing(arriving) as replies:
                    first = await anext(replies, None)
                    if first is None:
                        raise UnreachableError(BROKEN_OFF)
                    if call.read_rightly(first.prompt_ids):
                        async for item in self._texts(request, call, first, replies, settings):
                            yield item
                        return
                server.misread(call)
            raise not_light(request)

        async with self._slots, aclosing(self._servers.stream(on)) as items:
            async for item in items:
                yield item

    async def _texts(
        self,
        request: Request,
        call: Call,
        first: Reply,
        following: AsyncIterator[Reply],
        settings: GenerationSettings,
    ) -> AsyncGenerator[str | Generation, None]:
        """The text of replies, piece by piece, and then the whole answer."""
        texts: list[str] = []
        streamer = TextStreamer(self.tokenizer, settings.stop, texts.append)
        streamer.put(torch.tensor([]))
        ids: list[int] = []
        reply: Reply | None = first
        while reply is not None:
            ids += reply.ids
            streamer.put(torch.tensor(reply.ids, dtype=torch.int64))
            for text in texts:
                yield text
            texts.clear()
            if reply.finish_reason is not None or cut(self._decode(ids), settings.stop)[1]:
                answer = self._answer(request, call, ids, reply.finish_reason, settings)
                if rest := streamer.rest(answer.text):
                    yield rest
                yield answer
                return
            reply = await anext(following, None)
        raise UnreachableError(BROKEN_OFF)

    def _answer(
        self,
        request: Request,
        call: Call,
        generated: Sequence[int],
        finish_reason: str | None,
        settings: GenerationSettings,
    ) -> Generation:
        """Ids as an answer. Its text is decoded here, as the server's decoding treats spaces at the start otherwise."""
        ids = list(generated)
        text, stopped = cut(self._decode(ids), settings.stop)
        if stopped:
            lengths = range(1, len(ids) + 1)
            ids = ids[: next(n for n in lengths if cut(self._decode(ids[:n]), settings.stop)[1])]
        return Generation(
            text=text,
            finish_reason="length" if finish_reason == "length" and not stopped else "stop",
            usage=usage(request.encoded, call.virtual, len(ids)),
            token_ids=tuple(ids),
            form=call.form,
        )


def _is_answer(item: str | Generation) -> bool:
    return isinstance(item, Generation)


async def _context_length(server: Server, client: openai.AsyncOpenAI) -> int | None:  # noqa: ARG001 - an action on a server
    return server.context_length


def _server(url: str, key: str, served_model: str | None, timeout: float) -> Server:
    client = openai.AsyncOpenAI(base_url=url, api_key=key, timeout=None, max_retries=0)
    server = Server(url, client, timeout, served_model)
    # Connections are kept open between requests; a process that drops its models must not collect them.
    weakref.finalize(server, lambda: loop.submit(client.close())).atexit = False
    return server
