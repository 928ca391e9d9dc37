"""Run the demo: index the documents, retrieve for each question, answer with 0, 1, … virtual tokens and with instructions in words."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from chroma_spring_rag import (
    ChromaQA,
    CollectionError,
    connect_folder,
    index_files,
    open_or_create_collection,
    read_sources,
)
from spring_rag.callbacks import OnProgress
from spring_rag.data.examples import UNANSWERABLE_ANSWER, RagExample
from spring_rag.demo import paths
from spring_rag.evaluation import Run, Sweep, sweep, word_ways
from spring_rag.model import SpringModel

COLLECTION = "documents"
SAMPLE = 24
"""Number of questions in a sample: some minutes on two cores."""
MAX_NEW_TOKENS = 32
WORDS = "text, worked examples only"
"""The wording that the virtual tokens are compared with: one of the two with the most exact answers on the dev part of Natural Questions."""
WITH, WITHOUT = "with_answer", "without_answer"


@dataclass(frozen=True, slots=True)
class DemoQuestion:
    """A question, its accepted answers, and the name of the document that holds one; None if no document does."""

    id: str
    question: str
    answers: tuple[str, ...]
    document: str | None


def load_questions(limit: int | None = None) -> list[DemoQuestion]:
    """Return the demo's questions, or the first `limit` of them, which are a fair sample because the order is random."""
    with paths.QUESTIONS.open(encoding="utf-8") as lines:
        records = [json.loads(line) for line in lines]
    return [
        DemoQuestion(
            each["id"],
            each["question"],
            tuple(each["golden_answers"]) or (UNANSWERABLE_ANSWER,),
            each["document"],
        )
        for each in records[:limit]
    ]


def build_index(model: SpringModel, db: Path, top_k: int, progress: OnProgress | None = None) -> ChromaQA:
    """Index the demo's documents in an embedded Chroma database; documents that are indexed already stay.

    Raises:
        CollectionError: the database's collection holds other documents.
    """
    collection = open_or_create_collection(connect_folder(db, create=True), COLLECTION)
    own = {path.name for path in paths.DOCUMENTS.iterdir()}
    if any(Path(source).name not in own for source in read_sources(collection)):
        msg = f"the collection {COLLECTION!r} in {db} holds other documents than the demo's; choose another folder with --db"
        raise CollectionError(msg)
    index_files(collection, [paths.DOCUMENTS], progress=progress)
    return ChromaQA(model, collection, top_k=top_k)


def retrieve(
    qa: ChromaQA, questions: Sequence[DemoQuestion], progress: OnProgress | None = None
) -> tuple[list[RagExample], float]:
    """Return the questions with their passages; and of the questions that a document answers, the share that got a passage of it."""
    examples, found = [], []
    for number, question in enumerate(questions, 1):
        passages = qa.retrieve(question.question)
        if question.document is not None:
            found.append(any(Path(passage.source).name == question.document for passage in passages))
        examples.append(RagExample(question.question, question.answers, tuple(p.text for p in passages)))
        if progress is not None:
            progress(number, len(questions))
    return examples, sum(found) / max(1, len(found))


def answer(
    model: SpringModel,
    questions: Sequence[DemoQuestion],
    examples: Sequence[RagExample],
    retrieved: float,
    ks: Sequence[int],
    progress: OnProgress | None = None,
) -> tuple[Sweep, dict[str, Sweep]]:
    """Answer the questions and score the answers.

    Returns:
        The sweep over all questions, and by `WITH` and `WITHOUT` those over the questions that a document answers and that none answers.
    """
    words = next(way for way in word_ways(model.template(), model.tokenizer) if way.name == WORDS)
    result = sweep(model, examples, ks, words=words, max_new_tokens=MAX_NEW_TOKENS, progress=progress)
    numbers: dict[str, list[int]] = {WITH: [], WITHOUT: []}
    for number, question in enumerate(questions):
        numbers[WITHOUT if question.document is None else WITH].append(number)
    parts = {name: _only(result, some) for name, some in numbers.items() if some}
    extra = {"retrieved": round(retrieved, 4), **{name: part.to_dict() for name, part in parts.items()}}
    return replace(result, extra=extra), parts


def _only(result: Sweep, numbers: Sequence[int]) -> Sweep:
    """Return the runs of a sweep on some of its questions."""

    def part(run: Run) -> Run:
        return replace(run, answers=tuple(run.answers[number] for number in numbers))

    return replace(
        result,
        examples=tuple(result.examples[number] for number in numbers),
        runs=tuple(map(part, result.runs)),
        instructed=part(result.instructed) if result.instructed is not None else None,
    )
