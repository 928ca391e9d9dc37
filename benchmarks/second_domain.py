"""A second domain, by the commands that a user has: index documents, let the backbone write questions, train, compare.

`python benchmarks/second_domain.py` invents records of kinds that neither the demo's backbone nor its tokens have met (airships, inns, masks
and five more), writes them as documents, and runs `spring-rag index`, `data make` and `train` on them. Nothing but the documents goes
in: the tokens are trained on what the backbone asked itself. `data attach` and `eval` score them, beside the demo's tokens, on questions about
further documents of these kinds, unseen by all of it.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from random import Random
from typing import Any

from measure import save

from spring_rag.demo import paths
from spring_rag.demo.build.kinds import Kind
from spring_rag.demo.build.names import name
from spring_rag.demo.build.records import Record, passage, question, record

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
NUM_TOKENS, KS = 20, "0,1,20,50"
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


def write_documents(folder: Path, records: list[Record]) -> None:
    """A file for each record."""
    rng = Random(folder.name)
    folder.mkdir()
    for number, rec in enumerate(records):
        (folder / f"{number:03}.txt").write_text(passage(rec, rng) + "\n", encoding="utf-8")


def write_questions(path: Path, records: list[Record], count: int) -> None:
    """Some of the questions that these records answer, with their answers, as JSON lines."""
    rng = Random("questions")
    facts = rng.sample([(rec, key) for rec in records for key in rec.facts], count)
    lines = [{"question": question(rec, key, rng), "target": rec.facts[key]} for rec, key in facts]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def command(*arguments: object) -> Any:
    """The object that a command prints with --json, and its seconds."""
    started = time.perf_counter()
    words = [sys.executable, "-m", "spring_rag", *map(str, arguments), "--json"]
    done = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True)
    return {**json.loads(done.stdout), "seconds": round(time.perf_counter() - started, 1)}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--documents", type=int, default=240, help="to make questions from")
    parser.add_argument("--unseen", type=int, default=160, help="to ask about")
    parser.add_argument("--questions", type=int, default=400)
    parser.add_argument("--steps", type=int, default=120)
    args = parser.parse_args()
    options = [*TRAINING, "--max-steps", args.steps]
    with tempfile.TemporaryDirectory() as name_of_folder:
        folder = Path(name_of_folder)
        db, data, tokens = folder / "db", folder / "train.jsonl", folder / "tokens"
        records = invent(args.documents + args.unseen, "second domain")
        write_documents(folder / "documents", records[: args.documents])
        command("index", folder / "documents", "--db", db)
        making = ("--per-passage", 2, "--batch-size", 64, "--top-k", TOP_K)
        made = command("data", "make", "--model", paths.BACKBONE, "--db", db, "--output", data, *making)
        trained = command("train", "--model", paths.BACKBONE, "--data", data, "--output", tokens, *options)

        unseen, asked, test = (
            ("--db", db, "--collection", "unseen"),
            folder / "qa.jsonl",
            folder / "test.jsonl",
        )
        write_documents(folder / "unseen", records[args.documents :])
        write_questions(asked, records[args.documents :], args.questions)
        command("index", folder / "unseen", *unseen)
        attached = command("data", "attach", "--qa", asked, "--output", test, "--top-k", TOP_K, *unseen)
        sets = ("--tokens", tokens, "--tokens", paths.TOKENS)
        found = command("eval", "--model", paths.BACKBONE, *sets, "--data", test, "--k", KS)

    names = {str(tokens): "trained here", str(paths.TOKENS): "the demo's"}
    rows = [
        {**row, **({"tokens": names[row["tokens"]]} if "tokens" in row else {})} for row in found["results"]
    ]
    save(
        "second_domain",
        {
            "what": f"{args.questions} questions on {args.unseen} unseen documents of {len(KINDS)} new kinds, {TOP_K} passages each; "
            f"tokens trained on what the backbone asked itself about {args.documents} others",
            "made": {key: made[key] for key in ("examples", "asked", "refused", "seconds")},
            "trained": {
                key: trained[key]
                for key in ("num_tokens", "steps", "kept_step", "loss", "evaluation", "data", "seconds")
            }
            | {"options": " ".join(map(str, options))},
            "retrieved": attached["found"],
            "results": rows,
            "instructed": found["instructed"],
        },
    )


if __name__ == "__main__":
    main()
