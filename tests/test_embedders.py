"""Test which embedding function a collection is searched with: the one of Chroma, LangChain or LlamaIndex that made its vectors, or none."""

from pathlib import Path

import numpy as np
import pytest
from chromadb.api.types import DefaultEmbeddingFunction
from langchain_chroma import Chroma
from langchain_core.embeddings import Embeddings
from llama_index.core import StorageContext, VectorStoreIndex
from llama_index.core.embeddings import BaseEmbedding
from llama_index.core.schema import TextNode
from llama_index.vector_stores.chroma import ChromaVectorStore

from chroma_spring_rag import (
    CollectionError,
    HashedWords,
    connect_folder,
    embedding_function,
    index_files,
    open_collection,
    open_or_create_collection,
    search,
)

TEXTS = [
    "The bridge was built by Ada Quill.",
    "The ship was lost off Cape Dunn.",
    "The law forbids anchoring.",
]
WIDTH = 384
"""As wide as the vectors of Chroma's own model."""


def _vector(text: str, salt: int) -> list[float]:
    words = [sum(map(ord, word)) * salt for word in text.lower().strip("?.").split()]
    return np.sum([np.random.default_rng(seed).normal(size=WIDTH) for seed in words], axis=0).tolist()


class LangChain(Embeddings):
    """An embedding of LangChain that knows words."""

    def __init__(self, salt: int = 1) -> None:
        self.salt = salt

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        return [_vector(text, self.salt) for text in texts]

    def embed_query(self, text: str) -> list[float]:
        return _vector(text, self.salt)


class LlamaIndex(BaseEmbedding):
    """The same of LlamaIndex."""

    def _get_text_embedding(self, text: str) -> list[float]:
        return _vector(text, 1)

    def _get_query_embedding(self, query: str) -> list[float]:
        return _vector(query, 1)

    async def _aget_query_embedding(self, query: str) -> list[float]:
        return _vector(query, 1)


class OfChroma(DefaultEmbeddingFunction):
    """Chroma's own function in all but its vectors, which need no download here."""

    def __call__(self, input):  # noqa: A002 - Chroma passes it by this name
        return [np.asarray(_vector(text, 7), dtype=np.float32) for text in input]


@pytest.fixture
def client(tmp_path: Path):
    return connect_folder(tmp_path / "db", create=True)


@pytest.fixture
def own_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chroma's own model, as if it could be downloaded."""
    monkeypatch.setattr(DefaultEmbeddingFunction, "__call__", OfChroma.__call__)


@pytest.fixture(params=["langchain", "llama_index"])
def made(request: pytest.FixtureRequest, client) -> str:
    """Name of a collection that one of the frameworks filled: the first records no embedding function, the second Chroma's."""
    if request.param == "langchain":
        Chroma(client=client, collection_name="langchain", embedding_function=LangChain()).add_texts(TEXTS)
    else:
        store = ChromaVectorStore(chroma_collection=client.create_collection("llama_index"))
        nodes = [TextNode(text=text, metadata={"file_path": "facts.txt"}) for text in TEXTS]
        VectorStoreIndex(
            nodes,
            storage_context=StorageContext.from_defaults(vector_store=store),
            embed_model=LlamaIndex(),
        )
    name: str = request.param
    return name


def test_vectors_of_another_function_are_refused(client, made: str, own_model: None) -> None:
    for attempt in (
        lambda: search(client.get_collection(made), ["ship"], 1),
        lambda: open_collection(client, made),
        lambda: open_collection(client, made, "default"),
        lambda: open_collection(client, made, LangChain(salt=3)),
    ):
        with pytest.raises(CollectionError, match=r"record.*embedding="):
            attempt()


@pytest.mark.parametrize("embedding", [LangChain(), LlamaIndex()], ids=["langchain", "llama_index"])
def test_what_made_them_can_be_said(client, made: str, embedding) -> None:
    for collection in (client.get_collection(made), open_collection(client, made, embedding)):
        said = embedding if collection._embedding_function is not None else None
        (found,) = search(collection, ["Where was the ship lost?"], 1, embedding=said)
        assert found[0].text == TEXTS[1]
        if made == "llama_index":
            assert found[0].source == "facts.txt"


