"""Opening Chroma databases and collections, with errors that say what there is."""

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

# Chroma's own ef_search of 100 and max_neighbors of 16 lose one in nine of the five closest among sparse vectors; these, one in
# a hundred, at the same time to index and twice the time to search.
_HNSW: CreateHNSWConfiguration = {"space": "cosine", "ef_search": 1000, "max_neighbors": 48}

_T = TypeVar("_T")

_log = logging.getLogger("spring_rag.chroma")


def connect_folder(folder: Path, *, create: bool = False) -> ClientAPI:
    """A client of the database in a folder.

    Args:
        folder: where Chroma keeps its files.
        create: make a new database where there is none.

    Raises:
        CollectionError: no database there, or one that Chroma can't open.
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
    """A copy that lasts as long as this process: Chroma writes into a database even where it only reads."""
    aside = Path(tempfile.mkdtemp(prefix="spring-rag-chroma-"))
    atexit.register(shutil.rmtree, aside, ignore_errors=True)
    _log.info(f"{folder} can't be written to, so a copy of it is used")
    try:
        # Not with the modes of the original, which forbid writing.
        shutil.copytree(folder, aside, copy_function=shutil.copyfile, dirs_exist_ok=True)
        for path in (aside, *aside.rglob("*")):
            path.chmod(0o700)
    except OSError as error:
        msg = f"{folder} can't be written to, which Chroma needs, nor copied: {error}"
        raise CollectionError(msg) from error
    return aside


def connect_server(host: str, port: int = DEFAULT_PORT, timeout: float = DEFAULT_TIMEOUT) -> ClientAPI:
    """A client of a running Chroma server.

    Args:
        host: its name or address.
        port: where it listens.
        timeout: seconds after which a request fails, however slowly the server goes on sending.

    Raises:
        CollectionError: nothing answers there.
    """
    with chroma_errors(f"connecting to the Chroma server at {host}:{port}"):
        settings = Settings(anonymized_telemetry=False)
        client = _within(timeout, partial(chromadb.HttpClient, host, port, settings=settings))
        # Chroma's own client waits for ever, and httpx's time limits start anew with each byte that comes.
        server: Any = cast(Any, client)._server
        request = server._make_request
        server._make_request = lambda *args, **kwargs: _within(timeout, partial(request, *args, **kwargs))
        return client


def _within(seconds: float, call: Callable[[], _T]) -> _T:
    """What a call returns or raises, if it does so in time.

    Raises:
        httpx.ReadTimeout: it doesn't; it goes on in a thread that ends with the process.
    """
    ended: SimpleQueue[tuple[_T | None, BaseException | None]] = SimpleQueue()

    def run() -> None:
        try:
            ended.put((call(), None))
        except BaseException as error:  # raised again by who waits
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
    """All collections of a database, by name.

    Raises:
        CollectionError: Chroma refuses.
    """
    with chroma_errors("listing the collections"):
        return sorted(client.list_collections(), key=lambda each: each.name)


def find_collection(client: ClientAPI, name: str) -> chromadb.Collection:
    """A collection to look at or delete, whatever embeds its texts.

    Raises:
        CollectionError: there is none of that name; says which exist.
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
        CollectionError: there is none of that name, or Chroma refuses.
    """
    find_collection(client, name)
    with chroma_errors(f"deleting the collection {name!r}"):
        client.delete_collection(name)


def open_collection(
    client: ClientAPI, name: str, embedding: AnyEmbedding | None = None
) -> chromadb.Collection:
    """An existing collection, with the embedding function that it records or, if it records none, the one given.

    Args:
        client: of the database that holds it.
        name: its name.
        embedding: a name as `embedding_named` takes it, or an embedding of Chroma, LangChain or LlamaIndex.

    Raises:
        CollectionError: no such collection (says which exist), no embedding function, or not the one it was made with.
    """
    collection = find_collection(client, name)
    # Chroma's own way refuses any other than its default where it recorded that by itself.
    collection._embedding_function = chosen_function(collection, embedding)
    return collection


def open_or_create_collection(
    client: ClientAPI, name: str, embedding: AnyEmbedding | None = None
) -> chromadb.Collection:
    """An existing collection as `open_collection` gives it, or a new one with cosine distances.

    Args:
        client: of the database.
        name: 3 to 512 letters, digits, `.`, `_`, `-`.
        embedding: as `open_collection` takes it; None makes a new one with `HashedWords`.

    Raises:
        CollectionError: a name that Chroma doesn't allow, or what `open_collection` raises.
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
    """The embedding function, once it has embedded something: a collection that it can't fill had better not be made.

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
