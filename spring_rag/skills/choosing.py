"""How one of several targets is chosen: what a backbone is asked about the token that comes next, and what its answers say.

Either the targets are texts, of which one is written; or each has words of its own, and it is chosen by how likely one of them comes next; or
they are yes and no, told by how likely another text is.
"""

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from math import exp

Ids = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Choice:
    """A right target as training sees it.

    Attributes:
        before: what all targets begin with: a part of the question.
        target: the ids that tell it from the others.
        among: for each of them those that it is chosen from, each with the share of it that is right, from 0 to 1.
    """

    before: Ids
    target: Ids
    among: tuple[Mapping[int, float], ...]


class Choosing(ABC):
    """A way to choose among targets."""

    @property
    @abstractmethod
    def places(self) -> Sequence[tuple[Ids, Ids]]:
        """What a backbone is asked: after these ids, how likely is each of those?"""

    @abstractmethod
    def probabilities(self, found: Sequence[Mapping[int, float]]) -> list[float]:
        """How likely each target is, given that it is one of them; they add up to 1.

        Args:
            found: for each of `places` the log-probability of each id.
        """

    @abstractmethod
    def choice(self, right: Collection[int]) -> Choice:
        """What training teaches.

        Args:
            right: places of the right ones among the targets, at least one.
        """


class Texts(Choosing):
    """Targets that are written: asked about where they part.

    Args:
        candidates: ids of texts that differ, none of which another begins with: an end-of-sequence id sees to that.
    """

    def __init__(self, candidates: Sequence[Ids]) -> None:
        self._candidates = candidates
        self._branches = branches(candidates)

    @property
    def places(self) -> Sequence[tuple[Ids, Ids]]:
        """Where the texts part."""
        return list(self._branches.items())

    def probabilities(self, found: Sequence[Mapping[int, float]]) -> list[float]:
        """Those of the texts."""
        return probabilities(self._candidates, dict(zip(self._branches, found, strict=True)))

    def choice(self, right: Collection[int]) -> Choice:
        """The first of the right ones; what there is no choice in is left out, but where it is the only one."""
        ids = self._candidates[min(right)]
        parting = [at for at in range(len(ids)) if ids[:at] in self._branches] or [0, len(ids) - 1]
        span = range(parting[0], parting[-1] + 1)
        return Choice(
            before=ids[: span.start],
            target=ids[span.start : span.stop],
            among=tuple(
                {one: float(one == ids[at]) for one in self._branches.get(ids[:at], (ids[at],))}
                for at in span
            ),
        )


class Written(Choosing):
    """Yes or no, by how likely one text is to be written.

    Args:
        ids: of the text, with what ends it.
    """

    def __init__(self, ids: Ids) -> None:
        self._ids = ids

    @property
    def places(self) -> Sequence[tuple[Ids, Ids]]:
        """Each of its ids, behind those before it."""
        return [(self._ids[:at], (one,)) for at, one in enumerate(self._ids)]

    def probabilities(self, found: Sequence[Mapping[int, float]]) -> list[float]:
        """That it is written, and that it isn't."""
        said = exp(sum(told[one] for told, one in zip(found, self._ids, strict=True)))
        return [said, 1 - said]

    def choice(self, right: Collection[int]) -> Choice:
        """Nothing of its own: who is to tell this is trained to write what is right."""
        msg = "a text that is judged is no target"
        raise NotImplementedError(msg)


class Words(Choosing):
    """Targets that have words of their own, of which one comes next.

    An id that several targets have counts for each in equal parts.

    Args:
        before: what is written before the word.
        words: for each target the ids that its words begin with.
    """

    def __init__(self, before: Ids, words: Sequence[Collection[int]]) -> None:
        self._before, self._words = before, [frozenset(each) for each in words]
        self._count = dict(sorted(Counter(one for each in self._words for one in each).items()))

    @property
    def places(self) -> Sequence[tuple[Ids, Ids]]:
        """All words."""
        return [(self._before, tuple(self._count))]

    def probabilities(self, found: Sequence[Mapping[int, float]]) -> list[float]:
        """Those of their words, summed up."""
        told = {one: exp(logprob) / self._count[one] for each in found for one, logprob in each.items()}
        masses = [sum(told[one] for one in each) for each in self._words]
        total = sum(masses)
        return [mass / total for mass in masses] if total else [1 / len(masses)] * len(masses)

    def choice(self, right: Collection[int]) -> Choice:
        """Any word of a right one is right; where none has a word, nothing is wrong."""
        held = Counter(one for at in set(right) for one in self._words[at])
        shares = {one: held[one] / count for one, count in self._count.items()}
        if not any(shares.values()):
            shares = dict.fromkeys(shares or (0,), 1.0)
        return Choice(self._before, (max(shares, key=shares.__getitem__),), (shares,))


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
    return softmax(scores)


def softmax(scores: Sequence[float]) -> list[float]:
    """Return the probabilities of which the scores are the logarithms, up to a common summand."""
    most = max(scores)
    weights = [exp(score - most) for score in scores]
    total = sum(weights)
    return [weight / total for weight in weights]
