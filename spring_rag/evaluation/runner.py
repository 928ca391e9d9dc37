"""The same questions answered with k = 0, 1, … virtual tokens, and by the plain backbone told in words."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from spring_rag.errors import DataError
from spring_rag.evaluation.metrics import contains, exact_match, f1
from spring_rag.examples import RagExample
from spring_rag.prompt import RagPrompt, RagTemplate

if TYPE_CHECKING:
    from spring_rag.model import SpringModel

BRIEF = "Answer with a few words only.\n"


@dataclass(frozen=True, slots=True)
class Answer:
    """What the model said to one question; `num_tokens` counts the ids generated."""

    text: str
    num_tokens: int
    exact_match: float
    f1: float
    contains: float


@dataclass(frozen=True, slots=True)
class Run:
    """All questions, answered in one way: with `k` virtual tokens and perhaps an instruction in words."""

    k: int
    answers: tuple[Answer, ...]
    seconds: float
    instruction: str = ""

    @property
    def label(self) -> str:
        """How the run is called in tables."""
        return f"k = {self.k}" if not self.instruction else f"k = {self.k}, “{self.instruction.strip()}”"

    def mean(self, score: str) -> float:
        """Mean over the questions of a score of `Answer`, by its name."""
        return float(sum(getattr(answer, score) for answer in self.answers)) / len(self.answers)

    def to_dict(self) -> dict[str, Any]:
        """The row that `--json` prints; scores from 0 to 1, `answer_tokens` the mean length."""
        return {
            "k": self.k,
            "exact_match": round(self.mean("exact_match"), 4),
            "f1": round(self.mean("f1"), 4),
            "contains": round(self.mean("contains"), 4),
            "answer_tokens": round(self.mean("num_tokens"), 2),
            "n": len(self.answers),
            "answers_per_second": round(len(self.answers) / self.seconds, 3) if self.seconds else None,
        }


@dataclass(frozen=True, slots=True)
class Sweep:
    """The runs of one set of questions.

    Args:
        examples: the questions.
        runs: one per k, in the order asked for.
        instructed: the plain backbone told in words, if it was asked too.
        extra: what else belongs into the JSON object, as the share of questions whose passage was retrieved.
    """

    examples: tuple[RagExample, ...]
    runs: tuple[Run, ...]
    instructed: Run | None = None
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def all_runs(self) -> tuple[Run, ...]:
        """The runs in order of display: plain and told in words first."""
        if self.instructed is None:
            return self.runs
        plain = [run for run in self.runs if run.k == 0]
        return (*plain, self.instructed, *(run for run in self.runs if run.k > 0))

    def to_dict(self) -> dict[str, Any]:
        """The object that `--json` prints."""
        told: dict[str, Any] = {}
        if self.instructed is not None:
            told = {"instructed": {"instruction": self.instructed.instruction, **self.instructed.to_dict()}}
        return {"results": [run.to_dict() for run in self.runs], **told, **self.extra}


def sweep(
    model: "SpringModel",
    examples: Sequence[RagExample],
    ks: Sequence[int],
    *,
    template: RagTemplate | None = None,
    instruction: str | None = BRIEF,
    tokens: str | None = None,
    max_new_tokens: int = 48,
    batch_size: int = 16,
    progress: Callable[[int, int], None] | None = None,
) -> Sweep:
    """Answer all questions greedily for each k, and score the answers.

    Args:
        model: the backbone with its virtual tokens.
        examples: questions, accepted answers and passages.
        ks: numbers of virtual tokens; 0 is the plain backbone.
        template: wording of the prompts; the one that the set was trained with if not given.
        instruction: what the plain backbone is told in words, for comparison; None leaves that run out.
        tokens: name of the set of virtual tokens, if the model has several.
        max_new_tokens: most ids of an answer.
        batch_size: prompts answered at once.
        progress: called with the number of answers so far, and of all.

    Raises:
        DataError: no questions.
    """
    if not examples:
        msg = "there are no questions to answer; give at least one"
        raise DataError(msg)
    template = template or model.template(tokens)
    total = len(examples) * (len(ks) + (1 if instruction else 0))
    done = 0

    def run(k: int, instruction: str = "") -> Run:
        nonlocal done
        worded = replace(template, instruction=template.instruction + instruction)
        prompts = [RagPrompt(question=e.question, passages=e.passages, template=worded) for e in examples]
        answers: dict[int, Answer] = {}
        # Prompts of like length stand in one batch: padding costs as much as text.
        order = sorted(range(len(prompts)), key=lambda i: sum(map(len, examples[i].passages)))
        started = time.perf_counter()
        for start in range(0, len(order), batch_size):
            part = order[start : start + batch_size]
            replies = model.generate(
                [prompts[i] for i in part],
                num_tokens=k,
                tokens=tokens,
                max_new_tokens=max_new_tokens,
                batch_size=batch_size,
            )
            for i, reply in zip(part, replies, strict=True):
                answers[i] = _score(reply.text.strip(), reply.usage.generated, examples[i].answers)
            done += len(part)
            if progress is not None:
                progress(done, total)
        seconds = time.perf_counter() - started
        return Run(k, tuple(answers[i] for i in range(len(prompts))), seconds, instruction)

    runs = tuple(run(k) for k in ks)
    return Sweep(tuple(examples), runs, run(0, instruction) if instruction else None)


def _score(text: str, num_tokens: int, accepted: Sequence[str]) -> Answer:
    return Answer(text, num_tokens, exact_match(text, accepted), f1(text, accepted), contains(text, accepted))
