"""Answer all of the demo's questions, and compare the answers: `python benchmarks/demo.py [--questions N] [--dtype bfloat16]`

Gives what `spring-rag demo --all --json` prints, and the gain of all virtual tokens over worked examples in words, and of one token over none,
with 95 % intervals and paired tests. The answers go into `results/demo-answers.jsonl`, by the questions' ids.
"""

import argparse
import json
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from measure import RESULTS, save

from spring_rag.cli.backbone import BackboneOptions
from spring_rag.cli.console import Progress
from spring_rag.cli.model_options import ModelOptions
from spring_rag.demo import run
from spring_rag.evaluation import Run, Sweep
from spring_rag.evaluation.statistics import compare

KS = (0, 1, 10, 50)
TOP_K = 5
SCORES = ("exact_match", "f1")


def gains(found: Sweep) -> dict[str, Any]:
    """Return the gains by pair of ways and score, on the questions that all ways answered."""
    plain, one, *_, most = found.runs
    assert found.instructed is not None
    pairs: dict[str, tuple[Run, Run]] = {
        f"k = {KS[-1]} beside worked examples in words": (most, found.instructed),
        "k = 1 beside none": (one, plain),
    }
    return {
        name: {score: asdict(compare(way.scores(score), rival.scores(score))) for score in SCORES}
        for name, (way, rival) in pairs.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--questions", type=int, help="only the first of them")
    parser.add_argument("--dtype", default="auto", help="of the backbone; what the demo takes if not given")
    args = parser.parse_args()
    model = ModelOptions().load(None, BackboneOptions(dtype=args.dtype))
    questions = run.load_questions(limit=args.questions)
    with tempfile.TemporaryDirectory() as folder:
        examples, retrieved = run.retrieve(run.build_index(model, Path(folder), TOP_K), questions)
    with Progress("answering") as progress:
        found, parts = run.answer(model, questions, examples, retrieved, KS, progress=progress)
    what = f"{len(questions)} of the demo's questions, SmolLM2-135M-Instruct (Q4_1), {TOP_K} passages, --dtype {args.dtype}"
    told = {name: gains(part) for name, part in {"all": found, **parts}.items()}
    save("demo", {"what": what, "results": found.to_dict(), "gains": told})
    ways = {each.label: each for each in (*found.runs, found.instructed) if each is not None}
    lines = [
        {"id": question.id, **{label: way.answers[at].text for label, way in ways.items()}}
        for at, question in enumerate(questions)
    ]
    written = "".join(f"{json.dumps(line, ensure_ascii=False)}\n" for line in lines)
    (RESULTS / "demo-answers.jsonl").write_text(written, encoding="utf-8")


if __name__ == "__main__":
    main()
