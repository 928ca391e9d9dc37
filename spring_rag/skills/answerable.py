"""`answerable`: whether the passages hold the answer, as a probability."""

import re
from collections.abc import Sequence
from random import Random

from spring_rag.data.examples import RagExample
from spring_rag.skills.skill import Skill, held

_SENTENCE = re.compile(r".+?(?:[.!?]+[\"')\]]*\s+|\n+|$)", re.DOTALL)
_SENTENCES = 0.5
"""Share of the contexts that lose sentences and not whole passages."""

_FEW = 0.01
"""With a smaller share of robbed examples the data is taken to have unanswerable questions of its own."""


class Answerable(Skill):
    """Tell whether the passages hold the answer.

    Half of the contexts lose the sentences that hold the answers of some of the questions about them: one context is asked questions
    that it answers and questions on the same things that it doesn't. Of the other half, some lose whole passages, as when retrieval fails.
    """

    name = "answerable"
    line = "Question: {question}\nCan it be answered from the passages:"
    init_text = "Do the previous passages say what the following question asks for? Only return yes or no."
    robbed = 0.5
    yes = "yes"

    def targets(self, passages: int) -> tuple[str, ...]:  # noqa: ARG002
        """Yes or no."""
        return ("yes", "no")

    def target(self, example: RagExample, claim: str | None, passages: Sequence[str]) -> str:  # noqa: ARG002
        """Yes if an accepted answer stands in one of the passages."""
        return "yes" if any(held(each, example.answers) for each in passages) else "no"

    def passages(
        self, example: RagExample, mates: Sequence[RagExample], count: int, rng: Random, robbed: float
    ) -> tuple[str, ...]:
        """The same for all mates; how many there are doesn't give away what they hold."""
        if robbed < _FEW:
            return example.passages[:count]
        if rng.random() < _SENTENCES:
            answers = [mate.answers for mate in mates if rng.random() < robbed]
            kept = (_without(each, answers) for each in example.passages[:count])
            return tuple(each for each in kept if each)
        others = tuple(
            each for each in example.passages if not any(held(each, mate.answers) for mate in mates)
        )
        loses = rng.random() < robbed
        if not others:
            return example.passages[:count]
        return (others if loses else example.passages)[: min(count, len(others))]


def _without(passage: str, answers: Sequence[tuple[str, ...]]) -> str:
    """A passage without the sentences that hold one of these answers; empty if nothing is left."""
    if not any(held(passage, each) for each in answers):
        return passage
    sentences = _SENTENCE.findall(passage)
    kept = [one for one in sentences if not any(held(one, each) for each in answers)]
    return "".join(kept).strip()
