"""Prompt → token ids and the slot's position among them.

The joined text is tokenised once, by the tokenizer's own pipeline, and split at the slot's character. Only where user text
holds a control string is it tokenised again, by a sealed copy of the tokenizer whose control tokens go by secret names; the
template's own control strings are replaced by these names before. So user text can't name one, and everything else
(normalisation, spaces in front, merges) happens as it does in the original.
"""

from __future__ import annotations

import secrets
import warnings
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

from tokenizers import Encoding, Tokenizer

from spring_rag.control import ControlTokens, control_of
from spring_rag.errors import PromptError
from spring_rag.prompt import Part, Prompt, RagPrompt, RagTemplate, Slot, Text, as_prompt
from spring_rag.reasoning import markers, opens_thoughts, quieting_word
from spring_rag.rendering import Range, Rendered, render
from spring_rag.templates import apply_template, template_arguments

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Texts that an answer may continue; the first is how the authors' prompts end.
_ANCHORS = (":", "\n", "a")

_warned: WeakSet[PreTrainedTokenizerBase] = WeakSet()


@dataclass(frozen=True)
class Encoded:
    """A tokenised prompt.

    Args:
        ids: of the plain prompt; nothing in them stands for the slot.
        slot: index into `ids` of the token that the virtual tokens stand before (`len(ids)`: they stand last), or None.
        thinking: whether it ends within thoughts, so that they are what comes first.
    """

    ids: tuple[int, ...]
    slot: int | None
    thinking: bool = False

    @property
    def context_ids(self) -> tuple[int, ...]:
        """The ids before the slot; all of them if there is none."""
        return self.ids[: self.slot]

    @property
    def suffix_ids(self) -> tuple[int, ...]:
        """The ids after the slot; empty if there is none."""
        return self.ids[self.slot :] if self.slot is not None else ()


def encode(prompt: Prompt | RagPrompt | str, tokenizer: PreTrainedTokenizerBase) -> Encoded:
    """Tokenise a prompt.

    If user text holds no control string, the ids are those of `tokenizer(text)`, or of `apply_chat_template` with a generation
    prompt. A control string in user text becomes ordinary tokens. Where a token straddles the slot, the slot moves left to the
    token's start. The tokenizer isn't changed.

    Args:
        prompt: a `str` is user text without a slot.
        tokenizer: a fast one (transformers 5 loads nearly all as such, Llama's sentencepiece models too).

    Raises:
        PromptError: the tokenizer is a slow one; the chat template refuses the messages; the text is no valid Unicode.
    """
    rendered = render(as_prompt(prompt), tokenizer)
    encoded = _encode(rendered, control_of(tokenizer), add_special_tokens=not rendered.chat)
    trusted_from = rendered.untrusted[-1][1] if rendered.untrusted else 0
    return replace(encoded, thinking=opens_thoughts(rendered.text[trusted_from:], tokenizer))


def encode_target(
    answer: str,
    tokenizer: PreTrainedTokenizerBase,
    *,
    chat: bool = False,
    thinking: bool | None = False,
    chat_template_kwargs: Mapping[str, Any] | None = None,
) -> tuple[int, ...]:
    """Tokenise an answer as the continuation of a prompt that a model is to learn.

    After a text prompt that is `" " + answer` and the end-of-sequence id. After a chat prompt it is what the chat template writes
    between the generation prompt and the end of the assistant's turn: what ends the thoughts that the prompt began or names the
    answer's channel, the answer with the whitespace around it, and the control token that ends the turn. (Thoughts that need not
    be there, as Qwen3's empty `<think>` block, are left out: the tokens are trained to answer at once.)

    Args:
        answer: verbatim; control strings in it are ordinary text.
        tokenizer: a fast one.
        chat: whether the prompt is a chat.
        thinking: as the chat prompt has it.
        chat_template_kwargs: as the chat prompt has them.

    Raises:
        PromptError: the tokenizer has no end-of-sequence token; or `chat` without a chat template.
    """
    control = control_of(tokenizer)
    if chat:
        template = RagTemplate(thinking=thinking, chat_template_kwargs=chat_template_kwargs or {})
        before, lead, end = _assistant_turn(tokenizer, control, template)
        parts = (Text(lead, trusted=True), Text(answer), Text(end, trusted=True))
        ids = _continue((before, *_ANCHORS), parts, tokenizer, control)
        if end:
            return ids
    else:
        ids = _continue(_ANCHORS, (Text(" " + answer),), tokenizer, control)
    if tokenizer.eos_token_id is None:
        msg = "the tokenizer has no end-of-sequence token, which ends every answer in training; set tokenizer.eos_token"
        raise PromptError(msg)
    return (*ids, int(tokenizer.eos_token_id))


def warn_of_control_strings(text: str, tokenizer: PreTrainedTokenizerBase) -> None:
    """Warn, once per tokenizer, that control strings in a ready-made text are read as ordinary text."""
    if tokenizer in _warned:
        return
    strings = control_of(tokenizer).strings.values()
    # Some tokenizers have words and runs of spaces among their added tokens, which nobody writes to control anything.
    found = sorted({each for each in strings if each in text and each.strip() and not each.isalnum()})
    if found:
        _warned.add(tokenizer)
        msg = (
            f"a ready-made text holds {', '.join(found)}: ordinary text here, since a document or a question may have brought it. Where a "
            "template wrote it, let the tokenizer's own chat template lay the chat out (a RagTemplate with chat=True, or a chat model), "
            "or mark it as trusted: Prompt(parts=(Text(…, trusted=True), …))"
        )
        warnings.warn(msg, stacklevel=4)


