"""Warn if virtual tokens are used in prompts of another layout than they were trained in."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

from spring_rag.templates import template_digest

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from spring_rag.prompt import Prompt
    from spring_rag.tokens import VirtualTokens

_warned: set[tuple[str, str]] = set()
"""Digests of tokens, each with a warning that was given about them."""


def warn_of_another_layout(tokens: VirtualTokens, prompt: Prompt, tokenizer: PreTrainedTokenizerBase) -> None:
    """Warn, once per set, of tokens that were trained in texts and are used in a chat, or the reverse, or with another chat template.

    Args:
        tokens: the tokens that the prompt will hold.
        prompt: a prompt with a slot.
        tokenizer: the backbone's.
    """
    chat = bool(prompt.messages)
    trained_in_chats = _trained_in_chats(tokens)
    if trained_in_chats is not None and trained_in_chats != chat:
        ours, theirs = ("a chat", "text prompts") if chat else ("a text prompt", "chats")
        msg = (
            f"these virtual tokens were trained in {theirs} and are used in {ours}, where they may do harm: use the layout that they were "
            "trained in (SpringModel.template), a framework's model of the other kind (SpringLLM for texts, ChatSpring for chats), or "
            "train tokens for this layout (--chat)"
        )
        _warn_once(tokens, msg)
    elif chat and tokens.chat_template is not None and tokens.chat_template != template_digest(tokenizer):
        msg = (
            "these virtual tokens were trained with another chat template than the tokenizer has now, so answers may be worse; give the "
            "tokenizer the chat template that they were trained with, or train tokens with this one"
        )
        _warn_once(tokens, msg)


def _trained_in_chats(tokens: VirtualTokens) -> bool | None:
    """Return whether a set was trained in chats; None if it was trained in both, or nothing is known."""
    recipe: Any = (tokens.training or {}).get("recipe")
    share = recipe.get("chat") if isinstance(recipe, dict) else None
    if isinstance(share, (int, float)) and 0 < share < 1:
        return None
    if tokens.template is not None:
        return tokens.template.chat
    return False if tokens.training is not None else None


def _warn_once(tokens: VirtualTokens, message: str) -> None:
    if (tokens.digest, message) not in _warned:
        _warned.add((tokens.digest, message))
        warnings.warn(message, stacklevel=6)
