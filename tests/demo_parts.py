"""A few of the demo's questions, the documents that answer them among others, and how many answers are right."""

from collections.abc import Callable

from spring_rag.demo import paths, run
from spring_rag.evaluation.metrics import exact_match

_ANSWERABLE = [question for question in run.load_questions() if question.source]

QUESTIONS = _ANSWERABLE[:3]
DOCUMENTS = [(paths.DOCUMENTS / question.source).read_text(encoding="utf-8") for question in _ANSWERABLE[:40]]
MAX_TOKENS = 20
"""Enough for the plain backbone's whole sentences."""


def share_right(ask: Callable[[str], str]) -> float:
    """Exact match of an app's answers, from 0 to 1."""
    scores = [exact_match(ask(each.question), [each.answer]) for each in QUESTIONS]
    return sum(scores) / len(scores)
