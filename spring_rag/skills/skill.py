"""What makes a skill: a line behind the slot, what may be written behind the line, and how examples are made of ordinary data."""

from abc import ABC, abstractmethod
from collections.abc import Collection, Sequence
from functools import lru_cache
from random import Random
from typing import TYPE_CHECKING

from spring_rag.data.examples import RagExample
from spring_rag.data.matching import holds
from spring_rag.encoding import encode_target
from spring_rag.prompt import RagTemplate
from spring_rag.skills.calibration import calibrated, fit_calibration
from spring_rag.skills.choosing import Choosing, Ids, Texts

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Skill(ABC):
    """Something that virtual tokens can be trained to do on a context.

    A skill either writes free text (`answer`) or chooses among `targets`, which a backbone is asked for in one pass. All skills read
    the same context, so that it is computed once for all of them.

    Attributes:
        name: the `task` in the record of the tokens.
        line: `RagTemplate.question`, what stands behind the slot.
        init_text: what the rows start from when they are trained.
        robbed: share of examples that lose the passages which hold the answer, where a recipe doesn't say.
        yes: the target whose probability is read, of skills that tell how sure something is; None for others.
        judges: whether it is asked about an answer that is given to it; the others are asked together with each question.
        writes: whether it is trained to write the answer, and not to choose.
    """

    name: str
    line: str
    init_text: str
    robbed: float = 0.0
    yes: str | None = None
    judges: bool = False
    writes: bool = False

    @abstractmethod
    def targets(self, passages: int) -> tuple[str, ...]:
        """What may be written behind the line beside so many passages; nothing in particular for free text."""

    @abstractmethod
    def target(self, example: RagExample, claim: str | None, passages: Sequence[str]) -> str:
        """What is right.

        Args:
            example: of which it is asked.
            claim: what `claim` gave.
            passages: as they stand in the prompt.
        """

    @property
    def yes_at(self) -> int:
        """The place of `yes` among the targets."""
        return self.targets(0).index(self.yes or "")

    def right(self, example: RagExample, claim: str | None, passages: Sequence[str]) -> tuple[str, ...]:
        """All targets that are right; `target` is the best of them. Takes what it takes."""
        return (self.target(example, claim, passages),)

    def choosing(
        self,
        passages: Sequence[str],
        template: RagTemplate,
        tokenizer: "PreTrainedTokenizerBase",
        claim: str | None = None,  # noqa: ARG002
    ) -> Choosing:
        """How a backbone is asked for one of the targets.

        Args:
            passages: as they stand in the prompt.
            template: of the prompt.
            tokenizer: the backbone's.
            claim: the answer that is judged, if the skill judges one.
        """
        return Texts([written(each, template, tokenizer) for each in self.targets(len(passages))])

    def length(
        self,
        passages: int,
        template: RagTemplate,
        tokenizer: "PreTrainedTokenizerBase",
        claim: str | None = None,  # noqa: ARG002
    ) -> int:
        """Most tokens behind the line, when it is asked. Takes what `choosing` takes, of the passages only how many there are."""
        return max(len(written(each, template, tokenizer)) for each in self.targets(passages))

    def calibrated(self, found: Sequence[float], calibration: tuple[float, float] | None) -> list[float]:
        """Probabilities of the targets that mean what they say: those of yes and no by a logistic curve.

        Args:
            found: of the targets, in their order, passages best first.
            calibration: what `fit_calibration` gave; None leaves them as they are.
        """
        if self.yes is None or calibration is None:
            return list(found)
        yes = calibrated(found[self.yes_at], calibration)
        return [yes if place == self.yes_at else 1 - yes for place in range(len(found))]

    def fit_calibration(
        self, found: Sequence[Sequence[float]], right: Sequence[Collection[int]]
    ) -> tuple[float, float] | None:
        """What fits held-out examples best; None where there is nothing to fit.

        Args:
            found: for each example the probabilities of the targets, not calibrated.
            right: for each the places of the right ones.
        """
        if self.yes is None:
            return None
        return fit_calibration([each[self.yes_at] for each in found], [self.yes_at in each for each in right])

    def claim(
        self,
        example: RagExample,  # noqa: ARG002
        mates: Sequence[RagExample],  # noqa: ARG002
        passages: Sequence[str],  # noqa: ARG002
        rng: Random,  # noqa: ARG002
    ) -> str | None:
        """An answer to be judged, right or wrong; None for skills that judge none.

        Args:
            example: of which it is asked.
            mates: all examples with its passages.
            passages: those drawn.
            rng: of this example.
        """
        return None

    def passages(
        self,
        example: RagExample,
        mates: Sequence[RagExample],  # noqa: ARG002
        count: int,
        rng: Random,
        robbed: float,
    ) -> tuple[str, ...]:
        """Passages to train with, best first.

        Args:
            example: of which it is asked.
            mates: all examples with its passages, itself included. They are drawn with equal `rng`s, and what they draw alike is
                computed once.
            count: most passages.
            rng: of all of them.
            robbed: share of examples that lose the passages which hold the answer.
        """
        return robbed_at_random(example, count, rng, robbed)


def written(answer: str, template: RagTemplate, tokenizer: "PreTrainedTokenizerBase") -> Ids:
    """Ids of an answer as the prompts of a template go on, with what ends it."""
    return encode_target(
        answer,
        tokenizer,
        chat=template.chat,
        thinking=template.thinking,
        chat_template_kwargs=template.chat_template_kwargs,
    )


def robbed_at_random(example: RagExample, count: int, rng: Random, share: float) -> tuple[str, ...]:
    """The best passages, or for a share of the examples the best of those that don't hold the answer.

    An example keeps its passages where all of them hold the answer, or none does.
    """
    if share > 0 and rng.random() < share:
        others = tuple(each for each in example.passages if not held(each, example.answers))
        if 0 < len(others) < len(example.passages):
            return others[:count]
    return example.passages[:count]


@lru_cache(maxsize=1 << 16)
def held(passage: str, answers: tuple[str, ...]) -> bool:
    """`holds`, remembered: the same passages are drawn in every epoch."""
    return holds(passage, answers)
