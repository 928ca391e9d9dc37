"""LangChain's messages → prompts of the core. A slot is the mark in a text, or a content part of the type "virtual_tokens"."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from langchain_core.messages import (
    AIMessage,
    BaseMessage,
    ChatMessage,
    HumanMessage,
    SystemMessage,
    ToolMessage,
)

from spring_rag.bridge.chats import chat_prompt
from spring_rag.bridge.marks import MARK, is_marked, split, without_marks
from spring_rag.errors import PromptError
from spring_rag.prompt import Message, Part, Prompt, Slot, Text, ToolCall

VIRTUAL_TOKENS: dict[str, Any] = {"type": "virtual_tokens"}
"""The content part that stands for the slot, as `{"type": "image_url", …}` stands for an image."""

_ROLES = {HumanMessage: "user", AIMessage: "assistant", SystemMessage: "system", ToolMessage: "tool"}
_NOT_CONTENT = {"reasoning", "thinking", "tool_call", "tool_use"}
"""Parts of AI messages that chat templates leave out, or that `tool_calls` has, too."""


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


def is_slot(part: object) -> bool:
    """Whether a content part is a slot."""
    return isinstance(part, dict) and part.get("type") == VIRTUAL_TOKENS["type"]


def with_slot_first(message: BaseMessage) -> BaseMessage:
    """The message with a slot in front of its content."""
    if isinstance(message.content, str):
        return message.model_copy(update={"content": MARK + message.content})
    return message.model_copy(update={"content": [_text_part(MARK), *message.content]})


def with_marks(messages: Iterable[BaseMessage]) -> list[BaseMessage]:
    """The messages with marks in place of content parts, which LangChain drops where it writes a chat as text."""
    return [
        _changed(message, lambda part: _text_part(MARK) if is_slot(part) else part) for message in messages
    ]


def without_slots(messages: Iterable[BaseMessage]) -> list[BaseMessage]:
    """The messages without slots, as another model takes them."""

    def plain(part: Any) -> Any:
        if isinstance(part, str):
            return without_marks(part)
        if is_slot(part):
            return None
        return {**part, "text": without_marks(part["text"])} if part.get("type") == "text" else part

    return [_changed(message, plain) for message in messages]


def canonical_messages(messages: Iterable[BaseMessage]) -> list[BaseMessage]:
    """The messages with content parts in place of marks: the same in every process, for keys of caches."""
    found = []
    for message in messages:
        if is_marked(message.text):
            content = [_part_of(part) for part in _parts(message)]
            message = message.model_copy(update={"content": content})
        found.append(message)
    return found


def to_prompt(messages: Sequence[BaseMessage]) -> Prompt:
    """The chat prompt that these messages are. Nothing in them is trusted.

    Raises:
        PromptError: a message that isn't text (an image, say), or two slots.
    """
    return chat_prompt([_message(message) for message in messages])


def to_tool_calls(calls: Iterable[ToolCall]) -> list[dict[str, Any]]:
    """A backbone's calls of tools as LangChain has them."""
    return [
        {"name": call.name, "args": dict(call.arguments), "id": call.id, "type": "tool_call"}
        for call in calls
    ]


def _text_part(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}


def _part_of(part: Part) -> dict[str, Any]:
    return _text_part(part.text) if isinstance(part, Text) else dict(VIRTUAL_TOKENS)


def _changed(message: BaseMessage, change: Callable[[Any], Any]) -> BaseMessage:
    """The message with each part of its content changed, or left out where the change gives None."""
    if isinstance(message.content, str):
        content: Any = change(message.content)
    else:
        content = [new for part in message.content if (new := change(part)) is not None]
    return message if content == message.content else message.model_copy(update={"content": content})


def _message(message: BaseMessage) -> Message:
    role, parts = _role(message), tuple(_parts(message))
    if isinstance(message, AIMessage):
        calls = (ToolCall(call["name"], call["args"], call["id"] or "") for call in message.tool_calls)
        return Message(role, parts, tuple(calls))
    if isinstance(message, ToolMessage):
        return Message(role, parts, tool_call_id=message.tool_call_id, name=message.name)
    return Message(role, parts)


def _role(message: BaseMessage) -> str:
    if isinstance(message, ChatMessage):
        return message.role
    for kind, role in _ROLES.items():
        if isinstance(message, kind):
            return role
    msg = f"a {type(message).__name__} can't be answered: expected system, human, AI and tool messages"
    raise PromptError(msg)


def _parts(message: BaseMessage) -> list[Part]:
    content = [message.content] if isinstance(message.content, str) else message.content
    parts: list[Part] = []
    for part in content:
        if isinstance(part, str):
            parts += split(part)
        elif is_slot(part):
            parts.append(Slot())
        elif part.get("type") == "text":
            parts += split(part["text"])
        elif not (isinstance(message, AIMessage) and part.get("type") in _NOT_CONTENT):
            msg = f"a message holds a part of the type {part.get('type')!r}; ChatSpring answers text only"
            raise PromptError(msg)
    return parts
