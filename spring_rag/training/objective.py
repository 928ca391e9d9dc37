"""The loss of virtual tokens, at the price of the prompt's suffix.

The context stands before the slot and attention is causal, so its keys and values don't depend on the virtual
tokens. They are computed once, without a graph; the graph holds only the suffix: the first k rows, the question's
line and the answer. The gradient is that of the plain loss over the whole sequence.
"""

import copy
import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import Tensor
from torch.nn import functional
from transformers import Cache, DynamicCache, PreTrainedModel, modeling_utils
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from spring_rag.encoding import Encoded
from spring_rag.errors import PromptError, TrainingError, UnsupportedBackboneError
from spring_rag.splice import InputEmbedding, evaluating

Example = tuple[Encoded, Sequence[int]]

# One mask for the whole batch of positions came into `logits_to_keep` with this function; before, only a list of columns.
_KEEPS_BY_MASK = hasattr(modeling_utils, "slice_logits_to_keep")


def objective(
    hf_model: PreTrainedModel,
    examples: Sequence[Example],
    matrix: Tensor,
    num_tokens: int | Sequence[int],
    *,
    embedding: InputEmbedding | None = None,
) -> Tensor:
    """Mean cross-entropy of the target ids, given context, virtual tokens and question.

    The backbone is used frozen and without dropout, whatever its flags say; they are as before afterwards.

    Args:
        hf_model: the backbone.
        examples: an encoded prompt with its slot and the ids to be answered (end of sequence included), per row.
        matrix: `[n, hidden_size]`, in the space of the backbone's embedding table; the loss is differentiable in it.
        num_tokens: k, how many rows are used: one for all examples, or one per example.
        embedding: the backbone's `InputEmbedding`, for callers that keep one.

    Returns:
        A float32 scalar on the matrix's device.

    Raises:
        TrainingError: no examples, an empty target, or a k outside 1…n.
        PromptError: a prompt without a slot.
        UnsupportedBackboneError: the backbone carries a recurrent state beside keys and values.
    """
    return objectives(hf_model, examples, matrix, [num_tokens], embedding=embedding)[0]


def objectives(
    hf_model: PreTrainedModel,
    examples: Sequence[Example],
    matrix: Tensor,
    num_tokens: Sequence[int | Sequence[int]],
    *,
    embedding: InputEmbedding | None = None,
) -> Tensor:
    """`objective` for several k on the same examples, whose contexts are computed once.

    Args:
        hf_model: the backbone.
        examples: as for `objective`.
        matrix: as for `objective`.
        num_tokens: the ks; each is one for all examples, or a sequence of one per example.
        embedding: as for `objective`.

    Returns:
        Losses, float32 `[len(num_tokens)]`, on the matrix's device.

    Raises:
        TrainingError: as for `objective`.
        PromptError: as for `objective`.
    """
    _check_examples(examples)
    rows_used = [_per_example(k, len(examples), len(matrix)) for k in num_tokens]
    embedding = embedding or InputEmbedding(hf_model)
    losses = []
    with _frozen(hf_model):
        suffix_width = max(map(max, rows_used)) + max(len(e.suffix_ids) + len(t) for e, t in examples)
        context = _prefill(hf_model, [e.context_ids for e, _ in examples], suffix_width, embedding)
        for number, ks in enumerate(rows_used, 1):
            # What the last one grows from is let go layer by layer.
            cache = context.cache if number == len(rows_used) else _branch(context.cache)
            losses.append(
                _suffix_loss(hf_model, examples, matrix, ks, replace(context, cache=cache), embedding)
            )
    return torch.stack(losses).to(matrix.device)


@dataclass(frozen=True)
class _Context:
    """Contexts as the suffixes see them. `mask` is `[B, width]`, true for tokens; None where nothing is padded."""

    cache: Cache | None
    lengths: Tensor
    width: int
    mask: Tensor | None


def _check_examples(examples: Sequence[Example]) -> None:
    if not examples:
        msg = "the objective got no examples; give at least one"
        raise TrainingError(msg)
    for number, (encoded, target) in enumerate(examples):
        if encoded.slot is None:
            msg = f"example {number} has no slot, so there is no place for virtual tokens; encode a RagPrompt or a Prompt with a Slot"
            raise PromptError(msg)
        if not len(target):
            msg = f"example {number} has an empty target; give the answer's ids and the end of sequence"
            raise TrainingError(msg)


def _per_example(num_tokens: int | Sequence[int], count: int, rows: int) -> list[int]:
    ks = [num_tokens] * count if isinstance(num_tokens, int) else list(num_tokens)
    if len(ks) != count:
        msg = f"{len(ks)} numbers of virtual tokens for {count} examples; give one, or one per example"
        raise TrainingError(msg)
    for k in ks:
        if not 1 <= k <= rows:
            msg = f"k = {k}: training uses 1 to {rows} virtual tokens (with none there is nothing to train)"
            raise TrainingError(msg)
    return ks


@contextmanager
def _frozen(model: PreTrainedModel) -> Iterator[None]:
    """No gradients into the model's own parameters and no dropout; every flag is put back at the end."""
    trainable = [p for p in model.parameters() if p.requires_grad]
    for parameter in trainable:
        parameter.requires_grad_(False)
    try:
        with evaluating(model):
            yield
    finally:
        for parameter in trainable:
            parameter.requires_grad_(True)


