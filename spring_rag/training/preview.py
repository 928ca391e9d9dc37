"""Show what a training run would do, without a model: finished prompts, lengths, steps."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean

from transformers import PreTrainedTokenizerBase

from spring_rag.data.examples import RagExample
from spring_rag.errors import DataError
from spring_rag.recipe import TrainingRecipe
from spring_rag.training.dataset import Item, RagExamples, SampleIndex

_LOOKED_AT = 1000
SLOT = "⟨virtual tokens⟩"
TARGET = "⟨answer⟩"


@dataclass(frozen=True, slots=True)
class FinishedPrompt:
    """One prompt as the backbone reads it.

    Attributes:
        text: the ids decoded, control tokens included, with `SLOT` in the slot and `TARGET` before the answer.
        context: number of ids before the slot.
        suffix: number of ids after the slot, without the answer.
        target: number of ids of the answer.
        dropped: number of passages that didn't fit.
    """

    text: str
    context: int
    suffix: int
    target: int
    dropped: int


@dataclass(frozen=True, slots=True)
class Preview:
    """What a run would see in its first epoch.

    Attributes:
        prompts: the first examples.
        examples: number of examples.
        looked_at: number of examples that were encoded for the next three numbers, evenly spaced over the data.
        losing_passages: number of these that have passages which don't fit.
        mean_length: mean number of tokens, virtual tokens and answer included.
        longest: number of tokens of the longest, virtual tokens and answer included.
        steps: optimizer steps of the whole run, on one device.
    """

    prompts: list[FinishedPrompt]
    examples: int
    looked_at: int
    losing_passages: int
    mean_length: float
    longest: int
    steps: int


def preview(
    examples: Sequence[RagExample],
    tokenizer: PreTrainedTokenizerBase,
    recipe: TrainingRecipe,
    prompts: int = 3,
) -> Preview:
    """Encode a part of the data as training would, and measure it.

    Args:
        examples: the run's data.
        tokenizer: the backbone's.
        recipe: the run's recipe.
        prompts: number of finished prompts to show.

    Raises:
        DataError: no examples, or one that doesn't fit the recipe's `max_length`.
    """
    if not examples:
        msg = "there is nothing to preview: the data holds no examples"
        raise DataError(msg)
    data = RagExamples(examples, tokenizer, recipe)
    data.check()
    stride = max(1, len(examples) // _LOOKED_AT)
    items = [data[SampleIndex(i)] for i in range(0, len(examples), stride)]
    lengths = [len(item.example[0].ids) + recipe.num_tokens + len(item.example[1]) for item in items]
    return Preview(
        prompts=[_finished(data[SampleIndex(i)], tokenizer) for i in range(min(prompts, len(examples)))],
        examples=len(examples),
        looked_at=len(items),
        losing_passages=sum(item.dropped > 0 for item in items),
        mean_length=round(mean(lengths), 1),
        longest=max(lengths),
        steps=recipe.steps_of(len(examples), recipe.batch_size * recipe.accumulation),
    )


def _finished(item: Item, tokenizer: PreTrainedTokenizerBase) -> FinishedPrompt:
    encoded, target = item.example
    pieces = [str(tokenizer.decode(list(ids))) for ids in (encoded.context_ids, encoded.suffix_ids, target)]
    return FinishedPrompt(
        text=f"{pieces[0]}{SLOT}{pieces[1]}{TARGET}{pieces[2]}",
        context=len(encoded.context_ids),
        suffix=len(encoded.suffix_ids),
        target=len(target),
        dropped=item.dropped,
    )
