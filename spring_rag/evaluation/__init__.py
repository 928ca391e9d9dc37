"""Scores of answers, sweeps over the number of virtual tokens, and their report."""

from spring_rag.data.matching import normalise
from spring_rag.evaluation.ability import plain_difference
from spring_rag.evaluation.metrics import contains, exact_match, f1
from spring_rag.evaluation.report import score_table, side_by_side, telling_examples
from spring_rag.evaluation.runner import Run, Sweep, sweep
from spring_rag.evaluation.ways import Answer, score
from spring_rag.evaluation.words import WordsWay, best_words, word_ways
from spring_rag.prompt import BRIEF

__all__ = [
    "BRIEF",
    "Answer",
    "Run",
    "Sweep",
    "WordsWay",
    "best_words",
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
    "word_ways",
]
