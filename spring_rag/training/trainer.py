"""The training run: transformers' `Trainer` around a module that holds nothing but the matrix."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PrinterCallback,
    ProgressCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)
from transformers.trainer_utils import get_last_checkpoint

from spring_rag.errors import TrainingError
from spring_rag.examples import RagExample, digest
from spring_rag.splice import InputEmbedding
from spring_rag.tokens import BackboneRecord, VirtualTokens
from spring_rag.training.dataset import Item, RagExamples, SimilarLengths
from spring_rag.training.objective import Example, objectives
from spring_rag.training.recipe import TrainingRecipe

CHECKPOINTS = "checkpoints"


def train_tokens(
    hf_model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[RagExample],
    recipe: TrainingRecipe | None = None,
    output_dir: str | Path = "virtual-tokens",
    eval_examples: Sequence[RagExample] | None = None,
    *,
    save_steps: int = 500,
    resume: bool = False,
    callbacks: Sequence[TrainerCallback] = (),
) -> VirtualTokens:
    """Train virtual tokens on a frozen backbone and save them.

    Args:
        hf_model: the backbone, on its device, in any dtype; left as it is.
        tokenizer: the backbone's; left as it is.
        examples: what to train on.
        recipe: how; the defaults if not given.
        output_dir: where the artifact goes; checkpoints go into a folder in it.
        eval_examples: held out; their loss with all n tokens is logged whenever a checkpoint is written.
        save_steps: optimizer steps between checkpoints (a few hundred kilobytes each; the last two are kept).
        resume: go on from the last checkpoint in `output_dir`, if there is one.
        callbacks: more callbacks for the `Trainer`, for progress and logs.

    Returns:
        The trained tokens, as saved.

    Raises:
        TrainingError: no examples, or a recipe that this backbone can't follow.
        DataError: an example that doesn't fit the recipe's `max_length`.
        UnsupportedBackboneError: the backbone's input embeddings can't be spliced.
    """
    recipe = recipe or TrainingRecipe()
    output = Path(output_dir)
    _check(hf_model, recipe, examples)
    train_data = RagExamples(examples, tokenizer, recipe)
    train_data.check()
    eval_data = None
    if eval_examples:
        eval_data = RagExamples(eval_examples, tokenizer, recipe)
        eval_data.check()
    module = TokenModule(hf_model, initial_rows(hf_model, tokenizer, recipe.init_text, recipe.num_tokens))
    trainer = TokenTrainer(
        module,
        train_data,
        args=_arguments(
            recipe, output / CHECKPOINTS, save_steps, hf_model.device, evaluate=eval_data is not None
        ),
        data_collator=Collator(recipe),
        eval_dataset=eval_data,
        callbacks=list(callbacks),
    )
    # Both write to standard output, which belongs to a command's result.
    trainer.remove_callback(PrinterCallback)
    trainer.remove_callback(ProgressCallback)
    started = time.perf_counter()
    result = trainer.train(resume_from_checkpoint=_last_checkpoint(output / CHECKPOINTS) if resume else None)
    tokens = VirtualTokens(
        module.matrix.detach().cpu(),
        backbone=BackboneRecord.of(hf_model),
        template=recipe.template,
        training={
            "recipe": recipe.to_dict(),
            "data": {"examples": len(examples), "digest": digest(examples)},
            "steps": result.global_step,
            "loss": round(result.training_loss, 6),
            "seconds": round(time.perf_counter() - started, 1),
        },
    )
    if trainer.is_world_process_zero():
        tokens.save_pretrained(output)
    return tokens


def initial_rows(
    hf_model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, text: str, num_tokens: int
) -> Tensor:
    """The token embeddings of a text, repeated or cut to `num_tokens` rows.

    Returns:
        Float32 `[num_tokens, hidden_size]`, rows of the embedding table as they stand (unscaled), on the CPU.

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


@dataclass(frozen=True, slots=True)
class Batch:
    """Encoded examples, and the ks that they are trained with."""

    examples: list[Example]
    ks: list[int]


@dataclass(frozen=True, slots=True)
class Collator:
    """Makes batches of items; k depends on the seed and on what is in the batch, so a resumed run draws the same."""

    recipe: TrainingRecipe

    def __call__(self, items: Sequence[Item]) -> dict[str, Batch]:
        """A batch under the name of `TokenModule.forward`'s argument."""
        first = items[0]
        ks = self.recipe.draw_ks(Random(f"{self.recipe.seed}:{first.epoch}:{first.index}:k"))
        return {"batch": Batch([item.example for item in items], ks)}


class TokenModule(nn.Module):
    """The matrix as a module's only parameter.

    The backbone is kept out of the module's children: it is neither moved, wrapped, counted nor saved with it.

    Args:
        hf_model: the backbone.
        rows: initial matrix, `[n, hidden_size]`, any float dtype; trained in float32.
    """

    def __init__(self, hf_model: PreTrainedModel, rows: Tensor) -> None:
        super().__init__()
        self.matrix = nn.Parameter(rows.detach().to(torch.float32).clone())
        self._backbone = (hf_model, InputEmbedding(hf_model))

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """The losses of the batch's ks, summed (the sandwich has several)."""
        hf_model, embedding = self._backbone
        return {
            "loss": objectives(hf_model, batch.examples, self.matrix, batch.ks, embedding=embedding).sum()
        }


class TokenTrainer(Trainer):
    """`Trainer` for `TokenModule`: batches of similar lengths, and evaluation with all tokens."""

    def __init__(self, module: TokenModule, train_dataset: RagExamples, **kwargs: Any) -> None:
        self._module, self._examples = module, train_dataset
        super().__init__(model=module, train_dataset=train_dataset, **kwargs)

    def _get_train_sampler(self, *_: object) -> SimilarLengths:
        return SimilarLengths(self._examples, self.args.train_batch_size, self.args.seed)

    def prediction_step(
        self, model: nn.Module, inputs: dict[str, Any], *_: object, **__: object
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """The loss with all n tokens."""
        batch: Batch = inputs["batch"]
        with torch.no_grad(), self.compute_loss_context_manager():
            outputs = model(batch=Batch(batch.examples, [len(self._module.matrix)]))
        return outputs["loss"].detach(), None, None


def _last_checkpoint(folder: Path) -> str | None:
    return cast(str | None, get_last_checkpoint(str(folder))) if folder.is_dir() else None


def _check(hf_model: PreTrainedModel, recipe: TrainingRecipe, examples: Sequence[RagExample]) -> None:
    if not examples:
        msg = "there is nothing to train on: the data holds no examples"
        raise TrainingError(msg)
    longest = getattr(hf_model.config.get_text_config(), "max_position_embeddings", None)
    if longest is not None and recipe.max_length > longest:
        msg = f"max_length = {recipe.max_length}, but {type(hf_model).__name__} reads at most {longest} tokens; lower it"
        raise TrainingError(msg)


def _arguments(
    recipe: TrainingRecipe, folder: Path, save_steps: int, device: torch.device, *, evaluate: bool
) -> TrainingArguments:
    return TrainingArguments(
        output_dir=str(folder),
        num_train_epochs=recipe.epochs,
        max_steps=recipe.max_steps or -1,
        per_device_train_batch_size=recipe.batch_size,
        per_device_eval_batch_size=recipe.batch_size,
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
        eval_strategy="steps" if evaluate else "no",
        eval_steps=save_steps,
        logging_steps=10,
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        label_names=[],
        dataloader_pin_memory=False,
    )
