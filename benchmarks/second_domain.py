"""A second domain, by the commands that a user has: index documents, let the backbone write questions, train, compare.

`python benchmarks/second_domain.py` invents records of kinds that neither the demo's backbone nor its tokens have met (airships, inns, masks
and five more), writes them as documents, and runs `spring-rag index`, `data make` and `train` on them. Nothing but the documents goes
in: the tokens are trained on what the backbone asked itself. They are scored on questions about further documents of these kinds, unseen
by all of it.
"""

import argparse
import json
import math
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from random import Random
from typing import Any

from measure import save

from chroma_spring_rag import connect_folder, index_files, open_or_create_collection, search
from spring_rag.demo import paths
from spring_rag.demo.build.kinds import Kind
from spring_rag.demo.build.names import name
from spring_rag.demo.build.records import Record, passage, question, record
from spring_rag.evaluation import sweep
from spring_rag.examples import RagExample
from spring_rag.model import SpringModel

KINDS = (
    Kind(
        "airship",
        ("the airship {a}", "the Flying {a}"),
        "It",
        ("built", "captain", "length", "colour", "cargo", "port"),
    ),
    Kind(
        "inn", ("{a} Inn", "the Inn of {a}"), "It", ("opened", "owner", "treat", "place", "emblem", "weekday")
    ),
    Kind(
        "mask",
        ("the Mask of {a}", "the {a} Mask"),
        "It",
        ("material", "colour", "owner", "home", "gem", "weight"),
    ),
    Kind(
        "windmill",
        ("{a} Windmill", "the Windmill of {a}"),
        "It",
        ("built", "height", "crop", "keeper", "place", "material"),
    ),
    Kind(
        "comet",
        ("Comet {a}", "the comet {a}"),
        "It",
        ("discoverer", "discovered", "colour", "length", "shape"),
    ),
    Kind(
        "dance",
        ("the {a} Dance", "the Dance of {a}"),
        "It",
        ("played_on", "region", "topic", "month", "composer"),
    ),
    Kind(
        "canal",
        ("the {a} Canal", "the Canal of {a}"),
        "It",
        ("opened", "length", "source", "mouth", "depth", "fish"),
    ),
    Kind(
        "cheese",
        ("{a} cheese", "the {a} cheese"),
        "It",
        ("taste", "shape", "region", "weight", "founder", "market"),
    ),
)
TOP_K = 5
NUM_TOKENS, KS = 20, (0, 1, 20)
TRAINING = [
    *("--num-tokens", NUM_TOKENS, "--batch-size", 16, "--learning-rate", 0.01, "--save-steps", 60),
    *("--k-schedule", "sandwich", "--eval-share", 0.05, "--chat", 0.3),
]


def invent(count: int, seed: str) -> list[Record]:
    """Records in turn of all kinds, no two of one name."""
    rng, records, taken = Random(seed), [], set()
    while len(records) < count:
        rec = record(rng, KINDS[len(records) % len(KINDS)], held_out=True, word=name(rng, held_out=True))
        key = rec.name.lower().removeprefix("the ")
        if key not in taken:
            taken.add(key)
            records.append(rec)
    return records


def write(folder: Path, records: list[Record], seed: str) -> list[str]:
    """A file for each record; gives the texts."""
    rng = Random(seed)
    folder.mkdir()
    texts = [passage(rec, rng) for rec in records]
    for number, text in enumerate(texts):
        (folder / f"{number:03}.txt").write_text(text + "\n", encoding="utf-8")
    return texts


def command(*arguments: object) -> tuple[Any, float]:
    """The object that a command prints with --json, and its seconds."""
    started = time.perf_counter()
    words = [sys.executable, "-m", "spring_rag", *map(str, arguments), "--json"]
    done = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout), round(time.perf_counter() - started, 1)


def sign_test(before: list[float], after: list[float]) -> float:
    """Two-sided p of as many changes for the better among all changes, if both were as likely."""
    better = sum(a > b for b, a in zip(before, after, strict=True))
    changed = better + sum(a < b for b, a in zip(before, after, strict=True))
    tail = sum(math.comb(changed, i) for i in range(max(better, changed - better), changed + 1)) / 2**changed
    return min(1.0, 2 * tail)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--documents", type=int, default=240, help="to make questions from")
    parser.add_argument("--unseen", type=int, default=160, help="to ask about")
    parser.add_argument("--questions", type=int, default=400)
    parser.add_argument("--steps", type=int, default=120)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name_of_folder:
        folder = Path(name_of_folder)
        records = invent(args.documents + args.unseen, "second domain")
        write(folder / "documents", records[: args.documents], "documents")
        write(folder / "unseen", records[args.documents :], "unseen")
        command("index", folder / "documents", "--db", folder / "db")
        asking = ("--model", paths.BACKBONE, "--db", folder / "db", "--output", folder / "train.jsonl")
        made, making = command(
            "data", "make", *asking, "--per-passage", 2, "--batch-size", 64, "--top-k", TOP_K
        )
        options = [*TRAINING, "--max-steps", args.steps]
        data = ("--model", paths.BACKBONE, "--data", folder / "train.jsonl", "--output", folder / "tokens")
        trained, training = command("train", *data, *options)

        collection = open_or_create_collection(connect_folder(folder / "db"), "unseen")
        index_files(collection, [folder / "unseen"])
        rng = Random("questions")
        facts = [(rec, key) for rec in records[args.documents :] for key in rec.facts]
        asked = [(question(rec, key, rng), rec.facts[key]) for rec, key in rng.sample(facts, args.questions)]
        found = search(collection, [text for text, _ in asked], TOP_K)
        examples = [
            RagExample(text, (answer,), tuple(p.text for p in passages))
            for (text, answer), passages in zip(asked, found, strict=True)
        ]
        model = SpringModel.from_pretrained(paths.BACKBONE, tokens=folder / "tokens")
        result = sweep(model, examples, KS)
        plain, *tuned = result.runs
        shipped = sweep(
            SpringModel.from_pretrained(paths.BACKBONE, tokens=paths.TOKENS), examples, [50], instruction=None
        )

    def matches(run: Any) -> list[float]:
        return [answer.exact_match for answer in run.answers]

    save(
        "second_domain",
        {
            "what": f"{args.questions} questions on {args.unseen} unseen documents of {len(KINDS)} new kinds, {TOP_K} passages each; "
            f"tokens trained on what the backbone asked itself about {args.documents} others",
            "made": {key: value for key, value in made.items() if key != "output"} | {"seconds": making},
            "trained": {
                key: trained[key]
                for key in ("num_tokens", "steps", "kept_step", "loss", "evaluation", "data")
            }
            | {"seconds": training, "options": " ".join(map(str, options))},
            "scores": result.to_dict(),
            "shipped_tokens": shipped.to_dict()["results"],
            "sign_test_against_plain": {
                f"k = {run.k}": sign_test(matches(plain), matches(run)) for run in tuned
            },
        },
    )


if __name__ == "__main__":
    main()
