"""Ways to compute the logits of the answers, from the fastest to the one that is right for every model.

The context comes before the slot and attention is causal, so the context's cache (keys and values, recurrent states) doesn't
depend on the virtual tokens. `together` and `by_context` compute it once, without a graph. The graph then holds only the
first k rows, the question's line and the answer, which this module calls the suffix. `whole` puts everything into one sequence.

Each way takes the backbone, its embedding, the examples, the matrix `[n, hidden_size]`, and ks, each a sequence of one k per example.
For each of the ks it yields the logits of all target ids, `[target ids of all examples, vocab]`, in the examples' order.
"""

import copy
import inspect
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor
from transformers import Cache, DynamicCache, PreTrainedModel, cache_utils, modeling_utils
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from spring_rag.encoding import Encoded
from spring_rag.splice import InputEmbedding, inner_model

Example = tuple[Encoded, Sequence[int]]
Ks = Sequence[Sequence[int]]
Way = Callable[[PreTrainedModel, InputEmbedding, Sequence[Example], Tensor, Ks], Iterator[Tensor]]

# Since transformers has this function, `logits_to_keep` takes a mask of the whole batch; before, only a list of columns.
_KEEPS_BY_MASK = hasattr(modeling_utils, "slice_logits_to_keep")
# Before transformers had this class, hybrids had caches of their own kinds.
_RECURRENT: tuple[type, ...] = tuple(
    filter(None, [getattr(cache_utils, "LinearAttentionCacheLayerMixin", None)])
)


def together(
    model: PreTrainedModel, embedding: InputEmbedding, examples: Sequence[Example], matrix: Tensor, ks: Ks
) -> Iterator[Tensor]:
    """Compute all contexts in one padded batch, then all suffixes."""
    suffix_width = max(map(max, ks)) + max(len(e.suffix_ids) + len(t) for e, t in examples)
    context = _prefill(model, [e.context_ids for e, _ in examples], suffix_width, embedding)
    for number, counts in enumerate(ks, 1):
        # The last suffix takes the context's own layers, which free their tensors one by one as they grow.
        cache = _branch(context.cache, last=number == len(ks))
        yield _suffix_logits(model, examples, matrix, counts, replace(context, cache=cache), embedding)


def by_context(
    model: PreTrainedModel, embedding: InputEmbedding, examples: Sequence[Example], matrix: Tensor, ks: Ks
) -> Iterator[Tensor]:
    """Compute each different context by itself, so that none is padded, then the suffixes of its examples."""
    groups: dict[tuple[int, ...], list[int]] = {}
    for number, (encoded, _) in enumerate(examples):
        groups.setdefault(encoded.context_ids, []).append(number)
    runs = [
        together(model, embedding, [examples[i] for i in group], matrix, [[k[i] for i in group] for k in ks])
        for group in groups.values()
    ]
    for found in zip(*runs, strict=True):
        logits: dict[int, Tensor] = {}
        for group, of_group in zip(groups.values(), found, strict=True):
            pieces = of_group.split([len(examples[i][1]) for i in group])
            logits.update(zip(group, pieces, strict=True))
        yield torch.cat([logits[i] for i in range(len(examples))])


def whole(
    model: PreTrainedModel, embedding: InputEmbedding, examples: Sequence[Example], matrix: Tensor, ks: Ks
) -> Iterator[Tensor]:
    """Compute context, rows, suffix and target as one sequence per example, without cache or padding."""
    for counts in ks:
        logits = []
        virtual = embedding.virtual(matrix[: max(counts)])
        for (encoded, target), k in zip(examples, counts, strict=True):
            before = _embed(embedding, encoded.context_ids)
            after = _embed(embedding, [*encoded.suffix_ids, *target[:-1]])
            sequence = torch.cat([before.to(virtual.dtype), virtual[:k], after.to(virtual.dtype)])
            wanted = torch.zeros(1, len(sequence), dtype=torch.bool, device=embedding.device)
            wanted[0, -len(target) :] = True
            inputs = {"inputs_embeds": sequence[None], "use_cache": False}
            logits.append(_logits_at(model, wanted, _accepted(model, inputs)))
        yield torch.cat(logits)


