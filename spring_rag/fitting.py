"""Cutting prompts to fit a context: the lowest-ranked passages are left out first, the question and the slot never."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import cache
from math import inf
from typing import TYPE_CHECKING

from spring_rag.encoding import Encoded, encode
from spring_rag.errors import PromptTooLongError
from spring_rag.prompt import RagPrompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from spring_rag.backends.base import Backend


def room(context_length: int | None, num_tokens: int, max_new_tokens: int) -> int | None:
    """Return the most ids that a prompt may have beside its virtual tokens and its answer; None if the context has no known end."""
    return None if context_length is None else context_length - num_tokens - max_new_tokens


def crossing(switch: int | None, counts: Iterable[int], max_new_tokens: int) -> range:
    """Return the lengths, in ids, that a prompt must not have, because its answer would grow over the model's switch of positions.

    Args:
        switch: as `limits.position_switch` tells it; None where there is none.
        counts: numbers of virtual tokens that the prompt may get; without any, nothing is in the way.
        max_new_tokens: most tokens of the answer.
    """
    some = [count for count in counts if count]
    if switch is None or not some:
        return range(0)
    return range(max(0, switch - max(some) - max_new_tokens + 2), switch - min(some) + 1)


def fit(
    prompt: RagPrompt,
    budget: int | None,
    tokenizer: PreTrainedTokenizerBase,
    order: Sequence[int] | None = None,
    avoided: range = range(0),
) -> tuple[RagPrompt, Encoded]:
    """Drop the lowest-ranked passages until the prompt fits, and encode it.

    The question is never cut: an answer to half a question is worse than an error.

    Args:
        prompt: passages best first.
        budget: most ids of the prompt, special tokens included and virtual tokens not, as `room` gives it; None drops nothing.
        tokenizer: the backbone's.
        order: the passages' indices as they are to stand in the prompt; best first if not given.
        avoided: lengths that the prompt must not have either, as `crossing` gives them.

    Returns:
        The prompt with the passages that fit, in `order`, and its ids. `dropped` names those left out, best first.

    Raises:
        PromptTooLongError: the question alone is over `budget`.
    """
    ranked = prompt.passages
    places = range(len(ranked)) if order is None else order
    most: float = inf if budget is None else budget

    @cache
    def shortened(kept: int) -> tuple[RagPrompt, Encoded]:
        passages = tuple(ranked[i] for i in places if i < kept)
        dropped = (*ranked[kept:], *prompt.dropped)
        shorter = prompt if passages == ranked else replace(prompt, passages=passages, dropped=dropped)
        return shorter, encode(shorter, tokenizer)

    def length(kept: int) -> int:
        return len(shortened(kept)[1].ids)

    kept = len(ranked)
    if length(kept) > most:
        kept = bisect_right(range(kept), most, key=length) - 1
    if kept >= 0 and length(kept) in avoided:
        most = avoided.start - 1
        kept = bisect_right(range(kept), most, key=length) - 1
    if kept < 0:
        needed = length(0)
        msg = (
            f"the question takes {needed} tokens without any passage, {needed - most} more than the {most} that are left "
            "for the prompt; shorten it, or use fewer virtual tokens or a smaller max_new_tokens"
        )
        raise PromptTooLongError(msg)
    return shortened(kept)


def fit_together(
    prompts: Sequence[RagPrompt],
    budget: int | None,
    tokenizer: PreTrainedTokenizerBase,
    avoided: range = range(0),
) -> list[tuple[RagPrompt, Encoded]]:
    """Fit several layouts of one question, all with the same passages: those that fit in every layout.

    Args:
        prompts: with the same passages, best first.
        budget: as for `fit`.
        tokenizer: the backbone's.
        avoided: as for `fit`.

    Returns:
        What `fit` returns, for each prompt.

    Raises:
        PromptTooLongError: the question alone is over `budget`.
    """
    while True:
        fitted = [fit(prompt, budget, tokenizer, avoided=avoided) for prompt in prompts]
        fewest = min((prompt for prompt, _ in fitted), key=lambda prompt: len(prompt.passages))
        if all(len(prompt.passages) == len(fewest.passages) for prompt, _ in fitted):
            return fitted
        # A layout that had more of them may get one of the avoided lengths now, so all are fitted again.
        prompts = [replace(prompt, passages=fewest.passages, dropped=fewest.dropped) for prompt in prompts]


def fit_beside(
    prompts: Sequence[RagPrompt], backend: Backend, counts: Sequence[int], max_new_tokens: int
) -> list[tuple[RagPrompt, Encoded]]:
    """`fit_together` into a backend's context, beside the most virtual tokens and the longest answer.

    Args:
        prompts: with the same passages, best first.
        backend: that answers them.
        counts: the numbers of virtual tokens that they may get.
        max_new_tokens: most tokens of an answer.
    """
    budget = room(backend.context_length, max(counts), max_new_tokens)
    avoided = crossing(backend.position_switch, counts, max_new_tokens)
    return fit_together(prompts, budget, backend.tokenizer, avoided)
