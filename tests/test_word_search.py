"""Test exact search by words on real collections: every entry is found, whoever added it, and however large the collection is."""

import random
import subprocess
import sys
import uuid
from pathlib import Path

import chromadb
import pytest
from chroma_server import chroma_server

from chroma_spring_rag import (
    HashedWords,
    connect_folder,
    connect_server,
    index_files,
    open_collection,
    open_or_create_collection,
    search,
)

SYLLABLES = [
    "ba",
    "de",
    "fi",
    "go",
    "lu",
    "mar",
    "nor",
    "pel",
    "quin",
    "ros",
    "sal",
    "tor",
    "ven",
    "wic",
    "yor",
    "zan",
]


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with chroma_server(tmp_path_factory.mktemp("server") / "data") as (_, port):
        yield connect_server("127.0.0.1", port)


@pytest.fixture(params=["embedded", "server"])
def client(request, tmp_path):
    if request.param == "server":
        return request.getfixturevalue("server")
    return connect_folder(tmp_path / "db", create=True)


@pytest.fixture
def collection(client):
    made = open_or_create_collection(client, f"test-{uuid.uuid4()}")
    made.add(
        ids=["fox", "owl", "eel"],
        documents=["The red fox runs.", "The grey owl flies.", "The eel swims, as a fox doesn't."],
        metadatas=[{"kind": "land"}, {"kind": "air"}, {"kind": "water"}],
    )
    return made


def found(collection, question: str, top_k: int = 1, where=None) -> list[str]:
    return [passage.text for passage in search(collection, [question], top_k, where)[0]]


def invented_word(rng: random.Random) -> str:
    return "".join(rng.choices(SYLLABLES, k=3))


def test_a_small_file_beside_one_of_a_megabyte(tmp_path):
    rng = random.Random(0)

    def prose(vocabulary: list[str], length: int) -> str:
        return " ".join(rng.choices(vocabulary, k=length))

    def invented_words(count: int) -> list[str]:
        return [invented_word(rng) for _ in range(count)]

    folder = tmp_path / "files"
    folder.mkdir()
    of_the_long = invented_words(300)
    (folder / "long.txt").write_text("\n\n".join(prose(of_the_long, 100) for _ in range(1300)), "utf-8")
    for i in range(15):
        (folder / f"{i}.txt").write_text(prose(invented_words(60), 100), "utf-8")
    answering = "The harbour master keeps the keys to the lighthouse."
    (folder / "keys.txt").write_text(answering, "utf-8")
    collection = open_or_create_collection(connect_folder(tmp_path / "db", create=True), "documents")
    index_files(collection, [folder])
    assert found(collection, "Who keeps the keys of the lighthouse?") == [answering]


def test_every_one_of_three_thousand_sentences(tmp_path):
    rng = random.Random(0)
    facts = [[invented_word(rng) for _ in range(4)] for _ in range(3000)]
    sentences = [f"The {a} of {b} is the {c} of {d}." for a, b, c, d in facts]
    # Vectors, which `search` doesn't use, are short here, because Chroma takes most of the time to index them.
    collection = open_or_create_collection(
        connect_folder(tmp_path / "db", create=True), "documents", HashedWords(dimensions=64)
    )
    for i, sentence in enumerate(sentences):
        (tmp_path / f"{i}.txt").write_text(sentence, "utf-8")
    index_files(collection, [tmp_path])
    asked = rng.sample(range(3000), 100)
    passages = search(collection, [f"What is the {facts[i][0]} of {facts[i][1]}?" for i in asked], 5)
    lost = [
        sentences[i]
        for i, row in zip(asked, passages, strict=True)
        if sentences[i] not in {p.text for p in row}
    ]
    assert not lost


