"""Answers → LlamaIndex's responses, thoughts and calls of tools included."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from typing import Any

from llama_index.core.base.llms.types import (
    ChatMessage,
    ChatResponse,
    ChatResponseGen,
    CompletionResponse,
    CompletionResponseGen,
    MessageRole,
    TextBlock,
    ThinkingBlock,
    ToolCallBlock,
)
from llama_index.core.llms.llm import ToolSelection

from spring_rag.backends.base import Generation
from spring_rag.bridge.usage import token_counts
from spring_rag.prompt import ToolCall
from spring_rag.stream import Stream, Thought

_THOUGHTS = "thinking"
"""Under which a response's thoughts stand in its `additional_kwargs` until it is a chat's."""

_TOOL_CALLS = "tool_calls"
"""The same for its calls of tools."""

_LATEST_THOUGHT = "thinking_delta"
"""Where LlamaIndex's own models put what was thought so far, and the latest piece of it."""


def completion(
    generation: Generation, text: str | None = None, delta: str | None = None
) -> CompletionResponse:
    """Turn an answer into a response; `text` stands in for the answer's own where that was streamed."""
    # In the places and under the names where LlamaIndex's token counter looks for them.
    usage = token_counts([generation.usage])
    told: dict[str, Any] = {} if generation.reasoning is None else {_THOUGHTS: generation.reasoning}
    if generation.tool_calls:
        told[_TOOL_CALLS] = generation.tool_calls
    return CompletionResponse(
        text=generation.text.strip() if text is None else text,
        delta=delta,
        raw={"finish_reason": generation.finish_reason, "usage": usage},
        additional_kwargs={"finish_reason": generation.finish_reason, **usage, **told},
    )


def completions(pieces: Stream) -> CompletionResponseGen:
    """Give a response for each piece, and a last one without new text that tells how the answer ended."""
    text, thoughts = "", ""
    with closing(pieces.stripped()) as deltas:
        for delta in deltas.with_thoughts():
            if isinstance(delta, Thought):
                thoughts += delta
                told = {_THOUGHTS: thoughts, _LATEST_THOUGHT: str(delta)}
                yield CompletionResponse(text=text, delta="", additional_kwargs=told)
            else:
                text += delta
                told = {_THOUGHTS: thoughts} if thoughts else {}
                yield CompletionResponse(text=text, delta=delta, additional_kwargs=told)
        yield completion(deltas.generation, text, delta="")


def chat_responses(responses: CompletionResponseGen) -> ChatResponseGen:
    """Turn streamed answers to a text into answers to a chat. Closing them stops the backbone."""
    with closing(responses):
        for response in responses:
            yield chat_response(response)


def chat_response(response: CompletionResponse) -> ChatResponse:
    """Turn an answer to a text into one to a chat."""
    # The numbers stay out of the message: LlamaIndex writes a message's additional_kwargs into the chat history.
    told = dict(response.additional_kwargs)
    thoughts = told.pop(_THOUGHTS, None)
    calls: Sequence[ToolCall] = told.pop(_TOOL_CALLS, ())
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
    """List the tools that an answer calls.

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
    """Leave only the first of an answer's calls."""
    calls = [block for block in response.message.blocks if isinstance(block, ToolCallBlock)]
    response.message.blocks = [block for block in response.message.blocks if block not in calls[1:]]
    return response
