"""Write the training data of the shipped tokens: NQ's and SQuADshifts' training questions with retrieved passages, and invented documents.

Usage: python benchmarks/training_data.py DATA FOLDER, where DATA holds `nq/` and `squadshifts-wiki/`. FOLDER gets `first.jsonl`, with all
questions on public passages, and `second.jsonl`, with the questions on invented documents and as many on public passages.

NQ's questions get the five passages that BM25 finds for them. SQuADshifts asks about five questions about each paragraph. These share
one list of passages, the paragraph and those that BM25 finds for its questions, so that training computes the list once for all of them.
The passage with the answer is the first of the five, so that an example with one passage holds it too; training shuffles what it draws.
All passages come from the training parts, so the passages of dev and test questions are never seen.
"""

import json
import re
import sys
from collections import Counter
from pathlib import Path
from random import Random
from typing import Any

import bm25s
from training_documents import examples

PASSAGES = 5
DOCUMENTS = 400
"""Lists of passages of invented documents."""


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def words(texts: list[str]) -> list[list[str]]:
    return [re.findall(r"\w+", text.lower()) for text in texts]


class Passages:
    def __init__(self, records: list[dict[str, Any]]) -> None:
        self.texts = {record["id"]: f"{record['title']}\n{record['text']}" for record in records}
        self._ids = list(self.texts)
        self._index = bm25s.BM25(k1=1.2, b=0.75, method="lucene")
        self._index.index(words(list(self.texts.values())), show_progress=False)

    def closest(self, questions: list[str]) -> list[list[str]]:
        found, _ = self._index.retrieve(words(questions), k=PASSAGES, show_progress=False)
        return [[self._ids[number] for number in row] for row in found]


def nq(data: Path) -> list[dict[str, Any]]:
    passages = Passages(read(data / "nq/passages-train.jsonl"))
    questions = read(data / "nq/train.jsonl")
    lines = []
    for record, found in zip(questions, passages.closest([r["question"] for r in questions]), strict=True):
        right = record["metadata"]["passage_id"]
        ids = [right, *(i for i in found if i != right)][:PASSAGES]
        lines.append(line(record, [passages.texts[i] for i in ids]))
    return lines


def squadshifts(data: Path) -> list[dict[str, Any]]:
    passages = Passages(read(data / "squadshifts-wiki/passages.jsonl"))
    asked: dict[str, list[dict[str, Any]]] = {}
    for record in read(data / "squadshifts-wiki/questions.jsonl"):
        asked.setdefault(record["positive"][0], []).append(record)
    lines = []
    for right, records in asked.items():
        votes = Counter(i for ids in passages.closest([r["question"] for r in records]) for i in ids)
        votes.pop(right, None)
        ids = [right, *(i for i, _ in votes.most_common(PASSAGES - 1))]
        lines += [line(record, [passages.texts[i] for i in ids]) for record in records]
    return lines


def line(record: dict[str, Any], passages: list[str]) -> dict[str, Any]:
    return {"question": record["question"], "target": record["golden_answers"], "ret_passages": passages}


if __name__ == "__main__":
    source, folder = map(Path, sys.argv[1:])
    public, invented = nq(source) + squadshifts(source), examples(DOCUMENTS)
    folder.mkdir(parents=True, exist_ok=True)
    for name, records in {
        "first": public,
        "second": Random(0).sample(public, len(invented)) + invented,
    }.items():
        written = "".join(f"{json.dumps(record, ensure_ascii=False)}\n" for record in records)
        (folder / f"{name}.jsonl").write_text(written, encoding="utf-8")
        print(f"{len(records)} examples in {folder / name}.jsonl")
