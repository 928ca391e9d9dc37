"""The options of every command that works on a Chroma collection."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from chromadb.api import ClientAPI

Db = Annotated[
    Path | None,
    typer.Option("--db", metavar="DIR", help="Folder of the Chroma database.", show_default=False),
]
Host = Annotated[
    str | None,
    typer.Option("--host", help="Use a running Chroma server instead of --db.", show_default=False),
]
Port = Annotated[int, typer.Option("--port", help="Port of the Chroma server.", min=1, max=65535)]
Embedding = Annotated[
    str | None,
    typer.Option(
        metavar="NAME[:MODEL]",
        help="Embedding function, for a collection that doesn't remember its own.",
        show_default=False,
    ),
]
CollectionName = Annotated[str, typer.Option("--collection", help="Name of the collection.")]

DEFAULT_PORT = 8000
DEFAULT_COLLECTION = "documents"


def connect(db: Path | None, host: str | None, port: int, *, create: bool = False) -> "ClientAPI":
    """The client that `--db`, `--host` and `--port` ask for.

    Args:
        db: folder of an embedded database.
        host: of a running server.
        port: of a running server.
        create: make a new embedded database where there is none.

    Raises:
        typer.BadParameter: neither or both of `--db` and `--host`.
        MissingExtraError: Chroma isn't installed.
        CollectionError: no such database or server.
    """
    if (db is None) == (host is None):
        msg = "give either --db DIR or --host HOST"
        raise typer.BadParameter(msg)
    from chroma_spring_rag import connect_folder, connect_server

    if db is not None:
        return connect_folder(db, create=create)
    assert host is not None
    return connect_server(host, port)
