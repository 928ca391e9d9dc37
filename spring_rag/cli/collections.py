"""`spring-rag collections`: what a Chroma database holds, and taking a collection out of it."""

from collections import Counter
from typing import Annotated

import typer

from spring_rag.cli.chroma_options import ChromaOptions
from spring_rag.cli.console import print_json, quiet_libraries, say
from spring_rag.cli.options import Json, grouped
from spring_rag.errors import counted

app = typer.Typer(
    help="See the collections of a Chroma database, or delete one.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

Name = Annotated[str, typer.Argument(metavar="NAME", help="Name of the collection.")]


@app.command("list")
@grouped
def list_(*, chroma: ChromaOptions, json: Json = False) -> None:
    """List the collections with the numbers of their chunks."""
    with quiet_libraries():
        client = chroma.connect()
        from chroma_spring_rag import list_collections

        found = {each.name: each.count() for each in list_collections(client)}
    if json:
        print_json({"collections": [{"name": name, "chunks": count} for name, count in found.items()]})
        return
    for name, count in found.items():
        say(f"{name}: {counted(count, 'chunk')}")


@app.command()
@grouped
def show(name: Name, *, chroma: ChromaOptions, json: Json = False) -> None:
    """Show how a collection embeds texts, and the sources of its chunks."""
    with quiet_libraries():
        client = chroma.connect()
        from chroma_spring_rag import find_collection, read_sources, recorded_embedding
        from chroma_spring_rag.embedders import DEFAULT_NAME

        collection = find_collection(client, name)
        sources = Counter(read_sources(collection))
        embedding = recorded_embedding(collection)
    if json:
        print_json(
            {"name": name, "chunks": sources.total(), "embedding": embedding, "sources": dict(sources)}
        )
        return
    by = embedding or "what it does not record"
    unsure = " (which Chroma writes where nobody names a function)" if embedding == DEFAULT_NAME else ""
    say(f"{name}: {counted(sources.total(), 'chunk')}, embedded by {by}{unsure}")
    for source, count in sources.items():
        say(f"    {source}: {counted(count, 'chunk')}")


@app.command()
@grouped
def delete(
    name: Name,
    *,
    chroma: ChromaOptions,
    yes: Annotated[bool, typer.Option("--yes", help="Don't ask.")] = False,
) -> None:
    """Delete a collection with all its chunks."""
    with quiet_libraries():
        client = chroma.connect()
        from chroma_spring_rag import delete_collection, find_collection

        count = find_collection(client, name).count()
        if not yes:
            typer.confirm(
                f"Delete the collection {name!r} with {counted(count, 'chunk')}?", abort=True, err=True
            )
        delete_collection(client, name)
    say(f"the collection {name!r} is deleted, with {counted(count, 'chunk')}")
