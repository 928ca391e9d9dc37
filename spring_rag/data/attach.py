"""Retrieve passages for questions that have answers but no passages."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import chain, zip_longest
from random import Random
from typing import Literal

from spring_rag.callbacks import OnProgress
from spring_rag.data.examples import UNANSWERABLE_ANSWER, RagExample
from spring_rag.data.matching import holds, readable
from spring_rag.errors import DataError

Retriever = Callable[[Sequence[str], int], list[list[str]]]
"""Called with questions and a top k; returns for each question the texts found, best first."""

AnswerPassage = Literal["any", "guarantee", "forbid"]
Mix = Literal["draw", "merge"]

_BATCH = 128
_DEEPER = 10


@dataclass(frozen=True, slots=True)
class Attached:
    """Examples with their passages.

    Attributes:
        examples: those that got passages, in their order.
        left_out: questions that got none.
        found: share of the examples with an accepted answer in one of their passages.
    """

    examples: list[RagExample]
    left_out: list[str]
    found: float


def attach(
    examples: Sequence[RagExample],
    retrievers: Sequence[Retriever],
    *,
    top_k: int = 5,
    answer_passage: AnswerPassage = "any",
    mix: Mix = "draw",
    unanswerable_answer: str = UNANSWERABLE_ANSWER,
    seed: int = 0,
    progress: OnProgress | None = None,
) -> Attached:
    """Retrieve passages for questions, in place of any that an example has already.

    Args:
        examples: questions with accepted answers.
        retrievers: where passages come from.
        top_k: passages per question.
        answer_passage: `any` takes what is found. `guarantee`: if no passage holds an accepted answer, one from further down
            takes the last place; a question without such a passage is left out. `forbid`: passages that hold an accepted answer are passed
            over, and `unanswerable_answer` is accepted instead; questions answered by yes or no are left out, since any passage may answer
            them.
        mix: how to combine several retrievers. `draw`: each question asks one of them, drawn at random, as in the paper. `merge`: each
            question asks all of them, and takes their best in turns.
        unanswerable_answer: the accepted answer if `answer_passage` is `forbid`.
        seed: seed of `draw`.
        progress: called with the number of questions done, and of all.

    Raises:
        DataError: no retriever, or `forbid` with a blank `unanswerable_answer`.
    """
    if not retrievers:
        msg = "there is nothing to retrieve from; give at least one collection"
        raise DataError(msg)
    if answer_passage == "forbid" and not unanswerable_answer.strip():
        msg = "unanswerable_answer is blank; give the words that say that there is no answer"
        raise DataError(msg)
    depth = top_k if answer_passage == "any" else top_k * _DEEPER
    rng = Random(f"{seed}:retrievers")
    attached: list[RagExample] = []
    left_out: list[str] = []
    for start in range(0, len(examples), _BATCH):
        batch = examples[start : start + _BATCH]
        for example, ranked in zip(batch, _retrieve(batch, retrievers, depth, mix, rng), strict=True):
            passages = _choose(ranked, example.answers, top_k, answer_passage)
            if passages:
                answers = (unanswerable_answer,) if answer_passage == "forbid" else example.answers
                attached.append(replace(example, passages=tuple(passages), answers=answers))
            else:
                left_out.append(example.question)
        if progress is not None:
            progress(start + len(batch), len(examples))
    found = sum(any(holds(p, e.answers) for p in e.passages) for e in attached)
    return Attached(attached, left_out, found / len(attached) if attached else 0.0)


def _retrieve(
    batch: Sequence[RagExample], retrievers: Sequence[Retriever], depth: int, mix: Mix, rng: Random
) -> list[list[str]]:
    questions = [example.question for example in batch]
    if mix == "merge":
        rankings = [retriever(questions, depth) for retriever in retrievers]
        return [_in_turns(lists) for lists in zip(*rankings, strict=True)]
    chosen = [rng.randrange(len(retrievers)) for _ in batch]
    found: dict[int, list[str]] = {}
    for number, retriever in enumerate(retrievers):
        asking = [i for i, choice in enumerate(chosen) if choice == number]
        if asking:
            found.update(zip(asking, retriever([questions[i] for i in asking], depth), strict=True))
    return [found[i] for i in range(len(batch))]


def _in_turns(rankings: Sequence[Sequence[str]]) -> list[str]:
    """Return the first of each ranking, then the second of each, and so on, each text once."""
    turns = chain.from_iterable(zip_longest(*rankings))
    return list(dict.fromkeys(text for text in turns if text is not None))


def _choose(ranked: Sequence[str], answers: Sequence[str], top_k: int, wanted: AnswerPassage) -> list[str]:
    """Return the best `top_k` texts that `wanted` allows; empty if it allows none."""
    best = list(ranked[:top_k])
    if wanted == "forbid":
        return [text for text in ranked if readable(answers) and not holds(text, answers)][:top_k]
    if wanted == "guarantee" and not any(holds(text, answers) for text in best):
        holding = next((text for text in ranked[top_k:] if holds(text, answers)), None)
        return [*best[:-1], holding] if holding is not None else []
    return best
