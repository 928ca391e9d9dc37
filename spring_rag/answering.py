"""Turn prompts into a backend's answers: fit them, run them in batches, and separate thoughts and tool calls from the text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypedDict

from spring_rag.backends.base import BATCH_SIZE, GenerationSettings, Request
from spring_rag.calls import part_calls, with_calls
from spring_rag.encoding import Encoded, encode, warn_of_control_strings
from spring_rag.errors import TokensError
from spring_rag.fitting import fit_beside
from spring_rag.layout import warn_of_another_layout
from spring_rag.prompt import Prompt, RagPrompt, as_prompt
from spring_rag.reasoning import part_stream, without_thoughts

if TYPE_CHECKING:
    from spring_rag.backends.base import Backend, Generation
    from spring_rag.callbacks import OnProgress
    from spring_rag.stream import Stream

_ROUNDS_IN_FLIGHT = 8
"""Requests that a server gets in one call, as a multiple of those that are in flight: it idles at a call's end only."""

PromptLike = str | Prompt | RagPrompt
"""What can be answered. A `str` is text of the user's, without a slot."""


class Settings(TypedDict, total=False):
    """How to decode, as arguments."""

    max_new_tokens: int
    """Most tokens of one answer; 128 unless given."""
    temperature: float
    """0, unless given, decodes greedily."""
    top_p: float
    """Share of probability that is sampled from; 1, unless given, turns it off."""
    top_k: int
    """Number of tokens that are sampled from; 0, unless given, turns it off."""
    stop: str | Sequence[str] | None
    """Strings that end an answer; it is cut before them."""
    seed: int | None
    """Makes sampling repeat; the same for each prompt, whatever else is answered with it."""


def settings_of(given: Settings) -> GenerationSettings:
    """Fill in the settings that aren't given.

    Raises:
        TypeError: an unknown setting.
        ValueError: a setting out of its range.
    """
    stop = given.get("stop")
    strings = (stop,) if isinstance(stop, str) else tuple(stop or ())
    named: dict[str, Any] = {**given, "stop": strings}
    return GenerationSettings(**named)


def num_used(backend: Backend, tokens: str | None, num_tokens: int | None) -> int:
    """Return how many virtual tokens a prompt gets: all of the set unless a number is given, and none where no set is attached.

    Raises:
        TokensError: an unknown set, or more than it has.
    """
    attached = backend.tokens(tokens)
    available = len(attached) if attached is not None else 0
    count = available if num_tokens is None else num_tokens
    if not 0 <= count <= available:
        has = f"the set has {available}" if attached is not None else "no virtual tokens are attached"
        msg = f"num_tokens is {count}, but {has}; expected a number from 0 to {available}"
        raise TokensError(msg)
    return count


def request(
    backend: Backend,
    prompt: PromptLike,
    tokens: str | None,
    num_tokens: int | None,
    settings: GenerationSettings,
) -> Request:
    """Encode a prompt; a `RagPrompt` is fitted into the context beside its virtual tokens and its answer.

    Raises:
        TokensError: an unknown set, or more virtual tokens than it has.
        PromptError: it can't be encoded.
        PromptTooLongError: the question alone doesn't fit.
    """
    count = num_used(backend, tokens, num_tokens)
    if isinstance(prompt, RagPrompt):
        [(prompt, encoded)] = fit_beside([prompt], backend, [count], settings.max_new_tokens)
    else:
        if isinstance(prompt, str):
            warn_of_control_strings(prompt, backend.tokenizer)
        encoded = encode(prompt, backend.tokenizer)
    return request_of(backend, prompt, encoded, tokens, count)


def request_of(
    backend: Backend, prompt: PromptLike, encoded: Encoded, tokens: str | None, count: int
) -> Request:
    """Build the request for an encoded prompt, and warn if its virtual tokens were trained in another layout."""
    prompt = as_prompt(prompt)
    attached = backend.tokens(tokens)
    if attached is not None and count and prompt.has_slot:
        warn_of_another_layout(attached, prompt, backend.tokenizer)
    return Request(encoded, tokens, count, prompt)


def answers(
    backend: Backend,
    requests: Sequence[Request],
    settings: GenerationSettings,
    batch_size: int = BATCH_SIZE,
    progress: OnProgress | None = None,
    into: dict[int, Generation] | None = None,
) -> list[Generation]:
    """Answer requests in batches; see `SpringModel.generate`.

    Returns:
        The answers in the order of the requests, thoughts and calls parted from their text.
    """
    if batch_size < 1:
        msg = f"batch_size is {batch_size}; it must be at least 1"
        raise ValueError(msg)
    found = {} if into is None else into
    if backend.concurrency is not None:
        batch_size = max(batch_size, _ROUNDS_IN_FLIGHT * backend.concurrency)
    for batch in _batches([one.encoded for one in requests], batch_size):
        generated = backend.generate([requests[i] for i in batch], settings)
        for i, answer in zip(batch, generated, strict=True):
            said = without_thoughts(answer, backend.tokenizer, opened=requests[i].encoded.thinking)
            found[i] = with_calls(said, requests[i], backend.tokenizer)
        if progress is not None:
            progress(len(found), len(requests))
    return [found[i] for i in range(len(requests))]


def stream(backend: Backend, asked: Request, settings: GenerationSettings) -> Stream:
    """Answer a request in pieces, thoughts and calls parted from its text; see `SpringModel.stream`."""
    pieces = backend.stream(asked, settings)
    pieces = part_stream(pieces, backend.tokenizer, opened=asked.encoded.thinking)
    return part_calls(pieces, asked, backend.tokenizer)


def per_prompt(argument: str, value: Any, count: int) -> list[Any]:
    """Return one value for each prompt.

    Raises:
        TokensError: a sequence of another length than there are prompts.
    """
    if isinstance(value, str) or not isinstance(value, Sequence):
        return [value] * count
    if len(value) != count:
        msg = f"{argument} has {len(value)} values for {count} prompts; give one for all, or one per prompt"
        raise TokensError(msg)
    return list(value)


def _batches(prompts: Sequence[Encoded], batch_size: int) -> Iterator[list[int]]:
    """Yield the numbers of the prompts that run together.

    The longest come first, so that what doesn't fit into memory fails at once, and prompts of similar length run together, so that
    little padding is computed. Prompts that share a context are split up only if a batch can't hold them all.
    """
    groups: dict[tuple[int, ...], list[int]] = {}
    for number, prompt in enumerate(prompts):
        groups.setdefault(prompt.context_ids, []).append(number)
    batch: list[int] = []
    for group in sorted(groups.values(), key=lambda group: -max(len(prompts[i].ids) for i in group)):
        if batch and len(batch) + len(group) > batch_size:
            yield batch
            batch = []
        batch += sorted(group, key=lambda i: -len(prompts[i].ids))
        while len(batch) > batch_size:
            yield batch[:batch_size]
            batch = batch[batch_size:]
    if batch:
        yield batch
