"""A prompt as a request to one of the server's endpoints, and what comes back."""

from __future__ import annotations

import base64
import io
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, cast

import torch

from spring_rag.backends.vllm.layouts import Layout
from spring_rag.errors import BackendError

if TYPE_CHECKING:
    from openai import AsyncOpenAI
    from torch import Tensor

    from spring_rag.backends.base import FinishReason, Form, GenerationSettings

NO_IDS = (
    "the server doesn't say which tokens it read and wrote (return_token_ids); expected vLLM 0.32 or newer"
)


_MOST_IDS = 128
"""Whose probabilities a server tells at once."""


@dataclass(frozen=True, slots=True)
class Reply:
    """A part of an answer; of one that isn't streamed all of it.

    Attributes:
        ids: generated ids.
        finish_reason: None while more follows.
        prompt_ids: what the server read as the prompt; None where this part doesn't say.
        logprobs: of the choices that were asked for, in their order; else of the ids, where theirs were.
    """

    ids: tuple[int, ...]
    finish_reason: FinishReason | None
    prompt_ids: list[int] | None = None
    logprobs: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Call:
    """One request.

    Attributes:
        form: how the prompt travels.
        prompt: ids for `/v1/completions`, if it travels as ids.
        embeddings: shape `[m, hidden_size]`, if any part of it travels as embeddings.
        layout: messages for `/v1/chat/completions`; without it embeddings go to `/v1/completions`.
        virtual: number of virtual tokens in the embeddings.
    """

    form: Form
    prompt: tuple[int, ...] | None = None
    embeddings: Tensor | None = None
    layout: Layout | None = None
    virtual: int = 0

    def read_rightly(self, prompt_ids: list[int] | None) -> bool:
        """Whether the server read the prompt that was meant.

        Raises:
            BackendError: it doesn't say.
        """
        if self.layout is None:
            return True
        if prompt_ids is None:
            raise BackendError(NO_IDS)
        return self.layout.agrees(prompt_ids, self.virtual)

    async def send(
        self,
        client: AsyncOpenAI,
        model: str,
        settings: dict[str, Any],
        choices: Sequence[int] = (),
        logprobs: bool = False,
    ) -> Reply:
        """The whole answer, if asked with the log-probabilities of its ids; with `choices` theirs as the first token of one.

        More choices than a server tells of at once take several requests.
        """
        if len(choices) > _MOST_IDS:
            starts = range(0, len(choices), _MOST_IDS)
            parts = [await self.send(client, model, settings, choices[at : at + _MOST_IDS]) for at in starts]
            return replace(parts[0], logprobs=tuple(one for part in parts for one in part.logprobs))
        create, arguments = self._endpoint(client, model, settings)
        if choices or logprobs:
            arguments["logprobs"] = 1 if self.layout is None else True
        if choices:
            arguments["extra_body"] |= {
                "logprob_token_ids": list(choices),
                "return_tokens_as_token_ids": True,
            }
        reply = await create(**arguments)
        choice = reply.choices[0]
        told = _written(choice) if logprobs and not choices else _logprobs(choice, choices)
        return Reply(_ids(choice), _reason(choice), _prompt_ids(reply, choice), told)

    async def stream(
        self, client: AsyncOpenAI, model: str, settings: dict[str, Any]
    ) -> AsyncGenerator[Reply, None]:
        """The answer in parts. Closing it closes the connection, whereupon the server stops."""
        create, arguments = self._endpoint(client, model, settings)
        async with await create(**arguments, stream=True) as chunks:
            async for chunk in chunks:
                if not chunk.choices:
                    continue
                choice = chunk.choices[0]
                reason = _reason(choice) if choice.finish_reason else None
                prompt_ids = _prompt_ids(chunk, choice)
                # A chat's first part has its role only, and a last one may have no token.
                empty = prompt_ids is not None or reason is not None
                ids = () if empty and getattr(choice, "token_ids", None) is None else _ids(choice)
                yield Reply(ids, reason, prompt_ids)

    def _endpoint(
        self, client: AsyncOpenAI, model: str, settings: dict[str, Any]
    ) -> tuple[Any, dict[str, Any]]:
        arguments = {"model": model, **settings}
        extra = {"return_token_ids": True, **settings.get("extra_body", {})}
        if self.layout is not None:
            assert self.embeddings is not None
            arguments["messages"] = self.layout.filled(pack(self.embeddings))
            if self.layout.arguments:
                extra["chat_template_kwargs"] = dict(self.layout.arguments)
            arguments["extra_body"] = extra
            return client.chat.completions.create, arguments
        if self.embeddings is not None:
            extra["prompt_embeds"] = pack(self.embeddings)
        # An empty prompt beside embeddings would be a second one.
        arguments |= {"prompt": list(self.prompt) if self.prompt is not None else None, "extra_body": extra}
        return client.completions.create, arguments


def pack(embeddings: Tensor) -> str:
    """A tensor as vLLM takes it: base64 of what `torch.save` writes."""
    file = io.BytesIO()
    # A view would be saved with all that it is a view of.
    torch.save(embeddings.clone(), file)
    return base64.b64encode(file.getvalue()).decode("ascii")


def server_settings(settings: GenerationSettings, eos_ids: Sequence[int]) -> dict[str, Any]:
    """What to tell the server about decoding, in place of what the model's generation_config says about sampling."""
    extra: dict[str, Any] = {"top_k": settings.top_k, "min_p": 0.0, "stop_token_ids": list(eos_ids)}
    told: dict[str, Any] = {
        "max_tokens": settings.max_new_tokens,
        "temperature": settings.temperature,
        "top_p": settings.top_p,
        "extra_body": extra,
    }
    if settings.stop:
        told["stop"] = list(settings.stop)
    if settings.seed is not None:
        told["seed"] = settings.seed % 2**63  # vLLM's are signed
    return told


def _ids(choice: Any) -> tuple[int, ...]:
    ids = getattr(choice, "token_ids", None)
    if ids is None:
        raise BackendError(NO_IDS)
    return tuple(ids)


def _logprobs(choice: Any, choices: Sequence[int]) -> tuple[float, ...]:
    """Those of the first token: a chat's are a list of objects, a completion's a dictionary."""
    if not choices:
        return ()
    told = choice.logprobs
    try:
        if getattr(told, "content", None):
            found = {one.token: one.logprob for one in told.content[0].top_logprobs}
        else:
            found = told.top_logprobs[0]
        return tuple(float(found[f"token_id:{one}"]) for one in choices)
    except (AttributeError, IndexError, KeyError, TypeError) as error:
        msg = "the server doesn't tell the probabilities that were asked for (logprob_token_ids); expected vLLM 0.32 or newer"
        raise BackendError(msg) from error


def _written(choice: Any) -> tuple[float, ...]:
    """Those of all tokens of an answer; none where the server doesn't tell."""
    told: Any = getattr(choice, "logprobs", None)
    if getattr(told, "content", None):
        return tuple(one.logprob for one in told.content)
    return tuple(getattr(told, "token_logprobs", None) or ())


def _prompt_ids(reply: Any, choice: Any) -> list[int] | None:
    """A chat's stand beside its choices, a completion's in its choice."""
    return cast(
        "list[int] | None",
        getattr(reply, "prompt_token_ids", None) or getattr(choice, "prompt_token_ids", None),
    )


def _reason(choice: Any) -> FinishReason:
    if choice.finish_reason in ("stop", "length"):
        return cast("FinishReason", choice.finish_reason)
    msg = f"the server gave up on the answer: it ended with {choice.finish_reason!r}, expected 'stop' or 'length'"
    raise BackendError(msg)