def _prefill(
    model: PreTrainedModel, contexts: Sequence[tuple[int, ...]], suffix_width: int, embedding: InputEmbedding
) -> _Context:
    """Keys and values of the contexts, `[B, …, width, …]` per layer, outside of the graph.

    Questions about the same passages share their context: it is computed once and its keys and values are copied to their rows.
    """
    different = list(dict.fromkeys(contexts))
    computed = _prefill_different(model, different, suffix_width, embedding)
    if len(different) == len(contexts):
        return computed
    place = {context: row for row, context in enumerate(different)}
    rows = torch.tensor([place[context] for context in contexts], device=embedding.device)
    if computed.cache is not None:
        computed.cache.batch_select_indices(rows)
    mask = None if computed.mask is None else computed.mask[rows]
    return replace(computed, lengths=computed.lengths[rows], mask=mask)


def _prefill_different(
    model: PreTrainedModel, contexts: Sequence[tuple[int, ...]], suffix_width: int, embedding: InputEmbedding
) -> _Context:
    """`_prefill` of contexts of which no two are the same.

    A padding mask slows attention down (SDPA's causal kernel takes none), so contexts of different lengths are padded
    on the right, where causality alone keeps them apart, and only the suffixes see a mask. A sliding window counts
    slots, not positions, and so do models that take no positions (MPT): if one would reach over the gap, padding and mask are on
    the left.
    """
    lengths = torch.tensor([len(ids) for ids in contexts], device=embedding.device)
    width = max(len(ids) for ids in contexts)
    if width == 0:
        return _Context(None, lengths, 0, None)
    cache = DynamicCache(config=model.config)
    kinds = {type(layer) for layer in cache.layers}
    if not kinds <= {DynamicLayer, DynamicSlidingWindowLayer}:
        names = ", ".join(sorted(kind.__name__ for kind in kinds))
        msg = f"{type(model).__name__} keeps more than keys and values of its context ({names}); training needs an attention-only backbone"
        raise UnsupportedBackboneError(msg)
    windows = [layer.sliding_window for layer in cache.layers if isinstance(layer, DynamicSlidingWindowLayer)]
    gap_is_harmless = "position_ids" in inspect.signature(model.forward).parameters and all(
        width + suffix_width <= window for window in windows
    )
    padded = any(len(ids) < width for ids in contexts)
    ids = torch.zeros(len(contexts), width, dtype=torch.long)
    mask = torch.zeros(len(contexts), width, dtype=torch.bool)
    for row, context in enumerate(contexts):
        part = slice(0, len(context)) if gap_is_harmless else slice(width - len(context), width)
        ids[row, part] = torch.tensor(context, dtype=torch.long)
        mask[row, part] = True
    ids, mask = ids.to(embedding.device), mask.to(embedding.device)
    inputs: dict[str, object] = {}
    if padded and not gap_is_harmless:
        inputs = {"attention_mask": mask.long(), "position_ids": (mask.long().cumsum(1) - 1).clamp(min=0)}
    with torch.no_grad():
        outputs = model(
            **_accepted(model, inputs),
            inputs_embeds=embedding.embed(ids),
            past_key_values=cache,
            use_cache=True,
            **_accepted(model, {"logits_to_keep": 1}),
        )
    return _Context(outputs.past_key_values, lengths, width, mask if padded else None)


def _suffix_loss(
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
    width = max(lengths)
    virtual = embedding.virtual(matrix[: max(ks)])
    text = embedding.embed(
        torch.tensor([i for ids in read for i in ids], dtype=torch.long, device=embedding.device)
    )
    pieces, start = [], 0
    for k, ids, length in zip(ks, read, lengths, strict=True):
        padding = virtual.new_zeros(width - length, virtual.shape[1])
        pieces.append(torch.cat([virtual[:k], text[start : start + len(ids)].to(virtual.dtype), padding]))
        start += len(ids)
    inputs: dict[str, object] = {"inputs_embeds": torch.stack(pieces), "use_cache": context.cache is not None}
    if context.cache is not None:
        inputs["past_key_values"] = context.cache
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
    logits = _logits_at(model, answers.to(embedding.device), _accepted(model, inputs))
    wanted = torch.tensor(
        [i for _, target in examples for i in target], dtype=torch.long, device=logits.device
    )
    return functional.cross_entropy(logits.float(), wanted)


def _branch(cache: Cache | None) -> Cache | None:
    """A cache that grows on its own: a dynamic layer replaces its tensors when it grows, so they can be shared."""
    if cache is None:
        return None
    branch = copy.copy(cache)
    branch.layers = [copy.copy(layer) for layer in cache.layers]
    return branch


def _accepted(model: PreTrainedModel, inputs: dict[str, object]) -> dict[str, object]:
    """The inputs that this model's forward names; ALiBi models, for one, take no position ids."""
    names = inspect.signature(model.forward).parameters
    return {name: value for name, value in inputs.items() if name in names}


def _logits_at(model: PreTrainedModel, wanted: Tensor, inputs: dict[str, object]) -> Tensor:
    """Logits `[number of wanted, vocab]` at the true places of `wanted` `[B, L]`, row by row."""
    if "logits_to_keep" not in inspect.signature(model.forward).parameters:
        return cast(Tensor, model(**inputs).logits)[wanted]
    if _KEEPS_BY_MASK:
        return cast(Tensor, model(**inputs, logits_to_keep=wanted).logits)
    columns = wanted.any(0).nonzero()[:, 0]
    return cast(Tensor, model(**inputs, logits_to_keep=columns).logits)[wanted[:, columns]]
