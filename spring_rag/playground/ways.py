"""Answer one question in several ways from the same passages, piece by piece."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from spring_rag.asking import RagAnswer, attached_skills
from spring_rag.backends.base import DEFAULT_TOKENS
from spring_rag.encoding import encode
from spring_rag.errors import SpringError
from spring_rag.prompt import RagPrompt
from spring_rag.skills import ANSWERABLE, CITE

if TYPE_CHECKING:
    from spring_rag.model import SpringModel


@dataclass(frozen=True, slots=True)
class Way:
    """The name of a set of virtual tokens, and the number of them to use; None and 0 for the plain backbone."""

    tokens: str | None
    num_tokens: int

    @property
    def label(self) -> str:
        """The way's name on the page."""
        if not self.num_tokens:
            return "plain"
        named = f"{self.tokens}, " if self.tokens not in (None, DEFAULT_TOKENS) else ""
        return f"{named}k = {self.num_tokens}"


@dataclass(frozen=True, slots=True)
class Reply:
    """What one way has answered so far.

    Attributes:
        way: the way that answers.
        text: the answer, or its beginning.
        seconds: time since the way's turn began; 0 before it.
        generated: number of tokens of the answer; None until it is whole.
        error: why there is no answer; empty if nothing failed.
    """

    way: Way
    text: str = ""
    seconds: float = 0.0
    generated: int | None = None
    error: str = ""


@dataclass(frozen=True, slots=True)
class ShownPrompt:
    """A prompt as the backbone reads it, in three pieces: before, in and after the slot.

    Attributes:
        context: the ids before the slot, decoded with their control tokens.
        virtual: number of virtual tokens in the slot.
        suffix: the ids after the slot, decoded.
        dropped: number of passages that didn't fit.
    """

    context: str
    virtual: int
    suffix: str
    dropped: int


def ways_of(model: SpringModel, sets: Sequence[str], ks: Sequence[int]) -> list[Way]:
    """Return the ways to compare: the plain backbone, the default set with each k, and further sets with all their tokens.

    Args:
        model: the model with its sets attached.
        sets: names of the further sets.
        ks: numbers of virtual tokens of the default set, whose whole number is added.
    """
    ways = [Way(None, 0)]
    if (default := model.backend.tokens(None)) is not None:
        ways += [Way(DEFAULT_TOKENS, k) for k in sorted({*ks, len(default)}) if 0 < k <= len(default)]
    for name in sets:
        attached = model.backend.tokens(name)
        assert attached is not None
        ways.append(Way(name, len(attached)))
    return ways


def answer_ways(
    model: SpringModel, question: str, passages: Sequence[str], ways: Sequence[Way], max_new_tokens: int
) -> Iterator[list[Reply]]:
    """Let each way answer in turn, and yield all replies after each piece of text.

    If a way fails, its reply says why, and the others go on.
    """
    replies = [Reply(way) for way in ways]
    for number, way in enumerate(ways):
        started = time.perf_counter()
        try:
            stream = model.stream(
                rag_prompt(model, question, passages, way),
                num_tokens=way.num_tokens,
                tokens=way.tokens,
                max_new_tokens=max_new_tokens,
            )
            for piece in stream.stripped():
                seconds = time.perf_counter() - started
                replies[number] = replace(replies[number], text=replies[number].text + piece, seconds=seconds)
                yield list(replies)
            replies[number] = replace(
                replies[number],
                seconds=time.perf_counter() - started,
                generated=stream.generation.usage.generated,
            )
        except (SpringError, ValueError) as error:
            replies[number] = replace(replies[number], error=str(error))
        yield list(replies)


def rag_prompt(model: SpringModel, question: str, passages: Sequence[str], way: Way) -> RagPrompt:
    """Return the prompt in the layout that the way's set was trained with."""
    return RagPrompt(question=question, passages=tuple(passages), template=model.template(way.tokens))


def told_by_skills(model: SpringModel, question: str, passages: Sequence[str]) -> RagAnswer | None:
    """Return what the attached skills say about a question; None without skills. Its `text` is not for use: the ways answer.

    Raises:
        PromptTooLongError: the question alone doesn't fit the context.
    """
    if not attached_skills(model.backend).keys() & {ANSWERABLE, CITE}:
        return None
    return model.ask(question, passages, max_new_tokens=1)


def shown_prompt(
    model: SpringModel, question: str, passages: Sequence[str], way: Way, max_new_tokens: int
) -> ShownPrompt:
    """Return the prompt that the backbone reads when this way answers.

    Raises:
        PromptTooLongError: the question alone doesn't fit the context.
    """
    prompt = model.fitted(
        rag_prompt(model, question, passages, way),
        num_tokens=way.num_tokens,
        tokens=way.tokens,
        max_new_tokens=max_new_tokens,
    )
    encoded = encode(prompt, model.tokenizer)
    before, after = (
        str(model.tokenizer.decode(list(ids))) for ids in (encoded.context_ids, encoded.suffix_ids)
    )
    return ShownPrompt(before, way.num_tokens, after, len(prompt.dropped))
