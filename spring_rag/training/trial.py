"""Try a way of training on a few made-up examples, and compare it with the plain loss over the whole sequence."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import cast

import torch
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel

from spring_rag.encoding import Encoded
from spring_rag.errors import UnsupportedBackboneError
from spring_rag.splice import InputEmbedding
from spring_rag.training.ways import Example, Way, whole

LEAST_LENGTH = 24
"""Least length that is tried by itself; short examples have fewer tokens."""

SIDE = 4
"""Number of tokens by which contexts around a length are longer or shorter than it."""

TAIL = 8
"""Number of tokens from the slot on in examples around a length."""

_TOLERANCE: float = torch.finfo(torch.float32).eps ** 0.5
"""Greatest relative distance of a way from the right value; another order of summation alone makes 1e-6."""

_PATHS = (0.0005, 0.002, 0.01)
"""Lengths of the paths on which losses and gradients are compared, in norms of the matrix. On longer paths the choice of experts changes."""

_FAR = 0.5
"""Length of the path for a gradient that is zero, in norms of the matrix."""

_UNEXPLAINED = 0.5
"""Greatest share of a loss's changes that the gradient may leave unexplained, since the loss curves along its path."""

_ROUNDING = 2.0
"""How many times further off a way may be than one measured rounding error, which tells only the order of magnitude."""

_PARTS = 2
"""Number of parts of a path; within each the gradient is taken to change evenly."""


