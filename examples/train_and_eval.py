"""Train ten virtual tokens on a few questions and score them on others: `python examples/train_and_eval.py`.

Needs spring-rag[train]. Eight steps on invented facts show the way, and no gain to speak of; `spring-rag train` does it in earnest.
"""

import tempfile
from pathlib import Path

from rich.console import Console

from spring_rag import SpringModel
from spring_rag.data.examples import RagExample
from spring_rag.demo.default import default_backbone
from spring_rag.evaluation import score_table, sweep
from spring_rag.training import TrainingRecipe, train_tokens

TOWNS = [
    "Morven",
    "Harlow",
    "Senn",
    "Dunmore",
    "Kestrel",
    "Oakhill",
    "Brandt",
    "Lorne",
    "Wick",
    "Tarn",
    "Eller",
    "Pell",
]
YEARS = range(1801, 1801 + len(TOWNS))
PASSAGES = [f"The bridge of {town} was opened in {year}." for town, year in zip(TOWNS, YEARS, strict=True)]


def example(number: int) -> RagExample:
    """A question with its answer, the passage that holds it, and one that doesn't."""
    passages = (PASSAGES[number], PASSAGES[number - 1])
    return RagExample(f"When was the bridge of {TOWNS[number]} opened?", (str(YEARS[number]),), passages)


examples = [example(number) for number in range(len(TOWNS))]
train, test = examples[:8], examples[8:]

plain = SpringModel.from_pretrained(default_backbone())  # or a model of yours
recipe = TrainingRecipe(num_tokens=10, max_steps=8, batch_size=4, max_passages=2)
folder = Path(tempfile.mkdtemp()) / "tokens"
tokens = train_tokens(plain.backend.hf_model, plain.tokenizer, train, recipe, folder)

model = SpringModel.from_backend(plain.backend, tokens=tokens)
Console(width=90).print(score_table(sweep(model, test, [0, 1, 10], max_new_tokens=16)))
print(sorted(path.name for path in folder.iterdir()))
