"""`spring-rag demo`: the whole path on the default backbone, from documents to answers side by side."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from spring_rag.cli.backbone import BackboneOptions
from spring_rag.cli.console import Progress, note, print_json, quiet_libraries, say, show
from spring_rag.cli.model_options import ModelOptions
from spring_rag.cli.options import Json, Numbers, compared_ks, grouped
from spring_rag.errors import counted

if TYPE_CHECKING:
    from spring_rag.evaluation import Sweep

_KS = Numbers([0, 1, 10, 50])
_SHOWN_QUESTIONS = {"with_answer": 2, "without_answer": 1}


@grouped
def demo(
    *,
    db: Annotated[Path, typer.Option(metavar="DIR", help="Folder of the Chroma database.")] = Path(
        "spring-rag-demo"
    ),
    top_k: Annotated[int, typer.Option(min=1, help="Passages to answer from.")] = 5,
    k: Annotated[Numbers, compared_ks("0,1,10,50")] = _KS,
    questions: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=1,
            help="Ask the first N questions. Default: 24, some minutes on two cores.",
        ),
    ] = None,
    all_questions: Annotated[bool, typer.Option("--all", help="Ask all questions.")] = False,
    json: Json = False,
) -> None:
    """See the same frozen model answer with and without virtual tokens.

    Indexes the demo's documents into Chroma, retrieves passages for its questions, and answers each question with every number of
    virtual tokens, and once more with none, shown worked examples in words. Needs no network where the default backbone is installed.
    """
    if all_questions and questions is not None:
        msg = "--all and --questions exclude each other"
        raise typer.BadParameter(msg)
    with quiet_libraries():
        from spring_rag.demo import run

        model = ModelOptions().load(None, BackboneOptions())
        with Progress("indexing") as report:
            qa = run.build_index(model, db, top_k, report)
        with Progress("retrieving") as report:
            asked = run.load_questions(limit=None if all_questions else questions or run.SAMPLE)
            examples, retrieved = run.retrieve(qa, asked, report)
        with Progress("answering") as report:
            result, parts = run.answer(model, asked, examples, retrieved, k, report)
    if json:
        print_json(result.to_dict())
        return
    from spring_rag.evaluation import score_table, side_by_side, telling_examples

    show(score_table(result, title=f"{counted(len(examples), 'question')}, {counted(top_k, 'passage')} each"))
    if run.WITH in parts:
        say(_exact_matches(f"{len(parts[run.WITH].examples)} that a document answers", parts[run.WITH]))
        say(f"A passage of that document was retrieved for {retrieved:.1%} of these.")
    if run.WITHOUT in parts:
        say(
            _exact_matches(
                f"{len(parts[run.WITHOUT].examples)} that none answers, where the answer is “not stated”",
                parts[run.WITHOUT],
            )
        )
    say("")
    for name, part in parts.items():
        for index in telling_examples(part, _SHOWN_QUESTIONS[name]):
            show(side_by_side(part, index))
    note(f'ask your own: spring-rag ask "{examples[0].question}" --db {db}')


def _exact_matches(which: str, part: "Sweep") -> str:
    """Write one line with the exact match of every run."""
    scores = (
        f"{run.mean('exact_match'):.1%} (k = {run.k}{', told in words' if run.words else ''})"
        for run in part.all_runs
    )
    return f"Exact match of the {which}: {', '.join(scores)}."
