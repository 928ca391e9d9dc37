"""Real questions from the folder that SPRING_RAG_DATA names, and one index of the passages that they are asked about."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple


class Asked(NamedTuple):
    """A question with its id and accepted answers."""

    id: str
    question: str
    answers: list[str]


def data_folder() -> Path:
    """The folder that SPRING_RAG_DATA names."""
    if "SPRING_RAG_DATA" not in os.environ:
        msg = "SPRING_RAG_DATA isn't set; let it name the folder that holds nq/, xquad/ and popqa/"
        raise SystemExit(msg)
    return Path(os.environ["SPRING_RAG_DATA"])


def nq_and_xquad(folder: Path) -> tuple[dict[str, str], dict[str, list[Asked]]]:
    """All passages of Natural Questions and XQuAD, title and text, by id; and the questions of each set."""
    passages: dict[str, str] = {}
    asked: dict[str, list[Asked]] = {}
    for split in ("train", "dev", "test"):
        for line in lines(folder / f"nq/passages-{split}.jsonl"):
            passages[line["id"]] = f"{line['title']}\n{line['text']}"
        asked[f"nq/{split}"] = [
            Asked(line["id"], line["question"], line["golden_answers"])
            for line in lines(folder / f"nq/{split}.jsonl")
        ]
    asked["xquad"] = []
    articles = json.loads((folder / "xquad/xquad.en.json").read_text(encoding="utf-8"))["data"]
    for number, article in enumerate(articles):
        for place, paragraph in enumerate(article["paragraphs"]):
            text = f"{article['title'].replace('_', ' ')}\n{paragraph['context']}"
            passages[f"xquad-{number:02}-{place}"] = text
            asked["xquad"] += [
                Asked(qa["id"], qa["question"], [answer["text"] for answer in qa["answers"]])
                for qa in paragraph["qas"]
            ]
    return passages, asked


def popqa(folder: Path) -> Iterator[tuple[Asked, list[str]]]:
    """PopQA's questions, each with its own retrieved passages, best first."""
    passages = {
        line["id"]: f"{line['title']}\n{line['text']}" for line in lines(folder / "popqa/passages.jsonl")
    }
    for line in lines(folder / "popqa/questions.jsonl"):
        asked = Asked(line["id"], line["question"], line["golden_answers"])
        yield asked, [passages[one] for one in line["passages"]]


def lines(path: Path) -> Iterator[Any]:
    """What a file of JSON lines holds."""
    return map(json.loads, path.read_text(encoding="utf-8").splitlines())
