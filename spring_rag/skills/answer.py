"""`answer`: the answer itself, in free text."""

from collections.abc import Sequence

from spring_rag.data.examples import RagExample
from spring_rag.prompt import RagTemplate
from spring_rag.skills.skill import Skill


class Answer(Skill):
    """Write the answer."""

    name = "answer"
    writes = True
    line = RagTemplate().question
    init_text = (
        "According to the previous relevant passages, please answer the following question. "
        "Only return the answer without any other words."
    )

    def targets(self, passages: int) -> tuple[str, ...]:  # noqa: ARG002
        """Anything may be written."""
        return ()

    def target(self, example: RagExample, claim: str | None, passages: Sequence[str]) -> str:  # noqa: ARG002
        """The first of the accepted answers."""
        return example.answers[0]
