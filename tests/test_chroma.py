"""Test indexing and answering on real Chroma collections: embedded, and on a server that the test starts."""

import os
import uuid
from dataclasses import replace
from pathlib import Path
from string import ascii_lowercase

import chromadb
import numpy as np
import pytest
from chroma_server import chroma_server
from chromadb import Documents, EmbeddingFunction, Embeddings
from langchain_core.documents import Document

from chroma_spring_rag import (
    ChromaQA,
    CollectionError,
    DocumentError,
    HashedWords,
    IndexReport,
    connect_folder,
    connect_server,
    index_documents,
    index_files,
    open_collection,
    open_or_create_collection,
)
from chroma_spring_rag import qa as chroma_qa
from spring_rag import RagTemplate, SpringModel
from spring_rag.backends.local import LocalBackend
from spring_rag.errors import TokensError

FACTS = {
    "bridge.txt": "The bridge of Morven was built by Ada Quill in 1811.",
    "ship.txt": "The ship Petrel carried salt and was lost off Cape Dunn.",
    "law.md": "# Law\n\nThe Harbour Act forbids anchoring after dusk.",
}


class Letters(EmbeddingFunction[Documents]):
    """How often each letter stands in a text: vectors that Chroma itself searches."""

    def __init__(self) -> None:
        pass

    def __call__(self, input: Documents) -> Embeddings:  # noqa: A002 - Chroma passes it by this name
        return [
            np.array([text.count(letter) for letter in ascii_lowercase], dtype=np.float32) for text in input
        ]

    @staticmethod
    def name() -> str:
        return "test-letters"

    def get_config(self) -> dict[str, object]:
        return {}

    @staticmethod
    def build_from_config(config: dict[str, object]) -> "Letters":
        return Letters()


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
    return open_or_create_collection(client, f"test-{uuid.uuid4()}")


@pytest.fixture
def documents(tmp_path: Path) -> Path:
    folder = tmp_path / "documents"
    folder.mkdir()
    for name, text in FACTS.items():
        (folder / name).write_text(text, "utf-8")
    return folder


@pytest.fixture(scope="module")
def model(llama, tokenizer, make_tokens) -> SpringModel:
    with pytest.warns(UserWarning, match="don't record their backbone"):
        return SpringModel(llama, tokenizer, tokens=make_tokens(5))


@pytest.fixture
def qa(model, collection, documents) -> ChromaQA:
    index_files(collection, [documents])
    return ChromaQA(model, collection, top_k=2)


def content(collection: chromadb.Collection) -> dict[str, tuple[str, object]]:
    found = collection.get(include=["documents", "metadatas"])
    return {
        id_: (text, tuple(sorted(metadata.items())))
        for id_, text, metadata in zip(found["ids"], found["documents"], found["metadatas"], strict=True)
    }