@dataclass(frozen=True)
class _Context:
    """Contexts as the suffixes see them. `mask` is `[B, width]`, true for tokens; None if nothing is padded."""

    cache: Any
    lengths: Tensor
    width: int
    mask: Tensor | None


def _embed(embedding: InputEmbedding, ids: Sequence[int]) -> Tensor:
    return embedding.embed(torch.tensor(ids, dtype=torch.long, device=embedding.device))


def _prefill(
    model: PreTrainedModel, contexts: Sequence[tuple[int, ...]], suffix_width: int, embedding: InputEmbedding
) -> _Context:
    """Compute the contexts' cache, outside of the graph.

    Questions about the same passages share their context: it is computed once, and its cache is copied to their rows.
    """
    different = list(dict.fromkeys(contexts))
    computed = _prefill_different(model, different, suffix_width, embedding)
    if len(different) == len(contexts):
        return computed
    place = {context: row for row, context in enumerate(different)}
    rows = torch.tensor([place[context] for context in contexts], device=embedding.device)
    if computed.cache is not None:
        computed.cache.reorder_cache(rows)
    mask = None if computed.mask is None else computed.mask[rows]
    return replace(computed, lengths=computed.lengths[rows], mask=mask)


def _prefill_different(
    model: PreTrainedModel, contexts: Sequence[tuple[int, ...]], suffix_width: int, embedding: InputEmbedding
) -> _Context:
    """Compute the cache of contexts that are all different.

    A padding mask slows attention down (SDPA's causal kernel takes none). So contexts of different lengths are padded
    on the right, where causality alone hides the padding, and only the suffixes see a mask. This fails with a sliding window and with
    models that take no positions (MPT), since both count cache entries and not positions, and with a recurrent state, which would
    hold the padding. For these, padding and mask are on the left.
    """
    lengths = torch.tensor([len(ids) for ids in contexts], device=embedding.device)
    width = max(len(ids) for ids in contexts)
    if width == 0:
        return _Context(None, lengths, 0, None)
    padded = any(len(ids) < width for ids in contexts)
    on_the_right = padded and _gap_is_harmless(model, width + suffix_width)
    ids = torch.zeros(len(contexts), width, dtype=torch.long)
    mask = torch.zeros(len(contexts), width, dtype=torch.bool)
    for row, context in enumerate(contexts):
        part = slice(0, len(context)) if on_the_right else slice(width - len(context), width)
        ids[row, part] = torch.tensor(context, dtype=torch.long)
        mask[row, part] = True
    ids, mask = ids.to(embedding.device), mask.to(embedding.device)
    inputs: dict[str, object] = {"logits_to_keep": 1}
    if padded and not on_the_right:
        inputs["attention_mask"] = mask.long()
        inputs["position_ids"] = (mask.long().cumsum(1) - 1).clamp(min=0)
    with torch.no_grad():
        outputs = model(**_accepted(model, inputs), inputs_embeds=embedding.embed(ids), use_cache=True)
    return _Context(outputs[_cache_name(model)], lengths, width, mask if padded else None)


def _gap_is_harmless(model: PreTrainedModel, width: int) -> bool:
    """Return whether unused cache entries may be between a context and its suffix, if a row has `width` entries."""
    if "position_ids" not in _names(model):
        return False
    layers = DynamicCache(config=model.config).layers
    return all(
        type(layer) is DynamicLayer
        or (type(layer) is DynamicSlidingWindowLayer and width <= layer.sliding_window)
        for layer in layers
    )


def _cache_name(model: PreTrainedModel) -> str:
    """Return the name of this model's argument for its cache, which is another one in state space models."""
    return "cache_params" if "cache_params" in _names(model) else "past_key_values"


