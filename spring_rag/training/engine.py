"""transformers' `Trainer` around a module that holds nothing but the matrix."""

# ruff: noqa: ARG002 - the signatures are those of `TrainerCallback`.

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import (
    PreTrainedModel,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from spring_rag.errors import TrainingError
from spring_rag.recipe import TrainingRecipe
from spring_rag.splice import InputEmbedding
from spring_rag.training.dataset import Item, RagExamples, SimilarLengths
from spring_rag.training.heldout import HeldOut
from spring_rag.training.heldout_choices import HeldOutChoices
from spring_rag.training.objective import objectives
from spring_rag.training.ways import Example

LOWER = "lower the learning rate, train in another precision, or check that the backbone's weights are finite"
"""Advice for a loss or rows that are no longer finite."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Encoded examples, their ks, and for each target id the ids that it is chosen from (None if any text may be written)."""

    examples: list[Example]
    ks: list[int]
    among: list[Mapping[int, float]] | None = None

    @property
    def num_tokens(self) -> int:
        """Number of ids and virtual tokens that the model reads: each context once, each suffix once per k."""
        context = sum(len(encoded.context_ids) for encoded, _ in self.examples)
        suffix = sum(len(encoded.suffix_ids) + len(target) for encoded, target in self.examples)
        return context + sum(suffix + k * len(self.examples) for k in self.ks)


@dataclass(frozen=True, slots=True)
class Collator:
    """Makes batches of items; k depends only on the seed, the epoch and the optimizer step, so a resumed run draws the same."""

    recipe: TrainingRecipe

    def __call__(self, items: Sequence[Item]) -> dict[str, Any]:
        """Return a batch under the names of `TokenModule.forward`'s arguments."""
        first = items[0]
        ks = self.recipe.draw_ks(Random(f"{self.recipe.seed}:{first.epoch}:{first.step}:k"))
        examples = [item.example for item in items]
        # `Trainer` counts what has this name, over all processes and forward passes of an optimizer step.
        labels = torch.tensor([i for _, target in examples for i in target])
        among = None
        if all(item.among is not None for item in items):
            among = [shares for item in items for shares in item.among or ()]
        return {"batch": Batch(examples, ks, among), "labels": labels}


class TokenModule(nn.Module):
    """The matrix as a module's only parameter.

    The backbone is not among the module's children, so it isn't moved, wrapped, counted or saved with it.

    Args:
        hf_model: the backbone.
        rows: initial matrix, `[n, hidden_size]`, any float dtype; trained in float32.
    """

    accepts_loss_kwargs = True
    """Asks `Trainer` for `num_items_in_batch`."""

    def __init__(self, hf_model: PreTrainedModel, rows: Tensor) -> None:
        super().__init__()
        self.matrix = nn.Parameter(rows.detach().to(torch.float32).clone())
        self._backbone = (hf_model, InputEmbedding(hf_model))

    def forward(self, batch: Batch, labels: Tensor, num_items_in_batch: Tensor) -> dict[str, Tensor]:
        """Return the sum of the losses of the batch's ks (the sandwich schedule has several).

        Each loss is a mean over this batch's target ids. It is multiplied by the batch's share of the optimizer step's target ids,
        so that all ids of a step count alike.

        Args:
            batch: the examples.
            labels: the examples' target ids.
            num_items_in_batch: number of target ids of the whole optimizer step.
        """
        hf_model, embedding = self._backbone
        losses = objectives(
            hf_model, batch.examples, self.matrix, batch.ks, embedding=embedding, among=batch.among
        )
        share = labels.numel() / num_items_in_batch.to(losses.device)
        return {"loss": losses.sum() * share}


class TokenTrainer(Trainer):
    """`Trainer` for `TokenModule`: batches of similar lengths, held-out answers, tokens per second."""

    def __init__(
        self,
        module: TokenModule,
        train_dataset: RagExamples,
        held_out: HeldOut | HeldOutChoices | None,
        **kwargs: Any,
    ) -> None:
        self._module, self._examples, self._held_out = module, train_dataset, held_out
        self._tokens, self._since = 0, time.perf_counter()
        # `Trainer` requires a dataset to evaluate on, which `evaluate` below doesn't use.
        super().__init__(model=module, train_dataset=train_dataset, eval_dataset=train_dataset, **kwargs)

    def _get_train_sampler(self, *_: object) -> SimilarLengths:
        args = self.args
        step_size = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
        return SimilarLengths(self._examples, step_size, args.seed)

    def training_step(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Tensor:
        """Run one forward and backward pass, and count its tokens."""
        self._tokens += inputs["batch"].num_tokens * self.args.world_size
        loss: Tensor = super().training_step(model, inputs, *args, **kwargs)
        return loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log values, with tokens per second since the last log.

        Raises:
            TrainingError: the loss isn't a finite number.
        """
        if "loss" in logs:
            if not math.isfinite(logs["loss"]):
                msg = f"the loss became {logs['loss']} by step {self.state.global_step}; {LOWER}"
                raise TrainingError(msg)
            logs["tokens_per_second"] = round(self._tokens / (time.perf_counter() - self._since), 1)
            self._tokens, self._since = 0, time.perf_counter()
        super().log(logs, start_time)

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        """Save, or say in one line why it failed. Each file of a checkpoint has a writer with errors of its own."""
        try:
            super()._save_checkpoint(*args, **kwargs)
        except (OSError, RuntimeError, SafetensorError) as error:
            msg = (
                f"the checkpoint of step {self.state.global_step} can't be written to {self.args.output_dir}: "
                f"{' '.join(str(error).split())[:300]}; make room and go on from the one before (--resume)"
            )
            raise TrainingError(msg) from error

    def evaluate(self, *_: object, **__: object) -> dict[str, float]:
        """Return loss and scores on the held-out examples, under names that begin with `eval_`."""
        assert self._held_out is not None
        started = time.perf_counter()
        scores = self._held_out.scores(self._module.matrix.detach())
        metrics = {f"eval_{name}": value for name, value in scores.items()}
        self.log(dict(metrics))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        self._since += time.perf_counter() - started
        return metrics


class EvaluateAtTheEnd(TrainerCallback):
    """Evaluates the last rows too: they are saved, and may be the best."""

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Evaluate after the last step, if the run evaluates at all."""
        if state.global_step >= state.max_steps and args.load_best_model_at_end:
            control.should_evaluate = True
