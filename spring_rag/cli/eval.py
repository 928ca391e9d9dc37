"""`spring-rag eval`: what virtual tokens bring on questions with known answers."""

from collections.abc import Sequence
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from spring_rag.cli.backbone import BackboneOptions
from spring_rag.cli.chroma_options import DEFAULT_COLLECTION, ChromaOptions, CollectionName, Embedding
from spring_rag.cli.console import (
    Progress,
    check_file,
    check_folder,
    note,
    print_json,
    quiet_libraries,
    say,
    show,
)
from spring_rag.cli.eval_skill import evaluate_skill
from spring_rag.cli.model_options import ModelOptions, PromptOptions
from spring_rag.cli.options import Json, Numbers, SkipBad, grouped, parse_numbers
from spring_rag.errors import DataError, TokensError, counted
from spring_rag.extras import extra

if TYPE_CHECKING:
    from chroma_spring_rag import ChromaQA
    from spring_rag.data.examples import RagExample
    from spring_rag.evaluation.datasets import Dataset
    from spring_rag.evaluation.study import Study
    from spring_rag.evaluation.words import WordsTrial, WordsWay
    from spring_rag.model import SpringModel

_KS = (0, 1, 5, 10, 25, 50)
_COMPARED_LOGITS = 16


@grouped
def evaluate(
    *,
    data: Annotated[
        list[Path],
        typer.Option(
            metavar="PATH",
            help='JSON lines {"question", "target", "ret_passages"} or FlashRAG\'s; or a folder in FlashRAG\'s layout. May be repeated.',
        ),
    ],
    model: ModelOptions,
    tokens: Annotated[
        list[str] | None,
        typer.Option(
            metavar="T",
            help="Virtual tokens: folder, file, Hub id or published name; may be repeated, to compare sets. Default: as `ask`.",
        ),
    ] = None,
    task: Annotated[
        str,
        typer.Option(
            help="What to score: answer, or the skill that the tokens were trained for: answerable, cite or check. A skill uses only"
            " --data, --split, --limit, --skip-bad, --tokens, --passages or --top-k, --max-new-tokens, --report, --json and the options of the backbone."
        ),
    ] = "answer",
    split: Annotated[
        str | None,
        typer.Option(help="Which file of a FlashRAG folder. Default: test, or dev where there is no test."),
    ] = None,
    limit: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Only the first N questions of each set.")
    ] = None,
    skip_bad: SkipBad = False,
    k: Annotated[
        Numbers | None,
        typer.Option(
            "--k",
            parser=parse_numbers,
            metavar="K,K,…",
            help="Numbers of virtual tokens; 0 is what the others are tested against. Default: of 0,1,5,10,25,50 what there is, and all.",
        ),
    ] = None,
    passages: Annotated[
        Numbers | None,
        typer.Option(
            parser=parse_numbers,
            metavar="M,M,…",
            help="Numbers of passages to try. Default: all that there are.",
        ),
    ] = None,
    layout: PromptOptions,
    instruction: Annotated[
        str | None,
        typer.Option(
            help="How the plain backbone is asked in words for brief answers, for comparison; an empty text leaves all but --prompt out.",
            show_default="“Answer with a few words only.”",
        ),
    ] = None,
    prompt: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="A prompt of your own to compare with: a text with {context} and, after it, {question}; a literal brace is doubled.",
        ),
    ] = None,
    dev: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="PATH",
            help="Questions, in the form of --data, that the best words are chosen on; 50 at most are used. May be repeated.",
            show_default="a tenth of --data, 20 to 50 questions, half at most",
        ),
    ] = None,
    chroma: ChromaOptions,
    collection: CollectionName = DEFAULT_COLLECTION,
    embedding: Embedding = None,
    top_k: Annotated[
        int,
        typer.Option(min=1, help="Passages to retrieve with --db or --host; they replace those of the data."),
    ] = 5,
    max_new_tokens: Annotated[
        int,
        typer.Option(
            min=1, help="Most tokens of an answer; a longer answer is cut there and scored as it is."
        ),
    ] = 48,
    batch_size: Annotated[int, typer.Option(min=1, help="Prompts answered at once.")] = 64,
    timed: Annotated[
        int,
        typer.Option(
            metavar="N",
            min=0,
            help="Measure each way's answers per second on N questions, which it answers once more, one way at a time.",
            show_default="0: not measured",
        ),
    ] = 0,
    without_passages: Annotated[
        int,
        typer.Option(
            metavar="N",
            min=0,
            help="Ask N questions without passages too, with no virtual tokens and with the most, to see what the tokens cost if nothing is retrieved.",
            show_default="0: not asked",
        ),
    ] = 0,
    report: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Folder for the report: Markdown, HTML, plots, numbers, all answers."
        ),
    ] = None,
    backbone: BackboneOptions,
    json: Json = False,
) -> None:
    """Score a model's answers with and without virtual tokens.

    Each question is answered with every number of virtual tokens, and once more with none, told in words what to do, in the best way of
    several: text and chat template, a brief instruction, worked examples, your own --prompt. That way is chosen on questions that are
    left out of all scores. Scores are those of SQuAD, with 95 % intervals, and tested against k = 0 on the same questions. The data is
    checked before the backbone is loaded.
    """
    counts: list[int] = passages or []
    with quiet_libraries():
        from spring_rag.evaluation import ability
        from spring_rag.evaluation.datasets import load_dataset, named_apart
        from spring_rag.evaluation.study import study
        from spring_rag.evaluation.words import best_words, prompt_ways, read_prompt, word_ways
        from spring_rag.prompt import BRIEF

        datasets = named_apart([load_dataset(path, split, skip_bad=skip_bad, limit=limit) for path in data])
        dev_sets = [load_dataset(path, split, skip_bad=skip_bad) for path in dev or []]
        own_prompt = read_prompt(prompt) if prompt is not None else None
        for dataset in (*datasets, *dev_sets):
            if dataset.skipped:
                note(f"{dataset.name}: {counted(dataset.skipped, 'bad line')} skipped")
        if report is not None:
            check_folder(report)
            answering = ("answers.jsonl", "results.json", "report.md", "report.html")
            for name in answering if task == "answer" else ("skill.json", "risk_coverage.svg"):
                check_file(report / name, *data, *(dev or []), prompt)
            with extra("train"):
                import_module("matplotlib")
        if task != "answer":
            evaluate_skill(
                task,
                model,
                tokens or [],
                [example for dataset in datasets for example in dataset.examples],
                backbone,
                timeout=chroma.timeout,
                passages=max(counts, default=top_k),
                max_new_tokens=max_new_tokens,
                report=report,
                json=json,
            )
            return
        client = chroma.connect() if chroma.given else None
        loaded, sets = _load(model, tokens or [], backbone, chroma.timeout)
        if client is not None:
            from chroma_spring_rag import ChromaQA, open_collection

            opened = open_collection(client, collection, embedding)
            qa = ChromaQA(loaded, opened, top_k=max([top_k, *counts]))
            datasets, dev_sets = _retrieve(qa, datasets), _retrieve(qa, dev_sets)
        _check_passages(datasets, counts)
        asked = _ks(loaded, sets, k)
        settings: dict[str, Any] = {"max_new_tokens": max_new_tokens, "batch_size": batch_size}
        names = sets if len(sets) > 1 else None
        template = layout.template(loaded, names[0] if names else None)
        ways: list[WordsWay] = []
        if instruction != "":
            ways += word_ways(template, loaded.tokenizer, f"{instruction}\n" if instruction else BRIEF)
        if prompt is not None and own_prompt is not None:
            ways += prompt_ways(prompt.name, own_prompt, template, loaded.tokenizer)
        trials: list[WordsTrial] = []
        if len(ways) > 1:
            datasets, chosen_on = _dev_part(datasets, dev_sets)
            if counts:
                chosen_on = [replace(one, passages=one.passages[: max(counts)]) for one in chosen_on]
            with Progress("choosing the best words") as tell:
                trials = best_words(loaded, chosen_on, ways, progress=tell, **settings)
            ways = [trials[0].way]
        words = ways[0] if ways else None
        settings |= {"template": template if layout.given else None, "tokens": names}
        with Progress("answering") as tell:
            found = study(
                loaded,
                datasets,
                asked,
                counts,
                words=words,
                timed=timed,
                progress=tell,
                **settings,
            )
        found = replace(found, trials=tuple(trials))
        # What was answered is shown even if a later step fails.
        failed: BaseException | None = KeyboardInterrupt() if found.interrupted else None
        try:
            examples = [example for part in found.datasets for example in part.main.examples]
            if without_passages and not failed:
                with Progress("answering without passages") as tell:
                    bare = ability.without_passages(
                        loaded, examples, without_passages, asked, progress=tell, **settings
                    )
                found = replace(found, without_passages=bare)
            if not failed:
                difference = ability.plain_difference(loaded, examples[:_COMPARED_LOGITS])
                found = replace(found, plain_difference=difference)
            if report is not None:
                from spring_rag.evaluation.pages import write_report

                write_report(found, report, _about(loaded, sets, data))
        except (Exception, KeyboardInterrupt) as error:
            failed = error
        result = found.to_dict()
    if json:
        print_json({**result, "report": str(report) if report and not failed else None})
    else:
        _print(found, result)
    if failed is not None:
        if isinstance(failed, KeyboardInterrupt):
            note("interrupted: these are the scores of what was answered before")
        raise failed
    if report is not None:
        note(f"report: {report / 'report.html'}")


