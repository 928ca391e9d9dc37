"""`spring-rag train`: virtual tokens for a backbone, from questions with answers and passages."""

import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from spring_rag.cli.backbone import BackboneOptions
from spring_rag.cli.console import Progress, note, print_json, quiet_libraries, say
from spring_rag.cli.model_options import TemplateOptions
from spring_rag.cli.options import Json, Numbers, SkipBad, grouped, parse_numbers
from spring_rag.errors import counted
from spring_rag.extras import extra
from spring_rag.recipe import TrainingRecipe

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from spring_rag.data.examples import Loaded, RagExample
    from spring_rag.tokens import VirtualTokens
    from spring_rag.training import Preview

_SCORES = {"f1": "F1", "auroc": "AUROC", "accuracy": "accuracy"}


@grouped
def train(
    *,
    model: Annotated[
        str, typer.Option(metavar="M", help="Backbone: Hub id, folder or GGUF. It stays frozen.")
    ],
    data: Annotated[
        Path,
        typer.Option(
            metavar="PATH",
            help='JSON lines: {"question", "target", "ret_passages"}, passages best first; or FlashRAG\'s; or a folder that'
            " datasets' save_to_disk wrote, with these columns.",
        ),
    ],
    output: Annotated[
        Path, typer.Option(metavar="DIR", help="Folder for the trained tokens and checkpoints.")
    ],
    skip_bad: SkipBad = False,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run", help="Train nothing: show three finished prompts, their lengths, and the steps."
        ),
    ] = False,
    eval_data: Annotated[
        Path | None,
        typer.Option(
            metavar="PATH",
            help="Held-out examples, in the form of --data, answered whenever a checkpoint is saved; the best one is kept.",
        ),
    ] = None,
    eval_share: Annotated[
        float,
        typer.Option(min=0, max=1, help="Hold out this share of --data for that, instead of --eval-data."),
    ] = 0.0,
    eval_k: Annotated[
        Numbers | None,
        typer.Option(
            parser=parse_numbers,
            metavar="K,K,…",
            help="Numbers of virtual tokens to answer them with.",
            show_default="1 and n",
        ),
    ] = None,
    patience: Annotated[
        int | None,
        typer.Option(
            min=1, help="Stop after so many evaluations in a row that weren't better than the best."
        ),
    ] = None,
    recipe: TrainingRecipe,
    template: TemplateOptions,
    init_tokens: Annotated[
        str | None,
        typer.Option(
            metavar="T",
            help="Virtual tokens of this backbone to start from instead: to go on with other data or another recipe.",
        ),
    ] = None,
    save_steps: Annotated[int, typer.Option(min=1, help="Steps between checkpoints.")] = 500,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the last checkpoint in --output.")
    ] = False,
    tensorboard: Annotated[
        bool, typer.Option("--tensorboard", help="Write TensorBoard logs to --output/logs.")
    ] = False,
    backbone: BackboneOptions,
    shard: Annotated[
        bool,
        typer.Option(
            "--shard",
            help="Under torchrun or accelerate launch: split the backbone's layers over the processes (FSDP).",
        ),
    ] = False,
    json: Json = False,
) -> None:
    """Train virtual tokens for a backbone.

    The data is checked before the backbone is loaded. Ctrl-C saves a checkpoint; the same command with --resume goes on.
    Several devices: torchrun --nproc-per-node N -m spring_rag train …, or accelerate launch -m spring_rag train ….
    """
    if eval_data is not None and eval_share:
        msg = "--eval-data and --eval-share exclude each other"
        raise typer.BadParameter(msg)
    if recipe.init_text != recipe.skill.init_text and init_tokens is not None:
        msg = "--init-text and --init-tokens exclude each other"
        raise typer.BadParameter(msg)
    recipe = replace(recipe, template=template.told(recipe.template))
    with quiet_libraries():
        from spring_rag.data.examples import hold_out, load_examples

        loaded = load_examples(data, skip_bad=skip_bad)
        evaluated = load_examples(eval_data, skip_bad=skip_bad) if eval_data else None
        with extra("train"):
            # transformers' Trainer needs it, but complains only once the backbone is loaded.
            import_module("accelerate")
        from spring_rag.loading import load_tokenizer

        tokenizer = load_tokenizer(model, backbone.where())
        loaded = _fitting(loaded, data, tokenizer, recipe, skip_bad=skip_bad)
        examples, held_out = loaded.examples, None
        if evaluated and eval_data:
            evaluated = _fitting(evaluated, eval_data, tokenizer, recipe, skip_bad=skip_bad)
            held_out = evaluated.examples
        if eval_share:
            examples, held_out = hold_out(examples, eval_share, recipe.seed)
        if _is_first_process():
            _note_data(loaded, "")
            if evaluated:
                _note_data(evaluated, "to evaluate on: ")
            if resume and not any(output.glob("checkpoints/checkpoint-*")):
                note(f"there is no checkpoint in {output} to go on from: training begins")
        from spring_rag.tokens import VirtualTokens
        from spring_rag.training import preview, shard_backbone, train_tokens
        from spring_rag.training.progress import ProgressReport

        begun = VirtualTokens.from_pretrained(init_tokens) if init_tokens is not None else None
        if dry_run:
            seen = preview(examples, tokenizer, recipe)
        else:
            backend = backbone.load(model)
            if shard:
                shard_backbone(backend.hf_model)
            with Progress("training", shown=_is_first_process(), stays=True) as report:
                tokens = _train(
                    lambda: train_tokens(
                        backend.hf_model,
                        backend.tokenizer,
                        examples,
                        recipe,
                        output,
                        held_out,
                        eval_ks=eval_k,
                        save_steps=save_steps,
                        patience=patience,
                        tensorboard=tensorboard,
                        resume=resume,
                        init_tokens=begun,
                        callbacks=[ProgressReport(report)],
                    )
                )
    if dry_run:
        print_json(asdict(seen)) if json else _print_preview(seen, held_out)
    elif _is_first_process():
        _print_result(tokens, output, json=json)


