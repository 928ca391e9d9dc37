"""Open Chroma databases and collections, with errors that say what exists."""

import atexit
import logging
import os
import shutil
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Any, TypeVar, cast

import chromadb
import httpx
from chromadb import EmbeddingFunction
from chromadb.api import ClientAPI
from chromadb.api.collection_configuration import CreateHNSWConfiguration
from chromadb.config import Settings
from chromadb.errors import NotFoundError

from chroma_spring_rag.embedders import (
    Adapted,
    AnyEmbedding,
    chosen_function,
    embedded,
    embedding_function,
)
from chroma_spring_rag.embedding import HashedWords
from chroma_spring_rag.errors import DATABASE_FILE, CollectionError, chroma_errors

DEFAULT_COLLECTION = "documents"
DEFAULT_PORT = 8000
DEFAULT_TIMEOUT = 60.0

# Of the five closest sparse vectors, Chroma's own ef_search of 100 and max_neighbors of 16 lose one in nine. These lose one in
# a hundred; indexing takes as long, and searching twice as long.
_HNSW: CreateHNSWConfiguration = {"space": "cosine", "ef_search": 1000, "max_neighbors": 48}

_T = TypeVar("_T")

_log = logging.getLogger("spring_rag.chroma")


def connect_folder(folder: Path, *, create: bool = False) -> ClientAPI:
    """Return a client of the database in a folder.

    Args:
        folder: where Chroma keeps its files.
        create: make a new database if there is none.

    Raises:
        CollectionError: there is no database, or Chroma can't open it.
    """
    if not create and not (folder / DATABASE_FILE).is_file():
        what = "holds no Chroma database" if folder.is_dir() else "doesn't exist"
        msg = f"{folder} {what}; make one with: spring-rag index FILES --db {folder}"
        raise CollectionError(msg)
    if folder.exists() and not folder.is_dir():
        msg = f"{folder} is a file; a Chroma database needs a folder"
        raise CollectionError(msg)
    if not create and not _can_be_written(folder):
        folder = _copied(folder)
    with chroma_errors(f"opening the Chroma database {folder}"):
        return chromadb.PersistentClient(str(folder), settings=Settings(anonymized_telemetry=False))


def _can_be_written(folder: Path) -> bool:
    return os.access(folder, os.W_OK) and os.access(folder / DATABASE_FILE, os.W_OK)


def _copied(folder: Path) -> Path:
    """Copy a database for as long as this process lasts: Chroma writes into a database even to read it."""
    aside = Path(tempfile.mkdtemp(prefix="spring-rag-chroma-"))
    atexit.register(shutil.rmtree, aside, ignore_errors=True)
    _log.info(f"{folder} can't be written to, so a copy of it is used")
    try:
        # Without the original's modes, which forbid writing.
        shutil.copytree(folder, aside, copy_function=shutil.copyfile, dirs_exist_ok=True)
        for path in (aside, *aside.rglob("*")):
            path.chmod(0o700)
    except OSError as error:
        msg = f"{folder} can't be written to, which Chroma needs, nor copied: {error}"
        raise CollectionError(msg) from error
    return aside


def connect_server(host: str, port: int = DEFAULT_PORT, timeout: float = DEFAULT_TIMEOUT) -> ClientAPI:
    """Return a client of a running Chroma server.

    Args:
        host: the server's name or address.
        port: the port that it listens on.
        timeout: seconds after which a request fails, even if the server is still sending.

    Raises:
        CollectionError: nothing answers there.
    """
    with chroma_errors(f"connecting to the Chroma server at {host}:{port}"):
        settings = Settings(anonymized_telemetry=False)
        client = _within(timeout, partial(chromadb.HttpClient, host, port, settings=settings))
        # Chroma's own client waits for ever, and httpx's time limits start anew with each byte.
        server: Any = cast(Any, client)._server
        request = server._make_request
        server._make_request = lambda *args, **kwargs: _within(timeout, partial(request, *args, **kwargs))
        return client