def _load(
    model: ModelOptions, tokens: Sequence[str], backbone: BackboneOptions, timeout: float
) -> "tuple[SpringModel, list[str]]":
    """Load the model, attach all sets, and return it with their names; the first is the default set, too."""
    loaded = model.load(tokens[0] if tokens else None, backbone, timeout)
    names = [
        source if tokens.count(source) == 1 else f"{source} ({at})" for at, source in enumerate(tokens, 1)
    ]
    if len(tokens) > 1:
        for name, source in zip(names, tokens, strict=True):
            loaded.add_tokens(name, source)
    return loaded, names


def _ks(model: "SpringModel", sets: Sequence[str], asked: Sequence[int] | None) -> list[int]:
    """Return the ks to try.

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
    """Retrieve passages for the questions from the collection."""
    total, done = sum(len(dataset.examples) for dataset in datasets), 0
    retrieved = []
    with Progress("retrieving") as report:
        for dataset in datasets:
            examples = []
            for example in dataset.examples:
                found = tuple(passage.text for passage in qa.retrieve(example.question))
                examples.append(replace(example, passages=found))
                done += 1
                report(done, total)
            retrieved.append(replace(dataset, examples=tuple(examples)))
    return retrieved


def _dev_part(
    datasets: "Sequence[Dataset]", dev_sets: "Sequence[Dataset]"
) -> "tuple[list[Dataset], list[RagExample]]":
    """Part the questions into those to score and those to choose the best words on; no question is in both.

    Raises:
        DataError: too few questions for both.
    """
    from spring_rag.evaluation.words import set_aside, thinned

    given = [example for dataset in dev_sets for example in dataset.examples]
    if given:
        chosen_on = thinned(given)
        taken = {example.question for example in chosen_on}
        left = [[one for one in dataset.examples if one.question not in taken] for dataset in datasets]
    else:
        left, chosen_on = set_aside([dataset.examples for dataset in datasets])
    if not chosen_on or not all(left):
        msg = (
            "there are too few questions to choose the best words on some and score the others: give more of them, others with --dev, "
            'or leave words out (--instruction "")'
        )
        raise DataError(msg)
    kept = [replace(one, examples=tuple(some)) for one, some in zip(datasets, left, strict=True)]
    return kept, chosen_on


def _check_passages(datasets: "Sequence[Dataset]", counts: Sequence[int]) -> None:
    """Warn of questions that have no passages at all.

    Raises:
        DataError: no question has as many as the most that are to be tried.
    """
    numbers = [len(example.passages) for dataset in datasets for example in dataset.examples]
    if counts and max(numbers) < max(counts):
        msg = f"--passages asks for {max(counts)}, but no question has more than {max(numbers)}: lower it, or retrieve with --db"
        raise DataError(msg)
    if without := numbers.count(0):
        note(f"{without} of {counted(len(numbers), 'question')} without passages; --db retrieves some")


def _about(model: "SpringModel", sets: Sequence[str], data: Sequence[Path]) -> dict[str, Any]:
    default = model.backend.tokens()
    shown = ", ".join(sets) or ("the demo's" if default is not None else "none")
    return {
        "backbone": model.backend.model_id or "without a name",
        "virtual tokens": shown,
        "data": ", ".join(map(str, data)),
    }


def _print(found: "Study", result: dict[str, Any]) -> None:
    from spring_rag.evaluation import score_table
    from spring_rag.evaluation.report import cut_short

    for dataset in found.datasets:
        title = f"{dataset.name}: {counted(len(dataset.main.examples), 'question')}, {found.counted}"
        show(score_table(dataset.main, title=title))
    if len(found.datasets) > 1:
        show(
            score_table(found.overall.main, title=f"all: {counted(result['n'], 'question')}, {found.counted}")
        )
    if found.trials:
        best = found.trials[0]
        say(
            f"Best of {len(found.trials)} ways in words, chosen on {counted(len(best.answers), 'other question')}: {best.way.name} "
            f"(F1 {best.mean('f1'):.1%} there)."
        )
    if found.without_passages is not None:
        scores = ", ".join(f"{run.mean('f1'):.1%} ({run.label})" for run in found.without_passages.runs)
        say(f"F1 of {counted(len(found.without_passages.examples), 'question')} without passages: {scores}.")
    for line in cut_short(found.overall.main):
        say(line)
    say(f"An accepted answer stands in the passages of {result['retrieved']:.1%} of the questions.")
    for row in result["results"]:
        if "beside_plain" in row:
            gain = row["beside_plain"]["exact_match"]
            name = f", {row['tokens']}" if "tokens" in row else ""
            between = f"{gain['interval']['low']:+.1%} to {gain['interval']['high']:+.1%}"
            p = "< 0.001" if gain["p"] < 0.001 else f"= {gain['p']:.3f}"
            say(
                f"k = {row['k']}{name} beside k = 0: exact match {gain['gain']:+.1%} (95 %: {between}), p {p}"
            )
