"""Rows that have a context in common read its keys and values where they lie; nothing is copied to each row.

A row's scores against its context come from one product for all rows of that context, those against the columns of its own from
another, and one softmax spans both. This is bifurcated attention (Athiwaratkun et al., ICML 2024, arXiv 2403.08845; Hydragen, arXiv
2402.05099, has the same split): as many operations as without it, and far fewer reads. It rounds as transformers' "eager" attention does.

It comes in by transformers' own door, a registered attention function, for models whose attention layers hand on what their cache gave
them. Whether one does is tried out, not listed.
"""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AttentionInterface, AttentionMaskInterface, Cache, DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from spring_rag.splice import InputEmbedding

_NAME, _REPLACES = "spring_rag_shared_context", "sdpa"

_MOST_SCORES = 2**26
"""Scores computed at a time, so that many rows' long suffixes need no more memory than that."""

_NOT_DONE_HERE = ("softcap", "position_bias", "s_aux", "sliding_window")
"""What some layers ask of their attention besides."""

ROOM = 32
"""Columns by which a cache grows at a time."""


@dataclass(frozen=True, slots=True)
class Sharing:
    """Which of a number of contexts each of `B` rows has, and how much of it.

    Attributes:
        columns: columns before those that a row has for itself; padding first, then its context's.
        used: numbers of the contexts that these rows have, shape `[C]`, int64; None for all.
        members: the rows of each, shape `[C, R]`, int64, filled up with any row.
        places: where each row stands in `members`, flattened; shape `[B]`, int64.
        absent: true for a context's columns that a row doesn't have; shape `[B, 1, 1, width]`.

    Where the rows of a context are to be computed together, they are laid out as `[C, heads, R * Q, any]`, which is called "by context".
    """

    columns: int
    used: Tensor | None
    members: Tensor
    places: Tensor
    absent: Tensor

    @classmethod
    def of(
        cls,
        which: Sequence[int],
        lengths: Sequence[int],
        *,
        columns: int,
        contexts: int,
        device: torch.device | None = None,
    ) -> "Sharing":
        """Rows that have the first `lengths` columns of the contexts with the numbers `which`, of `contexts`."""
        used = sorted(set(which))
        members = [[row for row, one in enumerate(which) if one == context] for context in used]
        most = max(map(len, members))
        places = {
            row: number * most + at for number, some in enumerate(members) for at, row in enumerate(some)
        }
        absent = torch.arange(max(lengths)) >= torch.tensor(lengths)[:, None]
        return cls(
            columns=columns,
            used=None if len(used) == contexts else torch.tensor(used, device=device),
            members=torch.tensor([some + some[:1] * (most - len(some)) for some in members], device=device),
            places=torch.tensor([places[row] for row in range(len(which))], device=device),
            absent=absent[:, None, None, :].to(device),
        )

    def by_context(self, rows: Tensor) -> Tensor:
        """`[B, heads, Q, any]` by context."""
        return rows[self.members].transpose(1, 2).flatten(2, 3)

    def by_row(self, contexts: Tensor, queries: int) -> Tensor:
        """What is laid out by context as `[B, heads, Q, any]`."""
        rows: Tensor = contexts.unflatten(2, (-1, queries)).transpose(1, 2)
        return rows.flatten(0, 1)[self.places]


class SharedContext:
    """The keys and values of contexts at one layer.

    Args:
        keys: shape `[contexts, heads, columns, head_dim]`.
        values: the same.
        sharing: who has which; on their device.

    Attributes:
        attended: whether attention was ever computed over them.
    """

    def __init__(self, keys: Tensor, values: Tensor, sharing: Sharing) -> None:
        width = sharing.absent.shape[-1]
        self._keys, self._values = keys[:, :, :width], values[:, :, :width]
        self.sharing = sharing
        self.attended = False

    def keys_and_values(self, heads: slice) -> tuple[Tensor, Tensor]:
        """Of the contexts in use and of some heads, each of shape `[C, heads, width, head_dim]`."""
        keys, values = self._keys[:, heads], self._values[:, heads]
        used = self.sharing.used
        return (keys, values) if used is None else (keys[used], values[used])


