"""What embeds the texts of a collection: named by the user, of whichever framework, or recorded; and whether its vectors are from there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol, cast, runtime_checkable
from uuid import UUID

import httpx
import numpy as np
from chromadb import Documents, EmbeddingFunction, Embeddings
from chromadb.api.types import DefaultEmbeddingFunction

from chroma_spring_rag.embedding import HashedWords, UnweightedWords, embedding_named
from chroma_spring_rag.errors import CollectionError, chroma_errors

if TYPE_CHECKING:
    from chromadb import Collection

DEFAULT_NAME = DefaultEmbeddingFunction.name()

# Vectors of one model and of the next agree by chance only; those of a text and of the same with its title before it agree well.
_SAME = 0.5
_TRIED = 8

_NAME_IT = "name that one (--embedding, or in Python embedding=…)"

_proven: dict[UUID, EmbeddingFunction[Any]] = {}
"""What has been found to agree with a collection's vectors in this process."""


@runtime_checkable
class LangChainEmbeddings(Protocol):
    """What `langchain_core.embeddings.Embeddings` has."""

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """One vector for each text of a collection."""

    def embed_query(self, text: str) -> list[float]:
        """The vector of a question."""


@runtime_checkable
class LlamaIndexEmbedding(Protocol):
    """What `llama_index.core.embeddings.BaseEmbedding` has."""

    def get_text_embedding_batch(self, texts: list[str]) -> list[list[float]]:
        """One vector for each text of a collection."""

    def get_query_embedding(self, query: str) -> list[float]:
        """The vector of a question."""


AnyEmbedding = str | EmbeddingFunction[Any] | LangChainEmbeddings | LlamaIndexEmbedding
"""A name as `embedding_named` takes it, or an object of Chroma, LangChain or LlamaIndex."""


class Adapted(EmbeddingFunction[Documents]):
    """An embedding of another framework as Chroma wants it. A collection can't record it.

    Args:
        embedding: the other framework's.
        documents: embeds texts of a collection.
        question: embeds a question.
    """

    def __init__(
        self,
        embedding: object,
        documents: Callable[[list[str]], list[list[float]]],
        question: Callable[[str], list[float]],
    ) -> None:
        self._embedding = embedding
        self._documents = documents
        self._question = question

    def __call__(self, input: Documents) -> Embeddings:  # noqa: A002 - Chroma passes it by this name
        """Embed texts of a collection; float32."""
        return _vectors(self._documents(list(input)))

    def embed_query(self, input: Documents) -> Embeddings:  # noqa: A002 - as above
        """Embed questions; float32."""
        return _vectors([self._question(text) for text in input])

    def own_name(self) -> str:
        """What messages call it."""
        return type(self._embedding).__name__


def embedding_function(embedding: AnyEmbedding) -> EmbeddingFunction[Any]:
    """An embedding of Chroma, LangChain or LlamaIndex, or one that Chroma knows by name, as Chroma wants it.

    Raises:
        CollectionError: an unknown name, a function that can't be set up, or something else than an embedding.
    """
    if isinstance(embedding, str):
        return embedding_named(embedding)
    if isinstance(embedding, LlamaIndexEmbedding):
        return Adapted(embedding, embedding.get_text_embedding_batch, embedding.get_query_embedding)
    if isinstance(embedding, LangChainEmbeddings):
        return Adapted(embedding, embedding.embed_documents, embedding.embed_query)
    if callable(embedding):
        return embedding
    msg = f"a {type(embedding).__name__} is no embedding of Chroma, LangChain or LlamaIndex, nor the name of one"
    raise CollectionError(msg)


def recorded_embedding(collection: Collection) -> str | None:
    """The name of the embedding function that a collection records; None if it records none."""
    record = _record(collection)
    return str(record["name"]) if record else None


def chosen_function(collection: Collection, embedding: AnyEmbedding | None = None) -> EmbeddingFunction[Any]:
    """The function that embeds for a collection: the one said; else its object's own; else the one that it records.

    Where the record isn't certain, some of the collection's texts are embedded and compared with its vectors.

    Args:
        collection: as Chroma gives it.
        embedding: what made its vectors.

    Raises:
        CollectionError: nobody says which, it isn't the recorded one, it can't be set up, or its vectors are others than the collection's.
    """
    own = collection._embedding_function
    if embedding is not None:
        function = _agreeing(collection, embedding)
    elif own is not None and not isinstance(own, DefaultEmbeddingFunction):
        function = own
    else:
        function = _as_recorded(collection)
    if isinstance(function, Adapted) or not _is_certain(collection):
        _prove(collection, function)
    return function


