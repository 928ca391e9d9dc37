"""Write the demo's documents and questions, and the data its tokens are trained on.

`python -m spring_rag.demo.build.export --package DIR --training FILE`

Documents and questions speak of records named with held-out words only. The training data come from other records; each
question's passages are what the demo's own retriever brings, hard rivals included. Some questions have no answer in any document:
they ask for a fact that was left out, or for a record that was.
"""

import argparse
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from random import Random

import numpy as np

from chroma_spring_rag.embedding import HashedWords
from spring_rag.demo.build.kinds import KINDS
from spring_rag.demo.build.names import name
from spring_rag.demo.build.records import Record, passage, question, record
from spring_rag.examples import UNANSWERABLE_ANSWER

TOP_K = 10


def invent(count: int, rng: Random, held_out: bool) -> list[Record]:
    """`count` records of all kinds; every fourth shares its invented word with an earlier one of its kind."""
    records: list[Record] = []
    taken: set[str] = set()
    words: dict[str, list[str]] = {kind.noun: [] for kind in KINDS}
    while len(records) < count:
        kind = KINDS[len(records) % len(KINDS)]
        known = words[kind.noun]
        word = rng.choice(known) if known and rng.random() < 0.25 else name(rng, held_out)
        rec = record(rng, kind, held_out, word)
        if rec.name.lower().removeprefix("the ") not in taken:
            taken.add(rec.name.lower().removeprefix("the "))
            known.append(word)
            records.append(rec)
    return records


def retrieve(questions: Sequence[str], documents: Sequence[str], top_k: int) -> list[list[int]]:
    """Indices of the `top_k` documents closest to each question, as the demo's collection finds them."""
    embed = HashedWords()
    table = np.stack(embed(list(documents)))
    ranked: list[list[int]] = []
    for start in range(0, len(questions), 256):
        scores = np.stack(embed(list(questions[start : start + 256]))) @ table.T
        ranked += np.argsort(-scores, axis=1, kind="stable")[:, :top_k].tolist()
    return ranked


def left_out(records: Sequence[Record], rng: Random) -> list[tuple[Record, str]]:
    """One fact of each record that its document doesn't state; records that state all there is have none."""
    found = []
    for rec in records:
        missing = [key for key in rec.kind.attributes if key not in rec.facts]
        if missing:
            found.append((rec, rng.choice(missing)))
    return found


def write_package(folder: Path, documents: int, questions: int, unanswerable: int, seed: int) -> None:
    """The demo's documents, one record each, and its questions, at most one for a fact.

    Half of those without an answer ask for a fact that a document leaves out, half for a record without a document.
    """
    rng = Random(f"demo:{seed}")
    records = invent(documents, rng, held_out=True)
    names = {rec.name for rec in records}
    shutil.rmtree(folder / "documents", ignore_errors=True)
    (folder / "documents").mkdir(parents=True)
    facts: list[tuple[Record, str, str]] = []
    for rec in records:
        source = "-".join(rec.name.lower().replace("'", "").split()) + ".txt"
        (folder / "documents" / source).write_text(passage(rec, rng) + "\n", encoding="utf-8")
        facts += [(rec, key, source) for key in rec.facts]
    lines: list[dict[str, str | None]] = [
        {"question": question(rec, key, rng), "target": rec.facts[key], "source": source}
        for rec, key, source in rng.sample(facts, questions)
    ]
    strangers = [rec for rec in invent(4 * documents, rng, held_out=True) if rec.name not in names]
    hopeless = rng.sample(left_out(records, rng), unanswerable // 2)
    hopeless += [
        (rec, rng.choice(list(rec.facts))) for rec in rng.sample(strangers, unanswerable - unanswerable // 2)
    ]
    lines += [
        {"question": question(rec, key, rng), "target": UNANSWERABLE_ANSWER, "source": None}
        for rec, key in hopeless
    ]
    rng.shuffle(lines)
    with (folder / "questions.jsonl").open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(line) + "\n" for line in lines)


def write_training(path: Path, documents: int, questions: int, unanswerable: int, seed: int) -> None:
    """Training data in the authors' JSONL form; questions whose document isn't retrieved are left out.

    `unanswerable` more ask for a fact that a document leaves out. (For records without a document the recipe has an option.)
    """
    rng = Random(f"training:{seed}")
    records = invent(documents, rng, held_out=False)
    texts = [passage(rec, rng) for rec in records]
    facts = [(index, key) for index, rec in enumerate(records) for key in rec.facts]
    drawn = rng.sample(facts, questions)
    numbers = {id(rec): index for index, rec in enumerate(records)}
    drawn += [(numbers[id(rec)], key) for rec, key in rng.sample(left_out(records, rng), unanswerable)]
    asked = [question(records[index], key, rng) for index, key in drawn]
    with path.open("w", encoding="utf-8") as file:
        for (index, key), text, found in zip(drawn, asked, retrieve(asked, texts, TOP_K), strict=True):
            if index in found:
                line = {
                    "question": text,
                    "target": records[index].facts.get(key, UNANSWERABLE_ANSWER),
                    "ret_passages": [texts[i] for i in found],
                }
                file.write(json.dumps(line) + "\n")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--package", type=Path, required=True, help="folder for documents/ and questions.jsonl"
    )
    parser.add_argument(
        "--training", type=Path, required=True, help="JSONL file for the tokens' training data"
    )
    parser.add_argument("--documents", type=int, default=400)
    parser.add_argument("--questions", type=int, default=300)
    parser.add_argument("--unanswerable", type=int, default=60)
    parser.add_argument("--training-documents", type=int, default=4000)
    parser.add_argument("--training-questions", type=int, default=12000)
    parser.add_argument("--training-unanswerable", type=int, default=1200)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    write_package(args.package, args.documents, args.questions, args.unanswerable, args.seed)
    write_training(
        args.training, args.training_documents, args.training_questions, args.training_unanswerable, args.seed
    )


if __name__ == "__main__":
    main()