def _suffix_logits(
    model: PreTrainedModel,
    examples: Sequence[Example],
    matrix: Tensor,
    ks: Sequence[int],
    context: _Context,
    embedding: InputEmbedding,
) -> Tensor:
    # The answer's last id is only predicted, never read.
    read = [[*encoded.suffix_ids, *target[:-1]] for encoded, target in examples]
    lengths = [k + len(ids) for k, ids in zip(ks, read, strict=True)]
    # For a single token, recurrent layers use a kernel for generation, which overwrites what autograd needs.
    width = max(*lengths, 2) if _is_recurrent(context.cache) else max(lengths)
    virtual = embedding.virtual(matrix[: max(ks)])
    text = _embed(embedding, [i for ids in read for i in ids])
    pieces, start = [], 0
    for k, ids, length in zip(ks, read, lengths, strict=True):
        padding = virtual.new_zeros(width - length, virtual.shape[1])
        pieces.append(torch.cat([virtual[:k], text[start : start + len(ids)].to(virtual.dtype), padding]))
        start += len(ids)
    inputs: dict[str, object] = {
        "inputs_embeds": torch.stack(pieces),
        "use_cache": context.cache is not None,
    }
    if context.cache is not None:
        inputs[_cache_name(model)] = context.cache
        steps = torch.arange(width, device=embedding.device)
        ends = torch.tensor(lengths, device=embedding.device)[:, None]
        # Padding on the right repeats the last position: a learned position table may end there.
        inputs["position_ids"] = context.lengths[:, None] + steps.minimum(ends - 1)
    if context.mask is not None:
        seen = context.mask.new_ones(len(examples), width)
        inputs["attention_mask"] = torch.cat([context.mask, seen], dim=1).long()
    answers = torch.zeros(len(examples), width, dtype=torch.bool)
    for row, (length, (_, target)) in enumerate(zip(lengths, examples, strict=True)):
        answers[row, length - len(target) : length] = True
    return _logits_at(model, answers.to(embedding.device), _accepted(model, inputs))


def _branch(cache: Any, *, last: bool) -> Any:
    """Return a copy of a cache that can grow without changing the original.

    A dynamic layer replaces its tensors when it grows, so they can be shared. A recurrent layer writes into its tensors, which
    autograd forbids for those that the backward pass needs. Nothing follows a suffix, so in the copy it doesn't write at all.
    """
    if cache is None:
        return None
    layers = cache.layers if last else [copy.copy(layer) for layer in cache.layers]
    for number, layer in enumerate(layers):
        if isinstance(layer, _RECURRENT):
            layers[number] = _read_only(layer)
    branch: Cache = copy.copy(cache)
    branch.layers = layers
    return branch


def _is_recurrent(cache: Any) -> bool:
    return cache is not None and any(isinstance(layer, _RECURRENT) for layer in cache.layers)


def _read_only(layer: Any) -> Any:
    """Return a recurrent layer that computes with new inputs but keeps its stored state unchanged."""
    kept = copy.copy(layer)
    kept.conv_states = {
        number: None if state is None else state.clone() for number, state in layer.conv_states.items()
    }

    def update_conv_state(conv_states: Tensor, state_idx: int = 0, **_: object) -> Tensor:
        before = layer.conv_states[state_idx]
        return conv_states if before is None else torch.cat([before, conv_states], dim=-1)

    def update_recurrent_state(recurrent_states: Tensor, *_: object, **__: object) -> Tensor:
        return recurrent_states

    kept.update_conv_state, kept.update_recurrent_state = update_conv_state, update_recurrent_state
    return kept


def _names(model: PreTrainedModel) -> Collection[str]:
    """Return the names of the arguments of this model's forward."""
    return inspect.signature(inner_model(model).forward).parameters


def _accepted(model: PreTrainedModel, inputs: dict[str, object]) -> dict[str, object]:
    """Return the inputs that this model's forward takes; ALiBi models, for example, take no position ids."""
    names = _names(model)
    return {name: value for name, value in inputs.items() if name in names}


def _logits_at(model: PreTrainedModel, wanted: Tensor, inputs: dict[str, object]) -> Tensor:
    """Return the logits `[number of wanted, vocab]` at the true places of `wanted` `[B, L]`, row by row."""
    if "logits_to_keep" not in _names(model):
        return cast(Tensor, model(**inputs).logits)[wanted]
    if _KEEPS_BY_MASK:
        return cast(Tensor, model(**inputs, logits_to_keep=wanted).logits)
    columns = wanted.any(0).nonzero()[:, 0]
    return cast(Tensor, model(**inputs, logits_to_keep=columns).logits)[wanted[:, columns]]
