"""Search a collection exactly, by the words of its texts: no text that shares a rare word with a question is missed.

Embedded Chroma has no index of words, and its index of vectors is approximate: among sparse vectors it misses even exact
matches. So the words are kept in memory, once per collection and process, and every search brings them up to date.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from threading import Lock
from typing import TYPE_CHECKING, Any
from uuid import UUID

import numpy as np

from chroma_spring_rag.words import WordIndex

if TYPE_CHECKING:
    from chromadb import Collection, Where

Entry = tuple[str | None, "dict[str, Any] | None"]
"""Text and metadata of one entry of a collection."""

_PAGE = 1000
_BATCH = 64
_COLLECTIONS_KEPT = 4


def search_words(
    collection: Collection, questions: Sequence[str], top_k: int, where: Where | None
) -> tuple[list[list[tuple[str, float]]], dict[str, Entry]]:
    """Return the entries whose words match each question best, best first.

    Entries that any process has added or deleted since the last search are taken into account. A text that was changed under its old
    id, which `index_files` never does, is taken into account once the old text is found.

    Returns:
        For each question the ids found with their scores, and all entries found by id.
    """
    found = _searched(collection.id)
    with found.lock:
        found.update(collection)
        while True:
            ranked = found.rank(questions, top_k, _matching(collection, where))
            entries = dict(_read(collection, {id_ for row in ranked for id_, _ in row}))
            changed = [id_ for id_, (text, _) in entries.items() if found.texts[id_] != hash(text)]
            if not changed:
                break
            found.forget(changed)
            found.update(collection)
    return [[(id_, score) for id_, score in row if id_ in entries] for row in ranked], entries


class _Searched:
    """The words of a collection's entries, and a hash of each text."""

    def __init__(self) -> None:
        self.lock = Lock()
        self.texts: dict[str, int] = {}
        self._words = WordIndex()

    def update(self, collection: Collection) -> None:
        """Add the collection's new entries, and drop those that it no longer has."""
        there = collection.get(include=[])["ids"]
        self.forget(self.texts.keys() - set(there))
        for page in _pages([id_ for id_ in there if id_ not in self.texts]):
            entries = list(_read(collection, page))
            self._words.add([id_ for id_, _ in entries], [text or "" for _, (text, _) in entries])
            self.texts |= {id_: hash(text) for id_, (text, _) in entries}

    def forget(self, ids: Iterable[str]) -> None:
        """Drop these entries."""
        for id_ in list(ids):
            del self.texts[id_]
        self._words.keep(set(self.texts))

    def rank(
        self, questions: Sequence[str], top_k: int, among: set[str] | None
    ) -> list[list[tuple[str, float]]]:
        """Return the best entries for each question; of two that match equally, the one that was added first comes first."""
        ids = self._words.ids
        rows = np.arange(len(ids))
        if among is not None:
            rows = rows[[id_ in among for id_ in ids]]
        ranked = []
        for start in range(0, len(questions), _BATCH):
            for scores in self._words.scores(questions[start : start + _BATCH])[:, rows]:
                best = np.argsort(-scores, kind="stable")[:top_k]
                ranked.append([(ids[rows[i]], float(scores[i])) for i in best])
        return ranked


@lru_cache(maxsize=_COLLECTIONS_KEPT)
def _searched(collection_id: UUID) -> _Searched:  # noqa: ARG001 - the key
    return _Searched()


def _matching(collection: Collection, where: Where | None) -> set[str] | None:
    """Return the ids that pass a filter; None if there is no filter."""
    return None if where is None else set(collection.get(where=where, include=[])["ids"])


def _read(collection: Collection, ids: Iterable[str]) -> Iterator[tuple[str, Entry]]:
    for page in _pages(list(ids)):
        found = collection.get(ids=page, include=["documents", "metadatas"])
        entries = zip(found["documents"] or [], found["metadatas"] or [], strict=True)
        yield from zip(found["ids"], entries, strict=True)


def _pages(ids: list[str]) -> Iterator[list[str]]:
    for start in range(0, len(ids), _PAGE):
        yield ids[start : start + _PAGE]
