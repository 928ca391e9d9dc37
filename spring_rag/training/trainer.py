"""Run a training, from examples to a saved artifact."""

import logging
import math
import time
import warnings
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import (
    EarlyStoppingCallback,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PrinterCallback,
    ProgressCallback,
    TrainerCallback,
    TrainingArguments,
)
from transformers.integrations.integration_utils import TensorBoardCallback

from spring_rag.backbone import BackboneRecord, quantization_of
from spring_rag.data.examples import RagExample, digest
from spring_rag.errors import TrainingError
from spring_rag.extras import extra
from spring_rag.limits import context_length
from spring_rag.persistence.folder import refuse_foreign
from spring_rag.recipe import TrainingRecipe
from spring_rag.skills import ANSWER
from spring_rag.splice import InputEmbedding
from spring_rag.templates import DATE, DATE_FORMAT, prints_date, template_arguments, template_digest
from spring_rag.tokens import VirtualTokens
from spring_rag.training.dataset import RagExamples
from spring_rag.training.engine import LOWER, Collator, EvaluateAtTheEnd, TokenModule, TokenTrainer
from spring_rag.training.heldout import HeldOut
from spring_rag.training.heldout_choices import HeldOutChoices
from spring_rag.training.interrupt import StopOnInterrupt
from spring_rag.training.resuming import CheckpointFolder, recorded_run

_logger = logging.getLogger(__name__)

CHECKPOINTS = "checkpoints"
LOGS = "logs"


def train_tokens(
    hf_model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[RagExample],
    recipe: TrainingRecipe | None = None,
    output_dir: str | Path = "virtual-tokens",
    eval_examples: Sequence[RagExample] | None = None,
    *,
    eval_ks: Sequence[int] | None = None,
    save_steps: int = 500,
    patience: int | None = None,
    tensorboard: bool = False,
    resume: bool = False,
    init_tokens: VirtualTokens | None = None,
    callbacks: Sequence[TrainerCallback] = (),
) -> VirtualTokens:
    """Train virtual tokens on a frozen backbone and save them.

    In several processes (`torchrun`, `accelerate launch`) each trains on its share of every optimizer step. The gradient is that of
    one process with all of the step's examples.

    Args:
        hf_model: the backbone, on its device, in any dtype; left unchanged.
        tokenizer: the backbone's; left unchanged.
        examples: what to train on.
        recipe: how to train, and for which task; the defaults if not given.
        output_dir: where the artifact goes; checkpoints and logs go into folders in it.
        eval_examples: held-out examples, evaluated at each checkpoint. The rows of the checkpoint with the best F1 of greedy answers
            (AUROC or accuracy for tasks that choose) become the artifact; without `eval_examples` the last rows do. They also calibrate the
            probabilities of tasks that say yes or no.
        eval_ks: numbers of virtual tokens to evaluate with; if not given, 1 and n, or only n for tasks that choose.
        save_steps: optimizer steps between checkpoints (a few hundred kilobytes each; the last two and the best are kept).
        patience: stop after this many evaluations in a row that were no better than the best.
        tensorboard: write TensorBoard logs to `output_dir/logs`.
        resume: go on from the last checkpoint in `output_dir`, if there is one. A finished run is left unchanged, with or without it.
        init_tokens: virtual tokens of this backbone, to go on with other data or another recipe: training starts from their first n
            rows and not from the recipe's `init_text`.
        callbacks: more callbacks for the `Trainer`, for progress and logs.

    Returns:
        The trained tokens, as saved.

    Raises:
        TokensError: `output_dir` holds a config.json or README.md of something else.
        BackboneMismatchError: `init_tokens` belong to another backbone.
        TrainingError: no examples, fewer than n `init_tokens`, a recipe that this backbone can't follow, or a loss that isn't finite; or
            a folder that can't be written, holds another run's checkpoints, or is in use by another run.
        DataError: an example that doesn't fit the recipe's `max_length`.
        UnsupportedBackboneError: the backbone's input embeddings can't be spliced.
        KeyboardInterrupt: after Ctrl-C; the text says where the checkpoint is. A second Ctrl-C doesn't wait for it.
    """
    recipe = recipe or TrainingRecipe()
    output = Path(output_dir)
    refuse_foreign(output)
    _check(hf_model, recipe, examples, eval_examples, patience)
    if recipe.precision == "bfloat16" and hf_model.device.type == "cpu":
        _warn_if_slow()
    recipe = _with_date(recipe, tokenizer, output / CHECKPOINTS)
    train_data = RagExamples(examples, tokenizer, recipe)
    train_data.check()
    held_out: HeldOut | HeldOutChoices | None = None
    if eval_examples:
        kind = HeldOut if recipe.task == ANSWER else HeldOutChoices
        held_out = kind(hf_model, tokenizer, eval_examples, recipe, eval_ks)
    if init_tokens is None:
        rows = initial_rows(hf_model, tokenizer, recipe.init_text, recipe.num_tokens)
    else:
        rows = _rows_of(init_tokens, hf_model, recipe.num_tokens)
    module = TokenModule(hf_model, rows)
    interrupt = StopOnInterrupt()
    trainer = TokenTrainer(
        module,
        train_data,
        held_out,
        args=_arguments(recipe, output, save_steps, hf_model.device, held_out.best if held_out else None),
        data_collator=Collator(recipe),
        callbacks=[
            *([EarlyStoppingCallback(patience)] if patience else []),
            *([_tensorboard(output / LOGS)] if tensorboard else []),
            EvaluateAtTheEnd(),
            interrupt,
            *callbacks,
        ],
    )
    # Both write to standard output, which belongs to a command's result.
    trainer.remove_callback(PrinterCallback)
    trainer.remove_callback(ProgressCallback)
    record = BackboneRecord.of(hf_model)
    data = {"examples": len(examples), "digest": digest(examples)}
    began = {"init_tokens": init_tokens.digest} if init_tokens is not None else {}
    run = CheckpointFolder(
        output / CHECKPOINTS,
        {
            "recipe": recipe.to_dict(),
            "data": data,
            "backbone": _identity(record, hf_model),
            "evaluation": _evaluation(held_out, eval_examples, save_steps, patience),
            **began,
            "processes": trainer.args.world_size,
        },
    )
    with run.claimed() if trainer.is_world_process_zero() else nullcontext():
        checkpoint = None
        with trainer.args.main_process_first(desc="looking for checkpoints"):
            if trainer.is_world_process_zero():
                checkpoint = run.begin(resume=resume)
            elif resume:
                checkpoint = run.last_checkpoint()
        if run.is_finished():
            if not resume:
                _logger.info(
                    "this run is finished already, and nothing was trained; another seed or folder trains again"
                )
            return VirtualTokens.from_pretrained(output)
        started = time.perf_counter()
        with interrupt:
            result = trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        if interrupt.stopped_at is not None:
            msg = (
                f"stopped after step {interrupt.stopped_at} of {trainer.state.max_steps}; the checkpoint is in {run.folder}. "
                "Go on with the same call and resume (--resume)"
            )
            raise KeyboardInterrupt(msg)
        if not (math.isfinite(result.training_loss) and module.matrix.square().sum().isfinite()):
            msg = f"the virtual tokens or their loss ({result.training_loss}) are no longer finite; {LOWER}"
            raise TrainingError(msg)
        tokens = VirtualTokens(
            module.matrix.detach().cpu(),
            backbone=record,
            template=recipe.answer_template,
            chat_template=template_digest(tokenizer) if recipe.chat > 0 else None,
            task=recipe.task,
            calibration=held_out.calibration(module.matrix.detach()) if held_out else None,
            training={
                "recipe": recipe.to_dict(),
                **began,
                "data": data,
                "steps": result.global_step,
                "loss": round(result.training_loss, 6),
                "seconds": round(time.perf_counter() - started, 1),
                # `Trainer` counts loss and seconds only since then.
                **({"resumed_after_step": int(checkpoint.name.rpartition("-")[2])} if checkpoint else {}),
                **(_evaluated(trainer, held_out.best) if held_out else {}),
            },
        )
        if trainer.is_world_process_zero():
            tokens.save_pretrained(output)
            run.finish()
        return tokens


