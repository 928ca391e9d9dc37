"""`check`: whether passages support an answer, wherever it comes from."""

from collections.abc import Sequence
from random import Random

from spring_rag.data.examples import RagExample
from spring_rag.data.matching import normalise
from spring_rag.skills.skill import Skill, held
from spring_rag.skills.wrong_answers import wrong_answer

_RIGHT = 0.5


class Check(Skill):
    """Tell whether an answer is supported by the passages."""

    name = "check"
    line = "Question: {question}\nDo the passages support this answer:"
    init_text = (
        "Is the following answer to the question what the previous passages say? Only return yes or no."
    )
    robbed = 0.1
    yes = "yes"
    judges = True

    def targets(self, passages: int) -> tuple[str, ...]:  # noqa: ARG002
        """Yes or no."""
        return ("yes", "no")

    def asked(self, question: str, claim: str | None = None) -> str:
        """The question with the answer that is judged."""
        return f"{question}\nAnswer: {claim or ''}"

    def claim(
        self, example: RagExample, mates: Sequence[RagExample], passages: Sequence[str], rng: Random
    ) -> str:
        """The right answer, or one of the same kind that the passages hold for something else."""
        if rng.random() < _RIGHT:
            return example.answers[0]
        others = [answer for mate in mates for answer in mate.answers]
        return wrong_answer(example.answers, others, passages, rng) or example.answers[0]

    def target(self, example: RagExample, claim: str | None, passages: Sequence[str]) -> str:
        """Yes if the answer is an accepted one, and stands in one of the passages."""
        accepted = normalise(claim or "") in map(normalise, example.answers)
        return "yes" if accepted and any(held(each, example.answers) for each in passages) else "no"
