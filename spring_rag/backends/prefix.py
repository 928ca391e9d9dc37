"""Contexts that several rows of one batch have in common, computed once.

The context stands before the slot and attention is causal, so its keys and values depend neither on the set of virtual tokens
nor on k. They are computed once per distinct context and copied to each of its rows. Every row keeps the layout that it has without
this: padded on the left, so that what counts columns instead of positions (sliding windows, ALiBi) sees nothing new.

Reading them in place instead (bifurcated attention, arXiv 2403.08845) needs an attention function of its own, and brings little: on
SmolLM2-135M, six k on five passages, copies took 1.09 times its processor time with answers of 16 tokens and 0.86 times with 48.
"""

import inspect
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from spring_rag.encoding import Encoded
from spring_rag.limits import longest_decides_positions
from spring_rag.splice import InputEmbedding, splice_batch

_LEAST_SHARE, _LEAST_COLUMNS = 0.25, 256
"""What sharing must save of the columns computed otherwise: with less, passing the model more often costs what is saved."""

_ALIKE, _SHORT = 1.5, 16
"""Rows are read together up to this ratio of their lengths from the slot on, and whatever the ratio up to this length."""

_BRIEF = 16
"""Up to so many tokens no answer is worth a pass of its own."""

_ROOM = 32
"""Columns by which a cache grows at a time."""


@dataclass(frozen=True, slots=True)
class Part:
    """Rows of a batch that are decoded together.

    Attributes:
        rows: their numbers in the batch.
        cache: the first columns of their prompts, padded on the left; None where the whole batch is to be computed.
    """

    rows: tuple[int, ...]
    cache: DynamicCache | None = None


def parts(
    model: PreTrainedModel,
    embedding: InputEmbedding,
    encoded: Sequence[Encoded],
    rows: Sequence[Tensor],
    max_new_tokens: int,
    choosing: Collection[int] = (),
) -> Iterator[Part]:
    """Divide a batch into what is decoded together, the contexts that rows share computed once.

    Prompts without virtual tokens come apart from those with, unless all answers are brief: the plain backbone's are longer, and in a batch
    all wait for the longest. The whole batch is one part, without a cache, where sharing saves too little or isn't possible with this backbone.

    Args:
        model: the backbone, with dropout off; gradients must be off too.
        embedding: of the backbone.
        encoded: the batch's prompts.
        rows: the virtual tokens of each, shape `[k, hidden_size]`.
        max_new_tokens: most tokens of an answer.
        choosing: rows that write nothing, and so make parts of their own.
    """
    prompts = [_Prompt(one, virtual) for one, virtual in zip(encoded, rows, strict=True)]
    contexts = list(dict.fromkeys(one.context_ids for one in encoded))
    brief = max_new_tokens <= _BRIEF
    written = [row for row in range(len(rows)) if row not in choosing]
    plain = [row for row in written if not len(rows[row]) and not brief]
    others = [row for row in written if len(rows[row]) or brief]
    groups = [_alike(prompts, some) for some in (plain, others, sorted(choosing)) if some]
    states = None
    if _worthwhile(contexts, prompts, groups) and _possible(model):
        states = _keys_and_values(model, embedding, contexts)
    if states is None:
        yield from (Part(tuple(some)) for some in (written, sorted(choosing)) if some)
        return
    numbers = {context: number for number, context in enumerate(contexts)}
    which = [numbers[one.context_ids] for one in encoded]
    for some in groups:
        every = tuple(row for group in some for row in group)
        new = min(max_new_tokens, _ROOM)
        yield Part(every, _cache(model, embedding, prompts, which, some, states, new))


@dataclass(frozen=True, slots=True)
class _Prompt:
    """A prompt with the virtual tokens that go into its slot; `tail` counts the tokens from the slot on, at least one."""

    encoded: Encoded
    virtual: Tensor

    @property
    def length(self) -> int:
        return len(self.encoded.ids) + len(self.virtual)

    @property
    def tail(self) -> int:
        return max(1, self.length - len(self.encoded.context_ids))


def _alike(prompts: Sequence[_Prompt], rows: Sequence[int]) -> list[list[int]]:
    """Rows with tails of about one length, longest first, so that little padding is computed between contexts and answers."""
    groups: list[list[int]] = []
    for row in sorted(rows, key=lambda row: -prompts[row].tail):
        if groups and prompts[groups[-1][0]].tail <= max(_SHORT, _ALIKE * prompts[row].tail):
            groups[-1].append(row)
        else:
            groups.append([row])
    return groups


