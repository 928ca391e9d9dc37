"""An embedding function that needs no model and no network, and the choice of another by name."""

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

# A text of the usual length: how many words of general English a chunk holds.
_TEXT_LENGTH = 150


class _Hashed(EmbeddingFunction[Documents]):
    """What both functions of words share: sparse counts made dense vectors of length 1."""

    def default_space(self) -> Space:
        """Cosine: the vectors have length 1."""
        return "cosine"

    @staticmethod
    def _dense(weighted: csr_matrix) -> Embeddings:
        return list(normalize(weighted).toarray().astype(np.float32))


@register_embedding_function
class HashedWords(_Hashed):
    """Bags of hashed words: nothing to download, the same vectors everywhere and always.

    Documents and questions are embedded differently: in a document a word's tenth occurrence says less than its first,
    in a question a rare word says more than a frequent one, by how frequent it is in general English (`embed_query`).
    The cosine of the two is close to BM25. It matches words, not meanings: a trained model finds paraphrases that this
    doesn't.

    `search` doesn't use the vectors: it matches the words of the texts exactly. They are for other programs, such as the vector stores of
    LangChain and LlamaIndex.

    The function registers itself with Chroma when this module is imported, and a collection made with it records its
    name and configuration, so that another process finds it there.

    Args:
        dimensions: length of a vector; fewer dimensions make more words collide.
    """

    def __init__(self, dimensions: int = DEFAULT_DIMENSIONS) -> None:
        self._dimensions = dimensions
        self._documents = HashingVectorizer(n_features=dimensions, norm=None, analyzer=words)
        # Pairs of a stem and the rarity of the word it was cut from.
        self._questions = FeatureHasher(n_features=dimensions, input_type="pair")

    def __call__(self, input: Documents) -> Embeddings:  # noqa: A002 - Chroma passes it by this name
        """Embed documents; float32 vectors of length 1.

        A text without a single word has no direction: its vector is zero, at distance 1 from every other.
        """
        counts: csr_matrix = self._documents.transform(input)
        counts.data /= np.abs(counts.data) + SATURATION
        return self._dense(counts)

    def embed_query(self, input: Documents) -> Embeddings:  # noqa: A002 - as above
        """Embed questions, as `__call__` embeds documents but for the words' weights."""
        weighted = self._questions.transform(
            [(stem(word), _rarity(word)) for word in split(text)] for text in input
        )
        return self._dense(weighted)

    @staticmethod
    def name() -> str:
        """The name under which Chroma knows this function."""
        return "spring-rag-weighted-words"

    def get_config(self) -> dict[str, Any]:
        """What a collection records of it."""
        return {"dimensions": self._dimensions}

    @staticmethod
    def build_from_config(config: dict[str, Any]) -> "HashedWords":
        """The same function again, from a collection's record."""
        return HashedWords(dimensions=config["dimensions"])


@register_embedding_function
class UnweightedWords(_Hashed):
    """The vectors of collections that were made before `HashedWords` told rare words from frequent ones.

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
        if without_content.size:  # "Who is it?" holds stop words only, which is better than nothing
            rows = counts.tolil()
            rows[without_content] = self._all_words.transform([input[i] for i in without_content])
            counts = rows.tocsr()
        counts.data = np.sign(counts.data) * np.log1p(np.abs(counts.data))
        return self._dense(counts)

    @staticmethod
    def name() -> str:
        """The name under which Chroma knows this function."""
        return "spring-rag-hashed-words"

    def get_config(self) -> dict[str, Any]:
        """What a collection records of it."""
        return {"dimensions": self._dimensions}

    @staticmethod
    def build_from_config(config: dict[str, Any]) -> "UnweightedWords":
        """The same function again, from a collection's record."""
        return UnweightedWords(dimensions=config["dimensions"])


@lru_cache(maxsize=2**14)
def _rarity(word: str) -> float:
    """BM25's inverse document frequency of a word, were the documents texts of general English."""
    from wordfreq import word_frequency  # its tables take a second to load, and only questions need them

    missing = (1 - max(word_frequency(word, "en"), _RAREST)) ** _TEXT_LENGTH
    return math.log1p(missing / (1 - missing))


def embedding_named(spec: str) -> EmbeddingFunction[Any]:
    """The embedding function that a command line names.

    Args:
        spec: "hashed-words", or a name that Chroma knows, with a model where it takes one, as in
            "sentence_transformer:all-MiniLM-L6-v2" or "ollama:nomic-embed-text".

    Raises:
        CollectionError: an unknown name, or a function that can't be set up (a package or an API key is missing).
    """
    name, _, model = spec.partition(":")
    if name == "hashed-words":
        name = HashedWords.name()
    if name not in known_embedding_functions:
        own = {HashedWords.name(), UnweightedWords.name()}
        known = ", ".join(sorted({"hashed-words", *known_embedding_functions} - own))
        msg = f"there is no embedding function {name!r}; known are {known} (add a model as in NAME:MODEL)"
        raise CollectionError(msg)
    arguments = {"model_name": model} if model else {}
    try:
        return known_embedding_functions[name](**arguments)
    # Each of some thirty functions fails in its own way: packages, keys, arguments.
    except Exception as error:
        msg = f"the embedding function {spec!r} can't be set up: {error}"
        raise CollectionError(msg) from error