class _OwnKeys(Tensor):
    """What rows have behind their contexts, shape `[B, heads, columns, head_dim]`; anything computed from it is a plain tensor."""

    context: SharedContext
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]


class RoomyLayer(DynamicLayer):
    """Keys and values that grow in place for some columns; a plain layer copies all that it holds for every new token.

    Args:
        keys: shape `[B, heads, columns, head_dim]`, with room for more than is held.
        values: the same.
        held: number of columns that count.
        context: what stands before them. The model must then run inside `attending`.
    """

    def __init__(self, keys: Tensor, values: Tensor, held: int, context: SharedContext | None = None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._rooms = [keys, values]
        self.dtype, self.device, self.is_initialized = keys.dtype, keys.device, True
        self.keys, self.values = keys[:, :, :held], values[:, :, :held]
        self.context = context

    def update(
        self,
        key_states: Tensor,
        value_states: Tensor,
        *args: Any,  # noqa: ARG002
        **kwargs: Any,  # noqa: ARG002
    ) -> tuple[Tensor, Tensor]:
        """Append; shapes `[B, heads, new, head_dim]`. Gives all keys and values behind the context."""
        assert self.keys is not None
        assert self.values is not None
        self.keys, self._rooms[0] = _grown(self.keys, self._rooms[0], key_states)
        self.values, self._rooms[1] = _grown(self.values, self._rooms[1], value_states)
        if self.context is None:
            return self.keys, self.values
        own = self.keys.as_subclass(_OwnKeys)
        own.context = self.context
        return own, self.values

    def get_seq_length(self) -> int:
        """All columns, those of the context included."""
        assert self.keys is not None
        return self.keys.shape[2] + (self.context.sharing.columns if self.context else 0)


def _grown(held: Tensor, room: Tensor, new: Tensor) -> tuple[Tensor, Tensor]:
    """What is held with new columns behind it, and the tensor with room for more that it lies in."""
    start = held.shape[2]
    end = start + new.shape[2]
    if room.shape[2] < end:
        room = held.new_empty(*held.shape[:2], end + ROOM, held.shape[3])
        room[:, :, :start] = held
    room[:, :, start:end] = new
    return room[:, :, :end], room


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """An attention function as transformers calls it: queries `[B, query heads, Q, head_dim]`, result `[B, Q, query heads, head_dim]`."""
    if not isinstance(key, _OwnKeys):
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
    context = key.context
    context.attended = all(kwargs.get(name) is None for name in _NOT_DONE_HERE)
    rows, query_heads, length, size = query.shape
    heads = key.shape[1]
    # Query heads that have a key head in common stand one behind the other, as if they were further queries.
    queries = (query * (size**-0.5 if scaling is None else scaling)).reshape(rows, heads, -1, size)
    hidden = functional.pad(context.sharing.absent, (0, key.shape[2]))
    if attention_mask is not None:
        behind = ~attention_mask[..., context.sharing.columns :].repeat(1, 1, query_heads // heads, 1)
        hidden = hidden | functional.pad(behind, (hidden.shape[-1] - behind.shape[-1], 0))
    # To add is many times faster than to fill; with half of the lowest number, a padded query that sees nothing has a finite score still.
    bias = hidden.to(query.dtype) * (torch.finfo(query.dtype).min / 2)
    bias = context.sharing.by_context(bias.expand(-1, -1, queries.shape[2], -1))
    at_a_time = max(1, _MOST_SCORES // bias.numel())
    outputs = [
        _attend(queries, key, value, bias, context, slice(start, start + at_a_time))
        for start in range(0, heads, at_a_time)
    ]
    output = torch.cat(outputs, dim=1).reshape(rows, query_heads, length, -1)
    return output.transpose(1, 2).contiguous(), None


def _attend(
    queries: Tensor,
    own_keys: Tensor,
    own_values: Tensor,
    bias: Tensor,
    context: SharedContext,
    heads: slice,
) -> Tensor:
    """Of some heads; queries and result `[B, heads, Q, head_dim]`, the bias of scores by context."""
    sharing = context.sharing
    queries, own_keys, own_values = queries[:, heads], own_keys[:, heads], own_values[:, heads]
    keys, values = context.keys_and_values(heads)
    common_scores = sharing.by_context(queries) @ keys.transpose(-1, -2)
    own_scores = sharing.by_context(queries @ own_keys.transpose(-1, -2))
    scores = torch.cat([common_scores, own_scores], dim=-1).add_(bias)
    weights = torch.softmax(scores, dim=-1, dtype=torch.float32).to(queries.dtype)
    common, own = weights.split([keys.shape[2], own_keys.shape[2]], dim=-1)
    count = queries.shape[2]
    return sharing.by_row(common @ values, count) + sharing.by_row(own, count) @ own_values


AttentionInterface.register(_NAME, _attention)
AttentionMaskInterface.register(_NAME, sdpa_mask)

_tried: WeakKeyDictionary[PreTrainedModel, bool] = WeakKeyDictionary()
_attending: WeakKeyDictionary[PreTrainedModel, int] = WeakKeyDictionary()
_lock = threading.Lock()


@contextmanager
def attending(model: PreTrainedModel, cache: Cache | None) -> Iterator[None]:
    """For the while that a model reads with this cache: its attention as the cache needs it."""
    if cache is None or not any(isinstance(layer, RoomyLayer) and layer.context for layer in cache.layers):
        yield
        return
    config = model.config.get_text_config(decoder=True)
    # Several threads may do so at once, each with a backend of its own; any other use of the model meanwhile attends as always.
    with _lock:
        _attending[model] = _attending.get(model, 0) + 1
        config._attn_implementation = _NAME
    try:
        yield
    finally:
        with _lock:
            _attending[model] -= 1
            if not _attending[model]:
                config._attn_implementation = _REPLACES


def takes_shared_contexts(
    model: PreTrainedModel, embedding: InputEmbedding, states: Sequence[tuple[Tensor, Tensor]]
) -> bool:
    """Whether every layer sees all columns and its attention gets what its cache gave: tried out once for a model, on one token.

    Args:
        model: the backbone, with dropout off.
        embedding: of the backbone.
        states: per layer, keys and values of at least one column, shapes `[B, heads, columns, head_dim]`.
    """
    config = model.config.get_text_config(decoder=True)
    if not model.is_backend_compatible() or config._attn_implementation not in (_REPLACES, _NAME):
        return False
    if any(type(layer) is not DynamicLayer for layer in DynamicCache(config=model.config).layers):
        return False
    if model not in _tried:
        _tried[model] = _try(model, embedding, states)
    return _tried[model]


def _try(model: PreTrainedModel, embedding: InputEmbedding, states: Sequence[tuple[Tensor, Tensor]]) -> bool:
    cache = DynamicCache(config=model.config)
    contexts = []
    for number, (keys, values) in enumerate(states):
        sharing = Sharing.of([0], [1], columns=1, contexts=1, device=keys.device)
        contexts.append(SharedContext(keys[:1], values[:1], sharing))
        cache.layers[number] = RoomyLayer(keys[:1, :, :0], values[:1, :, :0], 0, contexts[-1])
    try:
        with attending(model, cache):
            model(
                inputs_embeds=embedding.embed(torch.zeros(1, 1, dtype=torch.int64)),
                attention_mask=torch.ones(1, 2, dtype=torch.int64, device=embedding.device),
                past_key_values=cache,
                use_cache=True,
            )
    except Exception:  # a family that knows its own attentions by name may fail anyhow at another
        return False
    return all(context.attended for context in contexts)
