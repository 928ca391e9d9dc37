"""Split texts into words, and score how well they match a question's words: BM25, in memory and exact."""

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import snowballstemmer
from scipy.sparse import csr_matrix, vstack
from sklearn.feature_extraction.text import HashingVectorizer

# Okapi BM25's usual constants: how soon a word's repetitions stop counting, and how much long texts lose.
SATURATION = 1.2
LENGTH_PENALTY = 0.75

# Enough slots that two words of a collection hardly ever share one.
_SLOTS = 2**22

_WORD = re.compile(r"\w+")
_STEMMER = snowballstemmer.stemmer("english")


def words(text: str) -> list[str]:
    """Return a text's words in lower case, without English endings: "Bridges" and "bridged" both give "bridg"."""
    return [stem(word) for word in split(text)]


def split(text: str) -> list[str]:
    """Return a text's words in lower case, with their endings."""
    return _WORD.findall(text.lower())


# The stemmer is slow Python, and texts share most of their words.
@lru_cache(maxsize=2**17)
def stem(word: str) -> str:
    """Return a word without its English ending."""
    return str(_STEMMER.stemWord(word))


class WordIndex:
    """The words of texts, each text under an id. Adding a text doesn't change the others."""

    def __init__(self) -> None:
        self.ids: list[str] = []
        self._count = HashingVectorizer(
            n_features=_SLOTS, analyzer=words, norm=None, alternate_sign=False, dtype=np.float32
        )
        self._counts: Any = csr_matrix((0, _SLOTS), dtype=np.float32)
        self._weights: Any = None
        self._rarity: Any = None

    def add(self, ids: Sequence[str], texts: Sequence[str]) -> None:
        """Add texts under new ids."""
        if ids:
            self._counts = vstack([self._counts, self._count.transform(texts)], format="csr")
            self.ids += ids
            self._weights = None

    def keep(self, ids: set[str]) -> None:
        """Drop all texts but those with these ids."""
        rows = [row for row, id_ in enumerate(self.ids) if id_ in ids]
        if len(rows) < len(self.ids):
            self._counts = self._counts[rows]
            self.ids = [self.ids[row] for row in rows]
            self._weights = None

    def scores(self, questions: Sequence[str]) -> np.ndarray[Any, Any]:
        """Score how much of each question's words each text holds, from 0 to 1.

        The score is that of BM25, divided by the most that any text could reach: a rare word counts more than a frequent one,
        a word's repetitions count less and less, and a long text's words count less than a short one's.

        Returns:
            One row per question, one column per text, in the order of `ids`.
        """
        if self._weights is None:
            self._weigh()
        asked = self._count.transform(questions)
        asked.data *= self._rarity[asked.indices]
        most = np.asarray(asked.sum(axis=1))
        reached = (asked @ self._weights).toarray()
        return np.asarray(np.divide(reached, most, out=np.zeros_like(reached), where=most > 0))

    def _weigh(self) -> None:
        """Compute BM25's two factors: a word's weight in each text, and its rarity among the texts."""
        texts = len(self.ids)
        holding = np.bincount(self._counts.indices, minlength=_SLOTS)
        self._rarity = np.log1p((texts - holding + 0.5) / (holding + 0.5)).astype(np.float32)
        lengths = np.asarray(self._counts.sum(axis=1)).ravel()
        average = max(lengths.mean(), 1) if texts else 1
        penalty = SATURATION * (1 - LENGTH_PENALTY + LENGTH_PENALTY * lengths / average)
        weights = self._counts.copy()
        weights.data /= weights.data + np.repeat(penalty, np.diff(weights.indptr)).astype(np.float32)
        self._weights = weights.T.tocsr()
