"""Training virtual tokens on a frozen backbone: data, objective, recipe, trainer."""

from spring_rag.training.dataset import RagExamples
from spring_rag.training.objective import Example, objective, objectives
from spring_rag.training.recipe import TrainingRecipe
from spring_rag.training.trainer import initial_rows, train_tokens

__all__ = [
    "Example",
    "RagExamples",
    "TrainingRecipe",
    "initial_rows",
    "objective",
    "objectives",
    "train_tokens",
]
