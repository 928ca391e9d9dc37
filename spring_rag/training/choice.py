"""Choose how a backbone is trained, by trials on the backbone itself and not by a list of families.

A way is used if it gives the gradient of the plain loss over the whole sequence. This is tried once per model, on a few short
examples. They don't show what a model does differently beyond some length: positions that change, windows that are only in the mask,
attention that gets another temperature or becomes sparse. Such lengths are in the model's config or are powers of two, so each of these
numbers is tried, with examples around that length, when a batch reaches it for the first time.
"""

import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from weakref import WeakKeyDictionary

import torch
from torch import distributed
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from spring_rag.errors import UnsupportedBackboneError
from spring_rag.splice import InputEmbedding
from spring_rag.training.trial import LEAST_LENGTH, SIDE, TAIL, Trial, relative_distance
from spring_rag.training.ways import Example, Ks, Way, by_context, together, whole

_WAYS: tuple[Way, ...] = (together, by_context, whole)
_INSTEAD: dict[Way, str] = {
    by_context: "with different contexts in one batch {what}, so each context is computed by itself",
    whole: "with a context computed once {what}, so every step computes the whole sequence",
}

_SHORT, _WITH_EMPTY = 0, -1
"""Keys, in place of a length, of the trials on short examples, without and with an empty context."""

_TrialKey = tuple[int, bool]
"""A length, and whether it can be tried with contexts that are longer."""


@dataclass
class _Known:
    """What is known about a model: lengths to try, and for each trial the index in `_WAYS` of the fastest way that passed."""

    lengths: list[int]
    passed: dict[_TrialKey, int] = field(default_factory=dict)
    warned: set[Way] = field(default_factory=set)


_known: WeakKeyDictionary[PreTrainedModel, _Known] = WeakKeyDictionary()


def proven_way(model: PreTrainedModel, embedding: InputEmbedding, examples: Sequence[Example], ks: Ks) -> Way:
    """Return the fastest way that is right for examples of these lengths on this model; if a faster one had to be passed over, warn once and say why.

    Args:
        model: the backbone, frozen.
        embedding: the backbone's input embeddings.
        examples: the batch.
        ks: sequences of one k per example.

    Raises:
        UnsupportedBackboneError: the model fails on embeddings, or its gradient isn't that of its loss.
    """
    most = max(map(max, ks))
    longest = max(len(encoded.ids) + most + len(target) - 1 for encoded, target in examples)
    empty = any(not encoded.context_ids for encoded, _ in examples)
    sharded = any(isinstance(parameter, DTensor) for parameter in model.parameters())
    if sharded:  # all processes must call the model equally often
        shape = torch.tensor([longest, int(empty)], device=embedding.device)
        distributed.all_reduce(shape, distributed.ReduceOp.MAX)
        longest, empty = int(shape[0]), bool(shape[1])
    if model not in _known:
        lengths = {*_whole_numbers(model.config.to_dict()), *(2**exponent for exponent in range(5, 24))}
        _known[model] = _Known(sorted(lengths))
    known, place = _known[model], 0
    for key in _trial_keys(known.lengths, longest, empty=empty):
        if key not in known.passed:
            known.passed[key] = _passed(model, embedding, key[0], longest, place, known.warned)
        place = max(place, known.passed[key])
    if sharded and _WAYS[place] is by_context:
        return whole  # processes have different numbers of contexts
    return _WAYS[place]


def _whole_numbers(value: object) -> Iterator[int]:
    """Yield the numbers in a config that may be lengths, whatever their keys."""
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        for item in value:
            yield from _whole_numbers(item)
    elif isinstance(value, (int, float)) and LEAST_LENGTH <= value < math.inf and value == int(value):
        yield int(value)


def _trial_keys(lengths: Sequence[int], longest: int, *, empty: bool) -> Iterator[_TrialKey]:
    """Yield the trials that a batch needs if its longest sequence has `longest` tokens."""
    yield _SHORT, True
    if empty:
        yield _WITH_EMPTY, True
    for length in lengths:
        if length >= longest:
            return
        yield length, longest >= length + SIDE + TAIL


def _passed(
    model: PreTrainedModel,
    embedding: InputEmbedding,
    length: int,
    longest: int,
    first: int,
    warned: set[Way],
) -> int:
    """Return the index of the fastest way, from index `first` on, that agrees with the whole sequence."""
    short = length in (_SHORT, _WITH_EMPTY)
    # The trial must not depend on the caller's modes.
    with (
        torch.inference_mode(mode=False),
        torch.set_grad_enabled(short),
        torch.autocast(embedding.device.type, enabled=False),
    ):
        trial = (
            Trial.short(model, embedding, empty=length == _WITH_EMPTY)
            if short
            else Trial.around(model, embedding, length, longest)
        )
        try:
            expected = trial.found(whole)
        except (MemoryError, torch.OutOfMemoryError):
            raise
        except Exception as error:  # models fail with errors of any kind
            msg = (
                f"{type(model).__name__} can't be trained: it fails on embeddings without ids: {_line(error)}"
            )
            raise UnsupportedBackboneError(msg) from error
        if not expected.isfinite().all():
            return first  # nothing to compare with; training says so, too
        if length == _SHORT:
            trial.check_gradient()
        tolerance = trial.tolerance(expected)
        found, what = len(_WAYS) - 1, ""
        for place, way in enumerate(_WAYS[first:-1], first):
            try:
                distance = relative_distance(trial.found(way), expected)
            except (MemoryError, torch.OutOfMemoryError):
                raise
            except Exception as error:
                what = f"the model fails ({_line(error)})"
            else:
                if distance <= tolerance:
                    found = place
                    break
                what = f"its {'gradient' if short else 'output'} is {distance:.1%} off"
        if found > first and _WAYS[found] not in warned:
            warned.add(_WAYS[found])
            where = "" if short else f" from {length} tokens on"
            msg = f"{type(model).__name__} trains slower than others{where}: {_INSTEAD[_WAYS[found]].format(what=what)}"
            warnings.warn(msg, stacklevel=2)
    return found


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
