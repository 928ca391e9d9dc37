"""One of several texts, chosen by their probabilities: where they part, a backbone tells the log-probabilities of the next token."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import exp

Ids = tuple[int, ...]


def branches(candidates: Sequence[Ids]) -> dict[Ids, Ids]:
    """Where candidates part: what has been written until then, and the ids that may follow.

    What all candidates begin with is part of every key. One place is enough for yes and no, or for the numbers 1 to 9; from 10 on
    there is another one behind the 1.

    Args:
        candidates: ids of texts that differ, none of which another begins with: an end-of-sequence id sees to that.
    """
    following: dict[Ids, dict[int, None]] = {}
    for ids in candidates:
        for at, one in enumerate(ids):
            following.setdefault(ids[:at], {})[one] = None
    return {before: tuple(ids) for before, ids in following.items() if len(ids) > 1}


@dataclass(frozen=True, slots=True)
class Choice:
    """A candidate as training sees it.

    Attributes:
        before: what all candidates begin with: a part of the question.
        target: the ids that tell it from the others.
        among: for each of them those that it is chosen from.
    """

    before: Ids
    target: Ids
    among: tuple[Ids, ...]


def choice(candidates: Sequence[Ids], right: int) -> Choice:
    """One of the candidates, the number `right`; what there is no choice in is left out, but where it is the only one.

    Args:
        candidates: as `branches` takes them.
        right: its place among them.
    """
    ids, places = candidates[right], branches(candidates)
    parting = [at for at in range(len(ids)) if ids[:at] in places] or [0, len(ids) - 1]
    span = range(parting[0], parting[-1] + 1)
    return Choice(
        before=ids[: span.start],
        target=ids[span.start : span.stop],
        among=tuple(places.get(ids[:at], (ids[at],)) for at in span),
    )


def probabilities(candidates: Sequence[Ids], found: Mapping[Ids, Mapping[int, float]]) -> list[float]:
    """How likely each candidate is, given that it is one of them; they add up to 1.

    Args:
        candidates: as `branches` got them.
        found: for each place of `branches` the log-probability of each id.
    """
    scores = []
    for ids in candidates:
        places = (ids[:at] for at in range(len(ids)))
        scores.append(sum(found[place][ids[len(place)]] for place in places if place in found))
    most = max(scores)
    weights = [exp(score - most) for score in scores]
    return [weight / sum(weights) for weight in weights]
