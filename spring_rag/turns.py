"""Chats for chat templates that want user and assistant to take turns, as Mistral's and Gemma's do."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

from spring_rag.errors import PromptError
from spring_rag.prompt import Message, Part, Prompt, Text
from spring_rag.rendering import render

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def in_turns(prompt: Prompt, tokenizer: PreTrainedTokenizerBase) -> Prompt:
    """A chat as the tokenizer's chat template takes it: as it is or, where the template refuses that, folded into turns.

    Then neighbours of one role become one message, and a system message the first part of the user's. Whether the template
    takes that is found out when the prompt is encoded.
    """
    roles = [message.role for message in prompt.messages]
    if "system" in roles or any(role == following for role, following in pairwise(roles)):
        try:
            render(prompt, tokenizer)
        except PromptError:
            return _folded(prompt)
    return prompt


def _folded(prompt: Prompt) -> Prompt:
    turns: list[tuple[str, list[Part]]] = []
    for message in prompt.messages:
        role = "user" if message.role == "system" else message.role
        if turns and turns[-1][0] == role:
            turns[-1][1].append(Text("\n\n"))
            turns[-1][1].extend(message.parts)
        else:
            turns.append((role, list(message.parts)))
    return Prompt(messages=tuple(Message(role, tuple(parts)) for role, parts in turns))
