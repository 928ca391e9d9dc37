"""Models that aren't ours behind prompts that have a slot, which they know nothing of."""

from __future__ import annotations

from typing import Any

from langchain_core.language_models import LanguageModelInput
from langchain_core.messages import convert_to_messages
from langchain_core.prompt_values import ChatPromptValue, StringPromptValue
from langchain_core.runnables import Runnable, RunnableLambda

from langchain_spring_rag.messages import without_slots
from spring_rag.bridge.marks import without_marks


def without_virtual_tokens(model: Runnable[LanguageModelInput, Any]) -> Runnable[LanguageModelInput, Any]:
    """Another model that gets prompts without their slots, to fall back to.

    Args:
        model: a chat model or LLM of any maker.

    Example:
        ```python
        chain = prompt | chat.with_fallbacks([without_virtual_tokens(other)])
        ```
    """
    return RunnableLambda(_plain) | model


def _plain(given: LanguageModelInput) -> LanguageModelInput:
    if isinstance(given, str):
        return without_marks(given)
    if isinstance(given, StringPromptValue):
        return StringPromptValue(text=without_marks(given.text))
    messages = given.to_messages() if isinstance(given, ChatPromptValue) else convert_to_messages(given)
    return ChatPromptValue(messages=without_slots(messages))
