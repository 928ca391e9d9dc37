"""`spring-rag index`: files into a Chroma collection."""

from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Annotated

import typer

from spring_rag.cli.chroma_options import DEFAULT_COLLECTION, ChromaOptions, CollectionName
from spring_rag.cli.console import Progress, note, print_json, quiet_libraries, say
from spring_rag.cli.options import Json, grouped
from spring_rag.errors import counted

_SHOWN_FILES = 20


@grouped
def index(
    paths: Annotated[
        list[Path],
        typer.Argument(
            metavar="FILES_OR_FOLDERS...",
            help="Text and Markdown in UTF-8, PDF, HTML and DOCX (these need spring-rag[files]); of a folder, all such files.",
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
        ),
    ] = None,
    chunk_size: Annotated[int, typer.Option(min=1, help="Most characters of a chunk.")] = 1000,
    chunk_overlap: Annotated[
        int, typer.Option(min=0, help="Characters that neighbouring chunks may share.")
    ] = 100,
    prune: Annotated[
        bool,
        typer.Option(
            "--prune", help="Remove what was indexed of files that don't exist any more, wherever they were."
        ),
    ] = False,
    json: Json = False,
) -> None:
    """Put files into a Chroma collection.

    Indexing again changes only what changed: new chunks are added, those of earlier versions and of files that are
    gone from a given folder are removed. A file that can't be read is named at the end, and the exit status is 1.
    """
    if chunk_overlap >= chunk_size:
        msg = f"must be less than --chunk-size, {chunk_size}"
        raise typer.BadParameter(msg, param_hint="--chunk-overlap")
    with quiet_libraries():
        from chroma_spring_rag import index_files, open_or_create_collection, read_files

        read = read_files(paths)
        if not prune:
            read.refuse_nothing(paths)  # before a database is made for nothing
        client = chroma.connect(create=not prune or bool(read.texts))
        target = open_or_create_collection(client, collection, embedding)
        with Progress("indexing") as report_progress:
            report = index_files(
                target,
                paths,
                chunk_size=chunk_size,
                chunk_overlap=chunk_overlap,
                read=read,
                prune=prune,
                progress=report_progress,
            )
    for file, reason in islice(report.skipped.items(), _SHOWN_FILES):
        note(f"skipped: {file} ({reason})")
    if (more := len(report.skipped) - _SHOWN_FILES) > 0:
        note(f"skipped: {more} more; --json lists them all")
    if report.gone:
        note(
            f"{counted(report.gone, 'chunk')} of files that are gone can still be found; --prune removes them"
        )
    if json:
        print_json({"collection": collection, **asdict(report)})
    else:
        say(
            f"{counted(report.files, 'file')}: {counted(report.added, 'chunk')} added, {report.unchanged} unchanged, "
            f"{report.removed} removed; the collection {collection!r} holds {report.total}"
        )
    if report.bad:
        listed = "; ".join(f"{file} {reason}" for file, reason in report.bad.items())
        note(f"error: {counted(len(report.bad), 'file')} left out: {listed}")
        raise typer.Exit(1)
