"""The toy: a frozen backbone of 4.7 million parameters that reads simple English about invented things, with its documents and questions.

It is small and fast, and answers from its passages. That is enough for tests and benchmarks of speed, but says nothing about real questions.
"""

import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from chroma_spring_rag import connect_folder, index_files, open_or_create_collection, search
from spring_rag.data.examples import RagExample
from spring_rag.evaluation.metrics import exact_match

_HERE = Path(__file__).parent / "toy"

BACKBONE = _HERE / "backbone"
TOKENS = _HERE / "tokens"
SKILLS = _HERE / "skills"
"""There are none."""
DOCUMENTS = _HERE / "documents"

NAMED = ["--model", str(BACKBONE), "--tokens", str(TOKENS)]
"""Options of a command that shall answer with the toy."""

MAX_TOKENS = 20
"""Enough for the plain backbone's whole sentences."""


@dataclass(frozen=True, slots=True)
class ToyQuestion:
    """A question, its answer, and the name of the document that holds it; None where no document does."""

    question: str
    answer: str
    source: str | None


def _read() -> list[ToyQuestion]:
    records = map(json.loads, (_HERE / "questions.jsonl").read_text("utf-8").splitlines())
    return [ToyQuestion(each["question"], each["target"], each["source"]) for each in records]


QUESTIONS = _read()
ANSWERABLE = [question for question in QUESTIONS if question.source]
ASKED = ANSWERABLE[:3]


def text_of(question: ToyQuestion) -> str:
    """The document that answers it."""
    assert question.source is not None
    return (DOCUMENTS / question.source).read_text("utf-8")


TEXTS = [text_of(question) for question in ANSWERABLE[:40]]
"""The documents that answer `ASKED`, among others."""


def write_as_gguf(file: Path) -> Path:
    """The toy as a GGUF in float32. The file's tokenizer splits words as GPT-2's does, a little other than the toy's own."""
    from gguf_parts import write_gguf
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(BACKBONE, dtype="float32")
    return write_gguf(file, model, AutoTokenizer.from_pretrained(BACKBONE))


def share_right(ask: Callable[[str], str]) -> float:
    """Exact match of an app's answers to `ASKED`, from 0 to 1."""
    scores = [exact_match(ask(each.question), [each.answer]) for each in ASKED]
    return sum(scores) / len(scores)


def retrieved(questions: Sequence[ToyQuestion], top_k: int) -> list[RagExample]:
    """The questions with the passages that Chroma finds for them in all of the toy's documents."""
    with tempfile.TemporaryDirectory() as folder:
        collection = open_or_create_collection(connect_folder(Path(folder), create=True), "toy")
        index_files(collection, [DOCUMENTS])
        found = search(collection, [each.question for each in questions], top_k)
    return [
        RagExample(each.question, (each.answer,), tuple(passage.text for passage in passages))
        for each, passages in zip(questions, found, strict=True)
    ]
