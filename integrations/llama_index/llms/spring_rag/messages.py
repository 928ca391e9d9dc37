"""LlamaIndex's messages → prompts of the core, and answers → its responses, calls of tools included."""

from __future__ import annotations

from collections.abc import Sequence

from llama_index.core.base.llms.types import (
    ChatMessage,
    ChatResponse,
    CompletionResponse,
    MessageRole,
    TextBlock,
    ThinkingBlock,
    ToolCallBlock,
)
from llama_index.core.llms.llm import ToolSelection

from spring_rag.bridge.chats import chat_prompt
from spring_rag.bridge.marks import split
from spring_rag.errors import PromptError
from spring_rag.prompt import Message, Prompt, ToolCall

THOUGHTS = "thinking"
"""Under which a response's thoughts stand in its `additional_kwargs` until it is a chat's."""

TOOL_CALLS = "tool_calls"
"""The same for its calls of tools."""

_CALL_ID = "tool_call_id"


def to_prompt(messages: Sequence[ChatMessage]) -> Prompt:
    """The messages as a prompt of the core.

    Raises:
        PromptError: a message with something else than text.
    """
    return chat_prompt([_message(message) for message in messages])


def chat_response(response: CompletionResponse) -> ChatResponse:
    """An answer to a text as one to a chat."""
    # The numbers stay out of the message: LlamaIndex writes a message's additional_kwargs into the chat history.
    told = dict(response.additional_kwargs)
    thoughts = told.pop(THOUGHTS, None)
    calls: Sequence[ToolCall] = told.pop(TOOL_CALLS, ())
    blocks = [
        *([] if thoughts is None else [ThinkingBlock(content=thoughts)]),
        *([TextBlock(text=response.text)] if response.text or not calls else []),
        *(
            ToolCallBlock(tool_call_id=call.id, tool_name=call.name, tool_kwargs=dict(call.arguments))
            for call in calls
        ),
    ]
    return ChatResponse(
        message=ChatMessage(role=MessageRole.ASSISTANT, blocks=blocks),
        delta=response.delta,
        raw=response.raw,
        additional_kwargs=told,
    )


def tool_selections(response: ChatResponse, *, required: bool) -> list[ToolSelection]:
    """The tools that an answer calls.

    Raises:
        ValueError: none, though one is required.
    """
    calls = [block for block in response.message.blocks if isinstance(block, ToolCallBlock)]
    if required and not calls:
        msg = f"the backbone called no tool, it answered {response.message.content!r}"
        raise ValueError(msg)
    return [
        ToolSelection(
            tool_id=call.tool_call_id or "",
            tool_name=call.tool_name,
            tool_kwargs=call.tool_kwargs if isinstance(call.tool_kwargs, dict) else {},
        )
        for call in calls
    ]


def single_call(response: ChatResponse) -> ChatResponse:
    """The answer with the first of its calls only."""
    calls = [block for block in response.message.blocks if isinstance(block, ToolCallBlock)]
    response.message.blocks = [block for block in response.message.blocks if block not in calls[1:]]
    return response


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