def test_what_other_processes_add_and_delete_is_seen(tmp_path):
    collection = open_or_create_collection(connect_folder(tmp_path / "db", create=True), "animals")
    collection.add(ids=["fox"], documents=["The red fox runs."])
    assert found(collection, "Where does the owl nest?") == ["The red fox runs."]
    code = (
        "import chromadb, chroma_spring_rag\n"
        f"collection = chromadb.PersistentClient({str(tmp_path / 'db')!r}).get_collection('animals')\n"
        "collection.add(ids=['owl'], documents=['The owl nests in a barn.'])\n"
        "collection.delete(ids=['fox'])\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    assert found(collection, "Where does the owl nest?", top_k=2) == ["The owl nests in a barn."]


def test_a_text_changed_under_its_id_is_not_returned_as_it_was(collection):
    assert found(collection, "red fox") == ["The red fox runs."]
    collection.update(ids=["fox"], documents=["Gone."])
    assert found(collection, "red fox") == ["The eel swims, as a fox doesn't."]


def test_a_deleted_collection_of_the_same_name_leaves_nothing(client, collection):
    assert found(collection, "fox")
    client.delete_collection(collection.name)
    made = open_or_create_collection(client, collection.name)
    made.add(ids=["fox"], documents=["Another fox."])
    assert found(made, "fox", top_k=3) == ["Another fox."]


def test_the_filter_decides_before_the_words_do(collection):
    assert found(collection, "red fox", top_k=3, where={"kind": {"$ne": "land"}}) == [
        "The eel swims, as a fox doesn't.",
        "The grey owl flies.",
    ]
    assert found(collection, "red fox", where={"kind": "stone"}) == []


def test_scores_say_how_much_of_the_question_a_text_holds(collection):
    best, next_, last = search(collection, ["the red fox"], 3)[0]
    assert 1 > best.score > next_.score > last.score > 0
    assert [p.score for p in search(collection, ["xylophone"], 3)[0]] == [0, 0, 0]


def test_many_questions_are_answered_as_one_by_one(collection):
    questions = ["a fox", "an owl", "an eel"] * 50
    assert search(collection, questions, 2) == [search(collection, [one], 2)[0] for one in questions]


def test_a_collection_of_older_vectors_opens_grows_and_is_searched(tmp_path):
    """As versions before this one made it: their name and configuration of the embedding function, Chroma's own settings."""
    name = "documents"
    database = str(tmp_path / "db")
    code = (
        "import chromadb, numpy as np\n"
        "from chromadb.utils.embedding_functions import register_embedding_function\n"
        "@register_embedding_function\n"
        "class Old(chromadb.EmbeddingFunction):\n"
        "    def __init__(self): pass\n"
        "    def __call__(self, input): return [np.eye(4096, dtype='float32')[len(text)] for text in input]\n"
        "    name = staticmethod(lambda: 'spring-rag-hashed-words')\n"
        "    get_config = lambda self: {'dimensions': 4096}\n"
        "    build_from_config = staticmethod(lambda config: Old())\n"
        f"made = chromadb.PersistentClient({database!r}).create_collection({name!r}, embedding_function=Old(),\n"
        "    configuration={'hnsw': {'space': 'cosine'}})\n"
        "made.add(ids=['fox'], documents=['The red fox runs.'])\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    client = connect_folder(Path(database))
    for embedding in (None, "hashed-words"):
        old = open_collection(client, name, embedding)
        assert found(old, "foxes") == ["The red fox runs."]
    (tmp_path / "owl.txt").write_text("The grey owl flies.", "utf-8")
    index_files(open_or_create_collection(client, name), [tmp_path])
    assert found(old, "owls") == ["The grey owl flies."]
    assert old.query(query_texts=["owl"], n_results=1)["documents"] == [["The grey owl flies."]]


def test_one_that_records_nothing_is_searched_by_what_the_caller_names():
    bare = chromadb.EphemeralClient().create_collection(
        f"bare-{uuid.uuid4()}", embedding_function=HashedWords()
    )
    bare.add(ids=["1"], embeddings=[[0.0] * 4095 + [1.0]], documents=["a fox"])
    assert found(bare, "foxes") == ["a fox"]