class TestIndexing:
    def test_twice_changes_nothing(self, collection, documents):
        assert index_files(collection, [documents]) == IndexReport(3, 3, 0, 0, 3)
        before = content(collection)
        assert index_files(collection, [documents]) == IndexReport(3, 0, 3, 0, 3)
        assert content(collection) == before

    def test_a_path_may_be_written_in_any_way(self, collection, documents, monkeypatch):
        index_files(collection, [documents])
        monkeypatch.chdir(documents)
        report = index_files(collection, [Path("."), Path("./ship.txt"), Path("..", "documents")])
        assert report == IndexReport(3, 0, 3, 0, 3)

    def test_a_changed_file_replaces_its_chunks(self, collection, documents):
        index_files(collection, [documents])
        (documents / "ship.txt").write_text("The ship Petrel was raised again.", "utf-8")
        assert index_files(collection, [documents / "ship.txt"]) == IndexReport(1, 1, 0, 1, 3)
        texts = {text for text, _ in content(collection).values()}
        assert "The ship Petrel was raised again." in texts
        assert FACTS["ship.txt"] not in texts
        (documents / "ship.txt").write_text("", "utf-8")
        assert index_files(collection, [documents / "ship.txt"]) == IndexReport(1, 0, 0, 1, 2)

    def test_a_vanished_file_goes_with_its_folder_only(self, collection, documents, tmp_path):
        other = tmp_path / "other.txt"
        other.write_text("Another file.", "utf-8")
        index_files(collection, [documents, other])
        (documents / "ship.txt").unlink()
        other.unlink()
        assert index_files(collection, [documents / "law.md"]).removed == 0
        assert index_files(collection, [documents]) == IndexReport(2, 0, 2, 1, 3, gone=1)
        assert "Another file." in {text for text, _ in content(collection).values()}

    def test_entries_of_others_stay(self, collection, documents):
        collection.add(ids=["theirs"], documents=["Not from a file."])
        index_files(collection, [documents])
        index_files(collection, [documents], chunk_size=20, chunk_overlap=0)
        assert "theirs" in collection.get()["ids"]

    def test_chunks_overlap_and_know_their_place(self, collection, tmp_path):
        file = tmp_path / "long.txt"
        words = [f"word{i}" for i in range(200)]
        file.write_text(" ".join(words), "utf-8")
        index_files(collection, [file], chunk_size=100, chunk_overlap=30)
        found = collection.get(include=["documents", "metadatas"])
        by_position = dict(zip([m["position"] for m in found["metadatas"]], found["documents"], strict=True))
        chunks = [by_position[i] for i in range(len(by_position))]
        assert all(len(chunk) <= 100 for chunk in chunks)
        assert chunks[1].split()[0] in chunks[0].split()
        assert {word for chunk in chunks for word in chunk.split()} == set(words)
        assert {m["source"] for m in found["metadatas"]} == {str(file)}

    def test_repeated_text_in_one_file_is_kept_apart(self, collection, tmp_path):
        file = tmp_path / "same.txt"
        file.write_text("\n\n".join(["The same line of text."] * 3), "utf-8")
        assert index_files(collection, [file], chunk_size=25, chunk_overlap=0).added == 3

    def test_more_than_one_batch(self, collection, tmp_path):
        for i in range(300):
            (tmp_path / f"{i}.txt").write_text(f"Fact number {i}.", "utf-8")
        seen = []
        report = index_files(collection, [tmp_path], progress=lambda done, total: seen.append((done, total)))
        assert report.added == report.total == 300
        assert seen[-1] == (300, 300)
        assert len(seen) > 1

    def test_files_that_cannot_be_read_are_named_and_the_others_written(self, collection, documents):
        index_files(collection, [documents])
        (documents / "ship.txt").write_bytes("Straße".encode("latin-1"))
        (documents / "zipped.md").write_bytes(b"\x1f\x8b\x00")
        (documents / "new.txt").write_text("A new file.", "utf-8")
        report = index_files(collection, [documents])
        assert (report.files, report.added, report.removed) == (3, 1, 0)
        assert {Path(path).name for path in report.bad} == {"ship.txt", "zipped.md"}
        assert all("isn't UTF-8 text" in reason for reason in report.bad.values())
        # What was indexed of it before is better than nothing.
        assert FACTS["ship.txt"] in {text for text, _ in content(collection).values()}

    def test_nothing_is_written_if_no_file_can_be_read(self, collection, tmp_path):
        (tmp_path / "latin.txt").write_bytes("Straße".encode("latin-1"))
        (tmp_path / "zipped.md").write_bytes(b"\x1f\x8b\x00")
        with pytest.raises(DocumentError) as caught:
            index_files(collection, [tmp_path])
        assert all(name in str(caught.value) for name in ("latin.txt", "zipped.md", "UTF-8", "nothing"))
        assert collection.count() == 0

    def test_entries_of_others_stay_whatever_they_look_like(self, collection, documents):
        index_files(collection, [documents])
        path = str(documents / "gone.txt")
        theirs = {"path": path, "source": path, "position": 0}
        collection.add(ids=["theirs"], documents=["Not from a file."], metadatas=[theirs])
        assert index_files(collection, [documents], prune=True).removed == 0
        assert "theirs" in collection.get()["ids"]

    def test_files_that_are_gone_from_elsewhere_are_counted_and_pruned(self, collection, documents, tmp_path):
        index_files(collection, [documents])
        renamed = documents.rename(tmp_path / "renamed")
        report = index_files(collection, [renamed])
        assert (report.added, report.removed, report.gone) == (3, 0, 3)
        report = index_files(collection, [renamed], prune=True)
        assert (report.unchanged, report.removed, report.gone, report.total) == (3, 3, 0, 3)
        for file in renamed.iterdir():
            file.unlink()
        with pytest.raises(DocumentError, match="--prune"):
            index_files(collection, [renamed])
        assert index_files(collection, [renamed], prune=True).total == 0

    def test_documents_of_a_loader(self, collection):
        pages = [
            Document(
                "The bridge was built in 1811.", metadata={"source": "https://morven.example", "page": 1}
            ),
            Document("The ship was lost.", metadata={"source": "https://morven.example", "page": 2}),
            Document("Nobody knows where this is from.", metadata={"tags": ["a", "b"]}),
        ]
        assert index_documents(collection, pages) == IndexReport(2, 3, 0, 0, 3)
        assert index_documents(collection, pages) == IndexReport(2, 0, 3, 0, 3)
        changed = [Document("The bridge is new.", metadata={"source": "https://morven.example", "page": 1})]
        assert index_documents(collection, changed) == IndexReport(1, 1, 0, 2, 2)
        found = {text: dict(metadata) for text, metadata in content(collection).values()}
        assert found["The bridge is new."]["page"] == 1
        assert found["The bridge is new."]["source"] == "https://morven.example"
        with pytest.raises(DocumentError, match="no documents"):
            index_documents(collection, [])

    def test_control_characters_and_a_byte_order_mark_survive(self, collection, tmp_path):
        text = "A \x00 NUL, \ufdd0, </s>, [ref1], \u202eright to left\u202c."
        (tmp_path / "odd.txt").write_text(f"\ufeff{text}", "utf-8")
        index_files(collection, [tmp_path])
        assert [stored for stored, _ in content(collection).values()] == [text]
        assert index_files(collection, [tmp_path]).unchanged == 1

    @pytest.mark.skipif(os.name == "nt", reason="file names are Unicode there")
    def test_file_names_may_hold_any_bytes(self, collection, tmp_path):
        Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.txt")).write_text("A café.", "utf-8")
        index_files(collection, [tmp_path])
        assert index_files(collection, [tmp_path]) == IndexReport(1, 0, 1, 0, 1)
        (tmp_path / "deep").mkdir()
        (tmp_path / "deep" / "ship.txt").write_text("The ship Petrel.", "utf-8")
        report = index_files(collection, [tmp_path / "deep"], prune=True)
        assert (report.removed, report.total) == (0, 2)

    def test_takes_text_files_of_folders_and_any_file_by_name(self, collection, tmp_path):
        (tmp_path / ".hidden").mkdir()
        (tmp_path / "deep").mkdir()
        for name in ("a.TXT", "deep/b.markdown", ".hidden/c.txt", ".d.txt", "notes.rst", "image.png"):
            (tmp_path / name).write_text(name, "utf-8")
        assert index_files(collection, [tmp_path]).files == 2
        assert index_files(collection, [tmp_path / "notes.rst"]).added == 1
        report = index_files(collection, [tmp_path])
        assert replace(report, skipped={}) == IndexReport(2, 0, 2, 0, 3)
        assert {Path(path).name for path in report.skipped} == {"notes.rst", "image.png"}

    @pytest.mark.parametrize(("size", "overlap"), [(0, 0), (10, 10), (10, -1)])
    def test_sizes_out_of_range(self, collection, documents, size, overlap):
        with pytest.raises(DocumentError, match="chunk_overlap must"):
            index_files(collection, [documents], chunk_size=size, chunk_overlap=overlap)

    def test_paths_without_text(self, collection, tmp_path):
        with pytest.raises(DocumentError, match="missing.txt doesn't exist"):
            index_files(collection, [tmp_path / "missing.txt"])
        (tmp_path / "empty").mkdir()
        with pytest.raises(DocumentError, match=r"nothing to read in .*empty \(.*\.md.*\.txt"):
            index_files(collection, [tmp_path / "empty"])


