"""`cite`: the numbers of the passages that hold the answer."""

from collections.abc import Sequence

from spring_rag.data.examples import RagExample
from spring_rag.skills.skill import Skill, held

NONE = "none"
_CLOSE = 0.5


class Cite(Skill):
    """Name the passages that hold the answer."""

    name = "cite"
    line = "Question: {question}\nNumber of the passage with the answer:"
    init_text = (
        "Which one of the previous passages holds the answer to the following question? "
        "Only return its number."
    )
    robbed = 0.1

    def targets(self, passages: int) -> tuple[str, ...]:
        """The numbers of the passages, and that none of them holds the answer."""
        return (*map(str, range(1, passages + 1)), NONE)

    def target(self, example: RagExample, claim: str | None, passages: Sequence[str]) -> str:  # noqa: ARG002
        """The number of the best passage, as they were ranked, that holds the answer."""
        holding = [number for number, each in enumerate(passages, 1) if held(each, example.answers)]
        if not holding:
            return NONE
        return str(min(holding, key=lambda number: _rank(passages[number - 1], example.passages)))


def _rank(passage: str, ranked: Sequence[str]) -> int:
    return ranked.index(passage) if passage in ranked else len(ranked)


def citations(probabilities: Sequence[float]) -> list[int]:
    """The numbers of the cited passages, likeliest first.

    Args:
        probabilities: of `Cite.targets`, in their order.

    Returns:
        None if it is likeliest that no passage holds the answer; else the likeliest, and those that are half as likely or more.
    """
    *numbers, none = probabilities
    most = max(numbers, default=0.0)
    if none >= most:
        return []
    found = [at for at, each in enumerate(numbers, 1) if each >= _CLOSE * most]
    return sorted(found, key=lambda number: -numbers[number - 1])
