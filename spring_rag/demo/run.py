"""The demo: index the documents, retrieve for each question, answer with 0, 1, … virtual tokens and told in words."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from chroma_spring_rag import ChromaQA, connect_folder, index_files, open_or_create_collection
from spring_rag.demo import paths
from spring_rag.evaluation import Sweep, sweep
from spring_rag.examples import RagExample
from spring_rag.model import SpringModel

COLLECTION = "documents"
MAX_NEW_TOKENS = 48

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class DemoQuestion:
    """A question, its answer, and the name of the document that holds it."""

    question: str
    answer: str
    source: str


def load_questions(path: Path = paths.QUESTIONS, limit: int | None = None) -> list[DemoQuestion]:
    """The demo's questions, or the first `limit` of them."""
    with path.open(encoding="utf-8") as lines:
        records = [json.loads(line) for line in lines]
    return [DemoQuestion(r["question"], r["target"], r["source"]) for r in records[:limit]]


def build_index(model: SpringModel, db: Path, top_k: int, progress: Progress | None = None) -> ChromaQA:
    """The demo's documents in an embedded Chroma database; a second time, what is there already stays."""
    collection = open_or_create_collection(connect_folder(db, create=True), COLLECTION)
    index_files(collection, [paths.DOCUMENTS], progress=progress)
    return ChromaQA(model, collection, top_k=top_k)


def retrieve(
    qa: ChromaQA, questions: Sequence[DemoQuestion], progress: Progress | None = None
) -> tuple[list[RagExample], float]:
    """Each question with the passages found for it, and the share of questions whose document is among them."""
    examples, found = [], 0
    for number, question in enumerate(questions, 1):
        passages = qa.retrieve(question.question)
        found += any(Path(passage.source).name == question.source for passage in passages)
        examples.append(RagExample(question.question, (question.answer,), tuple(p.text for p in passages)))
        if progress is not None:
            progress(number, len(questions))
    return examples, found / len(questions)


def answer(
    model: SpringModel,
    examples: Sequence[RagExample],
    retrieved: float,
    ks: Sequence[int],
    progress: Progress | None = None,
) -> Sweep:
    """All answers and their scores."""
    result = sweep(model, examples, ks, max_new_tokens=MAX_NEW_TOKENS, progress=progress)
    return replace(result, extra={"retrieved": round(retrieved, 4)})
