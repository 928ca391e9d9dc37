"""Test the splitting of texts into words, and BM25 over them."""

import bm25s
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chroma_spring_rag.words import WordIndex, split, stem, words

TEXTS = [
    "The bridge of Morven was built by Ada Quill in 1811.",
    "The ship Petrel carried salt, and salt again, and was lost off Cape Dunn.",
    "The Harbour Act forbids anchoring after dusk.",
    "Bridges, bridges and more bridges: a book.",
]


def index(texts: list[str]) -> WordIndex:
    made = WordIndex()
    made.add([str(i) for i in range(len(texts))], texts)
    return made


def test_words_lose_case_and_english_endings():
    assert words("Bridges bridged a BRIDGE; 1811, café!") == ["bridg", "bridg", "a", "bridg", "1811", "café"]
    assert split("It's A-1") == ["it", "s", "a", "1"]
    assert stem("anchoring") == stem("anchored")


def test_scores_rank_as_bm25s_does():
    questions = ["who built the bridge", "what was lost off the cape", "salt", "when is anchoring forbidden"]
    other = bm25s.BM25(k1=1.2, b=0.75, method="lucene")
    other.index([words(text) for text in TEXTS], show_progress=False)
    for question, scores in zip(questions, index(TEXTS).scores(questions), strict=True):
        theirs = other.get_scores(words(question))
        share = scores[theirs > 0] / theirs[theirs > 0]
        assert np.array_equal(scores > 0, theirs > 0)
        assert share == pytest.approx(share[0])


@settings(max_examples=25)
@given(st.lists(st.text(), max_size=5), st.lists(st.text(), min_size=1, max_size=3))
def test_scores_lie_between_0_and_1(texts, questions):
    scores = index(texts).scores(questions)
    assert scores.shape == (len(questions), len(texts))
    assert ((scores >= 0) & (scores < 1)).all()


def test_a_question_of_unknown_words_scores_nothing():
    scores = index(TEXTS).scores(["xylophone", "", "?"])
    assert not scores.any()


def test_adding_and_dropping_leaves_what_indexing_afresh_gives():
    changed = WordIndex()
    changed.add(["0", "gone"], [TEXTS[0], "A text that goes."])
    changed.scores(["bridge"])
    changed.add(["1", "2", "3"], TEXTS[1:])
    changed.keep({"0", "1", "2", "3"})
    assert changed.ids == ["0", "1", "2", "3"]
    np.testing.assert_array_equal(changed.scores(["bridge", "salt"]), index(TEXTS).scores(["bridge", "salt"]))
    changed.keep(set())
    assert changed.scores(["bridge"]).shape == (1, 0)