def embedded(
    function: EmbeddingFunction[Any], texts: Sequence[str], *, questions: bool = False, so: str = ""
) -> Embeddings:
    """The vectors of texts.

    Args:
        function: embeds them.
        texts: of documents.
        questions: they are questions.
        so: what comes of a failure, as in ", so no collection was made".

    Raises:
        CollectionError: the function fails.
    """
    embed: Any = function.embed_query if questions and hasattr(function, "embed_query") else function
    try:
        return cast(Embeddings, embed(list(texts)))
    # Models that can't be downloaded, services that refuse: errors of any kind.
    except Exception as error:
        network = isinstance(error, (httpx.TransportError, OSError))
        why = "; it needs the network, if only to download its model" if network else ""
        reason = " ".join(str(error).split()) or type(error).__name__
        msg = f"the embedding function {_name(function)!r} fails{so}: {reason}{why}"
        raise CollectionError(msg) from error


def holds_words(function: EmbeddingFunction[Any]) -> bool:
    """Whether a collection of this function is searched by its words."""
    return isinstance(function, HashedWords | UnweightedWords)


def _agreeing(collection: Collection, embedding: AnyEmbedding) -> EmbeddingFunction[Any]:
    record = _record(collection)
    if embedding == "hashed-words" and record is not None and record["name"] == UnweightedWords.name():
        return _as_recorded(collection)  # it was called so when the collection was made
    function = embedding_function(embedding)
    if record is None or record["name"] == DEFAULT_NAME or isinstance(function, Adapted):
        return function
    if (record["name"], record["config"]) != (function.name(), function.get_config()):
        msg = (
            f"the collection {collection.name!r} was made with the embedding function {record['name']!r} "
            f"{record['config']}, not with {_name(function)!r}; leave --embedding out, or use another --collection"
        )
        raise CollectionError(msg)
    return function


def _is_certain(collection: Collection) -> bool:
    # Chroma records its default wherever nobody names a function.
    return recorded_embedding(collection) not in (None, DEFAULT_NAME)


def _as_recorded(collection: Collection) -> EmbeddingFunction[Any]:
    name = collection.name
    if _record(collection) is None:
        msg = f"the collection {name!r} doesn't record which embedding function made it; name it with --embedding, or in Python embedding=…"
        raise CollectionError(msg)
    with chroma_errors(f"setting up the embedding function of the collection {name!r}"):
        function = collection.configuration["embedding_function"]
    assert function is not None
    return function


def _prove(collection: Collection, function: EmbeddingFunction[Any]) -> None:
    """Embed some of a collection's texts, and compare.

    Raises:
        CollectionError: the vectors are others, or the function fails.
    """
    known = _proven.get(collection.id)
    both_default = all(isinstance(each, DefaultEmbeddingFunction) for each in (known, function))
    if known is function or both_default:
        return
    with chroma_errors(f"reading the collection {collection.name!r}"):
        some = collection.get(limit=_TRIED, include=["documents", "embeddings"])
    vectors = [np.asarray(row) for row in some["embeddings"]]  # type: ignore[union-attr]
    pairs = [
        (text, row) for text, row in zip(some["documents"] or (), vectors, strict=True) if text and row.any()
    ]
    if not pairs:
        return
    recorded = recorded_embedding(collection)
    guess = (
        f"{recorded!r}, as Chroma does where nobody names one" if recorded == DEFAULT_NAME else repr(recorded)
    )
    records = f"the collection records {guess if recorded else 'none'}"
    so = f" ({records}; if another made it, {_NAME_IT})" if recorded == _name(function) else ""
    made = [np.asarray(row) for row in embedded(function, [text for text, _ in pairs], so=so)]
    if (width := made[0].shape) != pairs[0][1].shape:
        what = f"have dimension {pairs[0][1].size}, and those of the embedding function {_name(function)!r} {width[0]}"
    elif max(_cosine(own, there) for own, (_, there) in zip(made, pairs, strict=True)) < _SAME:
        what = f"aren't those of the embedding function {_name(function)!r}"
    else:
        _proven[collection.id] = function
        return
    msg = f"the vectors of the collection {collection.name!r} {what}, so another made them; {records}: {_NAME_IT}"
    raise CollectionError(msg)


def _cosine(one: np.ndarray[Any, Any], other: np.ndarray[Any, Any]) -> float:
    lengths = np.linalg.norm(one) * np.linalg.norm(other)
    return float(one @ other / lengths) if lengths else 0.0


def _record(collection: Collection) -> dict[str, Any] | None:
    record = collection.configuration_json.get("embedding_function")
    return record if record is not None and record.get("type") == "known" else None


def _name(function: EmbeddingFunction[Any]) -> str:
    if isinstance(function, Adapted):
        return function.own_name()
    try:
        return function.name()
    except (AttributeError, NotImplementedError):  # functions of old have none
        return type(function).__name__


def _vectors(rows: Sequence[Sequence[float]]) -> Embeddings:
    return [np.asarray(row, dtype=np.float32) for row in rows]
