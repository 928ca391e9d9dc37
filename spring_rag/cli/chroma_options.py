"""The options of every command that works on a Chroma collection."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from chromadb.api import ClientAPI

DEFAULT_PORT = 8000
DEFAULT_TIMEOUT = 60.0
DEFAULT_COLLECTION = "documents"

Embedding = Annotated[
    str | None,
    typer.Option(
        metavar="NAME[:MODEL]",
        help="Embedding function that made the collection, where it doesn't record it, or only Chroma's default.",
    ),
]
CollectionName = Annotated[str, typer.Option("--collection", help="Name of the collection.")]


@dataclass(frozen=True)
class ChromaOptions:
    """Which Chroma database: a folder or a server."""

    db: Annotated[Path | None, typer.Option("--db", metavar="DIR", help="Folder of the Chroma database.")] = (
        None
    )
    host: Annotated[
        str | None, typer.Option("--host", help="Use a running Chroma server instead of --db.")
    ] = None
    port: Annotated[int, typer.Option("--port", help="Port of the Chroma server.", min=1, max=65535)] = (
        DEFAULT_PORT
    )
    timeout: Annotated[
        float,
        typer.Option(
            "--timeout",
            min=0.1,
            metavar="SECONDS",
            help="Longest that a server of Chroma or vLLM may take to answer.",
        ),
    ] = DEFAULT_TIMEOUT

    @property
    def given(self) -> bool:
        """Whether a database is named at all."""
        return self.db is not None or self.host is not None

    def connect(self, *, create: bool = False) -> "ClientAPI":
        """Connect to the database; `create` makes a new embedded one if there is none.

        Raises:
            typer.BadParameter: neither or both of `--db` and `--host`.
            MissingExtraError: Chroma isn't installed.
            CollectionError: no such database or server.
        """
        if (self.db is None) == (self.host is None):
            msg = "give either --db DIR or --host HOST"
            raise typer.BadParameter(msg)
        from chroma_spring_rag import connect_folder, connect_server

        if self.db is not None:
            return connect_folder(self.db, create=create)
        assert self.host is not None
        return connect_server(self.host, self.port, self.timeout)
