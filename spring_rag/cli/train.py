"""`spring-rag train`: virtual tokens for a backbone, from questions with answers and passages."""

from importlib import import_module
from pathlib import Path
from typing import Annotated, Literal

import typer

from spring_rag.cli.console import note, quiet_libraries
from spring_rag.extras import extra


def train(
    model: Annotated[str, typer.Option(metavar="M", help="Backbone: Hub id or folder. It stays frozen.")],
    data: Annotated[
        Path,
        typer.Option(
            metavar="FILE",
            help='JSON lines: {"question", "target", "ret_passages"}, passages best first; or FlashRAG\'s.',
        ),
    ],
    output: Annotated[
        Path, typer.Option(metavar="DIR", help="Folder for the trained tokens and checkpoints.")
    ],
    eval_data: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Held-out examples; their loss is shown.", show_default=False),
    ] = None,
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="Leave out bad lines, and count them.")
    ] = False,
    num_tokens: Annotated[
        int,
        typer.Option(
            "-n", "--num-tokens", min=1, help="Virtual tokens; more can say more, a sweep shows if it helps."
        ),
    ] = 50,
    init_text: Annotated[
        str | None,
        typer.Option(
            help="Text whose token embeddings the rows start from; an instruction is half of what they are to say.",
            show_default="an instruction",
        ),
    ] = None,
    learning_rate: Annotated[
        float,
        typer.Option(help="AdamW's peak; far above that of a model's weights, since only some rows move."),
    ] = 1e-2,
    warmup: Annotated[
        float, typer.Option(min=0, max=1, help="Share of the steps in which the rate rises.")
    ] = 0.05,
    epochs: Annotated[float, typer.Option(help="Passes over the data.")] = 1.0,
    max_steps: Annotated[
        int | None, typer.Option(min=1, help="Optimizer steps, instead of --epochs.", show_default=False)
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Examples per forward pass.")] = 8,
    accumulation: Annotated[
        int, typer.Option(min=1, help="Forward passes per optimizer step: larger batches, no more memory.")
    ] = 1,
    precision: Annotated[
        Literal["float32", "bfloat16"], typer.Option(help="Arithmetic; the tokens themselves are float32.")
    ] = "float32",
    max_length: Annotated[
        int, typer.Option(min=1, help="Most tokens of an example; its lowest-ranked passages go first.")
    ] = 1024,
    min_passages: Annotated[int, typer.Option(min=0, help="Fewest passages of an example.")] = 1,
    max_passages: Annotated[
        int, typer.Option(min=0, help="Most passages of an example; varied, so that any number works later.")
    ] = 5,
    k_schedule: Annotated[
        Literal["uniform", "small", "sandwich"],
        typer.Option(
            help="How many of the first rows a batch uses. uniform: the authors' way. small: few more often, since one must learn"
            " what fifty can share. sandwich: one, all and one number between, on one cached context."
        ),
    ] = "small",
    unanswerable: Annotated[
        float,
        typer.Option(
            min=0,
            max=1,
            help="Share of examples that lose the passages which hold the answer, and are trained to say so instead of guessing.",
        ),
    ] = 0.0,
    unanswerable_answer: Annotated[
        str, typer.Option(help="What to answer where the passages don't.")
    ] = "not stated",
    chat: Annotated[
        float,
        typer.Option(
            min=0, max=1, help="Share of examples in the tokenizer's chat template; as you will use them."
        ),
    ] = 0.0,
    seed: Annotated[int, typer.Option(min=0, help="Of every draw.")] = 0,
    save_steps: Annotated[int, typer.Option(min=1, help="Steps between checkpoints.")] = 500,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the last checkpoint in --output.")
    ] = False,
    device: Annotated[str, typer.Option(help="auto takes CUDA, else MPS, else the CPU.")] = "auto",
    dtype: Annotated[str, typer.Option(help="Of the backbone: auto, float32, bfloat16, float16.")] = "auto",
    revision: Annotated[
        str | None, typer.Option(help="Branch, tag or commit of the backbone.", show_default=False)
    ] = None,
) -> None:
    """Train virtual tokens for a backbone.

    The data is checked before the backbone is loaded.
    """
    with quiet_libraries():
        from spring_rag.examples import load_examples

        loaded = load_examples(data, skip_bad=skip_bad)
        held_out = load_examples(eval_data, skip_bad=skip_bad).examples if eval_data else None
        if loaded.bad:
            note(f"{len(loaded.bad)} bad lines skipped, {len(loaded.examples)} examples kept")
        with extra("train"):
            # transformers' Trainer needs it, and says so only when it is made.
            import_module("accelerate")
        from spring_rag.backends.local import LocalBackend
        from spring_rag.training import TrainingRecipe, train_tokens
        from spring_rag.training.progress import ProgressBar
        from spring_rag.training.recipe import INIT_TEXT

        recipe = TrainingRecipe(
            num_tokens=num_tokens,
            init_text=INIT_TEXT if init_text is None else init_text,
            learning_rate=learning_rate,
            warmup=warmup,
            epochs=epochs,
            max_steps=max_steps,
            batch_size=batch_size,
            accumulation=accumulation,
            precision=precision,
            max_length=max_length,
            min_passages=min_passages,
            max_passages=max_passages,
            k_schedule=k_schedule,
            unanswerable=unanswerable,
            unanswerable_answer=unanswerable_answer,
            chat=chat,
            seed=seed,
        )
        backend = LocalBackend.from_pretrained(model, device=device, dtype=dtype, revision=revision)
        tokens = train_tokens(
            backend.hf_model,
            backend.tokenizer,
            loaded.examples,
            recipe,
            output,
            held_out,
            save_steps=save_steps,
            resume=resume,
            callbacks=[ProgressBar()],
        )
    print(f"{len(tokens)} virtual tokens in {output}")
