"""Make the paper's table on FlashRAG's files, for anyone who has the models.

`python benchmarks/paper.py --backbone meta-llama/Llama-2-7b-chat-hf --tokens llama-2-7b-chat --dataset nq --dataset hotpotqa`

A dataset is a folder `name/{train,dev,test}.jsonl` whose lines have `golden_answers` and, from your own retriever, `ret_passages`. The numbers
under "published" are FlashRAG's own (arXiv 2405.13576; Llama-2-7B-chat, the authors' tokens, E5 and Wikipedia), for orientation.
"""

import argparse
from pathlib import Path
from typing import Any

from measure import save

from spring_rag.evaluation.ability import plain_difference
from spring_rag.evaluation.datasets import load_dataset
from spring_rag.evaluation.study import study
from spring_rag.model import SpringModel

PUBLISHED = {
    "nq": ("exact_match", 37.9),
    "triviaqa": ("exact_match", 64.6),
    "hotpotqa": ("f1", 42.6),
    "2wikimultihopqa": ("f1", 37.3),
    "popqa": ("f1", 54.8),
    "web_questions": ("exact_match", 27.7),
}
"""By FlashRAG's names of the sets: the score that its table gives, in %."""


def table(result: dict[str, Any]) -> str:
    """Return a Markdown table with a line per data set, in the score that FlashRAG gives for it (F1 if it gives none)."""
    ways = [f"k = {row['k']}" for row in result["results"]]
    lines = [f"| set | score | n | {' | '.join(ways)} | published |", "| --- " * (len(ways) + 4) + "|"]
    for part in result["datasets"]:
        score, published = PUBLISHED.get(part["name"], ("f1", None))
        found = [f"{row[score]:.1%} ± {_half(row[score + '_interval']):.1%}" for row in part["results"]]
        name = {"exact_match": "exact match", "f1": "F1"}[score]
        lines.append(f"| {part['name']} | {name} | {part['n']} | {' | '.join(found)} | {published or '–'} |")
    return "\n".join(lines)


def _half(interval: list[float]) -> float:
    return (interval[1] - interval[0]) / 2


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--backbone", required=True, help="Hub id or folder")
    parser.add_argument("--tokens", required=True, help="published name, folder or file")
    parser.add_argument(
        "--dataset", type=Path, action="append", required=True, help="FlashRAG folder; may be repeated"
    )
    parser.add_argument("--split", help="test if not given, or dev where there is no test")
    parser.add_argument("--limit", type=int, help="only the first questions of each set")
    parser.add_argument("--passages", type=int, default=5)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--name", default="paper", help="of the file in benchmarks/results")
    args = parser.parse_args()
    datasets = [load_dataset(path, args.split, limit=args.limit) for path in args.dataset]
    without = [dataset.name for dataset in datasets if not any(each.passages for each in dataset.examples)]
    if without:
        parser.error(
            f"no question of {', '.join(without)} has passages; spring-rag data attach retrieves some"
        )
    model = SpringModel.from_pretrained(args.backbone, tokens=args.tokens)
    found = study(
        model,
        datasets,
        [0, len(model.backend.tokens() or ())],
        [args.passages],
        max_new_tokens=32,
        batch_size=args.batch_size,
    )
    result = {
        "backbone": args.backbone,
        "tokens": args.tokens,
        "passages": args.passages,
        **found.to_dict(),
        "largest_difference_of_logits_at_k_0": plain_difference(model, datasets[0].examples[:8]),
    }
    save(args.name, result)
    print(table(result))


if __name__ == "__main__":
    main()
