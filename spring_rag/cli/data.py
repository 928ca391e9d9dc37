"""`spring-rag data`: training data from questions, or from documents alone."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from spring_rag.cli.backbone import BackboneOptions
from spring_rag.cli.chroma_options import DEFAULT_COLLECTION, ChromaOptions, Embedding
from spring_rag.cli.console import Progress, check_file, note, print_json, quiet_libraries, say
from spring_rag.cli.options import Json, Seed, SkipBad, grouped
from spring_rag.errors import counted
from spring_rag.files import read_text

if TYPE_CHECKING:
    from chromadb import Collection

    from spring_rag.data import Attached, Retriever

app = typer.Typer(
    help="Make data for spring-rag train, from questions or from documents alone.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

Collections = Annotated[
    list[str] | None,
    typer.Option(
        "--collection",
        metavar="NAME",
        help="Collection to retrieve from; give several to mix them.",
        show_default=DEFAULT_COLLECTION,
    ),
]
Output = Annotated[
    Path, typer.Option(metavar="FILE", help="JSON lines to write; one that exists is replaced.")
]
TopK = Annotated[int, typer.Option(min=1, help="Passages per question.")]
MixOption = Annotated[
    Literal["draw", "merge"],
    typer.Option(
        help="With several collections. draw: each question asks one, drawn at random, so that the tokens suit all. merge: it asks all,"
        " and takes their best in turns."
    ),
]


@app.command()
@grouped
def attach(
    *,
    qa: Annotated[
        Path,
        typer.Option(
            metavar="PATH", help="Questions with answers, in a form that train reads; passages aren't needed."
        ),
    ],
    output: Output,
    chroma: ChromaOptions,
    collection: Collections = None,
    embedding: Embedding = None,
    top_k: TopK = 5,
    answer_passage: Annotated[
        Literal["any", "guarantee", "forbid"],
        typer.Option(
            help="any: what is found, as your app will find it. guarantee: one of the passages holds an accepted answer, or the question is"
            " left out. forbid: none does, and --unanswerable-answer takes the place of the answers: training then teaches to say so, and"
            " eval to check it."
        ),
    ] = "any",
    unanswerable_answer: Annotated[
        str, typer.Option(help="The accepted answer where the passages must hold none.")
    ] = "not stated",
    mix: MixOption = "draw",
    skip_bad: SkipBad = False,
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """Retrieve passages for questions that have answers, and write both as training data."""
    with quiet_libraries():
        from spring_rag.data import attach as attach_passages
        from spring_rag.data.examples import load_examples, write_examples

        check_file(output, qa)
        loaded = load_examples(qa, skip_bad=skip_bad)
        opened = _open(chroma, collection, embedding)
        with Progress("retrieving") as tell:
            attached = attach_passages(
                loaded.examples,
                [_retriever(one) for one in opened],
                top_k=top_k,
                answer_passage=answer_passage,
                unanswerable_answer=unanswerable_answer,
                mix=mix,
                seed=seed,
                progress=tell,
            )
        _refuse_nothing(
            attached, f"none of {len(loaded.examples)} questions has passages as asked for ({answer_passage})"
        )
        write_examples(output, attached.examples)
    if loaded.bad:
        note(f"{counted(len(loaded.bad), 'bad line')} skipped")
    _report(attached, output, {"left_out": len(attached.left_out)}, json=json)


@app.command()
@grouped
def make(
    *,
    model: Annotated[
        str,
        typer.Option(
            metavar="M",
            help="Backbone that writes the questions: Hub id, folder or GGUF; best the one to train for.",
        ),
    ],
    output: Output,
    chroma: ChromaOptions,
    collection: Collections = None,
    embedding: Embedding = None,
    per_passage: Annotated[int, typer.Option(min=1, help="Questions to write about each passage.")] = 1,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Passages to write about, drawn at random. Default: all.")
    ] = None,
    prompt: Annotated[
        str | None,
        typer.Option(
            metavar="TEXT|@FILE",
            help="What to ask for, with {passage} in it, where \\n is a new line; the backbone must reply with a line 'Question: …' and a"
            " line 'Answer: …'.",
            show_default="a short request",
        ),
    ] = None,
    chat: Annotated[
        bool | None,
        typer.Option("--chat/--no-chat", help="Put it into the chat template. Default: if there is one."),
    ] = None,
    temperature: Annotated[
        float,
        typer.Option(
            min=0, help="Temperature of the writing; at 0 a passage gets the same question each time."
        ),
    ] = 0.8,
    top_k: TopK = 5,
    mix: MixOption = "draw",
    keep_unfound: Annotated[
        bool,
        typer.Option(
            "--keep-unfound",
            help="Keep questions that don't bring their own passage back: mostly they are too vague to be answered.",
        ),
    ] = False,
    batch_size: Annotated[int, typer.Option(min=1, help="Prompts that run at once.")] = 16,
    seed: Seed = 0,
    backbone: BackboneOptions,
    json: Json = False,
) -> None:
    """Let the backbone write questions and answers from your documents, and keep those that survive a round trip.

    A pair stays if the backbone finds the answer again from the passage, and the question the passage from the collection.
    """
    request = _read_prompt(prompt)
    with quiet_libraries():
        from random import Random

        from chroma_spring_rag import read_texts
        from spring_rag import SpringModel
        from spring_rag.data import attach as attach_passages
        from spring_rag.data import make_pairs
        from spring_rag.data.examples import RagExample, write_examples

        check_file(output, prompt[1:] if prompt and prompt.startswith("@") else None)
        opened = _open(chroma, collection, embedding)
        placed = backbone.arguments()
        passages = list(dict.fromkeys(text for one in opened for text in read_texts(one)))
        if limit is not None and limit < len(passages):
            passages = Random(f"{seed}:passages").sample(passages, limit)
        writer = SpringModel.from_pretrained(model, **placed)
        with Progress("writing questions") as tell:
            made = make_pairs(
                writer,
                passages,
                per_passage=per_passage,
                prompt=request,
                chat=chat,
                temperature=temperature,
                seed=seed,
                batch_size=batch_size,
                progress=tell,
            )
        with Progress("retrieving") as tell:
            attached = attach_passages(
                [RagExample(pair.question, (pair.answer,)) for pair in made.pairs],
                [_retriever(one) for one in opened],
                top_k=top_k,
                mix=mix,
                seed=seed,
                progress=tell,
            )
        with_passages = len(attached.examples)
        if not keep_unfound:
            attached = _finding_back(attached, {pair.question: pair.passage for pair in made.pairs})
        unfound = with_passages - len(attached.examples)
        refused = made.refused | ({"its passage isn't found again": unfound} if unfound else {})
        listed = "; ".join(f"{reason}: {count}" for reason, count in refused.items())
        _refuse_nothing(
            attached,
            f"none of {made.asked} questions is left ({listed}); try another --prompt, --chat or --no-chat",
        )
        write_examples(output, attached.examples)
    if not json:
        for reason, count in refused.items():
            note(f"{count} left out: {reason}")
    _report(attached, output, {"asked": made.asked, "refused": refused}, json=json)


def _finding_back(attached: "Attached", own: dict[str, str]) -> "Attached":
    """Keep only the examples whose passages include the one that their question was written from."""
    from spring_rag.data import Attached

    kept = [example for example in attached.examples if own[example.question] in example.passages]
    return Attached(kept, attached.left_out, 1.0 if kept else 0.0)


def _open(chroma: ChromaOptions, names: list[str] | None, embedding: str | None) -> "list[Collection]":
    client = chroma.connect()
    from chroma_spring_rag import open_collection

    return [open_collection(client, name, embedding) for name in dict.fromkeys(names or [DEFAULT_COLLECTION])]


def _retriever(collection: "Collection") -> "Retriever":
    from chroma_spring_rag import search

    return lambda questions, top_k: [
        [passage.text for passage in passages] for passages in search(collection, questions, top_k)
    ]


def _read_prompt(prompt: str | None) -> str:
    from spring_rag.data.make import MAKE_PROMPT

    if prompt is None:
        return MAKE_PROMPT
    if not prompt.startswith("@"):
        return prompt.replace("\\n", "\n")
    try:
        return read_text(Path(prompt[1:]))
    except (OSError, UnicodeDecodeError) as error:
        msg = f"{prompt[1:]!r} can't be read: {error}"
        raise typer.BadParameter(msg, param_hint="--prompt") from error


def _refuse_nothing(attached: "Attached", message: str) -> None:
    from spring_rag.errors import DataError

    if not attached.examples:
        raise DataError(message)


def _report(attached: "Attached", output: Path, more: dict[str, object], *, json: bool) -> None:
    if json:
        print_json(
            {
                "output": str(output),
                "examples": len(attached.examples),
                "found": round(attached.found, 4),
                **more,
            }
        )
        return
    left = more.get("left_out")
    dropped = f", {counted(left, 'question')} left out" if isinstance(left, int) and left else ""
    say(f"{counted(len(attached.examples), 'example')} in {output}{dropped}")
    say(f"with an accepted answer in the passages: {attached.found:.1%}")
