"""`spring-rag playground`: a local page that answers several ways, side by side."""

from typing import Annotated

import typer

from spring_rag.cli.backbone import BackboneOptions
from spring_rag.cli.chroma_options import DEFAULT_COLLECTION, ChromaOptions, CollectionName, Embedding
from spring_rag.cli.console import Progress, note, quiet_libraries
from spring_rag.cli.model_options import ModelOptions, Skills, Tokens
from spring_rag.cli.options import Numbers, compared_ks, grouped

_KS = Numbers([1, 10, 50])


@grouped
def playground(
    *,
    chroma: ChromaOptions,
    collection: CollectionName = DEFAULT_COLLECTION,
    embedding: Embedding = None,
    top_k: Annotated[int, typer.Option(min=1, max=20, help="Passages to answer from, at first.")] = 5,
    model: ModelOptions,
    tokens: Tokens = None,
    skill: Skills = None,
    also: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=TOKENS", help="A further set of virtual tokens to compare with. May be repeated."
        ),
    ] = None,
    k: Annotated[Numbers, compared_ks("1,10,50")] = _KS,
    address: Annotated[str, typer.Option(metavar="ADDRESS", help="Where the page listens.")] = "127.0.0.1",
    page_port: Annotated[int, typer.Option(min=1, max=65535, help="Port of the page.")] = 7860,
    backbone: BackboneOptions,
) -> None:
    """Open a local page: ask your index, and compare answers with and without virtual tokens.

    It listens on this machine only, unless --address names another (0.0.0.0: all networks): whoever reaches the page can read the
    indexed documents.
    """
    further = dict(map(_named, also or []))
    with quiet_libraries():
        from spring_rag.playground.page import build, launch
        from spring_rag.playground.ways import ways_of

        with Progress("opening the collection"):
            client = chroma.connect()
            from chroma_spring_rag import ChromaQA, open_collection

            opened = open_collection(client, collection, embedding)
        loaded = model.load(tokens, backbone, chroma.timeout)
        for each in skill or ():
            loaded.add_skill(each)
        for name, source in further.items():
            loaded.add_tokens(name, source)
        page = build(ChromaQA(loaded, opened, top_k=top_k), ways_of(loaded, list(further), k))
        note(f"the page is at http://{address}:{page_port} (Ctrl-C ends it)")
        launch(page, address, page_port)


def _named(text: str) -> tuple[str, str]:
    name, equals, source = text.partition("=")
    if not (name and equals and source):
        msg = f"{text!r} isn't NAME=TOKENS, such as legal=tokens/legal"
        raise typer.BadParameter(msg, param_hint="--also")
    return name, source
