"""Contexts that several rows of one batch have in common, computed once.

The context stands before the slot and attention is causal, so its keys and values depend neither on the set of virtual tokens
nor on k. They are computed once per distinct context and copied to each row in the layout that the row has without this:
padded on the left, so that what counts columns instead of positions (sliding windows, ALiBi) sees nothing new.
"""

import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from spring_rag.backends.gathering import longest_decides_positions
from spring_rag.encoding import Encoded
from spring_rag.splice import InputEmbedding, SplicedBatch, splice_batch

_LEAST_SHARE, _LEAST_COLUMNS = 0.25, 256
"""What sharing must save of the columns computed otherwise: with less, passing the model more often costs what is saved."""

_ALIKE, _SHORT = 1.5, 16
"""Rows are read together up to this ratio of their lengths from the slot on, and whatever the ratio up to this length."""

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
    model: PreTrainedModel, embedding: InputEmbedding, encoded: Sequence[Encoded], rows: Sequence[Tensor]
) -> Iterator[Part]:
    """Divide a batch into what is decoded together, the contexts that rows share computed once.

    Prompts without virtual tokens come apart from those with: the plain backbone's answers are longer, and in a batch all wait for the
    longest. The whole batch is one part, without a cache, where sharing saves too little or isn't possible with this backbone.

    Args:
        model: the backbone, with dropout off; gradients must be off too.
        embedding: of the backbone.
        encoded: the batch's prompts.
        rows: the virtual tokens of each, shape `[k, hidden_size]`.
    """
    virtual = [len(one) for one in rows]
    layouts = [_layout(encoded, virtual, some) for some in _plain_and_others(virtual)]
    contexts = list(dict.fromkeys(prompt.context_ids for prompt in encoded))
    states = None
    if _worthwhile(contexts, layouts, _layout(encoded, virtual, range(len(encoded)))) and _possible(model):
        states = _keys_and_values(model, embedding, contexts)
    if states is None:
        yield Part(tuple(range(len(encoded))))
        return
    numbers = {context: number for number, context in enumerate(contexts)}
    for layout in layouts:
        alike = [_layout(encoded, virtual, some) for some in _alike(encoded, virtual, layout.rows)]
        caches = []
        for one in alike:
            which = [numbers[encoded[row].context_ids] for row in one.rows]
            caches.append(_cache(model, states, which, one))
        if len(alike) == 1:
            yield Part(layout.rows, caches[0])
            continue
        for one, cache in zip(alike, caches, strict=True):
            batch = splice_batch(
                embedding, [encoded[row] for row in one.rows], [rows[row] for row in one.rows]
            )
            _read(model, batch, one.cached, cache)
        yield Part(tuple(row for one in alike for row in one.rows), _stacked(model, caches))


@dataclass(frozen=True, slots=True)
class _Layout:
    """How rows stand in a batch: `lengths` of their prompts, virtual tokens included, and the columns that a cache may hold."""

    rows: tuple[int, ...]
    lengths: tuple[int, ...]
    cached: int

    @property
    def width(self) -> int:
        return max(self.lengths)


def _layout(encoded: Sequence[Encoded], virtual: Sequence[int], rows: Sequence[int]) -> _Layout:
    lengths = tuple(len(encoded[row].ids) + virtual[row] for row in rows)
    contexts = (len(encoded[row].context_ids) for row in rows)
    # The longest row from its slot on; one column at least is left, which tells the first token of the answer.
    tail = max(1, *(length - context for length, context in zip(lengths, contexts, strict=True)))
    return _Layout(tuple(rows), lengths, max(lengths) - tail)


def _plain_and_others(virtual: Sequence[int]) -> list[list[int]]:
    groups = [[row for row, k in enumerate(virtual) if k == 0], [row for row, k in enumerate(virtual) if k]]
    return [rows for rows in groups if rows]


def _alike(encoded: Sequence[Encoded], virtual: Sequence[int], rows: Sequence[int]) -> list[list[int]]:
    """Rows with about as many tokens from their slots on, so that little padding is computed between contexts and answers."""
    tails = {row: len(encoded[row].ids) - len(encoded[row].context_ids) + virtual[row] for row in rows}
    groups: list[list[int]] = []
    for row in sorted(rows, key=lambda row: -tails[row]):
        longest = tails[groups[-1][0]] if groups else 0
        if groups and longest <= max(_SHORT, _ALIKE * tails[row]):
            groups[-1].append(row)
        else:
            groups.append([row])
    return groups


