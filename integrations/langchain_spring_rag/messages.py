"""LangChain's messages → prompts of the core. A slot is a content part of the type "virtual_tokens"."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from langchain_core.messages import (
    AIMessage,
    BaseMessage,
    ChatMessage,
    HumanMessage,
    SystemMessage,
)

from spring_rag.errors import PromptError
from spring_rag.prompt import Message, Part, Prompt, Slot, Text

VIRTUAL_TOKENS: dict[str, Any] = {"type": "virtual_tokens"}
"""The content part that stands for the slot, as `{"type": "image_url", …}` stands for an image."""

Content = str | list[str | dict[str, Any]]
"""What a message of LangChain holds."""

_ROLES = {HumanMessage: "user", AIMessage: "assistant", SystemMessage: "system"}
_ROLE_NAMES = {"human": "user", "ai": "assistant"}
_THOUGHTS = {"reasoning", "thinking"}


def spliced(context: str, question: str = "") -> list[str | dict[str, Any]]:
    r"""The content of a message with virtual tokens between a context and a question, for prompts made in code.

    A dynamic-prompt middleware, for one, returns `SystemMessage(spliced(context))`.

    Args:
        context: all that stands before the virtual tokens.
        question: all that stands after them; none where the question is another message.

    Example:
        >>> spliced("[1] It was lit in 1887.\n\n", "When was it lit?")[1:]
        [{'type': 'virtual_tokens'}, {'type': 'text', 'text': 'When was it lit?'}]
    """
    parts = [_text_part(context), dict(VIRTUAL_TOKENS), _text_part(question)]
    return [part for part in parts if part.get("text") != ""]


def content_of(parts: Sequence[Part]) -> Content:
    """The content of a message that holds these parts: a `str` where there is no slot."""
    if not any(isinstance(part, Slot) for part in parts):
        return "".join(part.text for part in parts if isinstance(part, Text))
    return [
        dict(VIRTUAL_TOKENS) if isinstance(part, Slot) else _text_part(part.text)
        for part in parts
        if isinstance(part, Slot) or part.text
    ]


def is_slot(part: object) -> bool:
    """Whether a content part is a slot."""
    return isinstance(part, dict) and part.get("type") == VIRTUAL_TOKENS["type"]


def without_slot(message: BaseMessage) -> BaseMessage:
    """The message without virtual tokens: those of a chat's history were for questions that have been answered."""
    if isinstance(message.content, str) or not any(map(is_slot, message.content)):
        return message
    return message.model_copy(update={"content": [part for part in message.content if not is_slot(part)]})


def with_slot_first(message: BaseMessage) -> BaseMessage:
    """The message with virtual tokens in front of its content."""
    content = [_text_part(message.content)] if isinstance(message.content, str) else message.content
    return message.model_copy(update={"content": [dict(VIRTUAL_TOKENS), *content]})


def to_prompt(messages: Sequence[BaseMessage]) -> Prompt:
    """The chat prompt that these messages are. Nothing in them is trusted.

    Raises:
        PromptError: a message that isn't text (an image, a tool's result), or two slots.
    """
    return Prompt(messages=tuple(Message(_role(message), tuple(_parts(message))) for message in messages))


def _text_part(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}


def _role(message: BaseMessage) -> str:
    if isinstance(message, ChatMessage):
        return _ROLE_NAMES.get(message.role, message.role)
    for kind, role in _ROLES.items():
        if isinstance(message, kind):
            return role
    msg = (
        f"a {type(message).__name__} can't be answered: expected system, human and AI messages, without tools"
    )
    raise PromptError(msg)


def _parts(message: BaseMessage) -> list[Part]:
    if isinstance(message, AIMessage) and message.tool_calls:
        msg = "an AI message calls tools, which ChatSpring doesn't support; give it chats without tool calls"
        raise PromptError(msg)
    content = [message.content] if isinstance(message.content, str) else message.content
    parts: list[Part] = []
    for part in content:
        if isinstance(part, str):
            parts.append(Text(part))
        elif is_slot(part):
            parts.append(Slot())
        elif part.get("type") == "text":
            parts.append(Text(part["text"]))
        elif not (isinstance(message, AIMessage) and part.get("type") in _THOUGHTS):
            msg = f"a message holds a part of the type {part.get('type')!r}; ChatSpring answers text only"
            raise PromptError(msg)
    return parts