def _fitting(
    loaded: "Loaded",
    path: Path,
    tokenizer: "PreTrainedTokenizerBase",
    recipe: TrainingRecipe,
    *,
    skip_bad: bool,
) -> "Loaded":
    """Keep the examples that fit; without `skip_bad` all must.

    Raises:
        DataError: some haven't, or none has; names the lines.
    """
    from spring_rag.training import RagExamples

    data = RagExamples(loaded.examples, tokenizer, recipe)
    over_long = data.over_long()
    kept = loaded.without(over_long, data.too_long)
    if over_long and (not skip_bad or not kept.examples):
        replace(kept, bad=kept.bad[len(loaded.bad) :]).refuse_bad(path)
    return kept


def _note_data(loaded: "Loaded", which: str) -> None:
    if loaded.bad:
        note(
            f"{which}{counted(len(loaded.bad), 'bad line')} skipped, {counted(len(loaded.examples), 'example')} kept"
        )
    if without := sum(not example.passages for example in loaded.examples):
        note(
            f"{which}{without} of {counted(len(loaded.examples), 'example')} without passages; spring-rag data attach retrieves some"
        )


def _train(run: "Callable[[], VirtualTokens]") -> "VirtualTokens":
    try:
        return run()
    except KeyboardInterrupt as interrupt:
        if _is_first_process():
            note(str(interrupt) or "interrupted; what was saved last can be resumed (--resume)")
        raise typer.Exit(130) from None


def _is_first_process() -> bool:
    return os.environ.get("RANK", "0") == "0"


def _print_preview(seen: "Preview", held_out: "Sequence[RagExample] | None") -> None:
    for number, prompt in enumerate(seen.prompts, 1):
        lost = f", {counted(prompt.dropped, 'passage')} without room" if prompt.dropped else ""
        say(
            f"--- prompt {number}: {prompt.context} tokens before the slot, {prompt.suffix} after it, "
            f"{prompt.target} to answer{lost}"
        )
        say(prompt.text)
    say("---")
    say(f"{counted(seen.examples, 'example')} to train on, {len(held_out or [])} held out")
    say(
        f"{seen.losing_passages} of {seen.looked_at} examples looked at lose passages to the maximal length; "
        f"they take {seen.mean_length:.0f} tokens on average, {seen.longest} at most"
    )
    say(f"{counted(seen.steps, 'optimizer step')} on one device")


def _print_result(tokens: "VirtualTokens", output: Path, *, json: bool) -> None:
    training = tokens.training or {}
    if json:
        facts = {key: value for key, value in training.items() if key != "recipe"}
        print_json({"output": str(output), "num_tokens": len(tokens), "digest": tokens.digest, **facts})
        return
    say(f"{counted(len(tokens), 'virtual token')} in {output}")
    if "kept_step" in training:
        scores = training["evaluation"]
        kept = next(name for name in ("f1", "auroc", "accuracy") if f"eval_{name}" in scores)
        score = f"{_SCORES[kept]} {scores[f'eval_{kept}']:.1%}"
        say(f"those of step {training['kept_step']}: {score} on the held-out examples")
