"""Prompt → token ids and the slot's position among them.

The joined text is tokenised once, by the tokenizer's own pipeline, and split at the slot's character. Only where user text
holds a control string is it tokenised again, by a sealed copy of the tokenizer whose control tokens go by secret names; the
template's own control strings are replaced by these names before. So user text can't name one, and everything else
(normalisation, spaces in front, merges) happens as it does in the original.
"""

from __future__ import annotations

import json
import secrets
import warnings
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary, WeakSet

from tokenizers import Encoding, Tokenizer

from spring_rag.errors import PromptError
from spring_rag.prompt import Part, Prompt, RagPrompt, RagTemplate, Slot, Text, as_prompt
from spring_rag.reasoning import markers, opens_thoughts, quieting_word
from spring_rag.rendering import Range, Rendered, render
from spring_rag.templates import apply_template, template_arguments

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


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

    Without control strings in user text the ids are those of `tokenizer(text)`, or of `apply_chat_template` with a generation
    prompt. A control string in user text becomes ordinary tokens. Where a token straddles the slot, the slot moves left to the
    token's start. The tokenizer isn't changed.

    Args:
        prompt: a `str` is user text without a slot.
        tokenizer: a fast one (transformers 5 loads nearly all as such, Llama's sentencepiece models too).

    Raises:
        PromptError: the tokenizer is a slow one; the chat template refuses the messages; the text is no valid Unicode.
    """
    rendered = render(as_prompt(prompt), tokenizer)
    encoded = _encode(rendered, _kit(tokenizer), add_special_tokens=not rendered.chat)
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
    kit = _kit(tokenizer)
    if chat:
        template = RagTemplate(thinking=thinking, chat_template_kwargs=chat_template_kwargs or {})
        before, lead, end = _assistant_turn(tokenizer, kit, template)
        parts = (Text(lead, trusted=True), Text(answer), Text(end, trusted=True))
        ids = _continue((before, *_ANCHORS), parts, tokenizer, kit)
        if end:
            return ids
    else:
        ids = _continue(_ANCHORS, (Text(" " + answer),), tokenizer, kit)
    if tokenizer.eos_token_id is None:
        msg = "the tokenizer has no end-of-sequence token, which ends every answer in training; set tokenizer.eos_token"
        raise PromptError(msg)
    return (*ids, int(tokenizer.eos_token_id))


def warn_of_control_strings(text: str, tokenizer: PreTrainedTokenizerBase) -> None:
    """Warn, once per tokenizer, of control strings in a ready-made text, in which they are ordinary text."""
    if tokenizer in _warned:
        return
    strings = _kit(tokenizer).control.values()
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


def control_ids(tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Ids that user text must not produce: every added or special token.

    Added tokens that are neither special nor hold anything but whitespace are none: GPT-NeoX and Gemma write runs of spaces and
    line breaks with them, in any text.

    Raises:
        PromptError: the tokenizer is a slow one.
    """
    return frozenset(_kit(tokenizer).control)


class _Kit:
    """What encoding needs of one tokenizer. It holds no reference to the tokenizer, so that it can be cached with it.

    Attributes:
        control: id → content of each control token.
        names: id → its secret name, which can't be guessed, so no text can hold it.
        unknown: the id that the model itself gives to characters it doesn't know, or None. Such an id isn't forged.
    """

    def __init__(
        self, backend: Tokenizer, special_ids: Sequence[int | None], *, split_special_tokens: bool
    ) -> None:
        self.backend = backend
        self.split_special_tokens = split_special_tokens
        added = backend.get_added_tokens_decoder()
        ids = {i for i, token in added.items() if token.special or token.content.replace("▁", "").strip()}
        ids |= {i for i in special_ids if i is not None}
        self.control = {i: added[i].content if i in added else backend.id_to_token(i) or "" for i in ids}
        secret = secrets.token_hex(16)
        self.names = {i: f"\U000f0000{secret}.{i}\U000f0001" for i in self.control}
        self.unknown = _unknown_id(backend)
        # Such a post-processor takes the whitespace out of the tokens' offsets.
        self._trims = backend.post_processor is not None and b'"trim_offsets":true' in bytes(
            backend.post_processor.__getstate__()
        )

    @property
    def plain(self) -> Tokenizer:
        """The tokenizer as it is; a copy if its state would cut, pad or trim."""
        backend = self.backend
        as_is = backend.encode_special_tokens == self.split_special_tokens and not self._trims
        return backend if as_is and backend.truncation is None and backend.padding is None else self._copy

    @cached_property
    def _copy(self) -> Tokenizer:
        copy = Tokenizer.from_str(json.dumps(self._state()))
        copy.encode_special_tokens = self.split_special_tokens
        return copy

    @cached_property
    def sealed(self) -> Tokenizer:
        """A copy that knows control tokens by their secret names only.

        Not even its vocabulary has the old ones: sentencepiece vocabularies list `</s>`, and may spell it out of text.
        """
        state = self._state()
        for token in state["added_tokens"]:
            if token["id"] in self.control:
                token.update(content=self.names[token["id"]], normalized=False)
        # All of them get a place in the vocabulary, as else a tokenizer that is loaded gives them the next free ids.
        _rename_vocabulary(
            state["model"], {token["id"]: token["content"] for token in state["added_tokens"]} | self.names
        )
        return Tokenizer.from_str(json.dumps(state))

    def _state(self) -> dict[str, Any]:
        try:
            state: dict[str, Any] = json.loads(self.backend.to_str())
        except Exception as error:  # the tokenizers library raises nothing more specific
            msg = f"the tokenizer has parts written in Python, which can't be copied: {error}"
            raise PromptError(msg) from error
        state.update(truncation=None, padding=None)
        post_processor = state["post_processor"] or {}
        for each in (post_processor, *post_processor.get("processors", ())):
            if "trim_offsets" in each:
                each["trim_offsets"] = False
        return state


# Texts that an answer may continue; the first is how the authors' prompts end.
_ANCHORS = (":", "\n", "a")

_warned: WeakSet[PreTrainedTokenizerBase] = WeakSet()
_kits: WeakKeyDictionary[PreTrainedTokenizerBase, tuple[tuple[object, ...], _Kit]] = WeakKeyDictionary()


def _kit(tokenizer: PreTrainedTokenizerBase) -> _Kit:
    """The kit of a tokenizer, made anew when tokens were added to it."""
    if not getattr(tokenizer, "is_fast", False):
        msg = (
            f"{type(tokenizer).__name__} is a slow tokenizer, which doesn't say where its tokens lie in the text; load a fast "
            "one (a folder with tokenizer.json)"
        )
        raise PromptError(msg)
    backend: Tokenizer = tokenizer.backend_tokenizer
    split = bool(getattr(tokenizer, "split_special_tokens", False))
    key = (
        id(backend),
        backend.get_vocab_size(with_added_tokens=True),
        split,
        str(tokenizer.special_tokens_map),
    )
    cached = _kits.get(tokenizer)
    if cached is None or cached[0] != key:
        cached = key, _Kit(backend, tokenizer.all_special_ids, split_special_tokens=split)
        _kits[tokenizer] = cached
    return cached[1]


def _unknown_id(backend: Tokenizer) -> int | None:
    try:
        tokens = backend.model.tokenize("\U0010fffd")  # a character without meaning, which no vocabulary has
    except Exception:  # the model has no such id, and the tokenizers library raises nothing more specific
        return None
    return tokens[0].id if len(tokens) == 1 else None


def _encode(rendered: Rendered, kit: _Kit, *, add_special_tokens: bool) -> Encoded:
    try:
        rendered.text.encode()
    except UnicodeEncodeError as error:
        msg = f"the prompt holds half a character (a lone surrogate) at character {error.start}; decode the text properly"
        raise PromptError(msg) from error
    backend = kit.plain
    encoding = backend.encode(rendered.text, add_special_tokens=add_special_tokens)
    if _forged(encoding, rendered, kit):
        rendered = _with_secret_names(rendered, kit)
        backend = kit.sealed
        encoding = backend.encode(rendered.text, add_special_tokens=add_special_tokens)
        if _forged(encoding, rendered, kit, sealed=True):
            msg = (
                "a text holds a control string that this tokenizer can't encode as ordinary text; take it out"
            )
            raise PromptError(msg)
    slot = _position(encoding, rendered.slot, backend) if rendered.slot is not None else None
    return Encoded(tuple(encoding.ids), slot)


def _control_tokens(encoding: Encoding, text: str, kit: _Kit) -> list[tuple[int, Range]]:
    """The control tokens that stand in a text, each with the range of its control string.

    Without the whitespace around it: `<|end|>` of Phi-3 swallows the line break that follows, though a user wrote it.
    """
    found = []
    offsets, sequences = encoding.offsets, encoding.sequence_ids
    for index, token in enumerate(encoding.ids):
        if token not in kit.control or sequences[index] is None:
            continue
        start, end = offsets[index]
        string = text[start:end].strip() or text[start:end]
        if token == kit.unknown and string.casefold() != kit.control[token].casefold():
            continue
        start = text.index(string, start)
        found.append((token, (start, start + len(string))))
    return found


def _forged(encoding: Encoding, rendered: Rendered, kit: _Kit, *, sealed: bool = False) -> bool:
    """Whether a control token comes from user text, in whole or in part.

    In a sealed encoding the model's id for the unknown is only that: it has lost its name.
    """
    ends = [end for _, end in rendered.untrusted]
    for token, (start, end) in _control_tokens(encoding, rendered.text, kit):
        if sealed and token == kit.unknown:
            continue
        following = bisect_right(ends, start)
        if following < len(ends) and rendered.untrusted[following][0] < end:
            return True
    return False


def _with_secret_names(rendered: Rendered, kit: _Kit) -> Rendered:
    """The text with the template's own control strings replaced by their secret names."""
    edges = [0, *(edge for each in rendered.untrusted for edge in each), len(rendered.text)]
    replaced: list[tuple[Range, str]] = []
    for start, end in zip(edges[::2], edges[1::2], strict=True):
        piece = rendered.text[start:end]
        for token, (first, last) in _control_tokens(
            kit.plain.encode(piece, add_special_tokens=False), piece, kit
        ):
            replaced.append(((start + first, start + last), kit.names[token]))
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


def _rename_vocabulary(model: dict[str, Any], names: dict[int, str]) -> None:
    """Give entries of a serialised model's vocabulary other names, and take out the merges that lead to them.

    An id beyond the vocabulary is added to it.
    """
    vocabulary = model["vocab"]
    if isinstance(vocabulary, list):  # Unigram: an entry's place is its id
        for index in range(len(vocabulary), max(names, default=-1) + 1):
            vocabulary.append([names.get(index, f"\U000f0000{secrets.token_hex(16)}\U000f0001"), 0.0])
        for index, name in names.items():
            vocabulary[index][0] = name
        return
    old = {entry for entry, index in vocabulary.items() if names.get(index, entry) != entry}
    unknown = vocabulary.get(model.get("unk_token"))
    model["vocab"] = {names.get(index, entry): index for entry, index in vocabulary.items()}
    model["vocab"].update((name, index) for index, name in names.items())
    if unknown in names:
        model["unk_token"] = names[unknown]
    if "merges" in model:
        prefix = len(model.get("continuing_subword_prefix") or "")
        model["merges"] = [
            [left, right]
            for left, right in (
                merge.split(" ", 1) if isinstance(merge, str) else merge for merge in model["merges"]
            )
            if old.isdisjoint((left, right, left + right[prefix:]))
        ]


def _position(encoding: Encoding, offset: int, backend: Tokenizer) -> int:
    """Index of the first token that ends after a character offset, past the special tokens at the text's start."""
    position = None
    for index, ((start, end), sequence) in enumerate(
        zip(encoding.offsets, encoding.sequence_ids, strict=True)
    ):
        if sequence is None:
            continue
        # A token without characters is a space that the tokenizer put in front of what follows.
        if end > offset or start >= offset:
            return index
        position = index + 1
    if position is not None:
        return position
    # No text at all: special tokens may stand before and after where it would be.
    return backend.encode("a").sequence_ids.index(0) if encoding.ids else 0


def _continue(
    anchors: Sequence[str], parts: Sequence[Text], tokenizer: PreTrainedTokenizerBase, kit: _Kit
) -> tuple[int, ...]:
    """Ids of a text that continues another, so without what a tokenizer puts in front of a text of its own.

    The first anchor is taken that doesn't grow into a token with the text's start.
    """
    for anchor in anchors:
        begun: tuple[Part, ...] = (Text(anchor, trusted=True), Slot())
        alone = _encode(render(Prompt(parts=begun), tokenizer), kit, add_special_tokens=False)
        joined = _encode(render(Prompt(parts=(*begun, *parts)), tokenizer), kit, add_special_tokens=False)
        if joined.context_ids == alone.context_ids:
            return joined.suffix_ids
    return _encode(render(Prompt(parts=tuple(parts)), tokenizer), kit, add_special_tokens=False).ids


def _assistant_turn(
    tokenizer: PreTrainedTokenizerBase, kit: _Kit, template: RagTemplate
) -> tuple[str, str, str]:
    """What the chat template writes around an answer: a minimal chat up to it, what leads to the answer, and what ends it.

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
    written = len("".join(known.endings)) if known is not None else 0
    controls = _control_tokens(kit.plain.encode(tail, add_special_tokens=False), tail, kit)
    ends = [end for _, (_, end) in controls if end > written]
    return before, lead, tail[: ends[0]] if header and ends else ""
