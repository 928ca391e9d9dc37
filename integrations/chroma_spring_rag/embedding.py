"""Embed texts without a model or the network, or by a function that Chroma knows by name."""

import math
from functools import lru_cache
from typing import Any

import numpy as np
from chromadb import Documents, EmbeddingFunction, Embeddings
from chromadb.api.types import Space
from chromadb.utils.embedding_functions import known_embedding_functions, register_embedding_function
from scipy.sparse import csr_matrix
from sklearn.feature_extraction import FeatureHasher
from sklearn.feature_extraction.text import HashingVectorizer
from sklearn.preprocessing import normalize

from chroma_spring_rag.errors import CollectionError
from chroma_spring_rag.words import SATURATION, split, stem, words

DEFAULT_DIMENSIONS = 4096

# Words rarer than one in a hundred million count alike, and so do words that no dictionary knows.
_RAREST = 1e-8

# Number of words of general English in a chunk of the usual length.
_TEXT_LENGTH = 150


class _Hashed(EmbeddingFunction[Documents]):
    """The common part of both functions of words: turns sparse counts into dense vectors of length 1."""

    def default_space(self) -> Space:
        """Return "cosine", since the vectors have length 1."""
        return "cosine"

    @staticmethod
    def _dense(weighted: csr_matrix) -> Embeddings:
        return list(normalize(weighted).toarray().astype(np.float32))


@register_embedding_function
class HashedWords(_Hashed):
    """Bags of hashed words: nothing to download, and always the same vectors.

    Documents and questions are embedded differently. In a document a word's tenth occurrence counts less than its first.
    In a question (`embed_query`) a word that is rare in general English counts more than a frequent one.
    The cosine of the two is close to BM25. It matches words and not meanings, so it misses paraphrases that a trained model finds.

    `search` doesn't use the vectors, but matches the words of the texts exactly. The vectors are for other programs, such as the vector
    stores of LangChain and LlamaIndex.

    The function registers itself with Chroma when this module is imported, and a collection made with it records its
    name and configuration, so that other processes find it.

    Args:
        dimensions: length of a vector; fewer dimensions make more words collide.
    """

    def __init__(self, dimensions: int = DEFAULT_DIMENSIONS) -> None:
        self._dimensions = dimensions
        self._documents = HashingVectorizer(n_features=dimensions, norm=None, analyzer=words)
        # Pairs of a stem and the rarity of its word.
        self._questions = FeatureHasher(n_features=dimensions, input_type="pair")

    def __call__(self, input: Documents) -> Embeddings:  # noqa: A002 - Chroma passes it by this name
        """Embed documents; float32 vectors of length 1.

        A text without words has no direction: its vector is zero, at distance 1 from every other.
        """
        counts: csr_matrix = self._documents.transform(input)
        counts.data /= np.abs(counts.data) + SATURATION
        return self._dense(counts)

    def embed_query(self, input: Documents) -> Embeddings:  # noqa: A002 - Chroma passes it by this name
        """Embed questions; float32 vectors of length 1, or zero without words."""
        weighted = self._questions.transform(
            [(stem(word), _rarity(word)) for word in split(text)] for text in input
        )
        return self._dense(weighted)

    @staticmethod
    def name() -> str:
        """Return the name by which Chroma knows this function."""
        return "spring-rag-weighted-words"

    def get_config(self) -> dict[str, Any]:
        """Return the settings that a collection records."""
        return {"dimensions": self._dimensions}

    @staticmethod
    def build_from_config(config: dict[str, Any]) -> "HashedWords":
        """Make the function from a collection's record."""
        return HashedWords(dimensions=config["dimensions"])


@register_embedding_function
class UnweightedWords(_Hashed):
    """The function of collections that were made before `HashedWords` distinguished rare words from frequent ones.

    Args:
        dimensions: length of a vector.
    """

    def __init__(self, dimensions: int = DEFAULT_DIMENSIONS) -> None:
        self._dimensions = dimensions
        self._content_words = HashingVectorizer(n_features=dimensions, norm=None, stop_words="english")
        self._all_words = HashingVectorizer(n_features=dimensions, norm=None, token_pattern=r"(?u)\b\w+\b")

    def __call__(self, input: Documents) -> Embeddings:  # noqa: A002 - Chroma passes it by this name
        """Embed texts, documents and questions alike; float32 vectors of length 1, or zero without words."""
        counts: csr_matrix = self._content_words.transform(input)
        without_content = np.flatnonzero(counts.getnnz(axis=1) == 0)
        if without_content.size:  # "Who is it?" holds only stop words, which are better than nothing
            rows = counts.tolil()
            rows[without_content] = self._all_words.transform([input[i] for i in without_content])
            counts = rows.tocsr()
        counts.data = np.sign(counts.data) * np.log1p(np.abs(counts.data))
        return self._dense(counts)

    @staticmethod
    def name() -> str:
        """Return the name by which Chroma knows this function."""
        return "spring-rag-hashed-words"

    def get_config(self) -> dict[str, Any]:
        """Return the settings that a collection records."""
        return {"dimensions": self._dimensions}

    @staticmethod
    def build_from_config(config: dict[str, Any]) -> "UnweightedWords":
        """Make the function from a collection's record."""
        return UnweightedWords(dimensions=config["dimensions"])


@lru_cache(maxsize=2**14)
def _rarity(word: str) -> float:
    """Return the inverse document frequency that BM25 would give a word among texts of general English."""
    from wordfreq import word_frequency  # its tables take a second to load, and only questions need them

    missing = (1 - max(word_frequency(word, "en"), _RAREST)) ** _TEXT_LENGTH
    return math.log1p(missing / (1 - missing))


def embedding_named(spec: str) -> EmbeddingFunction[Any]:
    """Return the embedding function of this name.

    Args:
        spec: "hashed-words", or a name that Chroma knows, followed by a model if it takes one, such as
            "sentence_transformer:all-MiniLM-L6-v2" or "ollama:nomic-embed-text".

    Raises:
        CollectionError: the name is unknown, or the function can't be set up (a package or an API key is missing).
    """
    name, _, model = spec.partition(":")
    if name == "hashed-words":
        name = HashedWords.name()
    if name not in known_embedding_functions:
        own = {HashedWords.name(), UnweightedWords.name()}
        known = ", ".join(sorted({"hashed-words", *known_embedding_functions} - own))
        msg = f"there is no embedding function {name!r}; known are {known} (add a model with NAME:MODEL)"
        raise CollectionError(msg)
    arguments = {"model_name": model} if model else {}
    try:
        return known_embedding_functions[name](**arguments)
    # Each of about thirty functions fails in its own way: packages, keys, arguments.
    except Exception as error:
        msg = f"the embedding function {spec!r} can't be set up: {error}"
        raise CollectionError(msg) from error
