"""Examples as a retriever brings them, to try a skill on: nothing is varied that isn't in use."""

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from spring_rag.data.examples import RagExample
from spring_rag.skills.skill import Skill, robbed_at_random

ROBBED = 0.25
"""Share of the questions that lose the passages which hold the answer: most questions to an index have one."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One question to a skill.

    Attributes:
        example: that it was made of.
        question: what stands in the skill's line.
        passages: best first.
        target: what is right.
        claim: the answer to be judged, if the skill judges one.
    """

    example: RagExample
    question: str
    passages: tuple[str, ...]
    target: str
    claim: str | None = None


def samples(
    skill: Skill, examples: Sequence[RagExample], count: int, seed: int, robbed: float = ROBBED
) -> list[Sample]:
    """One sample of each example, the same every time.

    Args:
        skill: that is to be tried.
        examples: held out.
        count: most passages.
        seed: of which are robbed, and of the claims.
        robbed: share that loses the passages which hold the answer; what is ranked behind takes their place.
    """
    found = []
    for number, example in enumerate(examples):
        rng = Random(f"{seed}:{number}:sample")
        passages = robbed_at_random(example, count, rng, robbed)
        claim = skill.claim(example, [example], passages, rng)
        target = skill.target(example, claim, passages)
        found.append(Sample(example, example.question, passages, target, claim))
    return found
