"""Read from a Chroma collection: the passages closest to questions, or all texts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from chroma_spring_rag.embedders import AnyEmbedding, chosen_function, embedded, holds_words
from chroma_spring_rag.errors import CollectionError, chroma_errors
from chroma_spring_rag.word_search import search_words

if TYPE_CHECKING:
    from chromadb import Collection, EmbeddingFunction, GetResult, Where

_PAGE = 1000


@dataclass(frozen=True, slots=True)
class Passage:
    """One retrieved text.

    Attributes:
        text: the entry's text in the collection.
        source: the metadata's `source`, or LlamaIndex's `file_path`, or else the entry's id.
        score: closeness to the question, higher is closer; None from a retriever without scores. In a collection of hashed words it is from
            0 to 1: the share of the question's words that the text holds, rare words counting more (`WordIndex.scores`). In other
            collections it is the cosine similarity, the inner product, or the negative squared Euclidean distance.
        chunk: the metadata's `position`, the chunk's number in its file, from 0; None if there is none.
    """

    text: str
    source: str
    score: float | None
    chunk: int | None = None

    @property
    def place(self) -> str:
        """The passage's place, such as `docs/a.md:3`."""
        return self.source if self.chunk is None else f"{self.source}:{self.chunk}"


def search(
    collection: Collection,
    questions: Sequence[str],
    top_k: int,
    where: Where | None = None,
    embedding: AnyEmbedding | None = None,
) -> list[list[Passage]]:
    """Return the passages closest to each question, closest first.

    A collection whose embedding function is `HashedWords` (or the older one of that kind) is searched exactly, by the words themselves.
    Its vectors are for programs that search it without this function. Any other collection is searched by one query of its vectors.

    Args:
        collection: an embedded collection or one on a server.
        questions: the questions' texts.
        top_k: most passages per question.
        where: Chroma's filter on metadata.
        embedding: the embedding that made the collection's vectors, if the collection doesn't record it.

    Raises:
        CollectionError: the collection is empty, the filter is malformed, there is no embedding function or not the collection's, or the
            server doesn't answer.
    """
    checked_top_k(top_k)
    name = collection.name
    function = chosen_function(collection, embedding)
    with chroma_errors(f"searching the collection {name!r}"):
        if holds_words(function):
            ranked = _by_words(collection, questions, top_k, where)
        else:
            ranked = _by_vectors(collection, questions, top_k, where, function)
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
    collection: Collection,
    questions: Sequence[str],
    top_k: int,
    where: Where | None,
    function: EmbeddingFunction[Any],
) -> list[list[_Hit]]:
    result = collection.query(
        query_embeddings=embedded(function, questions, questions=True),
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


def _passage(hit: _Hit, name: str) -> Passage:
    if hit.text is None:
        msg = f"the entry {hit.id!r} of the collection {name!r} has no document text to answer from"
        raise CollectionError(msg)
    position = (hit.metadata or {}).get("position")
    chunk = position if isinstance(position, int) else None
    return Passage(hit.text, source_of(hit.id, hit.metadata), hit.score, chunk)


def read_texts(collection: Collection) -> list[str]:
    """Return the texts of all entries, each once, in the collection's order.

    Raises:
        CollectionError: there are no texts, or the server doesn't answer.
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
    """Return the source of each entry, as in `Passage.source`, in the collection's order.

    Raises:
        CollectionError: Chroma fails, or the server doesn't answer.
    """
    return [
        source_of(id_, metadata)
        for page in _pages(collection, "metadatas")
        for id_, metadata in zip(page["ids"], page["metadatas"] or (), strict=True)
    ]


def _pages(collection: Collection, part: Literal["documents", "metadatas"]) -> Iterator[GetResult]:
    with chroma_errors(f"reading the collection {collection.name!r}"):
        for offset in range(0, collection.count(), _PAGE):
            yield collection.get(include=[part], limit=_PAGE, offset=offset)


def source_of(id_: str, metadata: Mapping[str, Any] | None) -> str:
    """Return a text's source: the metadata's `source`, or LlamaIndex's `file_path`, or else the entry's id."""
    facts = metadata or {}
    return str(facts.get("source", facts.get("file_path", id_)))


def _scoring(collection: Collection) -> Callable[[float], float]:
    """Return the function that turns this collection's distances into scores."""
    configuration = collection.configuration_json
    index = configuration.get("hnsw") or configuration.get("spann") or {}
    if index.get("space") in ("cosine", "ip"):
        return lambda distance: 1 - distance
    return lambda distance: -distance


def checked_top_k(top_k: int) -> int:
    """Check a number of passages, and return it.

    Raises:
        ValueError: it is less than 1.
    """
    if top_k < 1:
        msg = f"top_k is {top_k}; it must be at least 1"
        raise ValueError(msg)
    return top_k
