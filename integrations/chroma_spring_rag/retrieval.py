"""Reading from a Chroma collection: the passages closest to questions, or all there are."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from chroma_spring_rag.embedding import HashedWords, UnweightedWords
from chroma_spring_rag.errors import CollectionError, chroma_errors
from chroma_spring_rag.word_search import search_words

if TYPE_CHECKING:
    from chromadb import Collection, GetResult, Where

_PAGE = 1000


@dataclass(frozen=True, slots=True)
class Passage:
    """One retrieved text.

    Attributes:
        text: as it stands in the collection.
        source: its metadata's `source`; its id where there is none.
        chunk: its metadata's `position`: which chunk of its file it is, from 0; None where there is none.
        score: higher is closer. In a collection of hashed words, from 0 to 1: how much of the question's words the text
            holds, rare words counting more (`WordIndex.scores`). In others, cosine similarity or inner product, as the
            collection measures; for squared Euclidean distance, that distance with a minus.
    """

    text: str
    source: str
    score: float
    chunk: int | None = None

    @property
    def place(self) -> str:
        """Where it stands, as `docs/a.md:3`."""
        return self.source if self.chunk is None else f"{self.source}:{self.chunk}"


def search(
    collection: Collection, questions: Sequence[str], top_k: int, where: Where | None = None
) -> list[list[Passage]]:
    """The passages closest to each question, closest first.

    A collection whose embedding function is `HashedWords` (or the older one of that kind) is searched by the words themselves, exactly; its vectors are
    for programs that search it without this function. Any other is searched by one query of its vectors.

    Args:
        collection: embeds the questions with its own embedding function.
        questions: in words.
        top_k: most passages per question.
        where: Chroma's filter on metadata.

    Raises:
        CollectionError: an empty collection, a filter that isn't one, another embedding function than the
            collection's, or a server that doesn't answer.
    """
    checked_top_k(top_k)
    name = collection.name
    with chroma_errors(f"searching the collection {name!r}"):
        ranked = (_by_words if _holds_words(collection) else _by_vectors)(collection, questions, top_k, where)
        is_empty = not any(ranked) and collection.count() == 0
    if is_empty:
        msg = f"the collection {name!r} is empty; index files into it first (spring-rag index)"
        raise CollectionError(msg)
    return [[_passage(hit, name) for hit in hits] for hits in ranked]


@dataclass(frozen=True, slots=True)
class _Hit:
    id: str
    text: str | None
    metadata: Mapping[str, Any] | None
    score: float


def _by_words(
    collection: Collection, questions: Sequence[str], top_k: int, where: Where | None
) -> list[list[_Hit]]:
    ranked, entries = search_words(collection, questions, top_k, where)
    return [[_Hit(id_, *entries[id_], score) for id_, score in row] for row in ranked]


def _by_vectors(
    collection: Collection, questions: Sequence[str], top_k: int, where: Where | None
) -> list[list[_Hit]]:
    result = collection.query(
        query_texts=list(questions),
        n_results=top_k,
        where=where,
        include=["documents", "metadatas", "distances"],
    )
    assert result["documents"] is not None
    assert result["metadatas"] is not None
    assert result["distances"] is not None
    to_score = _scoring(collection)
    rows = zip(result["ids"], result["documents"], result["metadatas"], result["distances"], strict=True)
    return [
        [
            _Hit(id_, text, metadata, to_score(distance))
            for id_, text, metadata, distance in zip(*row, strict=True)
        ]
        for row in rows
    ]


def _holds_words(collection: Collection) -> bool:
    # What the collection object embeds with, whether the collection records it or the caller named it.
    return isinstance(collection._embedding_function, HashedWords | UnweightedWords)


def _passage(hit: _Hit, name: str) -> Passage:
    if hit.text is None:
        msg = f"the entry {hit.id!r} of the collection {name!r} has no document text to answer from"
        raise CollectionError(msg)
    position = (hit.metadata or {}).get("position")
    chunk = position if isinstance(position, int) else None
    return Passage(hit.text, _source(hit.id, hit.metadata), hit.score, chunk)


def read_texts(collection: Collection) -> list[str]:
    """The texts of all entries, each once, in the collection's order.

    Raises:
        CollectionError: an empty collection, an entry without text, or a server that doesn't answer.
    """
    texts = [
        text
        for page in _pages(collection, "documents")
        for text in page["documents"] or ()
        if text is not None
    ]
    if not texts:
        msg = (
            f"the collection {collection.name!r} holds no texts; index files into it first (spring-rag index)"
        )
        raise CollectionError(msg)
    return list(dict.fromkeys(texts))


def read_sources(collection: Collection) -> list[str]:
    """Where each entry comes from: its metadata's `source`, or its id; in the collection's order.

    Raises:
        CollectionError: Chroma refuses, or a server doesn't answer.
    """
    return [
        _source(id_, metadata)
        for page in _pages(collection, "metadatas")
        for id_, metadata in zip(page["ids"], page["metadatas"] or (), strict=True)
    ]


def _pages(collection: Collection, part: Literal["documents", "metadatas"]) -> Iterator[GetResult]:
    with chroma_errors(f"reading the collection {collection.name!r}"):
        for offset in range(0, collection.count(), _PAGE):
            yield collection.get(include=[part], limit=_PAGE, offset=offset)


def _source(id_: str, metadata: Mapping[str, Any] | None) -> str:
    return str((metadata or {}).get("source", id_))


def _scoring(collection: Collection) -> Callable[[float], float]:
    """How a distance of this collection becomes a score."""
    configuration = collection.configuration_json
    index = configuration.get("hnsw") or configuration.get("spann") or {}
    if index.get("space") in ("cosine", "ip"):
        return lambda distance: 1 - distance
    return lambda distance: -distance


def checked_top_k(top_k: int) -> int:
    """The same number, if it is one of passages; a ValueError says otherwise."""
    if top_k < 1:
        msg = f"top_k is {top_k}; it must be at least 1"
        raise ValueError(msg)
    return top_k
