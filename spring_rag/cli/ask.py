"""`spring-rag ask`: a question answered from a Chroma collection."""

import textwrap
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from spring_rag.cli.backbone import BackboneOptions
from spring_rag.cli.chroma_options import DEFAULT_COLLECTION, ChromaOptions, CollectionName, Embedding
from spring_rag.cli.console import Progress, note, print_json, quiet_libraries, say
from spring_rag.cli.model_options import ModelOptions, PromptOptions, Skills, Tokens
from spring_rag.cli.options import Json, grouped, parse_object
from spring_rag.errors import counted

if TYPE_CHECKING:
    from chroma_spring_rag import Answer, Passage


@grouped
def ask(
    question: Annotated[str, typer.Argument(help="The question, in words.")],
    *,
    chroma: ChromaOptions,
    collection: CollectionName = DEFAULT_COLLECTION,
    embedding: Embedding = None,
    where: Annotated[
        str | None,
        typer.Option(
            metavar="JSON", help='Chroma\'s filter on metadata, such as \'{"source": "docs/a.md"}\'.'
        ),
    ] = None,
    top_k: Annotated[int, typer.Option(min=1, help="Passages to answer from.")] = 5,
    model: ModelOptions,
    tokens: Tokens = None,
    num_tokens: Annotated[
        int | None,
        typer.Option("-k", "--num-tokens", metavar="N", min=0, help="Use the first N. Default: all."),
    ] = None,
    skill: Skills = None,
    min_answerable: Annotated[
        float | None,
        typer.Option(
            metavar="P",
            min=0,
            max=1,
            help="Withhold the answer if the documents hold it with a lower probability than this; needs the skill answerable.",
        ),
    ] = None,
    prompt: PromptOptions,
    instruction: Annotated[
        str | None, typer.Option(metavar="TEXT", help="Words between the passages and the question.")
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Most tokens of the answer.")] = 128,
    temperature: Annotated[
        float, typer.Option(min=0, help="0 takes the likeliest words; more lets answers vary.")
    ] = 0.0,
    stop: Annotated[
        list[str] | None,
        typer.Option(metavar="TEXT", help="End the answer before this text. May be repeated."),
    ] = None,
    stream: Annotated[bool, typer.Option("--stream", help="Print the answer while it is written.")] = False,
    show_passages: Annotated[bool, typer.Option("--show-passages", help="Print the passages too.")] = False,
    backbone: BackboneOptions,
    json: Json = False,
) -> None:
    """Answer a question from the documents of a Chroma collection."""
    if stream and json:
        msg = "--stream and --json exclude each other"
        raise typer.BadParameter(msg)
    if stream and min_answerable is not None:
        msg = "--stream and --min-answerable exclude each other: what is printed can't be withheld"
        raise typer.BadParameter(msg)
    if not question.strip():
        msg = "the question is empty"
        raise typer.BadParameter(msg, param_hint="QUESTION")
    if stop and "" in stop:
        msg = "the text is empty"
        raise typer.BadParameter(msg, param_hint="--stop")
    condition = parse_object(where, "--where", '{"source": "docs/a.md"}') if where is not None else None
    with quiet_libraries():
        # The collection comes first: its errors show at once, and a model takes time to load.
        with Progress("opening the collection"):
            client = chroma.connect()
            from chroma_spring_rag import ChromaQA, open_collection

            opened = open_collection(client, collection, embedding)
        loaded = model.load(tokens, backbone, chroma.timeout)
        for each in skill or ():
            loaded.add_skill(each)
        template = prompt.template(loaded)
        if instruction is not None:
            template = replace(template, instruction=f"{instruction}\n")
        qa = ChromaQA(loaded, opened, top_k=top_k, template=template)
        settings: dict[str, Any] = {
            "where": condition,
            "max_new_tokens": max_new_tokens,
            "temperature": temperature,
            "stop": stop,
        }
        if stream:
            pieces = qa.stream(question, num_tokens, **settings)
        else:
            with Progress("answering"):
                answer = qa.ask(question, num_tokens, min_answerable=min_answerable, **settings)
    if stream:
        for piece in pieces:
            say(piece, end="")
        say("")
        passages, dropped = pieces.passages, pieces.dropped
    else:
        passages, dropped = answer.passages, answer.dropped
        if json:
            print_json(asdict(answer) | {"answer": answer.text})
        else:
            _print_answer(answer)
    if dropped:
        note(
            f"{counted(len(dropped), 'passage')} of {len(passages) + len(dropped)} left out: the backbone's context holds no more "
            "beside the question and the answer"
        )
    if json:
        return
    if show_passages:
        _print_passages(passages)


def _print_answer(answer: "Answer") -> None:
    """Print the answer, and the places that it comes from."""
    if answer.withheld:
        say(f"the documents don't say (probability that they do: {answer.answerable:.0%})")
        return
    say(answer.text)
    for number, passage in zip(answer.citations, answer.cited, strict=True):
        say(f"[{number}] {passage.place}")


def _print_passages(passages: "Sequence[Passage]") -> None:
    for number, passage in enumerate(passages, 1):
        score = "" if passage.score is None else f" (score {passage.score:.3f})"
        say(f"\n[{number}] {passage.source}{score}")
        say(textwrap.indent(passage.text, "    "))
