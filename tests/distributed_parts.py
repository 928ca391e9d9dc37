"""Parts that the two processes of `test_distributed.py` share with the one that they are compared with."""

from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    PreTrainedModel,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from spring_rag.training import TrainingRecipe


class GradientLog(TrainerCallback):
    """Keeps the gradient of every optimizer step."""

    def __init__(self) -> None:
        self.gradients: list[torch.Tensor] = []

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.gradients.append(kwargs["model"].matrix.grad.clone())


def recipe(batch_size: int, accumulation: int) -> TrainingRecipe:
    return TrainingRecipe(
        num_tokens=6,
        learning_rate=0.01,
        batch_size=batch_size,
        accumulation=accumulation,
        max_length=200,
        max_steps=4,
        max_grad_norm=1e9,
        k_schedule="sandwich",
        chat=0.0,
    )


def backbone(folder: Path) -> PreTrainedModel:
    model = AutoModelForCausalLM.from_pretrained(folder / "backbone")
    assert isinstance(model, PreTrainedModel)
    return model
