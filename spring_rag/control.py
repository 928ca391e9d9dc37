"""The control tokens of a tokenizer, and a sealed copy of it in which no text can spell them."""

from __future__ import annotations

import json
import secrets
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from tokenizers import Encoding, Tokenizer

from spring_rag.errors import PromptError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_known: WeakKeyDictionary[PreTrainedTokenizerBase, tuple[tuple[object, ...], ControlTokens]] = (
    WeakKeyDictionary()
)


def control_ids(tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Return the ids that user text must not produce: every added or special token.

    Added tokens that aren't special and hold nothing but whitespace are no control tokens: GPT-NeoX and Gemma write runs of spaces and
    line breaks with them, in any text.

    Raises:
        PromptError: the tokenizer is a slow one.
    """
    return frozenset(control_of(tokenizer).strings)


def control_of(tokenizer: PreTrainedTokenizerBase) -> ControlTokens:
    """Return the control tokens of a tokenizer, and find them anew once tokens were added to it.

    Raises:
        PromptError: the tokenizer is a slow one.
    """
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
    cached = _known.get(tokenizer)
    if cached is None or cached[0] != key:
        cached = key, ControlTokens(backend, tokenizer.all_special_ids, split_special_tokens=split)
        _known[tokenizer] = cached
    return cached[1]


class ControlTokens:
    """The control tokens of one tokenizer, to which it holds no reference, so that it can be cached with it.

    Attributes:
        strings: id → content of each control token.
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
        self.strings = {i: added[i].content if i in added else backend.id_to_token(i) or "" for i in ids}
        secret = secrets.token_hex(16)
        self.names = {i: f"\U000f0000{secret}.{i}\U000f0001" for i in self.strings}
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
            if token["id"] in self.strings:
                token.update(content=self.names[token["id"]], normalized=False)
        # Every added token gets a place in the vocabulary; a loaded tokenizer would give those without one the next free ids.
        _rename_vocabulary(
            state["model"], {token["id"]: token["content"] for token in state["added_tokens"]} | self.names
        )
        return Tokenizer.from_str(json.dumps(state))

    def tokens_in(self, encoding: Encoding, text: str) -> list[tuple[int, tuple[int, int]]]:
        """Find the control tokens in a text, each with the range of its control string.

        The range leaves out the whitespace around the string: `<|end|>` of Phi-3 swallows the line break that follows, though a user wrote it.
        """
        found = []
        offsets, sequences = encoding.offsets, encoding.sequence_ids
        for index, token in enumerate(encoding.ids):
            if token not in self.strings or sequences[index] is None:
                continue
            start, end = offsets[index]
            string = text[start:end].strip() or text[start:end]
            if token == self.unknown and string.casefold() != self.strings[token].casefold():
                continue
            start = text.index(string, start)
            found.append((token, (start, start + len(string))))
        return found

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


def _unknown_id(backend: Tokenizer) -> int | None:
    try:
        tokens = backend.model.tokenize("\U0010fffd")  # a character without meaning, which no vocabulary has
    except Exception:  # the model has no such id, and the tokenizers library raises nothing more specific
        return None
    return tokens[0].id if len(tokens) == 1 else None


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
