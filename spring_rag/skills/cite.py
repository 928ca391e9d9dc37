"""`cite`: the numbers of the passages that hold the answer."""

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

from spring_rag.control import control_ids
from spring_rag.data.examples import RagExample
from spring_rag.encoding import encode
from spring_rag.prompt import RagTemplate
from spring_rag.skills.answer import Answer
from spring_rag.skills.calibration import fit_ranked, ranked
from spring_rag.skills.choosing import Choosing, Words, branches
from spring_rag.skills.skill import Skill, held, written

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

NONE = "none"
_CLOSE = 0.5
_OTHER = "0"


class Cite(Skill):
    """Name the passages that hold the answer, by a word out of them.

    A number can't be asked for: it stands before its passage, and a frozen backbone doesn't carry it on to the words behind it, where
    the answer is found. What a backbone does well is to copy. So it goes on with a word, any that the right passage has and others don't,
    and the passages share what is said to be likely by whose words they are.
    """

    name = "cite"
    line = Answer.line
    init_text = (
        "According to the previous relevant passages, please answer the following question. "
        "Only return words of the passage with the answer."
    )
    robbed = 0.1

    def targets(self, passages: int) -> tuple[str, ...]:
        """The numbers of the passages, and that none of them holds the answer."""
        return (*map(str, range(1, passages + 1)), NONE)

    def target(self, example: RagExample, claim: str | None, passages: Sequence[str]) -> str:
        """The number of the best passage, as they were ranked, that holds the answer."""
        return min(
            self.right(example, claim, passages),
            key=lambda one: 0 if one == NONE else _rank(passages[int(one) - 1], example.passages),
        )

    def right(self, example: RagExample, claim: str | None, passages: Sequence[str]) -> tuple[str, ...]:  # noqa: ARG002
        """The numbers of all passages that hold the answer."""
        numbers = (str(number) for number, each in enumerate(passages, 1) if held(each, example.answers))
        return tuple(numbers) or (NONE,)

    def choosing(
        self,
        passages: Sequence[str],
        template: RagTemplate,
        tokenizer: "PreTrainedTokenizerBase",
        claim: str | None = None,  # noqa: ARG002
    ) -> Choosing:
        """By the words of the passages; that none holds the answer is said by a word that is no passage's."""
        other, none = (written(each, template, tokenizer) for each in (_OTHER, NONE))
        before = next(iter(branches([other, none])))
        said = none[len(before)]
        left_out = {*control_ids(tokenizer), said}
        # What stands behind a chat's header has no space in front, as what stands behind a line break.
        texts = ["\n".join(each.split()) if template.chat else f" {each}" for each in passages]
        words = [frozenset(encode(each, tokenizer).ids) - left_out for each in texts]
        different = set(words)
        # What all passages have tells nothing.
        common = frozenset.intersection(*different) if len(different) > 1 else frozenset()
        return Words(before, [*(each - common for each in words), {said}])

    def calibrated(self, found: Sequence[float], calibration: tuple[float, float] | None) -> list[float]:
        """What the words say, together with the passages' ranks: a retriever is mostly right, too."""
        return ranked(found, calibration)

    def fit_calibration(
        self, found: Sequence[Sequence[float]], right: Sequence[Collection[int]]
    ) -> tuple[float, float] | None:
        """How much words and ranks count."""
        return fit_ranked(found, right)


def _rank(passage: str, best_first: Sequence[str]) -> int:
    return best_first.index(passage) if passage in best_first else len(best_first)


def citations(probabilities: Sequence[float]) -> list[int]:
    """The numbers of the cited passages, likeliest first.

    Args:
        probabilities: of `Cite.targets`, in their order.

    Returns:
        Empty if it is likeliest that no passage holds the answer; else the likeliest, and those that are half as likely or more.
    """
    *numbers, none = probabilities
    most = max(numbers, default=0.0)
    if none >= most:
        return []
    found = [at for at, each in enumerate(numbers, 1) if each >= _CLOSE * most]
    return sorted(found, key=lambda number: -numbers[number - 1])
