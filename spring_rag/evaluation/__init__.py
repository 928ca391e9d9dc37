"""Scores of answers, sweeps over the number of virtual tokens, and their report."""

from spring_rag.evaluation.ability import plain_difference
from spring_rag.evaluation.metrics import contains, exact_match, f1, normalise
from spring_rag.evaluation.report import score_table, side_by_side, telling_examples
from spring_rag.evaluation.runner import BRIEF, Answer, Run, Sweep, score, sweep

__all__ = [
    "BRIEF",
    "Answer",
    "Run",
    "Sweep",
    "contains",
    "exact_match",
    "f1",
    "normalise",
    "plain_difference",
    "score",
    "score_table",
    "side_by_side",
    "sweep",
    "telling_examples",
]
