"""`spring-rag eval --task`: what the tokens of a skill reach on questions with known answers."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from spring_rag.cli.backbone import BackboneOptions
from spring_rag.cli.console import Progress, note, print_json, say
from spring_rag.cli.model_options import ModelOptions
from spring_rag.errors import TokensError
from spring_rag.files import replace_files

if TYPE_CHECKING:
    from spring_rag.data.examples import RagExample

_LABELS = {
    "auroc": "AUROC",
    "accuracy": "accuracy",
    "always_yes": "accuracy of always yes",
    "calibration_error": "expected calibration error",
    "precision": "precision of citations",
    "recall": "recall of citations",
    "first": "first citation holds the answer",
    "always_first": "the passage ranked first holds it",
    "exact_match": "exact match of all answers",
    "exact_match_at_80": "exact match of the surest 80 %",
}


def evaluate_skill(
    task: str,
    model: ModelOptions,
    tokens: Sequence[str],
    examples: "Sequence[RagExample]",
    backbone: BackboneOptions,
    *,
    timeout: float,
    passages: int,
    max_new_tokens: int,
    report: Path | None,
    json: bool,
) -> None:
    """Score the tokens of a skill, and print or write what is found.

    Args:
        task: name of the skill.
        model: the backbone.
        tokens: sets, of which one is the skill's; one that answers shows what is gained where only the surest answers count.
        examples: the questions.
        backbone: how it is loaded.
        timeout: seconds that a server may take to answer.
        passages: most passages to show.
        max_new_tokens: most tokens of an answer.
        report: folder for `skill.json` and, with answers, the risk-coverage plot.
        json: print one JSON object.

    Raises:
        TokensError: no set was trained for the task.
    """
    from spring_rag.asking import attached_skills
    from spring_rag.evaluation.skills import score_skill
    from spring_rag.skills import ANSWER, skill_of
    from spring_rag.tokens import VirtualTokens

    skill_of(task)
    answering = [one for one in tokens if VirtualTokens.from_pretrained(one).task == ANSWER]
    skills = [one for one in tokens if one not in answering]
    loaded = model.load(answering[0] if answering else (skills[0] if skills else None), backbone, timeout)
    for one in skills:
        loaded.add_skill(one)
    names = attached_skills(loaded.backend)
    if task not in names:
        msg = f"none of the virtual tokens was trained for the task {task!r}; name such a set with --tokens"
        raise TokensError(msg)
    with Progress("asking") as tell:
        found = score_skill(
            loaded,
            names[task],
            examples,
            passages=passages,
            answers=ANSWER in names,
            max_new_tokens=max_new_tokens,
            progress=tell,
        )
    if report is not None:
        import json as json_module

        files = {"skill.json": json_module.dumps(found.to_dict(), indent=2).encode() + b"\n"}
        if found.coverage:
            from spring_rag.evaluation.plots import risk_coverage_plot

            files["risk_coverage.svg"] = risk_coverage_plot(found.coverage).encode()
        replace_files(report, files)
    if json:
        print_json({**found.to_dict(), "report": str(report) if report else None})
        return
    say(f"{task} on {found.questions} questions with {passages} passages each, where there are so many")
    for name, value in found.scores.items():
        say(f"  {_LABELS[name]}: {value:.3f}")
    if report is not None:
        note(f"report: {report}")
