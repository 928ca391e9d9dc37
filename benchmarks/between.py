"""Measure what words between virtual tokens and question cost: `python benchmarks/between.py --model SMOLLM2 --data QUESTIONS.jsonl`

The same sentence comes after the virtual tokens, before them, or not at all, with all virtual tokens and with none. QUESTIONS.jsonl holds the
retrieved passages too.
"""

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from measure import save

from spring_rag.data.examples import load_examples
from spring_rag.demo.paths import TOKENS
from spring_rag.evaluation.statistics import compare
from spring_rag.evaluation.ways import ScoredAnswer, Way, answer_in_ways, layouts
from spring_rag.model import SpringModel
from spring_rag.prompt import RagTemplate

SENTENCE = "Use the passages above to answer the following question.\n"
PASSAGES, NEW, QUESTIONS_AT_ONCE = 5, 32, 4


def ways(k: int) -> dict[str, Way]:
    plain = RagTemplate()
    return {
        "nothing between": Way(plain, k),
        "a sentence between": Way(RagTemplate(instruction=SENTENCE), k),
        "the sentence before the virtual tokens": Way(
            RagTemplate(context_end=plain.context_end + SENTENCE), k
        ),
        "nothing between, no virtual tokens": Way(plain),
        "a sentence between, no virtual tokens": Way(RagTemplate(instruction=SENTENCE)),
    }


def row(answers: tuple[ScoredAnswer, ...], beside: tuple[ScoredAnswer, ...]) -> dict[str, Any]:
    told: dict[str, Any] = {}
    for name in ("exact_match", "f1"):
        scores, others = ([float(getattr(each, name)) for each in some] for some in (answers, beside))
        told[name] = round(sum(scores) / len(scores), 4)
        if answers is not beside:
            found = compare(scores, others)
            told[f"{name}_beside"] = [round(found.gain, 4), round(found.p, 4)]
    return told


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True, help="folder of SmolLM2-135M-Instruct")
    parser.add_argument(
        "--data", type=Path, required=True, help="questions with retrieved passages, as JSON lines"
    )
    parser.add_argument("--questions", type=int, default=20)
    arguments = parser.parse_args()
    model = SpringModel.from_pretrained(arguments.model, tokens=TOKENS, dtype=torch.bfloat16)
    examples = [
        replace(each, passages=each.passages[:PASSAGES])
        for each in load_examples(arguments.data).examples[: arguments.questions]
    ]
    found: dict[str, list[ScoredAnswer]] = {}
    tried = ways(len(model.backend.tokens() or ()))
    for start in range(0, len(examples), QUESTIONS_AT_ONCE):
        some = examples[start : start + QUESTIONS_AT_ONCE]
        prompts = [layouts(model, each, list(tried.values()), NEW) for each in some]
        answers = answer_in_ways(
            model, some, prompts, list(tried.values()), max_new_tokens=NEW, batch_size=len(tried) * len(some)
        )
        for name, its in zip(tried, answers, strict=True):
            found.setdefault(name, []).extend(its)
        print(
            start + len(some), {name: sum(each.f1 for each in its) for name, its in found.items()}, flush=True
        )
    beside = {
        name: "nothing between" + (", no virtual tokens" if "no virtual" in name else "") for name in tried
    }
    save(
        "between",
        {
            "what": f"{len(examples)} questions of Natural Questions, {PASSAGES} retrieved passages each; …_beside: gain and p beside nothing between",
            "backbone": "SmolLM2-135M-Instruct, bfloat16",
            "sentence": SENTENCE.strip(),
            "results": {name: row(tuple(its), tuple(found[beside[name]])) for name, its in found.items()},
        },
    )


if __name__ == "__main__":
    main()
