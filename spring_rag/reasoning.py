"""Parting what a backbone thinks from what it answers, by the markers of its chat template.

Nothing here knows a model by name. A chat template is asked to write an answer that has thoughts; what it puts around them are the
markers. Templates that take no thoughts still name the markers, in their own text or among the tokenizer's added tokens.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

from spring_rag.errors import PromptError
from spring_rag.stream import Stream, Thought
from spring_rag.templates import remembered, template_text, thinking_switch, tried

if TYPE_CHECKING:
    from collections.abc import Generator

    from transformers import PreTrainedTokenizerBase

    from spring_rag.backends.base import Generation
    from spring_rag.prompt import Prompt, RagTemplate

_SHAPES = (
    (re.compile(r"</((?:\w+:)?(?:think|thinking|thought|thoughts|reasoning))>"), r"<\1>"),
    (re.compile(r"\[/(THINK|THINKING|REASONING)\]"), r"[\1]"),
    (re.compile(r"<\|END_(THINKING|REASONING)\|>"), r"<|START_\1|>"),
    (re.compile(r"<\|/(think|thinking|reasoning)\|>"), r"<|\1|>"),
    (re.compile(r"<channel\|>"), "<|channel>thought"),
)
"""Patterns for the end marker of thoughts in templates that only mention it, each with the begin marker that goes with it."""

_WORDS = ("/no_think", "/nothink")
"""What templates without a variable for thinking look for in a chat to turn it off."""

_TAG = re.compile(
    r"(?:<[^<>\s]*>(?:think|thought|reason)\w*<[^<>\s]*>|[<\[][^<>\[\]\s]*(?:think|thought|reason)[^<>\[\]\s]*[>\]])\s*\Z",
    re.IGNORECASE,
)
"""The beginning of thoughts at a text's end: one marker, or a word between two."""

_WORD_TAG = re.compile(r"<[^<>]+>\w+<[^<>]+>")
"""A marker that is a word between two others, as Kimi K3's."""

_WRAPPED = re.compile(r"<(response|answer)></\1>")
"""How instructions name the markers that an answer which follows thoughts is to stand between, as Granite 3.3's."""

_FIRST_TOKEN = re.compile(r"<[^<>]+>")


@dataclass(frozen=True)
class _Channels:
    """Answers whose parts each have a header that names their channel, as gpt-oss's.

    Attributes:
        before: what every header begins with.
        end: what every part ends with.
        answer: the header of the answer, with the end of the part before it.
        any: the same for a header of any channel.
        call: the same for one that is addressed to a tool, up to the address.
    """

    before: str
    end: str
    answer: re.Pattern[str]
    any: re.Pattern[str]
    call: re.Pattern[str]

    def split(self, text: str) -> tuple[str | None, str]:
        """Part thoughts from the answer, as `Markers.split` does. A part that is addressed to a tool belongs to the answer, from the address on."""
        called = self.call.search(text)
        if called:
            thoughts, answer = self.split(text[: called.start()])
            return thoughts, answer + text[called.end() :]
        found = self.answer.search(text)
        if not found and not text.lstrip().startswith(self.before):
            return None, text
        before, answer = (text[: found.start()], text[found.end() :]) if found else (text, "")
        # What is left of a header is the beginning of one that isn't written to its end.
        complete = self.any.match(text.lstrip()) is not None
        thoughts = self.any.sub("\n", before).partition(self.end)[0].strip() if complete else ""
        return thoughts or (None if found else ""), answer.partition(self.end)[0]


