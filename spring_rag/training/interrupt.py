"""Ctrl-C during training: finish the step, save, stop."""

# ruff: noqa: ARG002 - the signatures are those of `TrainerCallback`.

import signal
import threading
from types import FrameType
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments


class StopOnInterrupt(TrainerCallback):
    """While entered, the first Ctrl-C ends training after the current step, with a checkpoint; the second ends it at once.

    Outside of the main thread, which alone gets signals, it does nothing.
    """

    def __init__(self) -> None:
        self._asked = False
        self.stopped_at: int | None = None
        """The step after which training stopped; None if it wasn't interrupted."""
        self._main = threading.current_thread() is threading.main_thread()

    def __enter__(self) -> "StopOnInterrupt":
        if self._main:
            self._previous = signal.signal(signal.SIGINT, self._ask)
        return self

    def __exit__(self, *_: object) -> None:
        if self._main:
            signal.signal(signal.SIGINT, self._previous)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self._asked = True
        signal.signal(signal.SIGINT, self._previous)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Stop here if asked to; a run that is through anyway just ends."""
        if self._asked and state.global_step < state.max_steps:
            self.stopped_at = state.global_step
            control.should_save = True
            control.should_training_stop = True
