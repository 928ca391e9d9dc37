"""Reading from a Chroma collection: the passages closest to questions, or all there are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from chroma_spring_rag.errors import CollectionError, chroma_errors

if TYPE_CHECKING:
    from chromadb import Collection, Where

_PAGE = 1000


@dataclass(frozen=True, slots=True)
class Passage:
    """One retrieved text.

    Attributes:
        text: as it stands in the collection.
        source: its metadata's `source`; its id where there is none.
        score: higher is closer. Cosine similarity or inner product, as the collection measures; for squared
            Euclidean distance, that distance with a minus.
    """

    text: str
    source: str
    score: float


def search(
    collection: Collection, questions: Sequence[str], top_k: int, where: Where | None = None
) -> list[list[Passage]]:
    """The passages closest to each question, closest first, by one query of the collection.

    Args:
        collection: embeds the questions with its own embedding function.
        questions: in words.
        top_k: most passages per question.
        where: Chroma's filter on metadata.

    Raises:
        CollectionError: an empty collection, a filter that isn't one, another embedding function than the
            collection's, or a server that doesn't answer.
    """
    name = collection.name
    with chroma_errors(f"searching the collection {name!r}"):
        result = collection.query(
            query_texts=list(questions),
            n_results=checked_top_k(top_k),
            where=where,
            include=["documents", "metadatas", "distances"],
        )
        is_empty = not any(result["ids"]) and collection.count() == 0
    if is_empty:
        msg = f"the collection {name!r} is empty; index files into it first (spring-rag index)"
        raise CollectionError(msg)
    assert result["documents"] is not None
    assert result["metadatas"] is not None
    assert result["distances"] is not None
    to_score = _scoring(collection)
    answers = []
    for ids, texts, metadatas, distances in zip(
        result["ids"], result["documents"], result["metadatas"], result["distances"], strict=True
    ):
        passages = []
        for id_, text, metadata, distance in zip(ids, texts, metadatas, distances, strict=True):
            if text is None:
                msg = f"the entry {id_!r} of the collection {name!r} has no document text to answer from"
                raise CollectionError(msg)
            source = (metadata or {}).get("source", id_)
            passages.append(Passage(text, str(source), to_score(distance)))
        answers.append(passages)
    return answers


def read_texts(collection: Collection) -> list[str]:
    """The texts of all entries, each once, in the collection's order.

    Raises:
        CollectionError: an empty collection, an entry without text, or a server that doesn't answer.
    """
    texts: list[str] = []
    with chroma_errors(f"reading the collection {collection.name!r}"):
        count = collection.count()
        for offset in range(0, count, _PAGE):
            page = collection.get(include=["documents"], limit=_PAGE, offset=offset)
            texts += [text for text in page["documents"] or () if text is not None]
    if not texts:
        msg = (
            f"the collection {collection.name!r} holds no texts; index files into it first (spring-rag index)"
        )
        raise CollectionError(msg)
    return list(dict.fromkeys(texts))


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
