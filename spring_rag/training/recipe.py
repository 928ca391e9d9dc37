"""How virtual tokens are trained: every choice in one place, written into the artifact."""

from dataclasses import dataclass, field, fields, replace
from math import ceil, inf
from random import Random
from typing import Any, Literal, get_args

from spring_rag.data.examples import UNANSWERABLE_ANSWER
from spring_rag.errors import TrainingError
from spring_rag.prompt import RagTemplate

KSchedule = Literal["uniform", "small", "sandwich"]
Precision = Literal["float32", "bfloat16"]

INIT_TEXT = (
    "According to the previous relevant passages, please answer the following question. "
    "Only return the answer without any other words."
)
SCHEDULERS = ("linear", "cosine", "constant_with_warmup")
"""Those of transformers' that need no further settings."""

_SHARE_OF_ALL = 0.25


@dataclass(frozen=True)
class TrainingRecipe:
    """The choices of one training run. The defaults follow the paper (arXiv 2405.19670), but for the k schedule.

    Args:
        num_tokens: n, rows of the matrix.
        init_text: the rows start as this text's token embeddings, repeated or cut to n; an instruction is already half
            of what the tokens are to say.
        learning_rate: AdamW's peak. Rows are few and their gradients small, so it is far above that of a model's weights.
        scheduler: how the learning rate falls after the warm-up; one of `SCHEDULERS`.
        warmup: share of the steps in which the learning rate rises.
        weight_decay: of AdamW.
        max_grad_norm: gradients are clipped to this norm.
        epochs: passes over the data; ignored when `max_steps` is given.
        max_steps: optimizer steps.
        batch_size: examples per forward pass and device.
        accumulation: forward passes per optimizer step.
        precision: arithmetic of the forward pass; rows and optimizer are float32 in any case.
        max_length: most tokens of an example: prompt, n virtual tokens and answer; the lowest-ranked passages go first.
        min_passages: fewest passages of an example.
        max_passages: most passages of an example.
        retrieval_free: share of the examples without any passage, so that the tokens do no harm where nothing is retrieved.
        k_schedule: how k is drawn for a batch. `uniform`: each of 1…n alike, as the authors do it. `small`: p(k) ~ 1/k,
            and n in a quarter of the batches, since one token must learn what fifty can share. `sandwich`: 1, n and one
            between (p(k) ~ 1/k), on one cached context.
        unanswerable: share of the examples that lose the passages which hold an answer and are trained to say so; without them
            the tokens learn that there always is an answer, and guess. Questions whose answers aren't words of a passage
            (yes, no) stay as they are.
        unanswerable_answer: what they are trained to say.
        chat: share of the examples rendered with the tokenizer's chat template.
        template: the prompt's wording.
        seed: of every draw.
    """

    num_tokens: int = 50
    init_text: str = INIT_TEXT
    learning_rate: float = 1e-2
    scheduler: str = "linear"
    warmup: float = 0.05
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    epochs: float = 1.0
    max_steps: int | None = None
    batch_size: int = 8
    accumulation: int = 1
    precision: Precision = "float32"
    max_length: int = 1024
    min_passages: int = 1
    max_passages: int = 5
    retrieval_free: float = 0.0
    k_schedule: KSchedule = "small"
    unanswerable: float = 0.0
    unanswerable_answer: str = UNANSWERABLE_ANSWER
    chat: float = 0.0
    template: RagTemplate = field(default_factory=RagTemplate)
    seed: int = 0

    def __post_init__(self) -> None:
        for name in (
            "num_tokens",
            "learning_rate",
            "epochs",
            "batch_size",
            "accumulation",
            "max_length",
            "max_grad_norm",
        ):
            if not 0 < getattr(self, name) < inf:
                msg = f"{name} = {getattr(self, name)}; it must be a number above 0"
                raise TrainingError(msg)
        for name in ("warmup", "chat", "retrieval_free", "unanswerable"):
            if not 0 <= getattr(self, name) <= 1:
                msg = f"{name} = {getattr(self, name)}; it is a share, from 0 to 1"
                raise TrainingError(msg)
        if self.weight_decay < 0:
            msg = f"weight_decay = {self.weight_decay}; it must be 0 or more"
            raise TrainingError(msg)
        if self.max_steps is not None and self.max_steps < 1:
            msg = f"max_steps = {self.max_steps}; it must be at least 1, or None to go by epochs"
            raise TrainingError(msg)
        if not 0 <= self.min_passages <= self.max_passages:
            msg = f"min_passages = {self.min_passages}, max_passages = {self.max_passages}; the range must ascend from 0 or more"
            raise TrainingError(msg)
        if not self.unanswerable_answer.strip():
            msg = "unanswerable_answer is blank; give the words that say that there is no answer"
            raise TrainingError(msg)
        for name, choices in (
            ("k_schedule", get_args(KSchedule)),
            ("precision", get_args(Precision)),
            ("scheduler", SCHEDULERS),
        ):
            if getattr(self, name) not in choices:
                msg = f"{name} = {getattr(self, name)!r}; choose one of {', '.join(choices)}"
                raise TrainingError(msg)

    @property
    def answer_template(self) -> RagTemplate:
        """The template that most examples were rendered with: how the tokens are to be used."""
        return replace(self.template, chat=True) if self.chat > 0.5 else self.template

    def steps_of(self, examples: int, step_size: int) -> int:
        """How many optimizer steps the run takes over so many examples, `step_size` of them a step."""
        return self.max_steps or ceil(ceil(examples / step_size) * self.epochs)

    def draw_ks(self, rng: Random) -> list[int]:
        """The ks of one batch: one, or three for the sandwich (fewer where n leaves no room)."""
        n = self.num_tokens
        if self.k_schedule == "uniform":
            return [rng.randint(1, n)]
        if self.k_schedule == "sandwich":
            between = _small_more_often(2, n - 1, rng) if n > 2 else []
            return sorted({1, *between, n})
        if rng.random() < _SHARE_OF_ALL:
            return [n]
        return _small_more_often(1, n, rng)

    def to_dict(self) -> dict[str, Any]:
        """A JSON object with every choice."""
        choices = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "template"}
        return {**choices, "template": self.template.to_dict()}


def _small_more_often(least: int, most: int, rng: Random) -> list[int]:
    """One k, with p(k) ~ 1/k."""
    ks = range(least, most + 1)
    return rng.choices(ks, weights=[1 / k for k in ks])
