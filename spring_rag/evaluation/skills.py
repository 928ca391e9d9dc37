"""Scores of a skill on questions with known answers: its ranking, its probabilities, its citations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from spring_rag.asking import skill_template
from spring_rag.backends.base import BATCH_SIZE
from spring_rag.evaluation.choices import (
    Coverage,
    accuracy,
    at_coverage,
    auroc,
    calibration_error,
    citation_scores,
    risk_coverage,
)
from spring_rag.evaluation.metrics import exact_match
from spring_rag.fitting import fit_beside
from spring_rag.prompt import RagPrompt, RagTemplate
from spring_rag.skills import CITE, skill_of
from spring_rag.skills.asking import ask_in_batches
from spring_rag.skills.cite import citations
from spring_rag.skills.samples import Sample, samples
from spring_rag.skills.skill import held

if TYPE_CHECKING:
    from spring_rag.callbacks import OnProgress
    from spring_rag.data.examples import RagExample
    from spring_rag.model import SpringModel

_COVERAGE = 0.8


@dataclass(frozen=True, slots=True)
class SkillScores:
    """The scores of a skill on some questions.

    Attributes:
        task: name of the skill.
        questions: how many.
        scores: by name, each from 0 to 1: `auroc`, `accuracy`, `always_yes` (the accuracy of saying yes to all), `calibration_error` of
            a skill that says yes or no; `precision`, `recall`, `first` and `always_first` of citations; `accuracy` of other choices; with
            answers `exact_match`, and `exact_match_at_80` of the four in five questions that the skill is surest of.
        coverage: exact match of the surest 1, 2, 3, … answers; empty without answers.
    """

    task: str
    questions: int
    scores: dict[str, float]
    coverage: list[Coverage] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON object."""
        return asdict(self)


def score_skill(
    model: SpringModel,
    tokens: str,
    examples: Sequence[RagExample],
    *,
    passages: int,
    answers: bool = False,
    seed: int = 0,
    max_new_tokens: int = 48,
    progress: OnProgress | None = None,
) -> SkillScores:
    """Ask a skill about questions as a retriever brings them; one in four loses the passages that hold its answer.

    Args:
        model: with the skill's tokens attached.
        tokens: the name that they are attached under; their task says which skill it is.
        examples: with passages, best first.
        passages: most passages to show.
        answers: whether the default set answers, too, for what is gained where only the surest answers count.
        seed: of what is robbed and claimed.
        max_new_tokens: most tokens of an answer.
        progress: called with the number of questions asked so far, and of all.

    Raises:
        TokensError: no such set, or one that answers.
        PromptTooLongError: a question alone doesn't fit.
    """
    attached = model.backend.bank[tokens]
    skill = skill_of(attached.task)
    asked = samples(skill, examples, passages, seed)
    told = _probabilities(model, tokens, asked, progress)
    scores: dict[str, float] = {}
    coverage: list[Coverage] = []
    if skill.name == CITE:
        cited = [citations(one.probabilities) for one in told]
        right = [
            [n for n, text in enumerate(one.passages, 1) if held(text, sample.example.answers)]
            for one, sample in zip(told, asked, strict=True)
        ]
        scores = asdict(citation_scores(cited, right))
    elif skill.yes is None:
        likeliest = [
            skill.targets(len(one.passages))[one.probabilities.index(max(one.probabilities))] for one in told
        ]
        right_ones = sum(target == one.target for target, one in zip(likeliest, asked, strict=True))
        scores = {"accuracy": right_ones / len(asked)}
    else:
        yes = [one.probabilities[skill.yes_at] for one in told]
        truths = [one.target == skill.yes for one in asked]
        scores = {
            "auroc": auroc(yes, truths),
            "accuracy": accuracy(yes, truths),
            "always_yes": sum(truths) / len(truths),
            "calibration_error": calibration_error(yes, truths),
        }
        if answers:
            prompts = [RagPrompt(one.example.question, one.passages, model.template()) for one in asked]
            written = model.generate(prompts, max_new_tokens=max_new_tokens)
            hits = [
                exact_match(one.text.strip(), sample.example.answers)
                for one, sample in zip(written, asked, strict=True)
            ]
            coverage = risk_coverage(yes, hits)
            scores["exact_match"] = sum(hits) / len(hits)
            scores["exact_match_at_80"] = at_coverage(yes, hits, _COVERAGE)
    return SkillScores(skill.name, len(asked), scores, coverage)


@dataclass(frozen=True, slots=True)
class _Told:
    """What a skill said of one sample: a probability for each target, and the passages that it saw."""

    probabilities: list[float]
    passages: Sequence[str]


def _probabilities(
    model: SpringModel, tokens: str, asked: Sequence[Sample], progress: OnProgress | None
) -> list[_Told]:
    attached = model.backend.bank[tokens]
    skill = skill_of(attached.task)
    layout = skill_template(attached, RagTemplate())
    prompts = [RagPrompt(one.question, one.passages, layout) for one in asked]
    claims = [one.claim for one in asked]
    lengths = [skill.length(len(one.passages), layout, model.tokenizer, one.claim) for one in asked]
    fitted = [
        fit_beside([prompt], model.backend, [len(attached)], length)[0]
        for prompt, length in zip(prompts, lengths, strict=True)
    ]
    found = ask_in_batches(
        model.backend,
        skill,
        fitted,
        claims,
        BATCH_SIZE,
        tokens=tokens,
        num_tokens=len(attached),
        calibration=attached.calibration,
        progress=progress,
    )
    return [
        _Told(probabilities, prompt.passages)
        for probabilities, (prompt, _) in zip(found, fitted, strict=True)
    ]
