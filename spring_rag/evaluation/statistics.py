"""How sure a score is: intervals of means, and whether one way to answer beats another on the same questions."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from spring_rag.extras import extra

with extra("train"):
    from scipy import stats

_RESAMPLES = 4999
_BATCH = 250


@dataclass(frozen=True, slots=True)
class Interval:
    """A 95 % confidence interval of a mean."""

    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Comparison:
    """One way to answer beside another, on the same questions.

    Attributes:
        gain: mean difference of a score.
        interval: of the gain.
        p: probability of a gain at least as far from 0 if both ways were equally good.
    """

    gain: float
    interval: Interval
    p: float


def interval(scores: Sequence[float]) -> Interval:
    """Return the interval of a mean by the percentile bootstrap, which draws questions anew, with replacement (Efron 1979).

    Args:
        scores: one per question, at least one.
    """
    return _interval(tuple(scores))


def compare(scores: Sequence[float], baseline: Sequence[float]) -> Comparison:
    """Test whether scores differ from those of a baseline on the same questions, two-sided.

    The test is a paired permutation test: if both ways were equally good, each question's difference could just as well have the other sign. For
    scores of 0 and 1 it is McNemar's exact test, which is then computed in closed form.

    Args:
        scores: one per question.
        baseline: as many, of the same questions.
    """
    differences = tuple(score - other for score, other in zip(scores, baseline, strict=True))
    return Comparison(sum(differences) / len(differences), _interval(differences), _p(differences))


@lru_cache(maxsize=256)  # a report's tables, plots and numbers ask for the same ones
def _interval(scores: tuple[float, ...]) -> Interval:
    values = np.asarray(scores)
    if np.ptp(values) == 0:  # also a single question, which can't be bootstrapped
        return Interval(scores[0], scores[0])
    found = stats.bootstrap(
        (values,),
        np.mean,
        n_resamples=_RESAMPLES,
        batch=_BATCH,
        method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval
    return Interval(float(found.low), float(found.high))


@lru_cache(maxsize=256)
def _p(differences: tuple[float, ...]) -> float:
    values = np.asarray([one for one in differences if one != 0])
    if not len(values):
        return 1.0
    if np.isin(values, (-1, 1)).all():
        return float(stats.binomtest(int((values > 0).sum()), len(values)).pvalue)
    rng = np.random.default_rng(0)
    observed, extreme = abs(values.sum()), 0
    for start in range(0, _RESAMPLES, _BATCH):
        signs = rng.choice((-1.0, 1.0), size=(min(_BATCH, _RESAMPLES - start), len(values)))
        # Sums that differ only by rounding count as equal.
        extreme += int((abs(signs @ values) >= observed - 1e-9).sum())
    return (extreme + 1) / (_RESAMPLES + 1)
