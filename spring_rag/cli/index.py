"""`spring-rag index`: text files into a Chroma collection."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from spring_rag.cli.chroma_options import DEFAULT_COLLECTION, ChromaOptions, CollectionName
from spring_rag.cli.console import Progress, print_json, quiet_libraries
from spring_rag.cli.options import Json, grouped


@grouped
def index(
    paths: Annotated[
        list[Path],
        typer.Argument(
            metavar="FILES_OR_FOLDERS...",
            help="Text and Markdown files in UTF-8; of a folder, all .txt, .text, .md and .markdown files.",
        ),
    ],
    *,
    chroma: ChromaOptions,
    collection: CollectionName = DEFAULT_COLLECTION,
    embedding: Annotated[
        str | None,
        typer.Option(
            metavar="NAME[:MODEL]",
            help="Embedding function of a new collection: hashed-words (offline, the default), or one that Chroma knows,"
            " such as default, sentence_transformer:MODEL or ollama:MODEL. The collection remembers it.",
            show_default=False,
        ),
    ] = None,
    chunk_size: Annotated[int, typer.Option(min=1, help="Most characters of a chunk.")] = 1000,
    chunk_overlap: Annotated[
        int, typer.Option(min=0, help="Characters that neighbouring chunks may share.")
    ] = 100,
    json: Json = False,
) -> None:
    """Put text and Markdown files into a Chroma collection.

    Indexing again changes only what changed: new chunks are added, those of earlier versions and of files that are
    gone from a given folder are removed. If one file can't be read, nothing changes.
    """
    if chunk_overlap >= chunk_size:
        msg = f"must be less than --chunk-size, {chunk_size}"
        raise typer.BadParameter(msg, param_hint="--chunk-overlap")
    with quiet_libraries():
        from chroma_spring_rag import index_files, open_or_create_collection, read_files

        texts = read_files(paths)  # before a database is made for nothing
        client = chroma.connect(create=True)
        target = open_or_create_collection(client, collection, embedding)
        with Progress("indexing") as report_progress:
            report = index_files(
                target,
                paths,
                chunk_size=chunk_size,
                chunk_overlap=chunk_overlap,
                texts=texts,
                progress=report_progress,
            )
    if json:
        print_json({"collection": collection, **asdict(report)})
    else:
        print(
            f"{report.files} files: {report.added} chunks added, {report.unchanged} unchanged, {report.removed} removed; "
            f"the collection {collection!r} holds {report.total}"
        )
