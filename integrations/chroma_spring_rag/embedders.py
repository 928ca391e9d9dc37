"""Find the function that embeds a collection's texts, given by the user or recorded, and check that the collection's vectors came from it."""

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

# The vectors of two models agree only by chance; those of a text with and without its title agree well.
_SAME = 0.5
_TRIED = 8

_NAME_IT = "name that one (--embedding, or in Python embedding=…)"

_proven: dict[UUID, EmbeddingFunction[Any]] = {}
"""By collection, the function that agreed with its vectors in this process."""


@runtime_checkable
class LangChainEmbeddings(Protocol):
    """The methods used of `langchain_core.embeddings.Embeddings`."""

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """Return one vector for each text of a collection."""

    def embed_query(self, text: str) -> list[float]:
        """Return the vector of a question."""


@runtime_checkable
class LlamaIndexEmbedding(Protocol):
    """The methods used of `llama_index.core.embeddings.BaseEmbedding`."""

    def get_text_embedding_batch(self, texts: list[str]) -> list[list[float]]:
        """Return one vector for each text of a collection."""

    def get_query_embedding(self, query: str) -> list[float]:
        """Return the vector of a question."""


AnyEmbedding = str | EmbeddingFunction[Any] | LangChainEmbeddings | LlamaIndexEmbedding
"""A name that `embedding_named` takes, or an object of Chroma, LangChain or LlamaIndex."""


class Adapted(EmbeddingFunction[Documents]):
    """Another framework's embedding in Chroma's form. A collection can't record it.

    Args:
        embedding: the other framework's object.
        documents: function that embeds texts of a collection.
        question: function that embeds a question.
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

    def embed_query(self, input: Documents) -> Embeddings:  # noqa: A002 - Chroma passes it by this name
        """Embed questions; float32."""
        return _vectors([self._question(text) for text in input])

    def own_name(self) -> str:
        """Return its name in messages."""
        return type(self._embedding).__name__


def embedding_function(embedding: AnyEmbedding) -> EmbeddingFunction[Any]:
    """Return Chroma's form of an embedding of Chroma, LangChain or LlamaIndex, or of one that Chroma knows by name.

    Raises:
        CollectionError: an unknown name, a function that can't be set up, or an object that is no embedding.
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
    """Return the name of the embedding function that a collection records; None if it records none."""
    record = _record(collection)
    return str(record["name"]) if record else None


def chosen_function(collection: Collection, embedding: AnyEmbedding | None = None) -> EmbeddingFunction[Any]:
    """Return the function that embeds for a collection: the one given, or else the object's own, or else the recorded one.

    If the record isn't certain, some of the collection's texts are embedded and compared with its vectors.

    Args:
        collection: Chroma's object.
        embedding: the embedding that made the collection's vectors.

    Raises:
        CollectionError: none is given or recorded, it isn't the recorded one, it can't be set up, or its vectors differ from the
            collection's.
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
    """Return the vectors of texts.

    Args:
        function: the embedding function.
        texts: documents, or questions.
        questions: whether the texts are questions.
        so: the consequence of a failure, for the message, such as ", so no collection was made".

    Raises:
        CollectionError: the function fails.
    """
    embed: Any = function.embed_query if questions and hasattr(function, "embed_query") else function
    try:
        return cast(Embeddings, embed(list(texts)))
    # Models that can't be downloaded and services that refuse raise errors of any kind.
    except Exception as error:
        network = isinstance(error, (httpx.TransportError, OSError))
        why = "; it needs the network, if only to download its model" if network else ""
        reason = " ".join(str(error).split()) or type(error).__name__
        msg = f"the embedding function {_name(function)!r} fails{so}: {reason}{why}"
        raise CollectionError(msg) from error


def holds_words(function: EmbeddingFunction[Any]) -> bool:
    """Return whether a collection of this function is searched by its words."""
    return isinstance(function, HashedWords | UnweightedWords)


def _agreeing(collection: Collection, embedding: AnyEmbedding) -> EmbeddingFunction[Any]:
    record = _record(collection)
    if embedding == "hashed-words" and record is not None and record["name"] == UnweightedWords.name():
        return _as_recorded(collection)  # the older function had this name when the collection was made
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
    # Chroma records its default if no function is named.
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
    """Check that a collection's vectors came from a function, by embedding some of its texts again.

    Raises:
        CollectionError: the vectors differ, or the function fails.
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
    guess = f"{recorded!r}, as Chroma does if none is named" if recorded == DEFAULT_NAME else repr(recorded)
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
    except (AttributeError, NotImplementedError):  # older functions have none
        return type(function).__name__


def _vectors(rows: Sequence[Sequence[float]]) -> Embeddings:
    return [np.asarray(row, dtype=np.float32) for row in rows]
