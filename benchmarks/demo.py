"""All of the demo's questions, and the strongest rival in words: `python benchmarks/demo.py --top-k 5 --top-k 10`

What `spring-rag demo --all` prints; and every way in words that `spring-rag eval` knows, on the same passages. The best of them is chosen on these very
questions, which flatters words. Gains are of all virtual tokens beside that one, and of one token beside none, with 95 % intervals and paired tests.
"""

import argparse
import json
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from measure import RESULTS, save

from spring_rag.cli.backbone import BackboneOptions
from spring_rag.cli.model_options import ModelOptions
from spring_rag.demo import run
from spring_rag.evaluation import Sweep, word_ways
from spring_rag.evaluation.statistics import compare
from spring_rag.evaluation.words import WordsTrial, best_words
from spring_rag.model import SpringModel

KS = (0, 1, 10, 50)
SCORES = ("exact_match", "f1")


def measure_one(
    model: SpringModel, questions: list[run.DemoQuestion], top_k: int
) -> tuple[dict[str, Any], list[str]]:
    """Scores and gains with so many passages, and the answers to each question as a line of JSON."""
    with tempfile.TemporaryDirectory() as folder:
        examples, retrieved = run.retrieve(run.build_index(model, Path(folder), top_k), questions)
    result, _ = run.answer(model, questions, examples, retrieved, KS)
    ways = word_ways(model.template(), model.tokenizer)
    trials = best_words(model, examples, ways, max_new_tokens=run.MAX_NEW_TOKENS)
    plain, one, *_, most = result.runs
    gains = {
        f"k = {KS[-1]} beside the best words": _gains(most, trials[0]),
        "k = 1 beside none": _gains(one, plain),
    }
    told = {
        **result.to_dict(),
        "ways_in_words": [trial.to_dict() for trial in trials],
        "gains": gains,
    }
    return told, [_line(top_k, each.id, result, trials, at) for at, each in enumerate(questions)]


def _gains(found: Any, rival: Any) -> dict[str, Any]:
    """By score, of two ways that answered the same questions."""
    return {
        score: asdict(compare(*([float(getattr(a, score)) for a in way.answers] for way in (found, rival))))
        for score in SCORES
    }


def _line(top_k: int, question: str, result: Sweep, trials: list[WordsTrial], at: int) -> str:
    answers = {f"k = {each.k}": each.answers[at].text for each in result.runs}
    in_words = {trial.way.name: trial.answers[at].text for trial in trials}
    record = {"id": question, "passages": top_k, "answers": answers, "in_words": in_words}
    return json.dumps(record, ensure_ascii=False) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--top-k", type=int, action="append", help="passages; may be repeated; 5 if not given"
    )
    parser.add_argument("--questions", type=int, help="only the first of them")
    args = parser.parse_args()
    model = ModelOptions().load(None, BackboneOptions())
    questions = run.load_questions(limit=args.questions)
    results: dict[str, Any] = {}
    lines: list[str] = []
    for top_k in args.top_k or [5]:
        results[f"{top_k} passages"], answered = measure_one(model, questions, top_k)
        lines += answered
    what = f"{len(questions)} questions on documents that no training saw, SmolLM2-135M-Instruct (Q4_1)"
    save("demo", {"what": what, "results": results})
    (RESULTS / "demo-answers.jsonl").write_text("".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