def initial_rows(
    hf_model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, text: str, num_tokens: int
) -> Tensor:
    """Return the token embeddings of a text, repeated or cut to `num_tokens` rows.

    Returns:
        Float32 `[num_tokens, hidden_size]`, unscaled rows of the embedding table, on the CPU.

    Raises:
        TrainingError: the text has no tokens.
    """
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    if not ids:
        msg = f"the initial text {text!r} has no tokens; give one that has"
        raise TrainingError(msg)
    with InputEmbedding(hf_model).table() as table:
        rows = torch.tensor([ids[i % len(ids)] for i in range(num_tokens)], device=table.device)
        return table.detach()[rows].to("cpu", torch.float32)


def _with_date(
    recipe: TrainingRecipe, tokenizer: PreTrainedTokenizerBase, checkpoints: Path
) -> TrainingRecipe:
    """Set one date for all prompts of the run, and for later ones, if the chat template prints today's.

    A run that was begun on another day keeps its date.
    """
    template = recipe.template
    arguments = template_arguments(template, tokenizer) if recipe.chat > 0 else {}
    if recipe.chat == 0 or DATE in arguments or not prints_date(tokenizer, arguments):
        return recipe
    begun = recorded_run(checkpoints).get("recipe", {}).get("template", {}).get("chat_template_kwargs", {})
    day = begun.get(DATE) or f"{datetime.now():{DATE_FORMAT}}"
    return replace(
        recipe, template=replace(template, chat_template_kwargs={**template.chat_template_kwargs, DATE: day})
    )


