"""Score the rows of a skill that chooses while they are being trained, and calibrate its probabilities."""

from collections.abc import Sequence

from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from spring_rag.backbone import BackboneRecord
from spring_rag.backends.local import LocalBackend
from spring_rag.data.examples import RagExample
from spring_rag.evaluation.choices import auroc
from spring_rag.fitting import fit, room
from spring_rag.prompt import RagPrompt
from spring_rag.recipe import TrainingRecipe
from spring_rag.skills.asking import ask_in_batches
from spring_rag.skills.samples import samples
from spring_rag.tokens import VirtualTokens
from spring_rag.training.heldout import check_ks


class HeldOutChoices:
    """Held-out examples of a skill, with passages in the order of retrieval. It has the methods that `HeldOut` has for answers.

    Args:
        hf_model: the backbone.
        tokenizer: the backbone's tokenizer.
        examples: examples that the run isn't trained on.
        recipe: the run's recipe.
        ks: numbers of virtual tokens to choose with; only n if not given.

    Raises:
        TrainingError: a k outside 0…n.
        PromptTooLongError: a question alone doesn't fit the backbone.
    """

    def __init__(
        self,
        hf_model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        examples: Sequence[RagExample],
        recipe: TrainingRecipe,
        ks: Sequence[int] | None = None,
    ) -> None:
        self.ks = check_ks([recipe.num_tokens] if ks is None else ks, recipe)
        self._recipe, self._skill = recipe, recipe.skill
        self.best = "accuracy" if self._skill.yes is None else "auroc"
        self._backend = LocalBackend(hf_model, tokenizer)
        self._backbone = BackboneRecord.of(hf_model)
        asked = samples(self._skill, examples, recipe.max_passages, recipe.seed)
        self._claims = [one.claim for one in asked]
        longest = max(
            self._skill.length(len(one.passages), recipe.answer_template, tokenizer, one.claim)
            for one in asked
        )
        budget = room(self._backend.context_length, recipe.num_tokens, longest)
        # Fitted before training, so that a question that is too long doesn't fail after hours.
        self._fitted = [
            fit(RagPrompt(one.question, one.passages, recipe.answer_template), budget, tokenizer)
            for one in asked
        ]
        targets = [self._skill.targets(len(prompt.passages)) for prompt, _ in self._fitted]
        rights = [
            self._skill.right(one.example, one.claim, prompt.passages)
            for one, (prompt, _) in zip(asked, self._fitted, strict=True)
        ]
        self._right = [
            {names.index(each) for each in right} for names, right in zip(targets, rights, strict=True)
        ]

    def scores(self, matrix: Tensor) -> dict[str, float]:
        """Score these rows.

        Args:
            matrix: `[n, hidden_size]`.

        Returns:
            `accuracy_k{k}`, calibrated, for every k, and `auroc_k{k}` if the skill says yes or no; and the mean over the ks of the score that
            decides, under the name in `best`.
        """
        found: dict[str, float] = {}
        for k in self.ks:
            said = self._probabilities(matrix, k)
            calibration = self._skill.fit_calibration(said, self._right)
            meant = [self._skill.calibrated(each, calibration) for each in said]
            hits = [
                max(range(len(one)), key=one.__getitem__) in r
                for one, r in zip(meant, self._right, strict=True)
            ]
            found[f"accuracy_k{k}"] = sum(hits) / len(hits)
            if self._skill.yes is not None:
                at = self._skill.yes_at
                found[f"auroc_k{k}"] = auroc(
                    [one[at] for one in said], [at in right for right in self._right]
                )
        found[self.best] = sum(found[f"{self.best}_k{k}"] for k in self.ks) / max(1, len(self.ks))
        return found

    def calibration(self, matrix: Tensor) -> tuple[float, float] | None:
        """Return the calibration with all rows, for the artifact; None if the skill has none."""
        return self._skill.fit_calibration(self._probabilities(matrix, len(matrix)), self._right)

    def _probabilities(self, matrix: Tensor, k: int) -> list[list[float]]:
        """Return for each sample the probabilities of the targets, not calibrated."""
        self._backend.add_tokens("default", VirtualTokens(matrix, backbone=self._backbone))
        found = ask_in_batches(
            self._backend, self._skill, self._fitted, self._claims, self._recipe.batch_size, num_tokens=k
        )
        return list(found)
