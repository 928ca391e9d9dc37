"""Score rows while they are being trained: loss and greedy answers on examples that training doesn't see."""

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from spring_rag.backbone import BackboneRecord
from spring_rag.backends.local import LocalBackend
from spring_rag.data.examples import RagExample
from spring_rag.errors import DataError, PromptTooLongError, TrainingError
from spring_rag.evaluation.metrics import exact_match, f1
from spring_rag.fitting import fit, room
from spring_rag.model import SpringModel
from spring_rag.prompt import RagPrompt
from spring_rag.recipe import TrainingRecipe
from spring_rag.splice import InputEmbedding
from spring_rag.tokens import VirtualTokens
from spring_rag.training.dataset import RagExamples, SampleIndex
from spring_rag.training.objective import objective

_SPARE_TOKENS = 8


class HeldOut:
    """Held-out examples on a backbone, to be answered.

    Every process evaluates all of them, because all processes must call a sharded backbone equally often.

    Args:
        hf_model: the backbone.
        tokenizer: the backbone's tokenizer.
        examples: examples that the run isn't trained on.
        recipe: the run's recipe.
        ks: numbers of virtual tokens to answer with; 1 and n if not given.

    Raises:
        TrainingError: a k outside 0…n.
        DataError: an example that doesn't fit the recipe's `max_length`, or whose answer might not fit the backbone.
    """

    best = "f1"
    """The score that decides which checkpoint is the best: the mean F1 over the ks."""

    def __init__(
        self,
        hf_model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        examples: Sequence[RagExample],
        recipe: TrainingRecipe,
        ks: Sequence[int] | None = None,
    ) -> None:
        self.ks = check_ks([1, recipe.num_tokens] if ks is None else ks, recipe)
        self._data = RagExamples(examples, tokenizer, recipe)
        self._data.check()
        self._hf_model, self._recipe = hf_model, recipe
        self._backend = LocalBackend(hf_model, tokenizer)
        self._backbone = BackboneRecord.of(hf_model)
        self._embedding = InputEmbedding(hf_model)
        self._longest = self._data.longest_target() + _SPARE_TOKENS
        self._prompts = [self._fitted(example) for example in examples]
        self._accepted = [self._data.accepted(i, prompt.passages) for i, prompt in enumerate(self._prompts)]

    def _fitted(self, example: RagExample) -> RagPrompt:
        """Return the prompt with the passages that fit beside the largest k, so that every k sees the same passages.

        This is checked before training: generated answers may be longer than targets, and a question that is too long for them would
        otherwise fail after hours.
        """
        passages = example.passages[: self._recipe.max_passages]
        prompt = RagPrompt(example.question, passages, self._recipe.answer_template)
        length = self._backend.context_length
        try:
            return fit(prompt, room(length, max(self.ks, default=0), self._longest), self._backend.tokenizer)[
                0
            ]
        except PromptTooLongError as error:
            msg = (
                f"a held-out question is too long to be answered in up to {self._longest} tokens: the backbone takes {length} in all; "
                f"leave it out: {example.question[:200]!r}"
            )
            raise DataError(msg) from error

    def scores(self, matrix: Tensor) -> dict[str, float]:
        """Score these rows.

        Args:
            matrix: `[n, hidden_size]`.

        Returns:
            `loss` with all n tokens; `exact_match_k{k}` and `f1_k{k}`, from 0 to 1, for every k; and `f1`, the mean F1 over the ks, or
            the negative loss if there are no ks.
        """
        found = {"loss": self._loss(matrix)}
        self._backend.add_tokens("default", VirtualTokens(matrix, backbone=self._backbone))
        model = SpringModel.from_backend(self._backend)
        for k in self.ks:
            answers = model.generate(
                self._prompts,
                num_tokens=k,
                max_new_tokens=self._longest,
                batch_size=self._recipe.batch_size,
            )
            pairs = [(a.text.strip(), gold) for a, gold in zip(answers, self._accepted, strict=True)]
            found[f"exact_match_k{k}"] = sum(exact_match(*pair) for pair in pairs) / len(pairs)
            found[f"f1_k{k}"] = sum(f1(*pair) for pair in pairs) / len(pairs)
        found[self.best] = (
            sum(found[f"f1_k{k}"] for k in self.ks) / len(self.ks) if self.ks else -found["loss"]
        )
        return found

    def calibration(self, matrix: Tensor) -> None:  # noqa: ARG002
        """Return None: answers have no probability to calibrate."""
        return

    def _loss(self, matrix: Tensor) -> float:
        """Return the mean loss over the target ids, with all virtual tokens."""
        items = [self._data[SampleIndex(i)].example for i in range(len(self._data))]
        items.sort(key=lambda example: len(example[0].ids))
        total, count, size = 0.0, 0, self._recipe.batch_size
        with torch.no_grad():
            for start in range(0, len(items), size):
                batch = items[start : start + size]
                ids = sum(len(target) for _, target in batch)
                loss = objective(self._hf_model, batch, matrix, len(matrix), embedding=self._embedding)
                total, count = total + loss.item() * ids, count + ids
        return total / count


def check_ks(ks: Sequence[int], recipe: TrainingRecipe) -> list[int]:
    """Check numbers of virtual tokens to evaluate with, and return each once, ascending.

    Raises:
        TrainingError: a k outside 0…n.
    """
    for k in ks:
        if not 0 <= k <= recipe.num_tokens:
            msg = f"evaluation with k = {k}, but {recipe.num_tokens} virtual tokens are trained; choose from 0 to {recipe.num_tokens}"
            raise TrainingError(msg)
    return sorted(set(ks))
