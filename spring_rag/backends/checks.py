"""What backends share: which virtual tokens a request means, and whether all fits."""

import torch
from torch import Tensor

from spring_rag.backends.base import DEFAULT_TOKENS, Backend, GenerationSettings, Request
from spring_rag.errors import PromptTooLongError
from spring_rag.splice import TokenBank


def virtual_rows(bank: TokenBank, request: Request, hidden_size: int) -> Tensor:
    """The virtual tokens of a request, shape `[k, hidden_size]`; none where its prompt has no slot.

    Raises:
        TokensError: an unknown set, or more virtual tokens than it has.
    """
    if request.tokens is None and not request.num_tokens and DEFAULT_TOKENS not in bank:
        return torch.empty(0, hidden_size)
    rows = bank.rows(request.tokens or DEFAULT_TOKENS, request.num_tokens)
    return rows if request.encoded.slot is not None else rows[:0]


def fitting_rows(backend: Backend, request: Request, settings: GenerationSettings) -> Tensor:
    """The virtual tokens of a request, shape `[k, hidden_size]`, once it is known that they fit the backend's context.

    Raises:
        TokensError: an unknown set, or more virtual tokens than it has.
        PromptTooLongError: prompt and answer don't fit; says by how much.
    """
    rows = virtual_rows(backend.bank, request, backend.hidden_size)
    _check_length(request, len(rows), settings, backend.context_length)
    return rows


def new_tokens(request: Request, settings: GenerationSettings) -> int:
    """Most tokens that follow a prompt: of a choice it is the one that is chosen."""
    return 1 if request.choices else settings.max_new_tokens


def _check_length(
    request: Request, virtual: int, settings: GenerationSettings, context_length: int | None
) -> None:
    """Make sure that a prompt and its answer fit.

    Args:
        request: the prompt.
        virtual: number of its virtual tokens.
        settings: say how long the answer may be.
        context_length: most tokens of all together; None if unknown.

    Raises:
        PromptTooLongError: they don't fit; says by how much.
    """
    new = new_tokens(request, settings)
    needed = len(request.encoded.ids) + virtual + new
    if context_length is not None and needed > context_length:
        msg = (
            f"the prompt is {needed - context_length} tokens too long: {len(request.encoded.ids)} of its own, "
            f"{virtual} virtual ones and {new} for the answer (max_new_tokens) make {needed}, "
            f"and the backbone's context holds {context_length}"
        )
        raise PromptTooLongError(msg)
