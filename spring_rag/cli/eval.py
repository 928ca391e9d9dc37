"""`spring-rag eval`: what virtual tokens bring on questions with known answers."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from spring_rag.cli.backbone import placement
from spring_rag.cli.chroma_options import (
    DEFAULT_COLLECTION,
    DEFAULT_PORT,
    CollectionName,
    Db,
    Host,
    Port,
    connect,
)
from spring_rag.cli.common_options import Device, DeviceMap, Dtype, Json, Quantize, Revision, SkipBad
from spring_rag.cli.console import check_folder, note, print_json, progress, quiet_libraries
from spring_rag.cli.demo import parse_ks
from spring_rag.cli.model_options import ApiKey, BaseUrl, Model, load_model
from spring_rag.errors import DataError, TokensError
from spring_rag.extras import extra

if TYPE_CHECKING:
    from chroma_spring_rag import ChromaQA
    from spring_rag.evaluation.datasets import Dataset
    from spring_rag.evaluation.study import Study
    from spring_rag.model import SpringModel

_KS = (0, 1, 5, 10, 25, 50)
_COMPARED_LOGITS = 16


def evaluate(
    data: Annotated[
        list[Path],
        typer.Option(
            metavar="PATH",
            help='JSON lines {"question", "target", "ret_passages"} or FlashRAG\'s; or a folder in FlashRAG\'s layout. May be repeated.',
        ),
    ],
    model: Model = None,
    tokens: Annotated[
        list[str] | None,
        typer.Option(
            metavar="T",
            help="Virtual tokens: folder, file, Hub id or published name; may be repeated, to compare sets. Default: as `ask`.",
            show_default=False,
        ),
    ] = None,
    base_url: BaseUrl = None,
    api_key: ApiKey = None,
    split: Annotated[
        str | None,
        typer.Option(
            help="Which file of a FlashRAG folder. Default: test, or dev where there is no test.",
            show_default=False,
        ),
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, help="Only the first N questions of each set.", show_default=False),
    ] = None,
    skip_bad: SkipBad = False,
    k: Annotated[
        str | None,
        typer.Option(
            "--k",
            metavar="K,K,…",
            help="Numbers of virtual tokens; 0 is what the others are tested against. Default: of 0,1,5,10,25,50 what there is, and all.",
            show_default=False,
        ),
    ] = None,
    passages: Annotated[
        str | None,
        typer.Option(
            metavar="M,M,…",
            help="Numbers of passages, each of them tried. Default: all that there are.",
            show_default=False,
        ),
    ] = None,
    instruction: Annotated[
        str | None,
        typer.Option(
            help="What the plain backbone is told in words, for comparison; an empty text leaves that out.",
            show_default="“Answer with a few words only.”",
        ),
    ] = None,
    db: Db = None,
    host: Host = None,
    port: Port = DEFAULT_PORT,
    collection: CollectionName = DEFAULT_COLLECTION,
    top_k: Annotated[
        int,
        typer.Option(min=1, help="Passages to retrieve with --db or --host; they replace those of the data."),
    ] = 5,
    max_new_tokens: Annotated[
        int, typer.Option(min=1, help="Most tokens of an answer; what is cut there counts as it is.")
    ] = 48,
    batch_size: Annotated[int, typer.Option(min=1, help="Prompts answered at once.")] = 64,
    report: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Folder for the report: Markdown, HTML, plots, numbers, all answers.",
            show_default=False,
        ),
    ] = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    quantize: Quantize = None,
    device_map: DeviceMap = None,
    revision: Revision = None,
    json: Json = False,
) -> None:
    """Score a model's answers with and without virtual tokens.

    Each question is answered with every number of virtual tokens, and once more with none, told in words to be brief. Scores are those of
    SQuAD, with 95 % intervals, and tested against k = 0 on the same questions. The data is checked before the backbone is loaded.
    """
    ks = parse_ks(k) if k is not None else None
    counts = parse_ks(passages, "--passages") if passages is not None else []
    with quiet_libraries():
        from spring_rag.evaluation.ability import plain_difference
        from spring_rag.evaluation.datasets import load_dataset
        from spring_rag.evaluation.runner import BRIEF
        from spring_rag.evaluation.study import study

        datasets = _named_apart([load_dataset(path, split, skip_bad=skip_bad, limit=limit) for path in data])
        for dataset in datasets:
            if dataset.skipped:
                note(f"{dataset.name}: {dataset.skipped} bad lines skipped")
        if report is not None:
            check_folder(report)
            with extra("train"):
                import_module("matplotlib")
        placed = placement(
            device=device, dtype=dtype, revision=revision, quantize=quantize, device_map=device_map
        )
        client = connect(db, host, port) if db is not None or host is not None else None
        loaded, sets = _load(model, tokens or [], base_url, api_key, placed)
        if client is not None:
            from chroma_spring_rag import ChromaQA, open_collection

            opened = open_collection(client, collection, None)
            datasets = _retrieve(ChromaQA(loaded, opened, top_k=max([top_k, *counts])), datasets)
        _check_passages(datasets, counts)
        with progress("answering") as answered:
            found = study(
                loaded,
                datasets,
                _ks(loaded, sets, ks),
                counts,
                instruction=BRIEF if instruction is None else f"{instruction}\n" if instruction else None,
                tokens=sets if len(sets) > 1 else None,
                max_new_tokens=max_new_tokens,
                batch_size=batch_size,
                progress=answered,
            )
        difference = plain_difference(loaded, datasets[0].examples[:_COMPARED_LOGITS])
        found = replace(found, plain_difference=difference)
        if report is not None:
            from spring_rag.evaluation.pages import write_report

            write_report(found, report, _about(loaded, sets, data))
        result = found.to_dict()
    if json:
        print_json({**result, "report": str(report) if report else None})
    else:
        _print(found, result)
    if report is not None:
        note(f"report: {report / 'report.html'}")


def _named_apart(datasets: "Sequence[Dataset]") -> "list[Dataset]":
    """Sets of questions whose names differ, by a number where they didn't."""
    seen: dict[str, int] = {}
    named = []
    for dataset in datasets:
        seen[dataset.name] = seen.get(dataset.name, 0) + 1
        number = seen[dataset.name]
        named.append(replace(dataset, name=f"{dataset.name} ({number})") if number > 1 else dataset)
    return named


