"""Training virtual tokens on a frozen backbone: data, objective, recipe, trainer."""

from spring_rag.recipe import TrainingRecipe
from spring_rag.training.dataset import RagExamples
from spring_rag.training.objective import objective, objectives
from spring_rag.training.preview import Preview, preview
from spring_rag.training.sharding import shard_backbone
from spring_rag.training.trainer import initial_rows, train_tokens
from spring_rag.training.ways import Example

__all__ = [
    "Example",
    "Preview",
    "RagExamples",
    "TrainingRecipe",
    "initial_rows",
    "objective",
    "objectives",
    "preview",
    "shard_backbone",
    "train_tokens",
]
