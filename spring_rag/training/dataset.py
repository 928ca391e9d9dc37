"""Drawing training examples: which passages, in which order, under which template."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import cycle, islice
from random import Random

from torch.utils.data import Dataset, Sampler
from transformers import PreTrainedTokenizerBase

from spring_rag.data.examples import RagExample
from spring_rag.data.matching import holds
from spring_rag.encoding import encode
from spring_rag.errors import DataError
from spring_rag.fitting import fit
from spring_rag.prompt import RagPrompt, RagTemplate
from spring_rag.recipe import TrainingRecipe
from spring_rag.skills.skill import written
from spring_rag.training.ways import Example

_CHECKED = 200
_STEPS_SORTED_TOGETHER = 16


@dataclass(frozen=True, slots=True)
class SampleIndex:
    """The index of an example, and the optimizer step of the epoch in which it is seen."""

    index: int
    step: int = 0


@dataclass(frozen=True, slots=True)
class Item:
    """One encoded example, with the epoch and step that it was drawn for, and the number of drawn passages that didn't fit.

    `among`: for each target id the ids that it is chosen from, each with its share of what is right; None if any text may be written.
    """

    example: Example
    epoch: int
    step: int
    dropped: int = 0
    among: tuple[Mapping[int, float], ...] | None = None


class RagExamples(Dataset[Item]):
    """Encoded examples for the objective, with passages drawn anew each epoch.

    The draw depends only on seed, epoch and index, so that resumed runs and runs in several processes see the same examples. Examples
    with the same passages draw the same ones, so that questions about one text share their context. An example gets its m best
    passages, with m drawn from the recipe's range, as if retrieved with that top k. Their order is random, so that the tokens don't
    learn to trust the first.

    The recipe's skill decides what is asked and what is right. For answers, if the recipe asks for `unanswerable` examples, a share
    of them loses every passage that holds one of its answers, and is trained to say that there is none. An example whose answer is only in
    passages that weren't drawn or didn't fit is trained to say so too, since the real answer would teach guessing.

    Args:
        examples: the data.
        tokenizer: the backbone's.
        recipe: ranges, template, lengths and seed.
    """

    def __init__(
        self, examples: Sequence[RagExample], tokenizer: PreTrainedTokenizerBase, recipe: TrainingRecipe
    ) -> None:
        self.examples = examples
        self.tokenizer = tokenizer
        self.recipe = recipe
        self.epoch = 0
        self._answers = recipe.skill.writes
        self._instead = [recipe.unanswerable_answer] if self._answers and recipe.unanswerable > 0 else []
        self.groups = _same_passages(examples)
        self._mates: dict[int, list[RagExample]] = {}
        for example, group in zip(examples, self.groups, strict=True):
            self._mates.setdefault(group, []).append(example)

    def set_epoch(self, epoch: int) -> None:
        """Draw for this epoch from now on."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, sample: SampleIndex) -> Item:
        index = sample.index
        rng = self._rng(index)
        ranked = self._draw(index, rng)
        # The passages that fit decide which answer is trained, so there must be room for either.
        budget = min(self._budget(self._target(each, ranked.template)) for each in self._possible(index))
        order = rng.sample(range(len(ranked.passages)), len(ranked.passages))
        prompt, encoded = fit(ranked, budget, self.tokenizer, order)
        lost = len(prompt.dropped)
        if self._answers:
            target = self._target(self.accepted(index, prompt.passages)[0], ranked.template)
            return Item((encoded, target), self.epoch, sample.step, lost)
        claim = self._claim(index, ranked.passages)
        targets = self.recipe.skill.targets(len(prompt.passages))
        right = self.recipe.skill.right(self.examples[index], claim, prompt.passages)
        choosing = self.recipe.skill.choosing(prompt.passages, ranked.template, self.tokenizer, claim)
        made = choosing.choice([targets.index(each) for each in right])
        asked = replace(encoded, ids=(*encoded.ids, *made.before))
        return Item((asked, made.target), self.epoch, sample.step, lost, made.among)

    def _possible(self, index: int) -> Sequence[str]:
        """Return all texts that an example may be trained to write."""
        targets = () if self._answers else self.recipe.skill.targets(self.recipe.max_passages)
        return targets or [self.examples[index].answers[0], *self._instead]

    def _claim(self, index: int, passages: Sequence[str]) -> str | None:
        rng = Random(f"{self.recipe.seed}:{self.epoch}:{index}:claim")
        return self.recipe.skill.claim(self.examples[index], self._mates[self.groups[index]], passages, rng)

    def accepted(self, index: int, passages: Sequence[str]) -> tuple[str, ...]:
        """Return the accepted answers to an example with some of its passages: that there is none, if only its other passages hold one."""
        example = self.examples[index]
        if (
            self.recipe.unanswerable == 0
            or not passages
            or any(holds(each, example.answers) for each in passages)
        ):
            return example.answers
        elsewhere = any(holds(each, example.answers) for each in example.passages)
        return (self.recipe.unanswerable_answer,) if elsewhere else example.answers

    def longest_target(self) -> int:
        """Return the number of tokens of the longest answer that may be trained."""
        answers = {answer for index in range(len(self.examples)) for answer in self._possible(index)}
        template = replace(self.recipe.template, chat=self.recipe.chat > 0)
        return max(len(self._target(each, template)) for each in answers)

    def length(self, index: int) -> int:
        """Return the number of characters of the passages drawn in this epoch."""
        return sum(map(len, self._draw(index, self._rng(index)).passages))

    def _rng(self, index: int) -> Random:
        return Random(f"{self.recipe.seed}:{self.epoch}:{self.groups[index]}")

    def _draw(self, index: int, rng: Random) -> RagPrompt:
        """Draw an example's template and passages; return its prompt, passages best first."""
        example, template, recipe = self.examples[index], self.recipe.template, self.recipe
        if rng.random() < recipe.chat:
            template = replace(template, chat=True)
        count = rng.randint(recipe.min_passages, recipe.max_passages)
        if rng.random() < recipe.retrieval_free:
            count = 0
        mates = self._mates[self.groups[index]]
        passages = recipe.skill.passages(example, mates, count, rng, recipe.unanswerable)
        return RagPrompt(question=example.question, passages=passages, template=template)

    def _target(self, answer: str, template: RagTemplate) -> tuple[int, ...]:
        return written(answer, template, self.tokenizer)

    def _budget(self, target: Sequence[int]) -> int:
        return self.recipe.max_length - self.recipe.num_tokens - len(target)

    def check(self) -> None:
        """Check, before a long run starts, that all questions fit without their passages.

        Raises:
            DataError: some don't; the first of them is named.
        """
        if over := self.over_long():
            example = self.examples[over[0]]
            msg = f"{len(over)} of {len(self.examples)} examples: {self.too_long}, the first is {example.question[:200]!r}"
            raise DataError(msg)

    @property
    def too_long(self) -> str:
        """The reason for which `over_long` returns an example."""
        return (
            f"question and answer are too long for max_length = {self.recipe.max_length} with "
            f"{self.recipe.num_tokens} virtual tokens; raise max_length, or leave these examples out"
        )

    def over_long(self) -> list[int]:
        """Return the indices of the examples that don't fit even without their passages."""
        by_length = sorted(range(len(self.examples)), key=self._characters, reverse=True)
        # If the longest all fit, so do the others.
        if all(map(self._fits, by_length[:_CHECKED])):
            return []
        return sorted(index for index in by_length if not self._fits(index))

    def _characters(self, index: int) -> int:
        example = self.examples[index]
        return len(example.question) + len(example.answers[0])

    def _fits(self, index: int) -> bool:
        example = self.examples[index]
        templates = {self.recipe.template}
        if self.recipe.chat > 0:
            templates.add(replace(self.recipe.template, chat=True))
        answer = max(self._possible(index), key=len)
        return all(
            len(encode(RagPrompt(example.question, (), template), self.tokenizer).ids)
            <= self._budget(self._target(answer, template))
            for template in templates
        )


