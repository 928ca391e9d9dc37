"""Report how far a training run is."""

# ruff: noqa: ARG002 - the signatures are those of `TrainerCallback`.

from typing import Any, Protocol

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

_SHOWN = {
    "loss": "loss {:.4f}",
    "eval_loss": "held-out loss {:.4f}",
    "eval_f1": "held-out F1 {:.1%}",
    "tokens_per_second": "{:,.0f} tokens/s",
}


class Report(Protocol):
    """What shows how far a run is, such as a bar in a terminal."""

    def __call__(self, done: int, total: int, more: str = "") -> None:
        """Show the number of steps done and of all, and the losses."""

    def resume(self, done: int, total: int) -> None:
        """Begin at the number of steps that were done before."""

    def tell(self) -> None:
        """Write the last state to the log."""


class ProgressReport(TrainerCallback):
    """Reports steps, the latest loss and scores, and tokens per second.

    Args:
        report: called after each step by the first process.
    """

    def __init__(self, report: Report) -> None:
        self._report = report
        self._latest: dict[str, float] = {}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Begin at step 0, or where a resumed run stopped."""
        if state.is_world_process_zero:
            self._report.resume(state.global_step, state.max_steps)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Move on to this step."""
        self._move_on(state)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Show the loss of the last steps, and the held-out scores of the last evaluation."""
        logs = logs or {}
        self._latest |= {name: value for name, value in logs.items() if name in _SHOWN}
        self._move_on(state)
        if "eval_loss" in logs and state.is_world_process_zero:
            self._report.tell()

    def _move_on(self, state: TrainerState) -> None:
        if state.is_world_process_zero:
            shown = "  ".join(form.format(self._latest[n]) for n, form in _SHOWN.items() if n in self._latest)
            self._report(state.global_step, state.max_steps, shown)
