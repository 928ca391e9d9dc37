"""Drawing training examples: which passages, in which order, under which template."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from heapq import nlargest
from itertools import product
from random import Random

from torch.utils.data import Dataset, Sampler
from transformers import PreTrainedTokenizerBase

from spring_rag.encoding import encode, encode_target
from spring_rag.errors import DataError, PromptTooLongError
from spring_rag.examples import RagExample
from spring_rag.prompt import Prompt, RagPrompt, RagTemplate, fit
from spring_rag.training.objective import Example
from spring_rag.training.recipe import TrainingRecipe

_CHECKED = 200
_STEPS_SORTED_TOGETHER = 16


@dataclass(frozen=True, slots=True)
class Place:
    """Which example, and in which optimizer step of the epoch it is seen."""

    index: int
    step: int = 0


@dataclass(frozen=True, slots=True)
class Item:
    """One encoded example, where it comes from, and how many of the drawn passages had no room."""

    example: Example
    epoch: int
    step: int
    dropped: int = 0


class RagExamples(Dataset[Item]):
    """Examples as the objective takes them, with passages drawn anew each epoch.

    What is drawn depends on seed, epoch and index alone, so runs that are resumed or spread over processes see
    the same. An example takes its m best passages, m drawn from the recipe's range, in random order: as a retriever
    with that top k would bring them, and without teaching the tokens to trust the first.

    Where the recipe asks for `unanswerable` examples, a share loses every passage that holds one of its answers and is trained to
    say so; and so is an example whose answer stands only in passages that weren't drawn, for that would teach to guess.

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

    def set_epoch(self, epoch: int) -> None:
        """Draw as in this epoch from now on."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, place: Place) -> Item:
        index = place.index
        rng = self._rng(index)
        ranked, answer = self._draw(index, rng)
        target = self._target(answer, ranked.template)
        budget = self._budget(target)
        order = rng.sample(range(len(ranked.passages)), len(ranked.passages))
        encoded, kept = (
            encode(ranked.with_passages([ranked.passages[i] for i in order]), self.tokenizer),
            order,
        )
        if len(encoded.ids) > budget:
            fitting = len(fit(ranked, budget, self._count).passages)
            shuffled = ranked.with_passages([ranked.passages[i] for i in order if i < fitting])
            fitted = fit(shuffled, budget, self._count)
            encoded, kept = encode(fitted, self.tokenizer), order[: len(fitted.passages)]
        return Item((encoded, target), self.epoch, place.step, len(order) - len(kept))

    def length(self, index: int) -> int:
        """Characters of the passages drawn in this epoch."""
        return sum(map(len, self._draw(index, self._rng(index))[0].passages))

    def _rng(self, index: int) -> Random:
        return Random(f"{self.recipe.seed}:{self.epoch}:{index}")

    def _draw(self, index: int, rng: Random) -> tuple[RagPrompt, str]:
        """The prompt with its passages best first, and what is to be answered."""
        example, template, recipe = self.examples[index], self.recipe.template, self.recipe
        if rng.random() < recipe.chat:
            template = replace(template, chat=True)
        count = rng.randint(recipe.min_passages, recipe.max_passages)
        if rng.random() < recipe.retrieval_free:
            count = 0
        passages, answer = example.passages[:count], example.answers[0]
        if recipe.unanswerable > 0:
            others = tuple(passage for passage in example.passages if not _holds(passage, example.answers))
            told = len(others) < len(example.passages)
            if told and others and rng.random() < recipe.unanswerable:
                passages = others[:count]
            if told and passages and not any(_holds(passage, example.answers) for passage in passages):
                answer = recipe.unanswerable_answer
        return RagPrompt(question=example.question, passages=passages, template=template), answer

    def _target(self, answer: str, template: RagTemplate) -> tuple[int, ...]:
        return encode_target(answer, self.tokenizer, chat=template.chat)

    def _budget(self, target: Sequence[int]) -> int:
        return self.recipe.max_length - self.recipe.num_tokens - len(target)

    def check(self) -> None:
        """Make sure that the longest questions fit without their passages, before a long run starts.

        Raises:
            DataError: one doesn't; it is named.
        """
        templates = {self.recipe.template}
        if self.recipe.chat > 0:
            templates.add(replace(self.recipe.template, chat=True))
        longest = nlargest(_CHECKED, self.examples, key=lambda e: len(e.question) + len(e.answers[0]))
        instead = [self.recipe.unanswerable_answer] if self.recipe.unanswerable > 0 else []
        for example, template in product(longest, templates):
            alone = RagPrompt(question=example.question, passages=(), template=template)
            answer = max([example.answers[0], *instead], key=len)
            try:
                fit(alone, self._budget(self._target(answer, template)), self._count)
            except PromptTooLongError as error:
                msg = (
                    f"a question and its answer are too long for max_length = {self.recipe.max_length} beside "
                    f"{self.recipe.num_tokens} virtual tokens; raise it, or leave this one out: {example.question[:200]!r}"
                )
                raise DataError(msg) from error

    def _count(self, prompt: Prompt) -> int:
        return len(encode(prompt, self.tokenizer).ids)


def _holds(passage: str, answers: Sequence[str]) -> bool:
    """Whether an answer stands in a passage, in whatever case; rather once too often than once too rarely."""
    text = passage.casefold()
    return any(answer.strip().casefold() in text for answer in answers)


class SimilarLengths(Sampler[Place]):
    """Random order in which neighbours have contexts of similar length, so that batches hold little padding.

    Which examples an optimizer step sees depends on their number alone, not on how many forward passes and processes
    share them: a run spread over two processes takes the steps that one with the double batch takes.

    Args:
        dataset: whose drawn passages are measured (in characters: nothing is tokenized for it).
        step_size: examples of one optimizer step, over all its forward passes and processes.
        seed: of the order.
    """

    def __init__(self, dataset: RagExamples, step_size: int, seed: int) -> None:
        self.dataset, self.step_size, self.seed = dataset, step_size, seed

    def set_epoch(self, epoch: int) -> None:
        """Order as in this epoch, and let the dataset draw as in it."""
        self.dataset.set_epoch(epoch)

    def __len__(self) -> int:
        return len(self.dataset)

    def __iter__(self) -> Iterator[Place]:
        rng = Random(f"{self.seed}:{self.dataset.epoch}:order")
        order = list(range(len(self.dataset)))
        rng.shuffle(order)
        size = self.step_size * _STEPS_SORTED_TOGETHER
        steps: list[list[int]] = []
        for start in range(0, len(order), size):
            pool = sorted(order[start : start + size], key=self.dataset.length)
            steps += [pool[i : i + self.step_size] for i in range(0, len(pool), self.step_size)]
        whole = [indices for indices in steps if len(indices) == self.step_size]
        rng.shuffle(whole)
        # A short step anywhere but at the end would shift all later ones.
        short = [indices for indices in steps if len(indices) < self.step_size]
        for step, indices in enumerate(whole + short):
            for index in indices:
                yield Place(index, step)
