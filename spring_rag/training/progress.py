"""How a training run gets on, on standard error."""

# ruff: noqa: ARG002 - the signatures are those of `TrainerCallback`.

from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

_STEPS_PER_LINE = 100
_SHOWN = {
    "loss": "loss {:.4f}",
    "eval_loss": "held-out loss {:.4f}",
    "eval_f1": "held-out F1 {:.1%}",
    "tokens_per_second": "{:,.0f} tokens/s",
}


class ProgressBar(TrainerCallback):
    """Steps, the latest loss and scores, tokens per second, and the time left; a line now and then where there is no terminal."""

    def __init__(self) -> None:
        console = self._console = Console(stderr=True)
        self._latest: dict[str, float] = {}
        self._bar = Progress(
            TextColumn("training"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[losses]}"),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._task: TaskID | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Show the bar; a resumed run starts where it stopped."""
        if state.is_world_process_zero:
            self._task = self._bar.add_task(
                "training", total=state.max_steps, completed=state.global_step, losses=""
            )
            self._bar.start()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Move on."""
        if self._task is not None:
            self._bar.update(self._task, completed=state.global_step)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Show the loss of the last steps, and the held-out scores of the last evaluation beside it."""
        logs = logs or {}
        self._latest |= {name: value for name, value in logs.items() if name in _SHOWN}
        if self._task is None or not self._latest:
            return
        shown = "  ".join(form.format(self._latest[n]) for n, form in _SHOWN.items() if n in self._latest)
        self._bar.update(self._task, losses=shown)
        is_due = "eval_loss" in logs or ("loss" in logs and state.global_step % _STEPS_PER_LINE == 0)
        if is_due and not self._console.is_terminal:
            line = f"step {state.global_step} of {state.max_steps}: {shown}"
            self._console.print(line, markup=False, highlight=False, soft_wrap=True)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Leave the bar as it is."""
        self._bar.stop()
