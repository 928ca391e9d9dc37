"""Test Chroma databases that can't be opened, and servers that answer wrongly or not at all."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from chroma_server import chroma_server
from chromadb import Documents, EmbeddingFunction, Embeddings
from chromadb.utils.embedding_functions import register_embedding_function
from hostile_server import answering

from chroma_spring_rag import (
    CollectionError,
    connect_folder,
    connect_server,
    delete_collection,
    find_collection,
    index_files,
    list_collections,
    open_or_create_collection,
    recorded_embedding,
)


@pytest.mark.parametrize(
    "pieces", [[], [b"HTTP/1.1 200 OK\r\nX: "] + [b"x"] * 100], ids=["silent", "dripping"]
)
def test_a_server_gets_a_time_limit(pieces: list[bytes]) -> None:
    with answering(pieces, pause=0.1) as port:
        started = time.monotonic()
        with pytest.raises(CollectionError, match="no whole answer within 1 s") as caught:
            connect_server("127.0.0.1", port, timeout=1)
        assert time.monotonic() - started < 10
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("host", ["", "a b", "[::1", "x" * 300, "ü\u0000"])
def test_an_address_that_is_none(host: str) -> None:
    with pytest.raises(CollectionError, match="connecting to the Chroma server"):
        connect_server(host, 9, timeout=5)


@pytest.mark.parametrize(
    "content", [b"SQLite format 3\x00" + b"\xff" * 4096, b"nope" * 2000], ids=["torn", "other"]
)
def test_a_database_that_is_damaged(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "chroma.sqlite3").write_bytes(content)
    with pytest.raises(CollectionError, match="failed"):
        list_collections(connect_folder(tmp_path))


@pytest.mark.parametrize("body", [b"<html>hello</html>", b"{", b"{}", b"[]", b"null"])
def test_a_server_of_another_kind(body: bytes) -> None:
    head = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(body)
    with (
        answering([head + body]) as port,
        pytest.raises(CollectionError, match="connecting to the Chroma server"),
    ):
        connect_server("127.0.0.1", port, timeout=20)


@pytest.mark.skipif(os.name == "nt", reason="stops a process by a signal")
def test_the_limit_holds_for_every_request(tmp_path: Path) -> None:
    with chroma_server(tmp_path / "data") as (process, port):
        client = connect_server("127.0.0.1", port, timeout=2)
        assert list_collections(client) == []
        process.send_signal(signal.SIGSTOP)
        os.waitpid(process.pid, os.WUNTRACED)  # until it is stopped
        try:
            with pytest.raises(CollectionError, match="no whole answer within 2 s"):
                list_collections(client)
        finally:
            process.send_signal(signal.SIGCONT)


@register_embedding_function
class Failing(EmbeddingFunction[Documents]):
    """Can be set up, as those are whose models are downloaded with the first text, and then fails."""

    def __init__(self) -> None:
        pass

    def __call__(self, input: Documents) -> Embeddings:  # noqa: A002 - Chroma passes it by this name
        msg = "no network"
        raise ConnectionError(msg)

    @staticmethod
    def name() -> str:
        return "test-failing"

    def get_config(self) -> dict[str, object]:
        return {}

    @staticmethod
    def build_from_config(config: dict[str, object]) -> "Failing":
        return Failing()


def test_an_embedding_function_that_fails_leaves_no_collection(tmp_path: Path) -> None:
    client = connect_folder(tmp_path / "db", create=True)
    with pytest.raises(CollectionError, match="'test-failing' fails, so no collection was made: no network"):
        open_or_create_collection(client, "documents", "test-failing")
    assert list_collections(client) == []
    assert open_or_create_collection(client, "documents").count() == 0


def test_collections_are_found_and_deleted(tmp_path: Path) -> None:
    client = connect_folder(tmp_path / "db", create=True)
    for name in ("two", "one"):
        open_or_create_collection(client, f"name-{name}")
    assert [each.name for each in list_collections(client)] == ["name-one", "name-two"]
    assert recorded_embedding(find_collection(client, "name-one")) == "spring-rag-weighted-words"
    delete_collection(client, "name-one")
    for missing in (find_collection, delete_collection):
        with pytest.raises(CollectionError, match="no collection 'name-one'; the database has 'name-two'"):
            missing(client, "name-one")


@pytest.mark.skipif(os.name == "nt" or os.geteuid() != 0, reason="needs to become a user who may not write")
def test_a_database_that_cannot_be_written_is_asked(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("A fox.", "utf-8")
    with tempfile.TemporaryDirectory() as folder:  # pytest's own are for its user's eyes only
        Path(folder).chmod(0o755)
        db = Path(folder, "db")
        collection = open_or_create_collection(connect_folder(db, create=True), "documents")
        index_files(collection, [tmp_path / "a.txt"])
        _ask_as_nobody(db)


def _ask_as_nobody(db: Path) -> None:
    # All is imported by its first use, while the user may still read Python's own files.
    code = (
        "import os; from pathlib import Path\n"
        "from chroma_spring_rag import connect_folder, open_collection, search\n"
        f"def ask(): return search(open_collection(connect_folder(Path({str(db)!r})), 'documents'), ['fox'], 1)[0][0].text\n"
        "ask(); os.setgid(65534); os.setuid(65534); print(ask())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=os.environ | {"HOME": "/tmp"}
    )
    assert done.stdout == "A fox.\n", done.stderr
