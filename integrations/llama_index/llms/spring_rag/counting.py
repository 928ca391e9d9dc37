"""With which tokenizer LlamaIndex counts what fits into a prompt: GPT-3.5's, unless it is told."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

import llama_index.core

from spring_rag.errors import PromptTooLongError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def counts_with(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether LlamaIndex's `Settings.tokenizer` is this one."""
    counting = llama_index.core.global_tokenizer
    while isinstance(counting, partial):
        counting = counting.func
    return getattr(counting, "__self__", counting) is tokenizer


@contextmanager
def saying_how_it_counts(tokenizer: PreTrainedTokenizerBase) -> Iterator[None]:
    """Let an error about a prompt's length say why LlamaIndex may have packed too much into it.

    Raises:
        PromptTooLongError: what is done inside raises it.
    """
    try:
        yield
    except PromptTooLongError as error:
        if counts_with(tokenizer):
            raise
        msg = (
            f"{error}. LlamaIndex counts with another tokenizer than the backbone's: set Settings.tokenizer = "
            "llm.model.tokenizer.encode, as upgrade_engine does"
        )
        raise PromptTooLongError(msg) from error