def _same_passages(examples: Sequence[RagExample]) -> list[int]:
    """Return for each example the index of the first one with the same passages; its own if it has none, or is a repetition."""
    first: dict[tuple[str, ...], int] = {}
    seen: set[RagExample] = set()
    groups = []
    for index, example in enumerate(examples):
        alone = not example.passages or example in seen
        groups.append(index if alone else first.setdefault(example.passages, index))
        seen.add(example)
    return groups


class SimilarLengths(Sampler[SampleIndex]):
    """Random order in which neighbours have contexts of similar length, so that batches hold little padding.

    Examples with the same passages stay together, so that a batch computes their context once.

    The examples of an optimizer step depend only on `step_size`, not on the number of forward passes and processes that
    share them: a run in two processes takes the same steps as a run in one with the double batch. An epoch's last step is filled up
    with examples of earlier steps, so that every process has its part.

    Args:
        dataset: the examples; their drawn passages are measured in characters, so nothing is tokenized.
        step_size: examples of one optimizer step, over all its forward passes and processes.
        seed: seed of the order.
    """

    def __init__(self, dataset: RagExamples, step_size: int, seed: int) -> None:
        self.dataset, self.step_size, self.seed = dataset, step_size, seed

    def set_epoch(self, epoch: int) -> None:
        """Order, and let the dataset draw, for this epoch from now on."""
        self.dataset.set_epoch(epoch)

    def __len__(self) -> int:
        return math.ceil(len(self.dataset) / self.step_size) * self.step_size

    def __iter__(self) -> Iterator[SampleIndex]:
        rng = Random(f"{self.seed}:{self.dataset.epoch}:order")
        groups: dict[int, list[int]] = {}
        for index, group in enumerate(self.dataset.groups):
            groups.setdefault(group, []).append(index)
        shuffled = list(groups.values())
        rng.shuffle(shuffled)
        order = [index for group in shuffled for index in group]
        size = self.step_size * _STEPS_SORTED_TOGETHER
        steps: list[list[int]] = []
        for start in range(0, len(order), size):
            pool = sorted(
                order[start : start + size], key=lambda i: (self.dataset.length(i), self.dataset.groups[i])
            )
            steps += [pool[i : i + self.step_size] for i in range(0, len(pool), self.step_size)]
        whole = [indices for indices in steps if len(indices) == self.step_size]
        rng.shuffle(whole)
        # A short step anywhere but at the end would shift all later ones.
        short = [indices for indices in steps if len(indices) < self.step_size]
        places = [index for indices in whole + short for index in indices]
        for number, index in enumerate(islice(cycle(places), len(self))):
            yield SampleIndex(index, number // self.step_size)
