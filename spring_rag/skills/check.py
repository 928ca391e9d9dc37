"""`check`: whether passages support an answer, wherever it comes from."""

from collections.abc import Sequence
from random import Random
from typing import TYPE_CHECKING

from spring_rag.data.examples import RagExample
from spring_rag.data.matching import normalise
from spring_rag.prompt import RagTemplate
from spring_rag.skills.answer import Answer
from spring_rag.skills.choosing import Choosing, Written
from spring_rag.skills.skill import Skill, held, written
from spring_rag.skills.wrong_answers import wrong_answer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_RIGHT = 0.5


class Check(Skill):
    """Tell whether an answer is supported by the passages, by how likely the backbone is to give it.

    Asked in words whether it is right, and trained to say so, a small backbone says little; but what it would answer itself is mostly in the
    passages. So the tokens are trained to write the answer, as those of `answer` are.
    """

    name = "check"
    line = Answer.line
    init_text = Answer.init_text
    robbed = 0.1
    yes = "yes"
    judges = True
    writes = True

    def targets(self, passages: int) -> tuple[str, ...]:  # noqa: ARG002
        """Yes or no."""
        return ("yes", "no")

    def choosing(
        self,
        passages: Sequence[str],  # noqa: ARG002
        template: RagTemplate,
        tokenizer: "PreTrainedTokenizerBase",
        claim: str | None = None,
    ) -> Choosing:
        """By how likely the answer is to be written."""
        return Written(written((claim or "").strip(), template, tokenizer))

    def length(
        self,
        passages: int,  # noqa: ARG002
        template: RagTemplate,
        tokenizer: "PreTrainedTokenizerBase",
        claim: str | None = None,
    ) -> int:
        """The answer's."""
        return len(written((claim or "").strip(), template, tokenizer))

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