def _worthwhile(
    contexts: Sequence[tuple[int, ...]], prompts: Sequence[_Prompt], groups: Sequence[Sequence[Sequence[int]]]
) -> bool:
    prefill = len(contexts) * max(map(len, contexts))
    tails = sum(len(group) * prompts[group[0]].tail for some in groups for group in some)
    otherwise = len(prompts) * max(prompt.length for prompt in prompts)
    return otherwise - prefill - tails >= max(_LEAST_SHARE * otherwise, _LEAST_COLUMNS)


def _possible(model: PreTrainedModel) -> bool:
    """Whether a token's keys and values are all that later tokens need of it, and stay as they are."""
    own = model.generation_config
    if own is not None and (own.cache_implementation or own.prefill_chunk_size):
        return False  # another kind of cache, or another way to fill it, is asked for
    if longest_decides_positions(model.config):
        return False  # a token's key depends on how many tokens follow it
    kinds = {type(layer) for layer in DynamicCache(config=model.config).layers}
    return bool(kinds) and kinds <= {DynamicLayer, DynamicSlidingWindowLayer}


def _keys_and_values(
    model: PreTrainedModel, embedding: InputEmbedding, contexts: Sequence[tuple[int, ...]]
) -> list[tuple[Tensor, Tensor]] | None:
    """Per layer, shapes `[contexts, heads, width, head_dim]`; a shorter context's last columns hold nothing of use.

    None if the backbone didn't fill the cache as one of keys and values. Layers with a sliding window keep all columns, too.
    """
    width = max(map(len, contexts))
    if width == 0 or max(map(max, filter(None, contexts))) >= embedding.vocab_size:
        return None  # nothing to share, or an id that `splice_batch` refuses with a word about why
    ids = torch.tensor([[*context, *[0] * (width - len(context))] for context in contexts])
    # Causality alone keeps padding on the right apart; without a mask attention is faster.
    keep = {"logits_to_keep": 1} if "logits_to_keep" in inspect.signature(model.forward).parameters else {}
    cache = DynamicCache()
    model(inputs_embeds=embedding.embed(ids), past_key_values=cache, use_cache=True, **keep)
    states = [(layer.keys, layer.values) for layer in _layers(cache)]
    filled = all(
        one is not None and one.dim() == 4 and one.shape[:3:2] == (len(contexts), width)
        for pair in states
        for one in pair
    )
    expected = len(DynamicCache(config=model.config).layers)
    return cast(list[tuple[Tensor, Tensor]], states) if filled and len(states) == expected else None


def _cache(
    model: PreTrainedModel,
    embedding: InputEmbedding,
    prompts: Sequence[_Prompt],
    which: Sequence[int],
    groups: Sequence[Sequence[int]],
    states: Sequence[tuple[Tensor, Tensor]],
    new: int,
) -> DynamicCache:
    """The first columns of the rows of all groups, with room for all others and `new` more; all but the last one where there are several groups.

    Every row ends in the last column. A group's rows get the columns that all of them have in their contexts; of several groups each is then
    read up to the last column, so that little is computed for padding, and they are decoded together.
    """
    width = max(prompts[row].length for group in groups for row in group)
    whole = DynamicCache(config=model.config)
    rooms = [
        _room(pair, sum(map(len, groups)), width + new) if type(layer) is DynamicLayer else None
        for layer, pair in zip(_layers(whole), states, strict=True)
    ]
    caches: list[DynamicCache] = []
    start = 0
    for group in groups:
        columns, end = width - prompts[group[0]].tail, start + len(group)
        padding = [width - prompts[row].length for row in group]
        cache = DynamicCache(config=model.config)
        for number, (room, pair) in enumerate(zip(rooms, states, strict=True)):
            into = (
                _room(pair, len(group), columns) if room is None else (room[0][start:end], room[1][start:end])
            )
            for contexts, copy in zip(pair, into, strict=True):
                _copy([which[row] for row in group], padding, columns, contexts, copy)
            if room is not None:
                cache.layers[number] = RoomyLayer(*into, held=columns)
            elif columns:
                _layers(cache)[number].update(*into)
        if len(groups) > 1:
            _read(model, embedding, [prompts[row] for row in group], cache, columns, width - 1)
        caches.append(cache)
        start = end
    for number, room in enumerate(rooms):
        layers = [_layers(cache)[number] for cache in caches]
        if room is not None:
            whole.layers[number] = RoomyLayer(*room, held=layers[0].get_seq_length())
        else:
            whole.layers[number] = _joined(layers)
    return whole