def test_files_are_indexed_beside_the_vectors_of_another_framework(client, made: str, tmp_path: Path) -> None:
    (tmp_path / "fox.txt").write_text("A fox lives under the church.", "utf-8")
    collection = open_or_create_collection(client, made, LangChain())
    index_files(collection, [tmp_path / "fox.txt"])
    assert search(collection, ["Where lives a fox?"], 1)[0][0].text == "A fox lives under the church."


def test_a_new_collection_is_filled_by_another_framework(client, tmp_path: Path) -> None:
    (tmp_path / "fox.txt").write_text("A fox lives under the church.", "utf-8")
    index_files(open_or_create_collection(client, "new", LlamaIndex()), [tmp_path / "fox.txt"])
    with pytest.raises(CollectionError, match="doesn't record which embedding function made it"):
        open_collection(client, "new")
    assert search(open_collection(client, "new", LangChain()), ["fox"], 1)[0][0].text.startswith("A fox")


def test_a_certain_record_is_held_against_another_framework_too(client) -> None:
    open_or_create_collection(client, "words").add(ids=["1"], documents=["a fox"])
    with pytest.raises(
        CollectionError, match="dimension 4096.* 'LangChain' 384.*records 'spring-rag-weighted"
    ):
        open_collection(client, "words", LangChain())


def test_chromas_own_is_recognised_and_tried_once(client, own_model: None, monkeypatch) -> None:
    client.create_collection("plain").add(ids=["1", "2"], documents=TEXTS[:2])
    collection = client.get_collection("plain")
    asked: list[int] = []
    call = OfChroma.__call__
    monkeypatch.setattr(
        DefaultEmbeddingFunction,
        "__call__",
        lambda self, texts: asked.append(len(texts)) or call(self, texts),
    )
    for _ in range(2):
        assert search(collection, ["ship"], 1)[0][0].text == TEXTS[1]
    assert asked == [2, 1, 1]


def test_a_model_that_cannot_be_downloaded_is_no_server(client, monkeypatch, tmp_path: Path) -> None:
    store = "chromadb.utils.embedding_functions.onnx_mini_lm_l6_v2.ONNXMiniLM_L6_V2"
    monkeypatch.setattr(f"{store}.DOWNLOAD_PATH", tmp_path / "none")
    monkeypatch.setattr(f"{store}.MODEL_DOWNLOAD_URL", "http://127.0.0.1:9/model.tar.gz")
    empty = client.create_collection("plain")
    filled = client.create_collection("filled")
    filled.add(ids=["1"], embeddings=[[1.0] * WIDTH], documents=["a fox"])
    (tmp_path / "fox.txt").write_text("A fox.", "utf-8")
    for attempt in (
        lambda: search(empty, ["fox"], 1),
        lambda: search(filled, ["fox"], 1),
        lambda: index_files(empty, [tmp_path / "fox.txt"]),
    ):
        with pytest.raises(CollectionError, match="'default' fails.*needs the network") as caught:
            attempt()
        assert "server" not in str(caught.value)


def test_what_is_no_embedding() -> None:
    assert isinstance(embedding_function("hashed-words"), HashedWords)
    function = HashedWords()
    assert embedding_function(function) is function
    with pytest.raises(CollectionError, match="a int is no embedding"):
        embedding_function(3)  # type: ignore[arg-type]


def test_a_collection_whose_entries_have_no_text_is_left_to_its_user(client) -> None:
    made = client.create_collection("bare", embedding_function=None)
    made.add(ids=["1"], embeddings=[_vector("a fox", 1)])
    with pytest.raises(CollectionError, match="'1' .* no document text"):
        search(made, ["fox"], 1, embedding=LangChain())
