"""The same questions answered in several ways: with k = 0, 1, … virtual tokens of one or more sets, and plainly, told in words."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from spring_rag.encoding import encode
from spring_rag.errors import DataError
from spring_rag.evaluation.metrics import contains, exact_match, f1
from spring_rag.examples import RagExample
from spring_rag.prompt import Prompt, RagPrompt, RagTemplate, fit

if TYPE_CHECKING:
    from spring_rag.backends.base import Generation
    from spring_rag.model import SpringModel

BRIEF = "Answer with a few words only.\n"


@dataclass(frozen=True, slots=True)
class Answer:
    """What the model said to one question; `num_tokens` counts the ids generated, `cut` says that they ran out."""

    text: str
    num_tokens: int
    exact_match: float
    f1: float
    contains: float
    cut: bool = False


@dataclass(frozen=True, slots=True)
class Run:
    """All questions, answered in one way.

    Args:
        k: number of virtual tokens.
        answers: one per question.
        answers_per_second: with nothing else in the batch; None where it wasn't measured.
        instruction: what the model was told in words.
        tokens: name of the set, where several are compared.
    """

    k: int
    answers: tuple[Answer, ...]
    answers_per_second: float | None = None
    instruction: str = ""
    tokens: str | None = None

    @property
    def label(self) -> str:
        """How the run is called in tables."""
        if self.instruction:
            return f"k = {self.k}, “{self.instruction.strip()}”"
        return f"k = {self.k}" + (f", {self.tokens}" if self.tokens else "")

    def scores(self, score: str) -> list[float]:
        """A score of `Answer`, by its name, for each question."""
        return [float(getattr(answer, score)) for answer in self.answers]

    def mean(self, score: str) -> float:
        """Mean over the questions of a score of `Answer`, by its name."""
        return sum(self.scores(score)) / len(self.answers)

    def to_dict(self) -> dict[str, Any]:
        """The row that `--json` prints; scores from 0 to 1, `answer_tokens` the mean length, `cut` the share that ran out of tokens."""
        speed = self.answers_per_second
        return {
            "k": self.k,
            **({"tokens": self.tokens} if self.tokens else {}),
            "exact_match": round(self.mean("exact_match"), 4),
            "f1": round(self.mean("f1"), 4),
            "contains": round(self.mean("contains"), 4),
            "answer_tokens": round(self.mean("num_tokens"), 2),
            "cut": round(self.mean("cut"), 4),
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


@dataclass(frozen=True, slots=True)
class _Way:
    """One way to answer: a number of virtual tokens of a set, and the prompts' layout."""

    k: int
    tokens: str | None
    template: RagTemplate
    instruction: str = ""


def sweep(
    model: "SpringModel",
    examples: Sequence[RagExample],
    ks: Sequence[int],
    *,
    template: RagTemplate | None = None,
    instruction: str | None = BRIEF,
    tokens: str | Sequence[str] | None = None,
    max_new_tokens: int = 48,
    batch_size: int = 64,
    timed: int = 32,
    progress: Callable[[int, int], None] | None = None,
) -> Sweep:
    """Answer all questions greedily in all ways, and score the answers.

    All ways to answer a question see the same passages, as many as fit beside the most virtual tokens, and stand in one batch:
    where their contexts are the same, a backend can compute it once. How fast each would be alone is measured afterwards.

    Args:
        model: the backbone with its virtual tokens.
        examples: questions, accepted answers and passages.
        ks: numbers of virtual tokens; 0 is the plain backbone. A set that has fewer is left out for that k.
        template: wording of the prompts; the one that each set was trained with if not given.
        instruction: what the plain backbone is told in words, for comparison; None leaves that run out.
        tokens: name of the set of virtual tokens; or names of several, to be compared.
        max_new_tokens: most ids of an answer.
        batch_size: prompts answered at once; a server gets as many as it takes.
        timed: questions, evenly drawn, on which the speed of each run is measured; 0 leaves it out.
        progress: called with the number of answers so far, and of all.

    Raises:
        DataError: no questions.
        TokensError: more virtual tokens than any set has.
        PromptTooLongError: a question that doesn't fit the context even without passages.
    """
    if not examples:
        msg = "there are no questions to answer; give at least one"
        raise DataError(msg)
    ways = _ways(model, ks, [tokens] if tokens is None or isinstance(tokens, str) else tokens, template)
    if instruction:
        plain = template or model.template(ways[0].tokens)
        told = replace(plain, instruction=plain.instruction + instruction)
        ways.append(_Way(0, ways[0].tokens, told, instruction))
    prompts = [_prompts(model, example, ways, max_new_tokens) for example in examples]

    def answer(
        some: Sequence[_Way], of: Sequence[int], report: Callable[[int, int], None] | None = None
    ) -> "list[Generation]":
        pairs = [(way, number) for number in of for way in some]
        return model.generate(
            [prompts[number][way.template] for way, number in pairs],
            num_tokens=[way.k for way, _ in pairs],
            tokens=[way.tokens for way, _ in pairs],
            max_new_tokens=max_new_tokens,
            batch_size=batch_size,
            progress=report,
        )

    found = answer(ways, range(len(examples)), progress)
    sample = range(0, len(examples), -(-len(examples) // timed)) if timed else range(0)
    runs = []
    for number, way in enumerate(ways):
        started = time.perf_counter()
        answer([way], sample)
        seconds = time.perf_counter() - started
        answers = [
            score(reply, e.answers) for reply, e in zip(found[number :: len(ways)], examples, strict=True)
        ]
        name = way.tokens if not isinstance(tokens, str) and way.k else None
        runs.append(
            Run(way.k, tuple(answers), len(sample) / seconds if sample else None, way.instruction, name)
        )
    return Sweep(tuple(examples), *((tuple(runs[:-1]), runs[-1]) if instruction else (tuple(runs), None)))


def _ways(
    model: "SpringModel", ks: Sequence[int], sets: Sequence[str | None], template: RagTemplate | None
) -> list[_Way]:
    """Every k with every set that has as many; k = 0 once, for it uses none. A k that no set has is left to be refused."""
    sizes = {name: len(model.backend.tokens(name) or ()) for name in sets}
    ways = []
    for k in ks:
        fitting = [name for name in sets if k <= sizes[name]] or list(sets)
        ways += [_Way(k, name, template or model.template(name)) for name in (fitting if k else sets[:1])]
    return ways


def _prompts(
    model: "SpringModel", example: RagExample, ways: Sequence[_Way], max_new_tokens: int
) -> dict[RagTemplate, RagPrompt]:
    """The question in each layout, with the passages that fit in all of them beside the most virtual tokens."""

    def count(prompt: Prompt) -> int:
        return len(encode(prompt, model.tokenizer).ids)

    templates = dict.fromkeys(way.template for way in ways)
    prompts = {layout: RagPrompt(example.question, example.passages, layout) for layout in templates}
    if model.backend.context_length is not None:
        budget = model.backend.context_length - max_new_tokens - max(way.k for way in ways)
        fitted = {layout: fit(prompt, budget, count) for layout, prompt in prompts.items()}
        fewest = min((prompt.passages for prompt in fitted.values()), key=len)
        prompts = {layout: prompt.with_passages(fewest) for layout, prompt in fitted.items()}
    return prompts


def score(reply: "Generation", accepted: Sequence[str]) -> Answer:
    """The answer, stripped at both ends, and its scores against the accepted ones."""
    text = reply.text.strip()
    scores = exact_match(text, accepted), f1(text, accepted), contains(text, accepted)
    return Answer(text, reply.usage.generated, *scores, cut=reply.finish_reason == "length")
