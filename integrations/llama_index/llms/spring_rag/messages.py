"""LlamaIndex's messages → prompts of the core."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from llama_index.core.base.llms.types import (
    ChatMessage,
    MessageRole,
    TextBlock,
    ThinkingBlock,
    ToolCallBlock,
)

from spring_rag.bridge.chats import chat_prompt
from spring_rag.bridge.marks import join, split
from spring_rag.errors import PromptError
from spring_rag.prompt import Message, Prompt, ToolCall

_CALL_ID = "tool_call_id"


def to_prompt(messages: Sequence[ChatMessage]) -> Prompt:
    """The messages as a prompt of the core.

    Raises:
        PromptError: a message with something else than text.
    """
    return chat_prompt([_message(message) for message in messages])


@dataclass(frozen=True)
class Layout:
    """A chat as text by some function, the slot right before the question."""

    lay_out: Callable[[Sequence[ChatMessage]], str]

    def __call__(self, messages: Sequence[ChatMessage]) -> str:
        """Lay a chat out as text."""
        prompt = to_prompt(messages)
        if not prompt.has_slot:
            return self.lay_out(messages)
        texts = [join(message.parts) for message in prompt.messages]
        pairs = zip(messages, texts, strict=True)
        return self.lay_out([ChatMessage(role=message.role, content=text) for message, text in pairs])


def _message(message: ChatMessage) -> Message:
    # Chat templates leave out what was thought before earlier answers.
    kinds = (
        (TextBlock, ThinkingBlock, ToolCallBlock) if message.role is MessageRole.ASSISTANT else (TextBlock,)
    )
    others = sorted({block.block_type for block in message.blocks if not isinstance(block, kinds)})
    if others:
        msg = f"a {message.role.value} message holds {', '.join(others)}; the backbone takes text only"
        raise PromptError(msg)
    calls = tuple(
        ToolCall(block.tool_name, block.tool_kwargs, block.tool_call_id or "")  # type: ignore[arg-type] # checked there
        for block in message.blocks
        if isinstance(block, ToolCallBlock)
    )
    answers = message.additional_kwargs.get(_CALL_ID) if message.role is MessageRole.TOOL else None
    return Message(message.role.value, split(message.content or ""), calls, tool_call_id=answers)
