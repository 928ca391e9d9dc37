"""Probabilities that mean what they say: a logistic curve over what a skill's scores say (Platt 1999)."""

from collections.abc import Collection, Sequence
from math import exp, log

from spring_rag.extras import extra
from spring_rag.skills.choosing import softmax

_LEAST = 1e-9
_LEAST_SAID = 1e-4
"""Of a passage: that a word wasn't thought of doesn't rule it out."""


def calibrated(probability: float, calibration: tuple[float, float] | None) -> float:
    """A probability by the curve; as it is without one.

    Args:
        probability: from 0 to 1.
        calibration: slope and intercept of the curve, over the logarithm of the odds.
    """
    if calibration is None:
        return probability
    slope, intercept = calibration
    return _logistic(slope * _log_odds(probability) + intercept)


def fit_calibration(probabilities: Sequence[float], truths: Sequence[bool]) -> tuple[float, float] | None:
    """Slope and intercept of the curve that fits held-out examples best.

    Args:
        probabilities: of yes, one per example.
        truths: whether it is yes.

    Returns:
        None where all examples are alike: there is nothing to fit then.

    Raises:
        MissingExtraError: scikit-learn isn't installed.
    """
    if len(set(truths)) < 2:
        return None
    with extra("train"):
        from sklearn.linear_model import LogisticRegression
    odds = [[_log_odds(each)] for each in probabilities]
    # Hardly any regularisation: it keeps the curve finite where the scores part the examples without a fault.
    found = LogisticRegression(C=100.0).fit(odds, list(truths))
    return float(found.coef_[0][0]), float(found.intercept_[0])


def ranked(probabilities: Sequence[float], calibration: tuple[float, float] | None) -> list[float]:
    """Probabilities of passages and of none of them, with the passages' ranks taken into account; as they are without a calibration.

    Args:
        probabilities: of the passages, best first, and last of none of them.
        calibration: the powers of the probability and of one over the rank that what results is proportional to.
    """
    if calibration is None:
        return list(probabilities)
    by_words, by_rank = calibration
    return softmax([by_words * said - by_rank * rank for said, rank in _said_and_ranked(probabilities)])


def fit_ranked(
    probabilities: Sequence[Sequence[float]], right: Sequence[Collection[int]]
) -> tuple[float, float] | None:
    """The powers that fit held-out examples best: a conditional logit.

    Args:
        probabilities: as `ranked` takes them, one list per example.
        right: for each example the places of the right ones.

    Returns:
        None without examples.

    Raises:
        MissingExtraError: SciPy isn't installed.
    """
    if not probabilities:
        return None
    with extra("train"):
        from scipy.optimize import minimize

    def loss(powers: Sequence[float]) -> float:
        by_words, by_rank = map(float, powers)
        chosen = (ranked(each, (by_words, by_rank)) for each in probabilities)
        hits = (sum(one[at] for at in places) for one, places in zip(chosen, right, strict=True))
        # Hardly any regularisation, as above.
        return sum(-log(max(hit, _LEAST)) for hit in hits) + 0.005 * (by_words**2 + by_rank**2)

    found = minimize(loss, (1.0, 0.0), method="Nelder-Mead").x
    return float(found[0]), float(found[1])


def _said_and_ranked(probabilities: Sequence[float]) -> list[tuple[float, float]]:
    """For each the logarithms of its probability and of its rank; none of them has no rank."""
    last = len(probabilities) - 1
    return [
        (log(max(each, _LEAST_SAID)), log(1 + at) if at < last else 0.0)
        for at, each in enumerate(probabilities)
    ]


def _log_odds(probability: float) -> float:
    inside = min(max(probability, _LEAST), 1 - _LEAST)
    return log(inside / (1 - inside))


def _logistic(value: float) -> float:
    return 1 / (1 + exp(-value)) if value >= 0 else exp(value) / (1 + exp(value))