def _encode(rendered: Rendered, control: ControlTokens, *, add_special_tokens: bool) -> Encoded:
    backend = control.plain
    encoding = backend.encode(rendered.text, add_special_tokens=add_special_tokens)
    if _forged(encoding, rendered, control):
        rendered = _with_secret_names(rendered, control)
        backend = control.sealed
        encoding = backend.encode(rendered.text, add_special_tokens=add_special_tokens)
        if _forged(encoding, rendered, control, sealed=True):
            msg = (
                "a text holds a control string that this tokenizer can't encode as ordinary text; take it out"
            )
            raise PromptError(msg)
    slot = _position(encoding, rendered.slot, backend) if rendered.slot is not None else None
    return Encoded(tuple(encoding.ids), slot)


def _forged(encoding: Encoding, rendered: Rendered, control: ControlTokens, *, sealed: bool = False) -> bool:
    """Return whether a control token comes from user text, in whole or in part.

    In a sealed encoding the id for unknown characters can't be forged, since no text can spell its secret name.
    """
    ends = [end for _, end in rendered.untrusted]
    for token, (start, end) in control.tokens_in(encoding, rendered.text):
        if sealed and token == control.unknown:
            continue
        following = bisect_right(ends, start)
        if following < len(ends) and rendered.untrusted[following][0] < end:
            return True
    return False


def _with_secret_names(rendered: Rendered, control: ControlTokens) -> Rendered:
    """Replace the template's own control strings by their secret names."""
    edges = [0, *(edge for each in rendered.untrusted for edge in each), len(rendered.text)]
    replaced: list[tuple[Range, str]] = []
    for start, end in zip(edges[::2], edges[1::2], strict=True):
        piece = rendered.text[start:end]
        for token, (first, last) in control.tokens_in(
            control.plain.encode(piece, add_special_tokens=False), piece
        ):
            replaced.append(((start + first, start + last), control.names[token]))
    text, done = "", 0
    for (start, end), name in replaced:
        text += rendered.text[done:start] + name
        done = end
    text += rendered.text[done:]

    def shift(position: int) -> int:
        grown = 0
        for (start, end), name in replaced:
            if end <= position:
                grown += len(name) - (end - start)
            elif start < position:
                return start + grown
        return position + grown

    untrusted = tuple((shift(start), shift(end)) for start, end in rendered.untrusted)
    slot = shift(rendered.slot) if rendered.slot is not None else None
    return replace(rendered, text=text, untrusted=untrusted, slot=slot)


def _position(encoding: Encoding, offset: int, backend: Tokenizer) -> int:
    """Return the index of the first token that ends after a character offset, past the special tokens at the text's start."""
    position = None
    for index, ((start, end), sequence) in enumerate(
        zip(encoding.offsets, encoding.sequence_ids, strict=True)
    ):
        if sequence is None:
            continue
        # A token that covers no characters is a space that the tokenizer put in front of the next one.
        if end > offset or start >= offset:
            return index
        position = index + 1
    if position is not None:
        return position
    # Without any text, the slot stands between the special tokens that open and those that close the prompt.
    return backend.encode("a").sequence_ids.index(0) if encoding.ids else 0


def _continue(
    anchors: Sequence[str], parts: Sequence[Text], tokenizer: PreTrainedTokenizerBase, control: ControlTokens
) -> tuple[int, ...]:
    """Tokenise a text as the continuation of another, without what the tokenizer puts in front of a text that stands alone.

    The first anchor is taken that doesn't grow into a token with the text's start.
    """
    for anchor in anchors:
        begun: tuple[Part, ...] = (Text(anchor, trusted=True), Slot())
        alone = _encode(render(Prompt(parts=begun), tokenizer), control, add_special_tokens=False)
        joined = _encode(render(Prompt(parts=(*begun, *parts)), tokenizer), control, add_special_tokens=False)
        if joined.context_ids == alone.context_ids:
            return joined.suffix_ids
    return _encode(render(Prompt(parts=tuple(parts)), tokenizer), control, add_special_tokens=False).ids


def _assistant_turn(
    tokenizer: PreTrainedTokenizerBase, control: ControlTokens, template: RagTemplate
) -> tuple[str, str, str]:
    """Find what the chat template writes around an answer: a minimal chat up to it, what leads to the answer, and what ends it.

    The end is empty if no control token is in it.
    """
    probe = f"probe{secrets.token_hex(16)}"
    arguments, word = template_arguments(template, tokenizer), quieting_word(template, tokenizer)
    chat = [{"role": "system", "content": word}] if word else []
    chat.append({"role": "user", "content": "a"})
    before = apply_template(chat, tokenizer, arguments, add_generation_prompt=True)
    chat.append({"role": "assistant", "content": probe})
    turn = apply_template(chat, tokenizer, arguments, add_generation_prompt=False)
    header, _, tail = turn.rpartition(probe)
    lead = header.removeprefix(before) if header.startswith(before) else ""
    known = markers(tokenizer)
    if known is not None and opens_thoughts(before, tokenizer):
        lead = lead if known.close in lead else known.closing
    elif lead.strip() and not (known is not None and known.answer and lead.strip() == known.answer):
        lead = ""
    endings = [each for each in known.endings if each in tail] if known is not None else []
    written = max((tail.index(each) + len(each) for each in endings), default=0)
    controls = control.tokens_in(control.plain.encode(tail, add_special_tokens=False), tail)
    ends = [end for _, (_, end) in controls if end > written]
    return before, lead, tail[: ends[0]] if header and ends else ""
