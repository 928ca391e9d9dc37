"""Questions answered in several ways at once, on the same passages, and the scores of the answers."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from spring_rag.callbacks import OnProgress
from spring_rag.data.examples import RagExample
from spring_rag.evaluation.metrics import contains, exact_match, f1
from spring_rag.fitting import fit_beside
from spring_rag.prompt import RagPrompt, RagTemplate

if TYPE_CHECKING:
    from spring_rag.backends.base import Generation
    from spring_rag.model import SpringModel


@dataclass(frozen=True, slots=True)
class ScoredAnswer:
    """What the model said to one question.

    `num_tokens` counts the ids generated, `cut` says that they ran out, `cut_while_thinking` that they did before an answer began.
    """

    text: str
    num_tokens: int
    exact_match: float
    f1: float
    contains: float
    cut: bool = False
    cut_while_thinking: bool = False


@dataclass(frozen=True, slots=True)
class Way:
    """One way to answer.

    Args:
        template: the prompts' layout.
        k: number of virtual tokens.
        tokens: name of their set; None is the default set.
        stop: strings that end an answer.
    """

    template: RagTemplate
    k: int = 0
    tokens: str | None = None
    stop: tuple[str, ...] = ()


def layouts(
    model: "SpringModel", example: RagExample, ways: Sequence[Way], max_new_tokens: int
) -> dict[RagTemplate, RagPrompt]:
    """Lay out a question in each layout, with the passages that fit in all of them beside the most virtual tokens.

    Raises:
        PromptTooLongError: the question doesn't fit the context even without passages.
    """
    templates = dict.fromkeys(way.template for way in ways)
    prompts = [RagPrompt(example.question, example.passages, layout) for layout in templates]
    fitted = fit_beside(prompts, model.backend, [way.k for way in ways], max_new_tokens)
    return {prompt.template: prompt for prompt, _ in fitted}


def answer_in_ways(
    model: "SpringModel",
    examples: Sequence[RagExample],
    prompts: Sequence[dict[RagTemplate, RagPrompt]],
    ways: Sequence[Way],
    *,
    max_new_tokens: int,
    batch_size: int,
    progress: OnProgress | None = None,
    into: dict[Way, dict[int, ScoredAnswer]] | None = None,
) -> list[tuple[ScoredAnswer, ...]]:
    """Answer all questions greedily in all ways; a question's prompts stand in one batch, so that a context is computed once.

    Args:
        model: the backbone with its virtual tokens.
        examples: the questions.
        prompts: of each question, what `layouts` gives.
        ways: how to answer; those that end their answers alike run together.
        max_new_tokens: most ids of an answer.
        batch_size: prompts answered at once.
        progress: how far it is.
        into: an empty dict that gets the answers of each way by the questions' numbers, those until an interruption, too.

    Returns:
        For each way, the answers to all questions.
    """
    total = len(examples) * len(ways)
    found = {} if into is None else into
    for stop in dict.fromkeys(way.stop for way in ways):
        together = [way for way in ways if way.stop == stop]
        before = len(examples) * len(found)

        def told(done: int, _: int, before: int = before) -> None:
            if progress is not None:
                progress(before + done, total)

        pairs = [(way, number) for number in range(len(examples)) for way in together]
        replies: dict[int, Generation] = {}
        try:
            model.generate(
                [prompts[number][way.template] for way, number in pairs],
                num_tokens=[way.k for way, _ in pairs],
                tokens=[way.tokens for way, _ in pairs],
                max_new_tokens=max_new_tokens,
                stop=stop or None,
                batch_size=batch_size,
                progress=told,
                into=replies,
            )
        finally:
            found.update((way, {}) for way in together)
            for at in sorted(replies):
                way, number = pairs[at]
                found[way][number] = score(replies[at], examples[number].answers)
    return [tuple(found[way].values()) for way in ways]


def score(reply: "Generation", accepted: Sequence[str]) -> ScoredAnswer:
    """Strip an answer at both ends, and score it against the accepted ones."""
    text = reply.text.strip()
    scores = exact_match(text, accepted), f1(text, accepted), contains(text, accepted)
    return ScoredAnswer(
        text,
        reply.usage.generated,
        *scores,
        cut=reply.finish_reason == "length",
        cut_while_thinking=reply.cut_while_thinking,
    )
