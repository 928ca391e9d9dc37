"""Which tool a backbone must call, in the words that frameworks have for it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from spring_rag.prompt import ANY_TOOL

_ANY: tuple[object, ...] = (ANY_TOOL, "required", True)
_NO_CHOICE: tuple[object, ...] = ("auto", "none", "", False, None)


def tool_choice(given: object) -> str | None:
    """Turn a framework's `tool_choice` into a prompt's: a tool's name, `ANY_TOOL`, or None where a backbone is free.

    Args:
        given: a tool's name, "any", "required", "auto", "none", a bool, or OpenAI's form for a name.

    Raises:
        ValueError: something else.
    """
    if given in _NO_CHOICE:
        return None
    if given in _ANY:
        return ANY_TOOL
    if isinstance(given, str):
        return given
    name: Any = given.get("function", given).get("name") if isinstance(given, Mapping) else None
    if not isinstance(name, str):
        msg = f"tool_choice is {given!r}; expected a tool's name, 'any', 'auto' or 'none'"
        raise ValueError(msg)
    return name


def forbids_tools(given: object) -> bool:
    """Tell whether a `tool_choice` says that no tool may be called."""
    return given == "none" or given is False
