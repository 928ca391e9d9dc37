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
    """While entered, the first Ctrl-C ends training after the current step, with a checkpoint; a later one ends it at once.

    In several processes, all stop after the same step, whichever of them got the signal first. Outside of the main thread, which alone
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
        # torchrun passes on the Ctrl-C that the terminal has sent to its processes already.
        elif now - self._asked_at > _ECHO_SECONDS:
            signal.signal(signal.SIGINT, self._previous)
            signal.raise_signal(signal.SIGINT)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Stop here if asked to; a run that is through anyway just ends."""
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