def _worthwhile(contexts: Sequence[tuple[int, ...]], layouts: Sequence[_Layout], whole: _Layout) -> bool:
    prefill = len(contexts) * max(map(len, contexts))
    rest = sum(len(part.rows) * (part.width - part.cached) for part in layouts)
    otherwise = len(whole.rows) * whole.width
    return otherwise - prefill - rest >= max(_LEAST_SHARE * otherwise, _LEAST_COLUMNS)


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
    ids = torch.tensor([[*context, *context[:1] * (width - len(context))] for context in contexts])
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
    model: PreTrainedModel, states: Sequence[tuple[Tensor, Tensor]], which: Sequence[int], layout: _Layout
) -> DynamicCache:
    """The first `layout.cached` columns of each row, whose context is number `which`."""
    padding = layout.width - torch.tensor(layout.lengths)
    # What the attention mask hides repeats the first column.
    columns = (torch.arange(layout.cached) - padding[:, None]).clamp(min=0)
    rows = torch.tensor(which)[:, None]
    cache = _empty(model)
    if layout.cached == 0:
        return cache
    for layer, (keys, values) in zip(_layers(cache), states, strict=True):
        at = rows.to(keys.device), columns.to(keys.device)
        layer.update(keys.transpose(1, 2)[at].transpose(1, 2), values.transpose(1, 2)[at].transpose(1, 2))
    return cache


def _read(model: PreTrainedModel, batch: SplicedBatch, cached: int, cache: DynamicCache) -> None:
    """Add all columns of a batch to its cache, of which it holds the first ones, but for the last: that one `generate` reads."""
    last = batch.inputs_embeds.shape[1] - 1
    if cached == last:
        return
    names = inspect.signature(model.forward).parameters
    inputs: dict[str, Any] = {"position_ids": batch.position_ids[:, cached:last], "logits_to_keep": 1}
    model(
        inputs_embeds=batch.inputs_embeds[:, cached:last],
        attention_mask=batch.attention_mask[:, :last],
        past_key_values=cache,
        use_cache=True,
        **{name: value for name, value in inputs.items() if name in names},
    )


def _stacked(model: PreTrainedModel, caches: Sequence[DynamicCache]) -> DynamicCache:
    """The rows of all caches in one, which end together; columns that are added on the left are padding of their rows."""
    width = max(int(cache.get_seq_length()) for cache in caches)
    whole = _empty(model)
    for number, layer in enumerate(_layers(whole)):
        held = [_layers(cache)[number] for cache in caches]
        layer.update(_side_by_side([one.keys for one in held]), _side_by_side([one.values for one in held]))
        if isinstance(layer, DynamicSlidingWindowLayer):
            layer.cumulative_length = width
    return whole


def _side_by_side(states: Sequence[Tensor | None]) -> Tensor:
    found = [one for one in states if one is not None]
    width = max(one.shape[2] for one in found)
    return torch.cat([functional.pad(one, (0, 0, width - one.shape[2], 0)) for one in found])


def _empty(model: PreTrainedModel) -> DynamicCache:
    cache = DynamicCache(config=model.config)
    cache.layers = [RoomyLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache


def _layers(cache: DynamicCache) -> list[DynamicLayer]:
    return cast(list[DynamicLayer], cache.layers)


class RoomyLayer(DynamicLayer):
    """Keys and values that grow in place for some columns; a plain layer copies all that it holds for every new token."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._room: list[Tensor | None] = [None, None]

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Append; shapes `[B, heads, new, head_dim]`. Gives all keys and values."""
        if not self.is_initialized:
            super().update(key_states, value_states, *args, **kwargs)
        else:
            self.keys, self._room[0] = _grown(self.keys, self._room[0], key_states)
            self.values, self._room[1] = _grown(self.values, self._room[1], value_states)
        assert self.keys is not None
        assert self.values is not None
        return self.keys, self.values


def _grown(held: Tensor | None, room: Tensor | None, new: Tensor) -> tuple[Tensor, Tensor]:
    """What is held with new columns behind it, and the tensor with room for more that it lies in."""
    assert held is not None
    start = held.shape[2]
    end = start + new.shape[2]
    if room is None or room.shape[2] < end:
        room = held.new_empty(*held.shape[:2], end + _ROOM, held.shape[3])
        room[:, :, :start] = held
    room[:, :, start:end] = new
    return room[:, :, :end], room