def _rows_of(tokens: VirtualTokens, hf_model: PreTrainedModel, num_tokens: int) -> Tensor:
    """Return the first rows of trained tokens, in the space of the backbone's table, `[num_tokens, hidden_size]`."""
    embedding = InputEmbedding(hf_model)
    with embedding.table() as table:
        tokens.check(table, hf_model.config.name_or_path or None, quantization_of(hf_model.config))
    if len(tokens) < num_tokens:
        msg = f"{num_tokens} virtual tokens can't start from {len(tokens)}; train as many (--num-tokens {len(tokens)}) or fewer"
        raise TrainingError(msg)
    return tokens.in_table_space(embedding.scale)[:num_tokens]


def _check(
    hf_model: PreTrainedModel,
    recipe: TrainingRecipe,
    examples: Sequence[RagExample],
    eval_examples: Sequence[RagExample] | None,
    patience: int | None,
) -> None:
    if not examples:
        msg = "there is nothing to train on: the data holds no examples"
        raise TrainingError(msg)
    if patience is not None and (patience < 1 or not eval_examples):
        msg = f"patience = {patience} needs to be at least 1, and examples to evaluate on (--eval-data or --eval-share)"
        raise TrainingError(msg)
    longest = context_length(hf_model.config)
    if longest is not None and recipe.max_length > longest:
        msg = f"max_length = {recipe.max_length}, but {type(hf_model).__name__} reads at most {longest} tokens; lower it"
        raise TrainingError(msg)


def _evaluation(
    held_out: HeldOut | HeldOutChoices | None,
    examples: Sequence[RagExample] | None,
    save_steps: int,
    patience: int | None,
) -> dict[str, Any] | None:
    """Return the settings that decide which checkpoint is kept and when the run stops; None without held-out examples."""
    if held_out is None or not examples:
        return None
    return {"digest": digest(examples), "ks": held_out.ks, "every": save_steps, "patience": patience}


def _identity(record: BackboneRecord, hf_model: PreTrainedModel) -> dict[str, Any]:
    """Return the backbone's record and dtype. Its name may be a folder that has moved, so it is left out if there is a fingerprint."""
    described = {**record.to_dict(), "dtype": str(hf_model.dtype)}
    return {k: v for k, v in described.items() if k != "model_id" or record.fingerprint is None}


def _evaluated(trainer: TokenTrainer, best: str) -> dict[str, Any]:
    """Return the scores of the rows that were kept, and their step, for the artifact."""
    state = trainer.state
    step = state.best_global_step
    if step is None:
        return {}
    logged = next(entry for entry in state.log_history if entry["step"] == step and f"eval_{best}" in entry)
    scores = {name: round(value, 6) for name, value in logged.items() if name.startswith("eval_")}
    return {"kept_step": step, "evaluation": scores}


def _tensorboard(folder: Path) -> TensorBoardCallback:
    with extra("train"):
        from torch.utils.tensorboard import SummaryWriter

        return TensorBoardCallback(SummaryWriter(str(folder)))


def _warn_if_slow() -> None:
    """Warn of x86 processors without AVX-512, which compute bfloat16 number by number: a step took a hundred times as long as in float32."""
    # The oldest supported PyTorch doesn't have this function; then there is no warning.
    capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    if capabilities.get("architecture") == "x86_64" and not capabilities.get("avx512_f", True):
        msg = "this processor has no instructions for bfloat16, so training in it may take many times as long as in float32"
        warnings.warn(msg, stacklevel=3)


def _arguments(
    recipe: TrainingRecipe, output: Path, save_steps: int, device: torch.device, best: str | None
) -> TrainingArguments:
    arguments = TrainingArguments(
        # Absolute: a checkpoint remembers where the best one is.
        output_dir=str((output / CHECKPOINTS).absolute()),
        num_train_epochs=recipe.epochs,
        max_steps=recipe.max_steps or -1,
        per_device_train_batch_size=recipe.batch_size,
        gradient_accumulation_steps=recipe.accumulation,
        learning_rate=recipe.learning_rate,
        lr_scheduler_type=recipe.scheduler,
        # From 1 on, it would count steps.
        warmup_steps=min(recipe.warmup, 0.999),
        weight_decay=recipe.weight_decay,
        max_grad_norm=recipe.max_grad_norm,
        optim="adamw_torch",
        bf16=recipe.precision == "bfloat16",
        use_cpu=device.type == "cpu",
        seed=recipe.seed,
        save_strategy="steps",
        save_steps=save_steps,
        save_total_limit=2,
        eval_strategy="no" if best is None else "steps",
        eval_steps=save_steps,
        load_best_model_at_end=best is not None,
        metric_for_best_model=best,
        greater_is_better=True,
        # They hold the number of evaluations without improvement so far, for `patience`.
        restore_callback_states_from_checkpoint=True,
        logging_steps=10,
        logging_nan_inf_filter=False,
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        label_names=[],
        dataloader_pin_memory=False,
    )
    # With several GPUs, `Trainer` would copy the module to each (`nn.DataParallel`), but the backbone is no part of it.
    arguments._n_gpu = min(arguments.n_gpu, 1)
    return arguments