def _load(
    model: str | None,
    tokens: Sequence[str],
    base_url: list[str] | None,
    api_key: str | None,
    placed: Mapping[str, Any],
) -> "tuple[SpringModel, list[str]]":
    """The model with all sets attached, and their names; the first is the default one, too."""
    loaded = load_model(model, tokens[0] if tokens else None, base_url, api_key, **placed)
    names = [
        source if tokens.count(source) == 1 else f"{source} ({at})" for at, source in enumerate(tokens, 1)
    ]
    if len(tokens) > 1:
        for name, source in zip(names, tokens, strict=True):
            loaded.add_tokens(name, source)
    return loaded, names


def _ks(model: "SpringModel", sets: Sequence[str], asked: Sequence[int] | None) -> list[int]:
    """The ks to try.

    Raises:
        TokensError: more virtual tokens are asked for than any set has.
    """
    names: Sequence[str | None] = sets if len(sets) > 1 else [None]
    sizes = {len(model.backend.tokens(name) or ()) for name in names}
    most = max(sizes)
    if asked is None:
        return sorted({0, *sizes, *(k for k in _KS if k <= most)})
    if max(asked) > most:
        msg = f"--k asks for {max(asked)} virtual tokens, but there are {most}" + (
            "" if most else ": give --tokens"
        )
        raise TokensError(msg)
    return list(asked)


def _retrieve(qa: "ChromaQA", datasets: "Sequence[Dataset]") -> "list[Dataset]":
    """The questions with the passages that the collection brings for them."""
    total, done = sum(len(dataset.examples) for dataset in datasets), 0
    retrieved = []
    with progress("retrieving") as report:
        for dataset in datasets:
            examples = []
            for example in dataset.examples:
                found = tuple(passage.text for passage in qa.retrieve(example.question))
                examples.append(replace(example, passages=found))
                done += 1
                report(done, total)
            retrieved.append(replace(dataset, examples=tuple(examples)))
    return retrieved


def _check_passages(datasets: "Sequence[Dataset]", counts: Sequence[int]) -> None:
    """Warn where questions have no passages at all.

    Raises:
        DataError: no question has as many as the most that are to be tried.
    """
    numbers = [len(example.passages) for dataset in datasets for example in dataset.examples]
    if counts and max(numbers) < max(counts):
        msg = f"--passages asks for {max(counts)}, but no question has more than {max(numbers)}: lower it, or retrieve with --db"
        raise DataError(msg)
    if without := numbers.count(0):
        note(f"{without} of {len(numbers)} questions have no passages; --db retrieves some")


def _about(model: "SpringModel", sets: Sequence[str], data: Sequence[Path]) -> dict[str, Any]:
    default = model.backend.tokens()
    shown = ", ".join(sets) or ("the demo's" if default is not None else "none")
    return {
        "backbone": model.backend.model_id or "without a name",
        "virtual tokens": shown,
        "data": ", ".join(map(str, data)),
    }


def _print(found: "Study", result: dict[str, Any]) -> None:
    from rich.console import Console

    from spring_rag.evaluation import score_table

    console = Console()
    for part in found.parts:
        title = f"{part.name}: {len(part.main.examples)} questions"
        console.print(score_table(part.main, title=title))
    if len(found.parts) > 1:
        console.print(score_table(found.overall.main, title=f"all: {result['n']} questions"))
    print(f"An accepted answer stands in the passages of {result['retrieved']:.1%} of the questions.")
    for row in result["results"]:
        if "beside_plain" in row:
            gain = row["beside_plain"]["exact_match"]
            name = f", {row['tokens']}" if "tokens" in row else ""
            between = f"{gain['interval']['low']:+.1%} to {gain['interval']['high']:+.1%}"
            p = "< 0.001" if gain["p"] < 0.001 else f"= {gain['p']:.3f}"
            print(
                f"k = {row['k']}{name} beside k = 0: exact match {gain['gain']:+.1%} (95 %: {between}), p {p}"
            )
