"""Ctrl-C during training: finish the step, save, stop."""

# ruff: noqa: ARG002 - the signatures are those of `TrainerCallback`.

import signal
import threading
import time
from types import FrameType
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

_ECHO_SECONDS = 1.0


class StopOnInterrupt(TrainerCallback):
    """Ends training after the current step, with a checkpoint, on the first Ctrl-C inside the `with` block; a later one ends it at once.

    Several processes all stop after the same step, whichever of them got the signal first. Outside the main thread, which alone
    gets signals, it does nothing.
    """

    def __init__(self) -> None:
        self._asked_at: float | None = None
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
        now = time.monotonic()
        if self._asked_at is None:
            self._asked_at = now
        # torchrun passes on a Ctrl-C that the terminal has already sent to its processes.
        elif now - self._asked_at > _ECHO_SECONDS:
            signal.signal(signal.SIGINT, self._previous)
            signal.raise_signal(signal.SIGINT)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Stop after this step if asked to, unless it was the last one anyway."""
        if self._asked_anywhere(args) and state.global_step < state.max_steps:
            self.stopped_at = state.global_step
            control.should_save = True
            control.should_training_stop = True

    def _asked_anywhere(self, args: TrainingArguments) -> bool:
        asked = self._asked_at is not None
        if args.world_size == 1:
            return asked
        flag = torch.tensor(asked, dtype=torch.uint8, device=args.device)
        torch.distributed.all_reduce(flag, torch.distributed.ReduceOp.MAX)
        return bool(flag)
