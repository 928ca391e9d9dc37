"""Scores of a short answer against the accepted ones, each from 0 to 1.

Texts are compared as in SQuAD (Rajpurkar et al. 2016, `evaluate-v1.1.py`): lower case, without punctuation and
English articles. The libraries that carry these scores fetch their code at run time or bring a framework along.
"""

from collections import Counter
from collections.abc import Sequence

from spring_rag.data.matching import normalise, stands_in


def exact_match(answer: str, accepted: Sequence[str]) -> float:
    """Return 1 if the answer, normalised, is one of those accepted, else 0."""
    return float(normalise(answer) in {normalise(gold) for gold in accepted})


def f1(answer: str, accepted: Sequence[str]) -> float:
    """Return the overlap in words with the closest accepted answer."""
    return max(_f1(normalise(answer).split(), normalise(gold).split()) for gold in accepted)


def contains(answer: str, accepted: Sequence[str]) -> float:
    """Return 1 if an accepted answer stands in the answer as whole words, else 0."""
    return float(stands_in(answer, accepted))


def _f1(words: list[str], gold: list[str]) -> float:
    if not words or not gold:
        return float(words == gold)
    common = (Counter(words) & Counter(gold)).total()
    return 2 * common / (len(words) + len(gold))
