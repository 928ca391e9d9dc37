"""How good choices are: whether probabilities rank and mean what they should, and whether the right passages are named."""

from collections.abc import Sequence
from dataclasses import dataclass

from spring_rag.extras import extra

_BINS = 10


def auroc(probabilities: Sequence[float], truths: Sequence[bool]) -> float:
    """Return the probability that a true example scores higher than a false one; 0.5 if all are true or all are false.

    Args:
        probabilities: of yes, one per example.
        truths: whether it is yes.

    Raises:
        MissingExtraError: scikit-learn isn't installed.
    """
    if len(set(truths)) < 2:
        return 0.5
    with extra("train"):
        from sklearn.metrics import roc_auc_score
    return float(roc_auc_score(list(truths), list(probabilities)))


def accuracy(probabilities: Sequence[float], truths: Sequence[bool]) -> float:
    """Return the share of examples that are judged rightly at a threshold of one half."""
    right = [(each >= 0.5) == truth for each, truth in zip(probabilities, truths, strict=True)]
    return sum(right) / len(right)


def calibration_error(probabilities: Sequence[float], truths: Sequence[bool]) -> float:
    """Return the expected calibration error: how far probabilities are from the share of truths, in ten bins of equal width."""
    bins: dict[int, list[tuple[float, bool]]] = {}
    for probability, truth in zip(probabilities, truths, strict=True):
        bins.setdefault(min(int(probability * _BINS), _BINS - 1), []).append((probability, truth))
    return sum(abs(sum(p - t for p, t in some)) for some in bins.values()) / len(truths)


@dataclass(frozen=True, slots=True)
class Coverage:
    """The score if only the surest share of the questions is answered.

    Attributes:
        coverage: share that is answered, from above 0 to 1.
        score: mean score of what is answered.
    """

    coverage: float
    score: float


def risk_coverage(confidences: Sequence[float], scores: Sequence[float]) -> list[Coverage]:
    """Return the mean score of the surest 1, 2, 3, … questions.

    Args:
        confidences: how sure the answers are, one per question.
        scores: how right they are, as exact match.
    """
    order = sorted(range(len(scores)), key=lambda i: -confidences[i])
    found, total = [], 0.0
    for number, index in enumerate(order, 1):
        total += scores[index]
        found.append(Coverage(number / len(order), total / number))
    return found


def at_coverage(confidences: Sequence[float], scores: Sequence[float], coverage: float) -> float:
    """Return the mean score of the surest share of the questions."""
    answered = max(1, round(coverage * len(scores)))
    return risk_coverage(confidences, scores)[answered - 1].score


@dataclass(frozen=True, slots=True)
class CitationScores:
    """How good citations are, over all questions.

    Attributes:
        precision: share of the cited passages that hold the answer.
        recall: share of the passages that hold the answer that are cited.
        first: share of the questions that have such a passage whose first citation is one.
        always_first: the same share if the passage that was ranked first is always cited.
    """

    precision: float
    recall: float
    first: float
    always_first: float


def citation_scores(cited: Sequence[Sequence[int]], right: Sequence[Sequence[int]]) -> CitationScores:
    """Score citations.

    Args:
        cited: numbers of the cited passages, likeliest first, one list per question.
        right: numbers of the passages that hold the answer.
    """
    both = [(list(c), set(r)) for c, r in zip(cited, right, strict=True)]
    hits = sum(len(r.intersection(c)) for c, r in both)
    possible = [(c, r) for c, r in both if r]
    return CitationScores(
        precision=hits / max(1, sum(len(c) for c, _ in both)),
        recall=hits / max(1, sum(len(r) for _, r in both)),
        first=sum(c[:1] != [] and c[0] in r for c, r in possible) / max(1, len(possible)),
        always_first=sum(1 in r for _, r in possible) / max(1, len(possible)),
    )