@dataclass(frozen=True)
class Markers:
    """The texts that stand around a backbone's thoughts, without white space at their ends.

    Attributes:
        open: before thoughts.
        close: between thoughts and the answer.
        answer: before an answer without thoughts; empty where such an answer has nothing before it.
        closing: what a template writes between thoughts and the answer, white space included.
        endings: what it writes behind the answer before it ends the turn, or asks for around it.
    """

    open: str
    close: str
    answer: str = ""
    closing: str = ""
    endings: tuple[str, ...] = ()

    @property
    def all(self) -> tuple[str, ...]:
        """All markers that aren't empty."""
        return tuple(marker for marker in (self.open, self.close, self.answer, *self.endings) if marker)

    @cached_property
    def _channels(self) -> _Channels | None:
        before = shared(self.open, self.answer)
        after = shared(self.open[::-1], self.answer[::-1])[::-1]
        if not (before and after) or before not in self.close:
            return None
        end = self.close[: self.close.index(before)]
        name = re.escape(self.answer[len(before) : len(self.answer) - len(after)])
        begins, rest = f"(?:{re.escape(end)})?{re.escape(before)}", f"[^<>]*{re.escape(after)}"
        first = _FIRST_TOKEN.match(end)
        return _Channels(
            before,
            first[0] if first else "\0",
            re.compile(begins + name + rest),
            re.compile(begins + rest),
            re.compile(rf"(?:\A|{re.escape(end)})(?:{re.escape(before)}\w*)?\s+(?=to=)"),
        )

    def split(self, text: str, *, opened: bool) -> tuple[str | None, str]:
        """Part thoughts from the answer in what a backbone wrote, or has written so far.

        Args:
            text: all of it, the markers included.
            opened: whether the prompt ends within thoughts.

        Returns:
            The thoughts, stripped at both ends, None where there are none before the answer; and the answer, as it is then.
        """
        thoughts, answer = self._split(text, opened)
        for ending in self.endings:
            answer = answer.replace(ending, "")
        return thoughts, answer

    def _split(self, text: str, opened: bool) -> tuple[str | None, str]:
        if self._channels is not None:
            return self._channels.split(text)
        body = text.lstrip()
        begins = bool(self.open) and body.startswith(self.open)
        if opened or begins:
            thoughts, close, answer = (body[len(self.open) :] if begins else body).partition(self.close)
            return thoughts.strip() or (None if close else ""), answer.lstrip()
        # A model may end thoughts that its prompt has ended already.
        stray = next((each for each in (self.answer, self.close) if each and body.startswith(each)), None)
        return None, text if stray is None else body[len(stray) :].lstrip()

    def unsettled(self, text: str) -> int:
        """Count the characters at a text's end that may turn out to begin a marker."""
        for length in range(min(max(map(len, self.all)), len(text)), 0, -1):
            if any(marker.startswith(text[-length:]) for marker in self.all):
                return length
        return 0


def shared(one: str, other: str) -> str:
    """The longest beginning of both texts."""
    pairs = enumerate(zip(one, other, strict=False))
    return one[: next((at for at, (a, b) in pairs if a != b), min(len(one), len(other)))]


def markers(tokenizer: PreTrainedTokenizerBase) -> Markers | None:
    """Find the markers of a tokenizer's chat template; None where nothing in it speaks of thoughts."""
    if not tokenizer.chat_template:
        return None
    found: Markers | None = remembered(tokenizer, "markers", lambda: _find(tokenizer))
    return found


def opens_thoughts(written: str, tokenizer: PreTrainedTokenizerBase) -> bool:
    """Tell whether an answer that follows a text begins within thoughts.

    Args:
        written: what a template wrote after the last text of a user.
        tokenizer: whose chat template it is.
    """
    known = markers(tokenizer)
    return known is not None and bool(known.open) and written.rfind(known.open) > written.rfind(known.close)


def quieting_word(prompt: Prompt | RagTemplate, tokenizer: PreTrainedTokenizerBase) -> str | None:
    """Find the word in a system message that turns thinking off, as Nemotron Nano's `/no_think`; None where none is needed."""

    def find() -> str | None:
        text, begun = template_text(tokenizer), tried(tokenizer, {})
        if thinking_switch(tokenizer, on=False) or begun is None or not opens_thoughts(begun, tokenizer):
            return None
        return next((word for word in _WORDS if word in text and quiets(word)), None)

    def quiets(word: str) -> bool:
        begun = tried(tokenizer, {}, system=word)
        return begun is not None and not opens_thoughts(begun, tokenizer)

    if prompt.thinking is not False or not tokenizer.chat_template:
        return None
    word: str | None = remembered(tokenizer, "quieting word", find)
    return word


def kept_tokens(tokenizer: PreTrainedTokenizerBase) -> dict[int, str]:
    """Find the special tokens of which markers consist, and which decoding must keep: id → content."""
    known = markers(tokenizer)
    if known is None:
        return {}
    joined = "".join(known.all)
    return {
        index: token.content
        for index, token in tokenizer.added_tokens_decoder.items()
        if token.special and token.content in joined
    }


