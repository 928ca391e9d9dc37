"""Opening Chroma databases and collections, with errors that say what there is."""

from pathlib import Path
from typing import Any

import chromadb
from chromadb import EmbeddingFunction
from chromadb.api import ClientAPI
from chromadb.api.collection_configuration import CreateHNSWConfiguration
from chromadb.config import Settings
from chromadb.errors import NotFoundError

from chroma_spring_rag.embedding import HashedWords, UnweightedWords, embedding_named
from chroma_spring_rag.errors import CollectionError, chroma_errors

DEFAULT_COLLECTION = "documents"
DEFAULT_PORT = 8000

# Chroma's own ef_search of 100 and max_neighbors of 16 lose one in nine of the five closest among sparse vectors; these, one in
# a hundred, at the same time to index and twice the time to search.
_HNSW: CreateHNSWConfiguration = {"space": "cosine", "ef_search": 1000, "max_neighbors": 48}

_DATABASE_FILE = "chroma.sqlite3"


def connect_folder(folder: Path, *, create: bool = False) -> ClientAPI:
    """A client of the database in a folder.

    Args:
        folder: where Chroma keeps its files.
        create: make a new database where there is none.

    Raises:
        CollectionError: no database there, or one that Chroma can't open.
    """
    if not create and not (folder / _DATABASE_FILE).is_file():
        what = "holds no Chroma database" if folder.is_dir() else "doesn't exist"
        msg = f"{folder} {what}; make one with: spring-rag index FILES --db {folder}"
        raise CollectionError(msg)
    if folder.exists() and not folder.is_dir():
        msg = f"{folder} is a file; a Chroma database needs a folder"
        raise CollectionError(msg)
    with chroma_errors(f"opening the Chroma database {folder}"):
        return chromadb.PersistentClient(str(folder), settings=Settings(anonymized_telemetry=False))


def connect_server(host: str, port: int = DEFAULT_PORT) -> ClientAPI:
    """A client of a running Chroma server.

    Raises:
        CollectionError: nothing answers there.
    """
    with chroma_errors(f"connecting to the Chroma server at {host}:{port}"):
        return chromadb.HttpClient(host, port, settings=Settings(anonymized_telemetry=False))


def open_collection(client: ClientAPI, name: str, embedding: str | None = None) -> chromadb.Collection:
    """An existing collection, with the embedding function that it records or, if it records none, the one named.

    Args:
        client: of the database that holds it.
        name: its name.
        embedding: as `embedding_named` takes it.

    Raises:
        CollectionError: no such collection (says which exist), no embedding function, or not the one it was made with.
    """
    collection = _find(client, name)
    if collection is None:
        with chroma_errors("listing the collections"):
            existing = ", ".join(sorted(repr(found.name) for found in client.list_collections()))
        msg = f"there is no collection {name!r}; " + (
            f"there are {existing}" if existing else "there is none at all"
        )
        raise CollectionError(msg)
    recorded = _recorded_embedding(collection)
    if embedding == "hashed-words" and recorded is not None and recorded["name"] == UnweightedWords.name():
        embedding = None  # it was called so when the collection was made
    if embedding is None:
        if recorded is None:
            msg = f"the collection {name!r} doesn't record which embedding function made it; name it with --embedding"
            raise CollectionError(msg)
        with chroma_errors(f"setting up the embedding function of the collection {name!r}"):
            function = collection.configuration["embedding_function"]
    else:
        function = embedding_named(embedding)
        if recorded is not None and (recorded["name"], recorded["config"]) != (
            function.name(),
            function.get_config(),
        ):
            msg = (
                f"the collection {name!r} was made with the embedding function {recorded['name']!r} "
                f"{recorded['config']}, not with {embedding!r}; leave --embedding out, or use another --collection"
            )
            raise CollectionError(msg)
    with chroma_errors(f"opening the collection {name!r}"):
        return client.get_collection(name, embedding_function=function)


def open_or_create_collection(
    client: ClientAPI, name: str, embedding: str | None = None
) -> chromadb.Collection:
    """An existing collection as `open_collection` gives it, or a new one with cosine distances.

    Args:
        client: of the database.
        name: 3 to 512 letters, digits, `.`, `_`, `-`.
        embedding: as `embedding_named` takes it; None makes a new one with `HashedWords`.

    Raises:
        CollectionError: a name that Chroma doesn't allow, or what `open_collection` raises.
    """
    if _find(client, name) is not None:
        return open_collection(client, name, embedding)
    function: EmbeddingFunction[Any] = HashedWords() if embedding is None else embedding_named(embedding)
    with chroma_errors(f"making the collection {name!r}"):
        return client.create_collection(name, embedding_function=function, configuration={"hnsw": _HNSW})


def _find(client: ClientAPI, name: str) -> chromadb.Collection | None:
    with chroma_errors(f"opening the collection {name!r}"):
        try:
            return client.get_collection(name, embedding_function=None)
        except NotFoundError:
            return None


def _recorded_embedding(collection: chromadb.Collection) -> dict[str, Any] | None:
    record = collection.configuration_json.get("embedding_function")
    return record if record is not None and record.get("type") == "known" else None
