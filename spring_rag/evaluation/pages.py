"""The report's folder: Markdown, HTML that stands alone, plots, the numbers, and every answer."""

import html
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from spring_rag.evaluation.plots import score_over_k, score_over_passages
from spring_rag.evaluation.report import cut_short, losing_examples, shown, telling_examples
from spring_rag.evaluation.runner import Sweep
from spring_rag.evaluation.study import DatasetSweeps, Study
from spring_rag.files import replace_files

_EXAMPLES = 5


def write_report(study: Study, folder: Path, about: dict[str, Any]) -> None:
    """Write `report.md`, `report.html`, `results.json`, `answers.jsonl` and the plots; files that are there are replaced.

    Args:
        study: what was answered.
        folder: is made if it isn't there.
        about: what was evaluated, by name, as shown on top.

    Raises:
        OSError: the folder can't be written.
    """
    plots = _plots(study)
    pages = _environment()
    values = {
        "about": about,
        "study": study,
        "tables": _tables(study),
        "timed": all(run.answers_per_second is not None for run in study.overall.main.all_runs),
        "words": [trial.to_dict() for trial in study.trials],
        "without_passages": study.without_passages,
        "cut_short": cut_short(study.overall.main),
        "examples": _examples(study.overall.main),
    }
    results = {"about": about, **study.to_dict()}
    contents = {
        "answers.jsonl": "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in _answers(study)),
        "results.json": json.dumps(results, ensure_ascii=False, indent=2) + "\n",
        **{f"{name}.svg": svg for name, svg in plots.items()},
        "report.md": pages.get_template("report.md.jinja").render(values, plots=plots),
        "report.html": pages.get_template("report.html.jinja").render(values, plots=plots),
    }
    replace_files(folder, {name: text.encode() for name, text in contents.items()})


def _plots(study: Study) -> dict[str, str]:
    overall = study.overall
    plots = {"score-over-k": score_over_k(overall.main)}
    counts = [count for count in study.passages if count is not None]
    if len(counts) > 1:
        plots["score-over-passages"] = score_over_passages(counts, overall.sweeps)
    return plots


def _tables(study: Study) -> list[dict[str, Any]]:
    """Make a table per set of questions, and one for all if there are several: its rows with their labels."""
    datasets = [study.overall, *study.datasets] if len(study.datasets) > 1 else list(study.datasets)
    return [
        {
            "name": dataset.name,
            "retrieved": dataset.retrieved,
            "n": len(dataset.main.examples),
            "rows": _rows(dataset),
        }
        for dataset in datasets
    ]


def _rows(dataset: DatasetSweeps) -> list[dict[str, Any]]:
    found = dataset.to_dict()
    by_run = list(zip(dataset.main.runs, found["results"], strict=True))
    if dataset.main.instructed is not None:
        by_run.append((dataset.main.instructed, found["instructed"]))
    return [
        {"label": run.label, **next(row for other, row in by_run if other is run)}
        for run in dataset.main.all_runs
    ]


def _examples(found: Sweep) -> list[dict[str, Any]]:
    groups = {"Where virtual tokens bring most": telling_examples, "Where they bring least": losing_examples}
    return [
        {"title": title, "questions": [_example(found, at) for at in pick(found, _EXAMPLES)]}
        for title, pick in groups.items()
    ]


def _example(found: Sweep, at: int) -> dict[str, Any]:
    example = found.examples[at]
    answers = [
        (run.label, run.answers[at].exact_match > 0, shown(run.answers[at].text)) for run in found.all_runs
    ]
    return {
        "question": shown(example.question),
        "accepted": shown(" | ".join(example.answers)),
        "answers": answers,
    }


def _answers(study: Study) -> Iterator[dict[str, Any]]:
    for dataset in study.datasets:
        for count, found in zip(study.passages, dataset.sweeps, strict=True):
            for at, example in enumerate(found.examples):
                for run in found.all_runs:
                    answer = run.answers[at]
                    yield {
                        "dataset": dataset.name,
                        "passages": len(example.passages) if count is None else count,
                        "question": example.question,
                        "accepted": example.answers,
                        "k": run.k,
                        "tokens": run.tokens,
                        "way": run.words.name if run.words else None,
                        "answer": answer.text,
                        "exact_match": answer.exact_match,
                        "f1": round(answer.f1, 4),
                        "contains": answer.contains,
                        "answer_tokens": answer.num_tokens,
                        "cut": answer.cut,
                        "cut_while_thinking": answer.cut_while_thinking,
                    }


def _environment() -> Environment:
    pages = Environment(
        loader=PackageLoader("spring_rag.evaluation"),
        autoescape=lambda name: bool(name and name.endswith(".html.jinja")),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    pages.filters["percent"] = lambda share: f"{100 * share:.1f}"
    pages.filters["p"] = lambda p: "< 0.001" if p < 0.001 else f"{p:.3f}"
    pages.filters["markdown"] = _markdown
    return pages


def _markdown(text: object) -> str:
    """Escape text so that Markdown shows it as it is, also in a cell of a table."""
    line = html.escape(" ".join(str(text).split()), quote=False)
    return re.sub(r"([\\`*_\[\]|#~])", r"\\\1", line)