@dataclass(frozen=True)
class Trial:
    """Examples with known values.

    Attributes:
        model: the backbone, frozen.
        embedding: the backbone's input embeddings.
        examples: examples of random ids.
        ks: one k per example.
        matrix: rows of the embedding table, from which virtual tokens start too.
        gradient: whether gradients are compared; if not, logits are, which take less memory, so that examples may be long.
    """

    model: PreTrainedModel
    embedding: InputEmbedding
    examples: Sequence[Example]
    ks: Sequence[int]
    matrix: Tensor
    gradient: bool

    @classmethod
    def short(cls, model: PreTrainedModel, embedding: InputEmbedding, *, empty: bool = False) -> "Trial":
        """Make examples with contexts of three lengths, one context twice; with `empty`, one more whose context has no tokens."""
        contexts, suffixes, targets, ks = [9, 6, 9, 4], [2, 3, 1, 0], [2, 3, 1, 2], [2, 3, 1, 3]
        if empty:
            contexts, suffixes, targets, ks = [*contexts, 0], [*suffixes, 4], [*targets, 2], [*ks, 2]
        shapes = zip(contexts, suffixes, targets, strict=True)
        examples, matrix = _made_up(embedding, list(shapes), max(ks))
        first, other = examples[0][0], examples[2][0]
        same = Encoded(first.context_ids + other.suffix_ids, first.slot)
        examples[2] = (same, examples[2][1])
        return cls(model, embedding, examples, ks, matrix.requires_grad_(), gradient=True)

    @classmethod
    def around(cls, model: PreTrainedModel, embedding: InputEmbedding, length: int, longest: int) -> "Trial":
        """Make an example whose context is longer than `length` (if `longest` allows), one that gets longer in its suffix, and a shorter one."""
        contexts = [min(length + SIDE, longest - TAIL), min(length - SIDE, longest - TAIL), length // 2]
        k, suffix, target = 2, TAIL - 5, 4  # the target's last id isn't read
        shapes = [(context, suffix, target) for context in dict.fromkeys(contexts)]
        examples, matrix = _made_up(embedding, shapes, k)
        return cls(model, embedding, examples, [k] * len(examples), matrix, gradient=False)

    def found(self, way: Way) -> Tensor:
        """Return what is compared, float32: the gradient, `[n, hidden_size]`, or the logits less their mean over all target ids."""
        logits = self._logits(way)
        if self.gradient:
            return self._gradient(self._loss(logits))
        logits = logits.float()
        return logits - logits.mean(dim=0)

    def tolerance(self, expected: Tensor) -> float:
        """Return the greatest relative distance from `expected` that a way may have: a little, or what rounding does to this model."""
        shaken = self._shaken()
        if shaken is None:
            return _TOLERANCE
        return max(_TOLERANCE, _ROUNDING * relative_distance(shaken.found(whole), expected))

    def check_gradient(self) -> None:
        """Check that along a path the loss changes as its gradient says: a kernel may have no gradient, or one that leaves out a part.

        Raises:
            UnsupportedBackboneError: it doesn't.
        """
        here = self._loss(self._logits(whole)).item()
        noise = 2e-6 * abs(here)
        wrong: list[float] = []
        if (shaken := self._shaken()) is not None:
            noise += abs(shaken._loss(shaken._logits(whole)).item() - here)
        else:
            # In lower precision the changes on a short path are mostly rounding, so only a gradient of zero counts.
            for path in _PATHS:
                share = self._unexplained(path, noise)
                if share is not None and share <= _UNEXPLAINED:
                    return
                wrong += [] if share is None else [share]
        nothing = not self.found(whole).any() and self._unexplained(_FAR, noise) is not None
        if nothing:
            wrong = [1.0]
        if nothing or len(wrong) == len(_PATHS):
            msg = (
                f"{type(self.model).__name__} can't be trained as it is loaded: its gradient isn't that of its loss "
                f"({min(wrong):.0%} of what the loss does on a path is left out). A kernel, perhaps that of its quantisation, has no gradient "
                "here; load it in another precision"
            )
            raise UnsupportedBackboneError(msg)

    def _unexplained(self, path: float, noise: float) -> float | None:
        """Return the share of a loss's changes on a path that its gradient doesn't explain; None if they are mere noise."""
        start = self.matrix.detach()
        # From each row towards another one.
        way = start.roll(1, dims=0) - start
        step = way * (path * start.norm() / way.norm() / _PARTS)
        losses, slopes = [], []
        for number in range(_PARTS + 1):
            there = replace(self, matrix=(start + number * step).requires_grad_())
            loss = there._loss(there._logits(whole))
            losses.append(loss.item())
            slopes.append(float((there._gradient(loss) * step).sum()))
        changes = [after - before for before, after in pairwise(losses)]
        expected = [(before + after) / 2 for before, after in pairwise(slopes)]
        size = sum(map(abs, changes))
        if size <= noise * _PARTS and sum(map(abs, expected)) <= noise * _PARTS:
            return None
        return sum(abs(a - b) for a, b in zip(changes, expected, strict=True)) / max(size, noise)

    def _shaken(self) -> "Trial | None":
        """Return this trial with its inputs rounded differently; None if rounding makes too little difference to matter."""
        # Quantised layers round their inputs, whatever the dtype.
        quantised = getattr(self.model.config, "quantization_config", None) is not None
        step = torch.finfo(torch.bfloat16 if quantised else self.embedding.dtype).eps
        if step <= torch.finfo(torch.float32).eps:
            return None
        return replace(self, embedding=cast(InputEmbedding, _Shaken(self.embedding, step)))

    def _logits(self, way: Way) -> Tensor:
        (logits,) = way(self.model, self.embedding, self.examples, self.matrix, [self.ks])
        return logits

    def _loss(self, logits: Tensor) -> Tensor:
        wanted = torch.tensor([i for _, target in self.examples for i in target], device=logits.device)
        return functional.cross_entropy(logits.float(), wanted)

    def _gradient(self, loss: Tensor) -> Tensor:
        if not loss.requires_grad:
            return torch.zeros_like(self.matrix)
        return torch.autograd.grad(loss, self.matrix)[0].float()


def relative_distance(found: Tensor, expected: Tensor) -> float:
    """Return the distance of two tensors, as a share of the second one's norm."""
    return float((found - expected).norm() / expected.norm())


class _Shaken:
    """A backbone's input embeddings whose numbers are rounded up or down at random."""

    def __init__(self, embedding: InputEmbedding, step: float) -> None:
        self._embedding, self._step = embedding, step
        self._draw = torch.Generator().manual_seed(1)
        self.device = embedding.device

    def embed(self, ids: Tensor) -> Tensor:
        return self._shake(self._embedding.embed(ids))

    def virtual(self, rows: Tensor) -> Tensor:
        return self._shake(self._embedding.virtual(rows))

    def _shake(self, numbers: Tensor) -> Tensor:
        up = torch.randint(2, numbers.shape, generator=self._draw).to(numbers.device)
        return numbers * (1 + self._step * (2 * up - 1)).to(numbers.dtype)


def _made_up(
    embedding: InputEmbedding, shapes: Sequence[tuple[int, int, int]], rows: int
) -> tuple[list[Example], Tensor]:
    """Make examples of random ids, with the given lengths of context, suffix and target, and a matrix of random rows; always the same ones."""
    draw = torch.Generator().manual_seed(0)

    def ids(count: int) -> tuple[int, ...]:
        return tuple(torch.randint(embedding.vocab_size, (count,), generator=draw).tolist())

    examples: list[Example] = [
        (Encoded(ids(context + suffix), context), ids(target)) for context, suffix, target in shapes
    ]
    return examples, embedding.embed(torch.tensor(ids(rows))).float() / embedding.scale
