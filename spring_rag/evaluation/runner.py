"""The same questions answered in several ways: with k = 0, 1, … virtual tokens of one or more sets, and plainly, told in words."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from spring_rag.callbacks import OnProgress
from spring_rag.data.examples import RagExample
from spring_rag.errors import DataError
from spring_rag.evaluation.ways import ScoredAnswer, Way, answer_in_ways, layouts
from spring_rag.evaluation.words import WordsWay
from spring_rag.prompt import RagTemplate

if TYPE_CHECKING:
    from spring_rag.model import SpringModel


@dataclass(frozen=True, slots=True)
class Run:
    """All questions, answered in one way.

    Args:
        k: number of virtual tokens.
        answers: one per question.
        answers_per_second: with nothing else in the batch; None where it wasn't measured.
        tokens: name of the set, where several are compared.
        words: how the model was told in words, if it was.
    """

    k: int
    answers: tuple[ScoredAnswer, ...]
    answers_per_second: float | None = None
    tokens: str | None = None
    words: WordsWay | None = None

    @property
    def label(self) -> str:
        """How the run is called in tables."""
        if self.words is not None:
            return f"k = {self.k}, in words ({self.words.name})"
        return f"k = {self.k}" + (f", {self.tokens}" if self.tokens else "")

    def scores(self, score: str) -> list[float]:
        """Return a score of `ScoredAnswer`, by its name, for each question."""
        return [float(getattr(answer, score)) for answer in self.answers]

    def mean(self, score: str) -> float:
        """Return the mean over the questions of a score of `ScoredAnswer`, by its name."""
        return sum(self.scores(score)) / len(self.answers)

    def to_dict(self) -> dict[str, Any]:
        """Return the row that `--json` prints: scores from 0 to 1, the mean length as `answer_tokens`, and as `cut` the share that ran out of tokens.

        `cut_while_thinking`, if there is any, is the share that ran out before an answer began.
        """
        cut_short = self.mean("cut_while_thinking")
        speed = self.answers_per_second
        return {
            **({"way": self.words.name, "instruction": self.words.words} if self.words else {}),
            "k": self.k,
            **({"tokens": self.tokens} if self.tokens else {}),
            "exact_match": round(self.mean("exact_match"), 4),
            "f1": round(self.mean("f1"), 4),
            "contains": round(self.mean("contains"), 4),
            "answer_tokens": round(self.mean("num_tokens"), 2),
            "cut": round(self.mean("cut"), 4),
            **({"cut_while_thinking": round(cut_short, 4)} if cut_short else {}),
            "n": len(self.answers),
            "answers_per_second": None if speed is None else round(speed, 3),
        }


@dataclass(frozen=True, slots=True)
class Sweep:
    """The runs of one set of questions.

    Args:
        examples: the questions.
        runs: one per k (and set of virtual tokens), in the order asked for.
        instructed: the plain backbone told in words, if it was asked too.
        extra: what else belongs into the JSON object, as the share of questions whose passage was retrieved.
        interrupted: whether questions, or ways to answer them, were left out at Ctrl-C.
    """

    examples: tuple[RagExample, ...]
    runs: tuple[Run, ...]
    instructed: Run | None = None
    extra: dict[str, Any] = field(default_factory=dict)
    interrupted: bool = False

    @property
    def all_runs(self) -> tuple[Run, ...]:
        """The runs in order of display: plain and told in words first."""
        if self.instructed is None:
            return self.runs
        plain = [run for run in self.runs if run.k == 0]
        return (*plain, self.instructed, *(run for run in self.runs if run.k > 0))

    def to_dict(self) -> dict[str, Any]:
        """Return the object that `--json` prints."""
        told: dict[str, Any] = {}
        if self.instructed is not None:
            told = {"instructed": self.instructed.to_dict()}
        return {"results": [run.to_dict() for run in self.runs], **told, **self.extra}


def sweep(
    model: "SpringModel",
    examples: Sequence[RagExample],
    ks: Sequence[int],
    *,
    template: RagTemplate | None = None,
    words: WordsWay | None = None,
    tokens: str | Sequence[str] | None = None,
    max_new_tokens: int = 48,
    batch_size: int = 64,
    timed: int = 0,
    progress: OnProgress | None = None,
) -> Sweep:
    """Answer all questions greedily in all ways, and score the answers.

    All ways to answer a question see the same passages, as many as fit beside the most virtual tokens, and run together:
    where their contexts are the same, a backend can compute it once.

    Args:
        model: the backbone with its virtual tokens.
        examples: questions, accepted answers and passages.
        ks: numbers of virtual tokens; 0 is the plain backbone. A set that has fewer is left out for that k.
        template: wording of the prompts; the one that each set was trained with if not given.
        words: how the plain backbone is told in words, for comparison; None leaves that run out.
        tokens: name of the set of virtual tokens; or names of several, to be compared.
        max_new_tokens: most ids of an answer.
        batch_size: prompts answered at once; a server gets as many as it takes.
        timed: questions, evenly drawn, that each way answers once more by itself, to measure its speed; 0 leaves it out.
        progress: called with the number of answers so far, and of all.

    Returns:
        The runs; after Ctrl-C only the runs and questions that were answered by then. If none were, the interrupt is raised.

    Raises:
        DataError: no questions.
        TokensError: more virtual tokens than any set has.
        PromptTooLongError: a question that doesn't fit the context even without passages.
    """
    if not examples:
        msg = "there are no questions to answer; give at least one"
        raise DataError(msg)
    ways = _ways(model, ks, [tokens] if tokens is None or isinstance(tokens, str) else tokens, template)
    if words is not None:
        ways.append(Way(words.template, stop=words.stop))
    prompts = [layouts(model, example, ways, max_new_tokens) for example in examples]
    settings: dict[str, Any] = {"max_new_tokens": max_new_tokens, "batch_size": batch_size}
    answers: dict[Way, dict[int, ScoredAnswer]] = {}
    speeds: dict[Way, float] = {}
    interrupted = False
    try:
        answer_in_ways(model, examples, prompts, ways, progress=progress, into=answers, **settings)
        step = -(-len(examples) // timed) if timed else 1
        for way in ways if timed else ():
            started = time.perf_counter()
            answer_in_ways(model, examples[::step], prompts[::step], [way], **settings)
            speeds[way] = len(examples[::step]) / (time.perf_counter() - started)
    except KeyboardInterrupt:
        interrupted = True
        examples, answers = _answered(examples, answers)
        if not examples:
            raise
    told = ways[-1] if words is not None else None
    runs = {
        way: Run(
            way.k,
            tuple(found.values()),
            speeds.get(way),
            tokens=way.tokens if not isinstance(tokens, str) and way.k else None,
        )
        for way, found in answers.items()
    }
    instructed = replace(runs[told], words=words) if told is not None and told in runs else None
    plain = tuple(runs[way] for way in ways if way in runs and way is not told)
    return Sweep(tuple(examples), plain, instructed, interrupted=interrupted)


def _answered(
    examples: Sequence[RagExample], answers: Mapping[Way, Mapping[int, ScoredAnswer]]
) -> tuple[list[RagExample], dict[Way, dict[int, ScoredAnswer]]]:
    """Keep the ways that got all their answers, or else those that got some, and the questions that all kept ways answered."""
    whole = {way: found for way, found in answers.items() if len(found) == len(examples)}
    kept = whole or {way: found for way, found in answers.items() if found}
    numbers = [
        number for number in range(len(examples)) if kept and all(number in each for each in kept.values())
    ]
    return [examples[number] for number in numbers], {
        way: {number: found[number] for number in numbers} for way, found in kept.items()
    }


def _ways(
    model: "SpringModel", ks: Sequence[int], sets: Sequence[str | None], template: RagTemplate | None
) -> list[Way]:
    """Pair every k with every set that has as many tokens; k = 0, which uses none, stands once. A k that no set has is refused later."""
    sizes = {name: len(model.backend.tokens(name) or ()) for name in sets}
    ways = []
    for k in ks:
        fitting = [name for name in sets if k <= sizes[name]] or list(sets)
        ways += [Way(template or model.template(name), k, name) for name in (fitting if k else sets[:1])]
    return ways