class TestCollections:
    def test_an_unknown_one_says_which_exist(self, client, collection):
        with pytest.raises(
            CollectionError, match=f"no collection 'nope'; the database has .*{collection.name}"
        ):
            open_collection(client, "nope")

    def test_another_embedding_function_is_refused(self, client, collection):
        with pytest.raises(
            CollectionError, match="made with the embedding function 'spring-rag-weighted-words'"
        ):
            open_collection(client, collection.name, "default")
        assert open_collection(client, collection.name, "hashed-words").name == collection.name

    def test_one_without_embedding_function_wants_a_name(self, client):
        name = f"bare-{uuid.uuid4()}"
        bare = client.create_collection(name, embedding_function=None)
        bare.add(ids=["1"], embeddings=HashedWords()(["a fox"]), documents=["a fox"])
        with pytest.raises(CollectionError, match="doesn't record which embedding function"):
            open_collection(client, name)
        opened = open_collection(client, name, "hashed-words")
        assert opened.query(query_texts=["fox"], n_results=1)["ids"] == [["1"]]

    def test_a_name_that_chroma_refuses(self, client):
        with pytest.raises(CollectionError, match="making the collection 'a b' failed"):
            open_or_create_collection(client, "a b")

    def test_no_database(self, tmp_path):
        with pytest.raises(CollectionError, match="none doesn't exist; make one with: spring-rag index"):
            connect_folder(tmp_path / "none")
        with pytest.raises(CollectionError, match="holds no Chroma database"):
            connect_folder(tmp_path)
        (tmp_path / "file").write_text("")
        with pytest.raises(CollectionError, match="is a file"):
            connect_folder(tmp_path / "file", create=True)

    def test_no_server(self):
        with pytest.raises(CollectionError, match="127.0.0.1:9 failed"):
            connect_server("127.0.0.1", 9)


