"""Score the rows of a skill that chooses while they are being trained, and calibrate its probabilities."""

from collections.abc import Sequence

from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from spring_rag.backbone import BackboneRecord
from spring_rag.backends.local import LocalBackend
from spring_rag.data.examples import RagExample
from spring_rag.evaluation.choices import accuracy, auroc
from spring_rag.fitting import fit, room
from spring_rag.prompt import RagPrompt
from spring_rag.recipe import TrainingRecipe
from spring_rag.skills.asking import ask_in_batches
from spring_rag.skills.calibration import calibrated, fit_calibration
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
        budget = room(self._backend.context_length, recipe.num_tokens, 1)
        # Fitted before training, so that a question that is too long doesn't fail after hours.
        self._fitted = [
            fit(RagPrompt(one.question, one.passages, recipe.answer_template), budget, tokenizer)
            for one in asked
        ]
        self._targets = [one.target for one in asked]

    def scores(self, matrix: Tensor) -> dict[str, float]:
        """Score these rows.

        Args:
            matrix: `[n, hidden_size]`.

        Returns:
            `accuracy_k{k}` for every k, and of a skill that says yes or no `auroc_k{k}`; and the mean over the ks of that which
            decides, under its own name.
        """
        found: dict[str, float] = {}
        for k in self.ks:
            chosen = self._probabilities(matrix, k)
            if self._skill.yes is not None:
                yes, truths = self._judged(chosen)
                found[f"auroc_k{k}"] = auroc(yes, truths)
                fitted = fit_calibration(yes, truths)
                found[f"accuracy_k{k}"] = accuracy([calibrated(each, fitted) for each in yes], truths)
            else:
                right = [
                    max(one, key=one.__getitem__) == t for one, t in zip(chosen, self._targets, strict=True)
                ]
                found[f"accuracy_k{k}"] = sum(right) / len(right)
        found[self.best] = sum(found[f"{self.best}_k{k}"] for k in self.ks) / max(1, len(self.ks))
        return found

    def calibration(self, matrix: Tensor) -> tuple[float, float] | None:
        """Slope and intercept for all rows; None for a skill that doesn't say yes or no."""
        if self._skill.yes is None:
            return None
        return fit_calibration(*self._judged(self._probabilities(matrix, len(matrix))))

    def _judged(self, chosen: Sequence[dict[str, float]]) -> tuple[list[float], list[bool]]:
        yes = self._skill.yes
        assert yes is not None
        return [one[yes] for one in chosen], [target == yes for target in self._targets]

    def _probabilities(self, matrix: Tensor, k: int) -> list[dict[str, float]]:
        """For each sample the probability of each target."""
        self._backend.add_tokens("default", VirtualTokens(matrix, backbone=self._backbone))
        found = ask_in_batches(
            self._backend, self._skill, self._fitted, self._recipe.batch_size, num_tokens=k
        )
        return [
            dict(zip(self._skill.targets(len(prompt.passages)), one.probabilities(answers), strict=True))
            for (one, answers), (prompt, _) in zip(found, self._fitted, strict=True)
        ]