def without_thoughts(
    generation: Generation, tokenizer: PreTrainedTokenizerBase, *, opened: bool
) -> Generation:
    """Part the thoughts from an answer.

    Args:
        generation: as a backend gives it.
        tokenizer: the backbone's.
        opened: whether the prompt ends within thoughts.
    """
    known = markers(tokenizer)
    if known is None:
        return generation
    thoughts, answer = known.split(generation.text, opened=opened)
    return replace(generation, text=answer, reasoning=thoughts)


def part_stream(stream: Stream, tokenizer: PreTrainedTokenizerBase, *, opened: bool) -> Stream:
    """Part thoughts from an answer that is being written; they come as `Thought`."""
    known = markers(tokenizer)
    return stream if known is None else Stream(_parted(stream, known, tokenizer, opened))


def _parted(
    stream: Stream, known: Markers, tokenizer: PreTrainedTokenizerBase, opened: bool
) -> Generator[str | Generation, None, None]:
    text = ""
    shown = {Thought: "", str: ""}

    def new(thoughts: str | None, answer: str) -> Iterator[str]:
        for kind, now in ((Thought, thoughts or ""), (str, answer)):
            if len(now) > len(shown[kind]) and now.startswith(shown[kind]):
                yield kind(now[len(shown[kind]) :])
                shown[kind] = now

    try:
        for piece in stream:
            text += piece
            settled = text[: len(text) - known.unsettled(text)]
            # White space may be what stands before a marker.
            if settled.strip():
                yield from new(*known.split(settled.rstrip(), opened=opened))
        generation = without_thoughts(stream.generation, tokenizer, opened=opened)
        yield from new(generation.reasoning, generation.text)
        yield generation
    finally:
        stream.close()


def _find(tokenizer: PreTrainedTokenizerBase) -> Markers | None:
    try:
        return _written(tokenizer) or _named(tokenizer)
    except PromptError:
        return None


def _written(tokenizer: PreTrainedTokenizerBase) -> Markers | None:
    """Let the template write an answer with thoughts, and take the markers around them."""
    thoughts, content = (f"probe{secrets.token_hex(16)}" for _ in range(2))
    switch = thinking_switch(tokenizer, on=True)
    turn = tried(tokenizer, switch, {"content": content, "reasoning_content": thoughts}) or ""
    if turn.count(thoughts) != 1 or turn.find(content) < turn.find(thoughts):
        return None
    before, _, rest = turn.partition(thoughts)
    closing, _, tail = rest.partition(content)
    begun = tried(tokenizer, switch) or ""
    opening = before[len(begun) :] if before.startswith(begun) else ""
    if not opening.strip():  # the prompt ends with it
        tag = _TAG.search(before)
        opening = tag[0] if tag else ""
    plain = tried(tokenizer, switch, {"content": content}) or ""
    answer = plain[len(begun) :].partition(content)[0] if plain.startswith(begun) else ""
    if not closing.strip() or not opening.strip():
        return None
    # An answer that begins with empty thoughts needs no marker of its own.
    answer = "" if opening.strip() in answer or closing.strip() in answer else answer
    endings = tuple(_WORD_TAG.findall(tail)) if _WORD_TAG.search(closing) else ()
    return Markers(opening.strip(), closing.strip(), answer.strip(), closing, endings)


def _named(tokenizer: PreTrainedTokenizerBase) -> Markers | None:
    """Take the markers that the template's text or the tokenizer's added tokens name."""
    added = (token.content for token in tokenizer.added_tokens_decoder.values())
    text = template_text(tokenizer)
    wrapped = _WRAPPED.search(text)
    endings = (f"<{wrapped[1]}>", f"</{wrapped[1]}>") if wrapped else ()
    for named in (text, *added):
        for close, begin in _SHAPES:
            if found := close.search(named):
                opening = found.expand(begin)
                # Small models' templates have the first marker, but not the word behind it.
                if begin != _SHAPES[-1][1] or opening.removesuffix("thought") in text:
                    closing = _closing(tokenizer, found[0])
                    return Markers(opening, found[0], closing=closing, endings=endings)
    return None


def _closing(tokenizer: PreTrainedTokenizerBase, close: str) -> str:
    """Take what the template writes before an answer without thoughts for the end of thoughts, if it has their marker; else the usual."""
    content = f"probe{secrets.token_hex(16)}"
    turn = tried(tokenizer, thinking_switch(tokenizer, on=True), {"content": content}) or ""
    written = re.search(rf"(\n?{re.escape(close)}\n*)\s*{content}", turn)
    return written[1] if written else f"\n{close}\n\n"
