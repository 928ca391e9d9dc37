"""How likely a local model's answers are."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, cast

import torch
from torch import BoolTensor, FloatTensor, LongTensor, Tensor
from transformers import LogitsProcessor, StoppingCriteria

from spring_rag.backends.base import Generation


class Likelihood(StoppingCriteria):
    """Adds up how likely the chosen tokens are. Stops nothing.

    transformers would keep the logits of every step for that.

    Attributes:
        seen: goes among the logits processors, before any that samples.
    """

    def __init__(self) -> None:
        self.seen = _Seen()
        self._steps: list[Tensor] = []

    def __call__(self, input_ids: LongTensor, scores: FloatTensor, **kwargs: Any) -> BoolTensor:  # noqa: ARG002
        """Shapes `[B, length]` and `[B, vocab]`; returns `[B]`."""
        logprobs = self.seen.scores.float().log_softmax(dim=-1)
        self._steps.append(logprobs.gather(1, input_ids[:, -1:])[:, 0])
        return cast(BoolTensor, torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device))

    def add(self, answers: Sequence[Generation]) -> list[Generation]:
        """Return the answers, one per row, with their `logprob`."""
        rows = torch.stack(self._steps, dim=1).tolist()
        return [
            replace(answer, logprob=sum(row[: len(answer.token_ids)]))
            for answer, row in zip(answers, rows, strict=True)
        ]


class _Seen(LogitsProcessor):
    """Keeps the scores of the last step."""

    scores: FloatTensor

    def __call__(self, input_ids: LongTensor, scores: FloatTensor) -> FloatTensor:  # noqa: ARG002
        """Shapes `[B, length]` and `[B, vocab]`; returns `[B, vocab]`."""
        self.scores = scores
        return scores
