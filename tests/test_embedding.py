"""Test the offline embedding function, in and out of Chroma collections."""

import json
import os
import subprocess
import sys
from pathlib import Path

import chromadb
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from chroma_spring_rag import CollectionError, HashedWords, embedding_named, search
from chroma_spring_rag.store import connect_folder, open_or_create_collection


@given(st.lists(st.text(), min_size=1, max_size=5))
def test_vectors_have_length_one_or_are_zero_for_texts_without_words(texts):
    vectors = HashedWords()(texts)
    assert len(vectors) == len(texts)
    for text, vector in zip(texts, vectors, strict=True):
        assert vector.shape == (4096,)
        assert vector.dtype == np.float32
        length = np.linalg.norm(vector)
        has_words = any(character.isalnum() or character == "_" for character in text)
        # Two words may cancel each other: same slot, opposite signs.
        assert length == pytest.approx(1, abs=1e-5) or length == 0
        if not has_words:
            assert length == 0


def test_a_question_weighs_its_words_by_how_rare_they_are():
    fox, the, both = HashedWords()(["fox", "the", "the fox"])
    (asked,) = HashedWords().embed_query(["the foxes"])
    assert np.linalg.norm(asked) == pytest.approx(1)
    assert asked @ fox > 0.9 > 0.3 > asked @ the > 0
    assert both @ fox == pytest.approx(both @ the), "a document's words are told apart by the question only"


def test_a_question_of_frequent_words_keeps_a_direction():
    (asked,) = HashedWords().embed_query(["Who is it?"])
    assert np.linalg.norm(asked) == pytest.approx(1)
    assert not HashedWords().embed_query(["?"])[0].any()


def test_repetitions_count_less_and_less():
    once, often = HashedWords()(["fox owl", "fox fox fox fox fox fox fox fox owl"])
    (fox,) = HashedWords()(["fox"])
    assert once @ fox < often @ fox < 0.95


def test_the_same_text_has_the_same_vector_in_another_process():
    text = "Der Fluß fließt; 東京は大きい. The lighthouse at Grey Point."
    code = (
        f"from chroma_spring_rag import HashedWords; h, text = HashedWords(), {text!r};"
        "print([h([text])[0].tolist(), h.embed_query([text])[0].tolist()])"
    )
    environment = os.environ | {"PYTHONHASHSEED": "123"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True
    )
    assert json.loads(done.stdout) == [
        HashedWords()([text])[0].tolist(),
        HashedWords().embed_query([text])[0].tolist(),
    ]


def test_a_collection_remembers_it_for_another_process(tmp_path: Path):
    collection = open_or_create_collection(connect_folder(tmp_path / "db", create=True), "animals")
    collection.add(ids=["1", "2"], documents=["The fox runs.", "The owl flies."])
    index = collection.configuration_json["hnsw"]
    assert (index["space"], index["ef_search"], index["max_neighbors"]) == ("cosine", 1000, 48)
    code = (
        "import chromadb, chroma_spring_rag; "
        f"collection = chromadb.PersistentClient({str(tmp_path / 'db')!r}).get_collection('animals'); "
        "print(collection.query(query_texts=['an owl'], n_results=1)['ids'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[['2']]"


def test_its_configuration_builds_it_again():
    built = HashedWords.build_from_config(HashedWords(dimensions=64).get_config())
    assert built(["one two"])[0].shape == (64,)
    assert not built.is_legacy()


def test_others_are_chosen_by_name():
    assert isinstance(embedding_named("hashed-words"), HashedWords)
    assert embedding_named("default").name() == "default"
    with pytest.raises(
        CollectionError, match="no embedding function 'nope'; known are .*hashed-words.*ollama"
    ):
        embedding_named("nope")
    with pytest.raises(CollectionError, match="can't be set up"):
        embedding_named("hashed-words:some-model")


def test_finds_the_right_paragraph_of_xquad():
    if "SPRING_RAG_DATA" not in os.environ:
        pytest.skip("SPRING_RAG_DATA doesn't name the folder of real data")
    data = json.loads(Path(os.environ["SPRING_RAG_DATA"], "xquad", "xquad.en.json").read_text("utf-8"))
    paragraphs = [paragraph for article in data["data"] for paragraph in article["paragraphs"]]
    questions = [
        (entry["question"], str(i)) for i, paragraph in enumerate(paragraphs) for entry in paragraph["qas"]
    ]
    assert (len(paragraphs), len(questions)) == (240, 1190)

    collection = open_or_create_collection(chromadb.EphemeralClient(), "xquad")
    collection.add(
        ids=[str(i) for i in range(len(paragraphs))],
        documents=[paragraph["context"] for paragraph in paragraphs],
    )
    found = collection.query(query_texts=[question for question, _ in questions], n_results=5)["ids"]
    share = np.mean([right in ids for (_, right), ids in zip(questions, found, strict=True)])
    assert share >= 0.95

    passages = search(collection, [question for question, _ in questions], 5)
    texts = [paragraph["context"] for paragraph in paragraphs]
    exact = np.mean(
        [
            texts[int(right)] in {p.text for p in row}
            for (_, right), row in zip(questions, passages, strict=True)
        ]
    )
    assert exact >= 0.985
