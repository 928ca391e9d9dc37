"""Rows that have a context in common read its keys and values where they lie, instead of each its own copy.

A row's scores against its context come from one product for all rows of that context, those against the columns of its own from
another, and one softmax spans both. This is bifurcated attention (Athiwaratkun et al., ICML 2024, arXiv 2403.08845; Hydragen, arXiv
2402.05099, has the same split): as many operations as without it, and far fewer reads.

It comes in by transformers' own door, a registered attention function, for models whose attention layers hand on what their cache gave
them. Whether one does is tried out, not listed. In half precision scores are rounded once, as in transformers' "eager" attention.
"""

import inspect
import math
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
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
"""Scores computed at a time (one query of every row at least), so that many rows' long suffixes need no more memory."""

_HIDDEN = torch.finfo(torch.float32).min / 2
"""Added to scores that don't count. A padded query sees nothing, and its scores must be numbers still."""

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
        self._all = keys[:, :, :width], values[:, :, :width]
        self.sharing = sharing
        self.attended = False

    @cached_property
    def keys_and_values(self) -> tuple[Tensor, Tensor]:
        """Of the contexts in use, each of shape `[C, heads, width, head_dim]`."""
        (keys, values), used = self._all, self.sharing.used
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
    context, sharing = key.context, key.context.sharing
    context.attended = True
    rows, query_heads, length, size = query.shape
    heads = key.shape[1]
    hidden = functional.pad(sharing.absent, (0, key.shape[2]))
    hidden = hidden.expand(-1, -1, length, -1)
    if attention_mask is not None:
        behind = ~attention_mask[..., sharing.columns :]
        hidden = hidden | functional.pad(behind, (hidden.shape[-1] - behind.shape[-1], 0))
    # A power of two costs no precision beforehand, and products of large queries and keys stay within half precision's range.
    rest, exponent = math.frexp(size**-0.5 if scaling is None else scaling)
    at_a_time = max(1, _MOST_SCORES // (sharing.members.numel() * query_heads * hidden.shape[-1]))
    outputs = []
    for few, hidden_of_few in zip(query.split(at_a_time, dim=2), hidden.split(at_a_time, dim=2), strict=True):
        # Query heads that have a key head in common stand one behind the other, as if they were further queries.
        queries = (few * 2.0**exponent).reshape(rows, heads, -1, size)
        bias = _HIDDEN * hidden_of_few.repeat(1, 1, query_heads // heads, 1)
        output = _attend(queries, key, value, bias, rest, context)
        outputs.append(output.reshape(rows, query_heads, few.shape[2], -1))
    return torch.cat(outputs, dim=2).transpose(1, 2).contiguous(), None


def _attend(
    queries: Tensor,
    own_keys: Tensor,
    own_values: Tensor,
    bias: Tensor,
    scaling: float,
    context: SharedContext,
) -> Tensor:
    """Attention of queries `[B, heads, Q, head_dim]`, whose scores have a bias `[B, 1, Q, columns]`, float32; shape as the queries'."""
    sharing, count = context.sharing, queries.shape[2]
    keys, values = context.keys_and_values
    common_scores = sharing.by_context(queries) @ keys.transpose(-1, -2)
    own_scores = sharing.by_context(queries @ own_keys.transpose(-1, -2))
    scores = torch.cat([common_scores, own_scores], dim=-1).float()
    weights = torch.softmax(scores.mul_(scaling).add_(sharing.by_context(bias)), dim=-1).to(queries.dtype)
    common, own = weights.split([keys.shape[2], own_keys.shape[2]], dim=-1)
    return sharing.by_row(common @ values, count) + sharing.by_row(own, count) @ own_values


AttentionInterface.register(_NAME, _attention)
AttentionMaskInterface.register(_NAME, sdpa_mask)

_tried: WeakKeyDictionary[PreTrainedModel, bool] = WeakKeyDictionary()
_attending: Counter[int] = Counter()
_lock = threading.Lock()


@contextmanager
def attending(model: PreTrainedModel, cache: Cache | None) -> Iterator[None]:
    """For the while that a model reads with this cache: its attention as the cache needs it."""
    if cache is None or not any(isinstance(layer, RoomyLayer) and layer.context for layer in cache.layers):
        yield
        return
    config = model.config.get_text_config(decoder=True)
    # Several threads may do so at once, with models that have one config in common; what else uses it meanwhile attends as always.
    with _lock:
        _attending[id(config)] += 1
        config._attn_implementation_internal = _NAME  # the public setter would set parts of other kinds, too
    try:
        yield
    finally:
        with _lock:
            _attending[id(config)] -= 1
            if not _attending[id(config)]:
                del _attending[id(config)]
                config._attn_implementation_internal = _REPLACES


def takes_shared_contexts(
    model: PreTrainedModel, embedding: InputEmbedding, states: Sequence[tuple[Tensor, Tensor]]
) -> bool:
    """Whether a model's attention reads shared contexts as it reads copies: tried out once for a model, on a few tokens.

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
        try:
            _tried[model] = _reads_alike(model, embedding, states)
        except Exception:  # a family that knows its own attentions by name may fail anyhow at another
            return False
    return _tried[model]


def _reads_alike(
    model: PreTrainedModel, embedding: InputEmbedding, states: Sequence[tuple[Tensor, Tensor]]
) -> bool:
    """Read three tokens behind some columns of a context, in two rows of which one is padded, with and without copies."""
    columns = min(8, states[0][0].shape[2])
    lengths = [columns, columns - 1]
    copied, shared = DynamicCache(config=model.config), DynamicCache(config=model.config)
    contexts = []
    for number, pair in enumerate(states):
        sharing = Sharing.of([0, 0], lengths, columns=columns, contexts=1, device=pair[0].device)
        keys, values = (one[:1, :, :columns] for one in pair)
        contexts.append(SharedContext(keys, values, sharing))
        nothing = [one[:, :, :0].expand(2, -1, -1, -1) for one in (keys, values)]
        shared.layers[number] = RoomyLayer(nothing[0], nothing[1], 0, contexts[-1])
        rows = [torch.cat([one, one.roll(1, dims=2)]) for one in (keys, values)]
        copied.layers[number] = RoomyLayer(rows[0], rows[1], columns)
    mask = torch.ones(2, columns + 3, dtype=torch.int64, device=embedding.device)
    mask[1, : columns - lengths[1]] = 0
    accepted = inspect.signature(model.forward).parameters
    positions = {"position_ids": (mask.cumsum(-1) - 1)[:, columns:]} if "position_ids" in accepted else {}
    tokens = embedding.embed(torch.arange(3) % embedding.vocab_size).expand(2, -1, -1)
    logits = []
    for cache in (copied, shared):
        with attending(model, cache):
            found = model(
                inputs_embeds=tokens, attention_mask=mask, past_key_values=cache, use_cache=True, **positions
            )
        logits.append(found.logits.float())
    difference, most = (logits[0] - logits[1]).abs().max(), logits[0].abs().max()
    tolerance = 1e-3 if tokens.dtype == torch.float32 else 0.1
    return all(context.attended for context in contexts) and bool(difference <= tolerance * most)
