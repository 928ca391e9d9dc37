"""Probabilities that mean what they say: a logistic curve over what a skill's scores say (Platt 1999)."""

from collections.abc import Sequence
from math import exp, log

from spring_rag.extras import extra

_LEAST = 1e-9


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


def _log_odds(probability: float) -> float:
    inside = min(max(probability, _LEAST), 1 - _LEAST)
    return log(inside / (1 - inside))


def _logistic(value: float) -> float:
    return 1 / (1 + exp(-value)) if value >= 0 else exp(value) / (1 + exp(value))