def _within(seconds: float, call: Callable[[], _T]) -> _T:
    """Run a call with a time limit, and return or raise what it does.

    Raises:
        httpx.ReadTimeout: time is over; the call goes on in a thread that ends with the process.
    """
    ended: SimpleQueue[tuple[_T | None, BaseException | None]] = SimpleQueue()

    def run() -> None:
        try:
            ended.put((call(), None))
        except BaseException as error:  # raised again in the waiting thread
            ended.put((None, error))

    Thread(target=run, daemon=True).start()
    try:
        result, error = ended.get(timeout=seconds)
    except Empty:
        msg = f"no whole answer within {seconds:g} s"
        raise httpx.ReadTimeout(msg) from None
    if error is not None:
        raise error
    return cast(_T, result)


def list_collections(client: ClientAPI) -> list[chromadb.Collection]:
    """Return all collections of a database, sorted by name.

    Raises:
        CollectionError: Chroma fails.
    """
    with chroma_errors("listing the collections"):
        return sorted(client.list_collections(), key=lambda each: each.name)


def find_collection(client: ClientAPI, name: str) -> chromadb.Collection:
    """Return a collection to look at or delete, without its embedding function.

    Raises:
        CollectionError: there is none of that name; the error says which exist.
    """
    found = _find(client, name)
    if found is None:
        existing = ", ".join(repr(each.name) for each in list_collections(client))
        msg = f"there is no collection {name!r}; " + (
            f"the database has {existing}" if existing else "the database has none"
        )
        raise CollectionError(msg)
    return found


def delete_collection(client: ClientAPI, name: str) -> None:
    """Delete a collection with all its entries.

    Raises:
        CollectionError: there is none of that name, or Chroma fails.
    """
    find_collection(client, name)
    with chroma_errors(f"deleting the collection {name!r}"):
        client.delete_collection(name)


def open_collection(
    client: ClientAPI, name: str, embedding: AnyEmbedding | None = None
) -> chromadb.Collection:
    """Open an existing collection, with the embedding function that it records or, if it records none, the one given.

    Args:
        client: client of the database.
        name: the collection's name.
        embedding: a name that `embedding_named` takes, or an embedding of Chroma, LangChain or LlamaIndex.

    Raises:
        CollectionError: there is no such collection (the error says which exist), no embedding function, or not the one that the
            collection was made with.
    """
    collection = find_collection(client, name)
    # `get_collection` refuses another function than Chroma's default if Chroma recorded that by itself.
    collection._embedding_function = chosen_function(collection, embedding)
    return collection


def open_or_create_collection(
    client: ClientAPI, name: str, embedding: AnyEmbedding | None = None
) -> chromadb.Collection:
    """Open a collection by `open_collection` if it exists, or make a new one with cosine distances.

    Args:
        client: client of the database.
        name: 3 to 512 letters, digits, `.`, `_`, `-`.
        embedding: a name that `embedding_named` takes, or an embedding of Chroma, LangChain or LlamaIndex; None makes a new
            collection with `HashedWords`.

    Raises:
        CollectionError: Chroma doesn't allow the name, or `open_collection` fails.
    """
    if _find(client, name) is not None:
        return open_collection(client, name, embedding)
    function: EmbeddingFunction[Any] = HashedWords() if embedding is None else _tried(embedding)
    with chroma_errors(f"making the collection {name!r}"):
        recorded = None if isinstance(function, Adapted) else function
        made = client.create_collection(name, embedding_function=recorded, configuration={"hnsw": _HNSW})
    made._embedding_function = function
    return made


def _tried(embedding: AnyEmbedding) -> EmbeddingFunction[Any]:
    """Try an embedding function on one text, and return it, so that no collection is made that it can't fill.

    Raises:
        CollectionError: it can't be set up, or fails.
    """
    function = embedding_function(embedding)
    embedded(function, ["text"], so=", so no collection was made")
    return function


def _find(client: ClientAPI, name: str) -> chromadb.Collection | None:
    with chroma_errors(f"opening the collection {name!r}"):
        try:
            return client.get_collection(name, embedding_function=None)
        except NotFoundError:
            return None
