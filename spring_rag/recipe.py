"""The training recipe: every choice in one place, saved with the artifact."""

# ruff: noqa: RUF009 - each of the calls makes a field.

from dataclasses import dataclass, field, fields, replace
from math import ceil, inf
from random import Random
from typing import Any, Literal, get_args

from spring_rag.data.examples import UNANSWERABLE_ANSWER
from spring_rag.errors import TrainingError
from spring_rag.prompt import RagTemplate
from spring_rag.skills import ANSWER, SKILLS, Skill

KSchedule = Literal["uniform", "small", "sandwich", "all"]
Precision = Literal["float32", "bfloat16"]
Scheduler = Literal["linear", "cosine", "constant_with_warmup"]
"""The schedulers of transformers that need no further settings."""

INIT_TEXT = SKILLS[ANSWER].init_text

_SHARE_OF_ALL = 0.25
_GREATEST_RATE = 1e30
"""float32 overflows at 3e38, and AdamW's bias correction multiplies the first steps."""


def _choice(default: Any, help: str, **shown: Any) -> Any:  # noqa: A002 - the name that a command line gives it
    """Make a field that carries its help text.

    Args:
        default: the field's default.
        help: what the field decides, and why one would change it; the command line shows this text.
        shown: how the command line reads and shows the field: `min`, `max`, `names`, `metavar`, `show_default`.
    """
    return field(default=default, metadata={"help": help, **shown})


def _share(default: float, help: str) -> Any:  # noqa: A002 - the name that a command line gives it
    return _choice(default, help, min=0, max=1)


@dataclass(frozen=True)
class TrainingRecipe:
    """The choices of one training run. The defaults follow the paper (arXiv 2405.19670), except for the k schedule.

    Each field's `help` says what it decides; `spring-rag train` makes its options of them.

    Raises:
        TrainingError: a choice is out of its range.
    """

    task: str = _choice(
        ANSWER,
        f"What the tokens learn to do: {', '.join(SKILLS)}. Tasks other than answer have a question's line, an initial text and a share of"
        " unanswerable examples of their own.",
    )
    num_tokens: int = _choice(
        50,
        "Number of virtual tokens (n). More can encode more; `spring-rag eval` shows whether it helps.",
        min=1,
        names=("-n", "--num-tokens"),
    )
    init_text: str = _choice(
        INIT_TEXT,
        "Text whose token embeddings the rows start from, repeated or cut to n. An instruction already says much of what they have to learn.",
        show_default="an instruction",
    )
    learning_rate: float = _choice(
        1e-2,
        "AdamW's peak learning rate; far above that for a model's weights, since rows are few and their gradients small.",
    )
    scheduler: Scheduler = _choice(
        "linear",
        "How the learning rate falls after the warm-up: to 0, so that the rows settle, or not at all.",
    )
    warmup: float = _share(
        0.05,
        "Share of the steps over which the learning rate rises, because AdamW's first steps are the most erratic.",
    )
    weight_decay: float = _choice(
        0.0,
        "AdamW's weight decay; 0 because it would pull rows to zero, away from real embeddings.",
        min=0,
    )
    max_grad_norm: float = _choice(
        1.0, "Clip gradients to this norm: one odd example shouldn't undo many steps."
    )
    epochs: float = _choice(1.0, "Passes over the data.")
    max_steps: int | None = _choice(None, "Optimizer steps, instead of --epochs.", min=1)
    batch_size: int = _choice(8, "Examples per forward pass and device.", min=1)
    accumulation: int = _choice(
        1, "Forward passes per optimizer step: larger batches without more memory.", min=1
    )
    precision: Precision = _choice(
        "float32", "Arithmetic of the forward pass; the tokens themselves are float32."
    )
    max_length: int = _choice(
        1024,
        "Most tokens of an example: prompt, n virtual tokens and answer. The lowest-ranked passages are dropped first.",
        min=1,
    )
    min_passages: int = _choice(1, "Fewest passages of an example.", min=0)
    max_passages: int = _choice(
        5, "Most passages of an example. The number varies, so that any number works later.", min=0
    )
    retrieval_free: float = _share(
        0.0, "Share of examples without passages, so that the tokens do no harm without retrieval."
    )
    k_schedule: KSchedule = _choice(
        "small",
        "How many of the first rows a batch uses. uniform: each of 1…n equally often, as the authors do. small: a small k more often (p(k) ~ 1/k, and n in"
        " a quarter of the batches), since one row must learn what fifty can share. sandwich: 1, n and one number between, on one cached context. all: n, for tokens that are used only as a whole, such as skills.",
    )
    unanswerable: float = _share(
        0.0,
        "Share of examples that lose the passages which hold the answer, and are trained to say so instead of guessing. Questions"
        " answered by yes or no lose none. 0 means the task's default share, which is above 0 for every task but answer.",
    )
    unanswerable_answer: str = _choice(
        UNANSWERABLE_ANSWER, "What to answer if the passages don't hold the answer."
    )
    chat: float = _share(
        0.0, "Share of examples in the tokenizer's chat template; 1 if you will use the tokens in chats."
    )
    seed: int = _choice(0, "Seed of every random draw.", min=0, max=2**32 - 1)
    template: RagTemplate = field(default_factory=RagTemplate)

    def __post_init__(self) -> None:
        if self.task not in SKILLS:
            msg = f"task = {self.task!r}; choose one of {', '.join(SKILLS)}"
            raise TrainingError(msg)
        if self.task != ANSWER:
            for name, usual, own in (
                ("init_text", INIT_TEXT, self.skill.init_text),
                ("unanswerable", 0.0, self.skill.robbed),
                ("template", self.template, replace(self.template, question=self.skill.line)),
            ):
                if getattr(self, name) == usual:
                    object.__setattr__(self, name, own)
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
        if self.learning_rate > _GREATEST_RATE:
            msg = f"learning_rate = {self.learning_rate}; it must be at most {_GREATEST_RATE}, or its steps overflow"
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
            ("scheduler", get_args(Scheduler)),
        ):
            if getattr(self, name) not in choices:
                msg = f"{name} = {getattr(self, name)!r}; choose one of {', '.join(choices)}"
                raise TrainingError(msg)

    @property
    def skill(self) -> Skill:
        """The skill that is trained."""
        return SKILLS[self.task]

    @property
    def answer_template(self) -> RagTemplate:
        """The template of most examples, in which the tokens should be used."""
        return replace(self.template, chat=True) if self.chat > 0.5 else self.template

    def steps_of(self, examples: int, step_size: int) -> int:
        """Return the number of optimizer steps of a run over `examples` examples, `step_size` of them per step."""
        return self.max_steps or ceil(ceil(examples / step_size) * self.epochs)

    def draw_ks(self, rng: Random) -> list[int]:
        """Draw the ks of one batch: one, or three for the sandwich (fewer if n is below 3)."""
        n = self.num_tokens
        if self.k_schedule == "all":
            return [n]
        if self.k_schedule == "uniform":
            return [rng.randint(1, n)]
        if self.k_schedule == "sandwich":
            between = _small_more_often(2, n - 1, rng) if n > 2 else []
            return sorted({1, *between, n})
        if rng.random() < _SHARE_OF_ALL:
            return [n]
        return _small_more_often(1, n, rng)

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON object with every choice."""
        choices = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "template"}
        return {**choices, "template": self.template.to_dict()}


def _small_more_often(least: int, most: int, rng: Random) -> list[int]:
    """Draw one k, with p(k) ~ 1/k."""
    ks = range(least, most + 1)
    return rng.choices(ks, weights=[1 / k for k in ks])