class TestAnswers:
    def test_retrieves_the_closest_first(self, qa):
        passages = qa.retrieve("Who built the bridge of Morven?")
        assert len(passages) == 2
        assert passages[0].text == FACTS["bridge.txt"]
        assert passages[0].source.endswith("documents/bridge.txt")
        assert 1 >= passages[0].score > passages[1].score >= -1
        assert len(qa.retrieve("bridge", top_k=3)) == 3

    def test_answers_as_the_plain_api_does(self, qa, model):
        question = "Who built the bridge of Morven?"
        for k in (None, 0, 3):
            answer = qa.ask(question, num_tokens=k, max_new_tokens=12)
            passages = [passage.text for passage in qa.retrieve(question)]
            assert [passage.text for passage in answer.passages] == passages
            assert answer.text == model.answer(question, passages, num_tokens=k, max_new_tokens=12)
            assert answer.num_tokens == answer.usage.virtual == (5 if k is None else k)
            assert answer.question == question

    def test_virtual_tokens_change_the_answer(self, qa):
        with_tokens, without = (qa.ask("Where was the Petrel lost?", k, max_new_tokens=12) for k in (5, 0))
        assert with_tokens.text != without.text

    def test_many_at_once_are_the_same_as_one_by_one(self, qa):
        questions = [
            "Who built the bridge?",
            "What does the Harbour Act forbid?",
            "Where was the Petrel lost?",
        ]
        counts = [0, 2, None]
        many = qa.ask_many(questions, num_tokens=counts, max_new_tokens=8)
        alone = [
            qa.ask(question, num_tokens=k, max_new_tokens=8)
            for question, k in zip(questions, counts, strict=True)
        ]
        # Rows of a batch are rounded otherwise.
        assert [replace(one, logprob=None) for one in many] == [replace(one, logprob=None) for one in alone]
        assert [one.logprob for one in many] == pytest.approx([one.logprob for one in alone], abs=1e-4)
        assert qa.ask_many([]) == []

    def test_many_take_one_search_and_one_batch(self, qa, monkeypatch):
        calls = []
        for owner, name in ((chroma_qa, "search"), (LocalBackend, "generate")):
            original = getattr(owner, name)

            def counted(*args, original=original, name=name, **kwargs):
                calls.append(name)
                return original(*args, **kwargs)

            monkeypatch.setattr(owner, name, counted)
        qa.ask_many(["bridge", "ship", "law"], max_new_tokens=2)
        assert calls == ["search", "generate"]

    def test_streams_the_same_answer(self, qa):
        stream = qa.stream("Who built the bridge?", num_tokens=3, max_new_tokens=12)
        answer = qa.ask("Who built the bridge?", num_tokens=3, max_new_tokens=12)
        assert stream.passages == answer.passages
        assert "".join(stream) == answer.text

    def test_where_filters(self, qa, documents):
        source = str(documents / "law.md")
        assert [p.source for p in qa.retrieve("bridge", where={"source": source})] == [source]
        assert qa.retrieve("bridge", where={"source": "elsewhere"}) == []
        for call in (qa.ask, qa.stream):
            with pytest.raises(CollectionError, match="no passage .* matches .*elsewhere"):
                call("bridge", where={"source": "elsewhere"})
        with pytest.raises(CollectionError, match=r"searching .* failed: .*\$like"):
            qa.ask("bridge", where={"source": {"$like": "law"}})

    def test_a_template_of_its_own(self, model, qa):
        template = RagTemplate(passage="* {passage}\n")
        answer = ChromaQA(model, qa.collection, 2, template).ask("bridge", max_new_tokens=8)
        expected = model.answer(
            "bridge", [passage.text for passage in answer.passages], template=template, max_new_tokens=8
        )
        assert answer.text == expected

    def test_the_template_of_the_named_set(self, llama, tokenizer, make_tokens, qa):
        template = RagTemplate(passage="- {passage}\n")
        with pytest.warns(UserWarning, match="don't record"):
            model = SpringModel(llama, tokenizer, tokens=make_tokens(2))
            model.add_tokens("bullets", make_tokens(3, seed=1, template=template))
        answer = ChromaQA(model, qa.collection, 2).ask("bridge", tokens="bullets", max_new_tokens=8)
        passages = [passage.text for passage in answer.passages]
        expected = model.answer("bridge", passages, template=template, tokens="bullets", max_new_tokens=8)
        assert answer.text == expected

    def test_more_tokens_than_there_are(self, qa):
        with pytest.raises(TokensError, match="num_tokens is 6.* 5"):
            qa.ask("bridge", num_tokens=6)

    @pytest.mark.parametrize("top_k", [0, -1])
    def test_top_k_out_of_range(self, qa, top_k):
        with pytest.raises(ValueError, match="at least 1"):
            qa.ask("bridge", top_k=top_k)

    def test_an_empty_collection(self, model, collection):
        with pytest.raises(CollectionError, match="is empty; index files"):
            ChromaQA(model, collection).ask("anything")

    def test_a_collection_of_another_dimension(self, model, client, qa):
        name = f"narrow-{uuid.uuid4()}"
        client.create_collection(name, embedding_function=None).add(
            ids=["1"], embeddings=[[1.0, 0.0]], documents=["narrow"]
        )
        opened = client.get_collection(name, embedding_function=Letters())
        with pytest.raises(CollectionError, match="dimension.*name that one"):
            ChromaQA(model, opened).ask("anything")

    def test_entries_without_text(self, model, client):
        name = f"textless-{uuid.uuid4()}"
        made = client.create_collection(name, embedding_function=HashedWords())
        made.add(ids=["bare"], embeddings=HashedWords()(["a fox"]))
        with pytest.raises(CollectionError, match="entry 'bare' .* no document text"):
            ChromaQA(model, open_collection(client, name)).ask("fox")

    def test_scores_of_squared_distances_fall_with_distance(self, model, client):
        made = client.create_collection(
            f"l2-{uuid.uuid4()}", embedding_function=Letters(), configuration={"hnsw": {"space": "l2"}}
        )
        made.add(ids=["fox", "owl"], documents=["a red fox", "a grey owl"])
        near, far = ChromaQA(model, made).retrieve("fox")
        assert (near.source, far.source) == ("fox", "owl")
        assert 0 >= near.score > far.score


def test_a_server_that_dies(tmp_path, model):
    with chroma_server(tmp_path / "data") as (process, port):
        collection = open_or_create_collection(connect_server("127.0.0.1", port), "documents")
        collection.add(ids=["1"], documents=["a fox"])
        process.kill()
        process.wait(timeout=30)
        with pytest.raises(CollectionError, match="server doesn't answer"):
            ChromaQA(model, collection).ask("fox")