def _room(pair: tuple[Tensor, Tensor], rows: int, columns: int) -> tuple[Tensor, Tensor]:
    """Empty tensors for the keys and values of so many rows."""
    keys, values = (one.new_empty(rows, one.shape[1], columns, one.shape[3]) for one in pair)
    return keys, values


def _joined(layers: Sequence[DynamicLayer]) -> DynamicLayer:
    """One layer with the rows of several."""
    whole = layers[0]
    if len(layers) > 1:
        whole.keys = torch.cat([cast(Tensor, one.keys) for one in layers])
        whole.values = torch.cat([cast(Tensor, one.values) for one in layers])
    return whole


def _copy(which: Sequence[int], padding: Sequence[int], columns: int, contexts: Tensor, into: Tensor) -> None:
    """Write for each row its padding, and then the beginning of the context with its number, `columns` in all."""
    for row, (context, empty) in enumerate(zip(which, padding, strict=True)):
        first = min(columns, empty)
        # The mask hides padding, but what isn't a number would spoil even a weight of zero.
        into[row, :, :first] = 0
        into[row, :, first:columns] = contexts[context, :, : columns - first]


class RoomyLayer(DynamicLayer):
    """Keys and values that grow in place; a plain layer copies all that it holds for every new token.

    Args:
        keys: shape `[B, heads, columns, head_dim]`.
        values: the same.
        held: how many of the columns are filled.
    """

    def __init__(self, keys: Tensor, values: Tensor, held: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.dtype, self.device, self.is_initialized = keys.dtype, keys.device, True
        self._rooms = keys, values
        self.keys, self.values = keys[:, :, :held], values[:, :, :held]

    def update(
        self,
        key_states: Tensor,
        value_states: Tensor,
        *args: Any,  # noqa: ARG002
        **kwargs: Any,  # noqa: ARG002
    ) -> tuple[Tensor, Tensor]:
        """Append; shapes `[B, heads, new, head_dim]`. Gives all keys and values."""
        assert self.keys is not None
        assert self.values is not None
        keys, values = (
            _grown(held, room, new)
            for held, room, new in zip(
                (self.keys, self.values), self._rooms, (key_states, value_states), strict=True
            )
        )
        self._rooms = keys, values
        end = self.keys.shape[2] + key_states.shape[2]
        self.keys, self.values = keys[:, :, :end], values[:, :, :end]
        return self.keys, self.values


def _grown(held: Tensor, room: Tensor, new: Tensor) -> Tensor:
    """A tensor that holds what is held and then what is new, with room for more behind: `room`, unless that is full."""
    start = held.shape[2]
    end = start + new.shape[2]
    if room.shape[2] < end:
        room = held.new_empty(*held.shape[:2], end + _ROOM, held.shape[3])
        room[:, :, :start] = held
    room[:, :, start:end] = new
    return room


def _layers(cache: DynamicCache) -> list[DynamicLayer]:
    return cast(list[DynamicLayer], cache.layers)


def _read(
    model: PreTrainedModel,
    embedding: InputEmbedding,
    prompts: Sequence[_Prompt],
    cache: DynamicCache,
    start: int,
    end: int,
) -> None:
    """Add the columns from `start` to `end` to a cache; the one that is left then, the last, `generate` reads."""
    if start == end:
        return
    batch = splice_batch(embedding, [one.encoded for one in prompts], [one.virtual for one in prompts])
    more = end + 1 - batch.inputs_embeds.shape[1]
    names = inspect.signature(model.forward).parameters
    inputs: dict[str, Any] = {
        "position_ids": batch.position_ids[:, start - end - 1 : -1],
        "logits_to_keep": 1,
    }
    model(
        inputs_embeds=batch.inputs_embeds[:, start - end - 1 : -1],
        attention_mask=functional.pad(batch.attention_mask, (more, 0))[:, :-1],
        past_key_values=cache,
        use_cache=True,
        **{name: value for name, value in inputs.items() if name in names},
    )
