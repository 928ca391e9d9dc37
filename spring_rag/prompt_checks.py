"""Check what a prompt is made of, and refuse anything else."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from string import Formatter
from types import UnionType
from typing import Any, cast

from spring_rag.errors import PromptError
from spring_rag.files import as_json

_RENDERING = re.compile(
    "conversation|messages|tools|documents|chat_template|add_generation_prompt|continue_final_message|tokenize|tokenizer_kwargs"
    "|sanitize_control_tokens|padding|truncation|max_length|return_(tensors|dict|assistant_tokens_mask)"
)
"""Arguments of `apply_chat_template` that its caller decides, and no prompt may."""


def require(value: object, kind: type | UnionType, what: str) -> None:
    """Refuse a value of another type, and a text that holds half a character."""
    if not isinstance(value, kind):
        expected = getattr(kind, "__name__", None) or str(kind).replace("spring_rag.prompt.", "")
        msg = f"{what} must be {expected}, got {type(value).__name__}"
        raise PromptError(msg)
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError as error:
            half = value[error.start]
            msg = f"{what} holds half a character (the lone surrogate {half!r}); decode it properly"
            raise PromptError(msg) from error


def json_object(values: object, what: str) -> dict[str, Any]:
    """Copy values by way of JSON; refuse what JSON can't hold."""
    require(values, Mapping, what)
    try:
        return as_json(cast(Mapping[str, Any], values))
    except ValueError as error:
        msg = f"{what} must be what JSON can hold: {error}"
        raise PromptError(msg) from error


def checked_kwargs(kwargs: object, whose: str) -> dict[str, Any]:
    """Copy the arguments of a chat template, which artifacts record; refuse those that say how a chat is rendered."""
    what = f"chat_template_kwargs of {whose}"
    copy = json_object(kwargs, what)
    if refused := sorted(filter(_RENDERING.fullmatch, copy)):
        msg = f"{what} hold {', '.join(refused)}, which says how a chat is rendered; they are for a template's own variables"
        raise PromptError(msg)
    return copy


def check_role(role: str) -> None:
    """Refuse a message's role that isn't a word: chat templates write `"<|" + role + "|>"`, so it must not hold a control string."""
    if not re.fullmatch(r"[\w-]+", role):
        msg = f"the role of a message is {role!r}; it must be a word, as 'system', 'user' or 'assistant'"
        raise PromptError(msg)


def check_tool_name(name: str) -> None:
    """Refuse a tool's name that isn't a word; like a role, it must not hold a control string."""
    if not re.fullmatch(r"[\w.-]+", name):
        msg = f"the name of a tool is {name!r}; it must be a word, as 'search' or 'get_weather'"
        raise PromptError(msg)


def checked_tool(tool: object) -> dict[str, Any]:
    """Copy the description of a tool; refuse one in another form than OpenAI's."""
    copy = json_object(tool, "a tool of a Prompt")
    function = copy.get("function")
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        msg = (
            'a tool of a Prompt must look as {"type": "function", "function": {"name": …, "description": …, "parameters": …}}, got '
            f"{json.dumps(copy, ensure_ascii=False)[:200]}"
        )
        raise PromptError(msg)
    check_tool_name(function["name"])
    return copy


def check_placeholders(where: str, layout: str, *, required: str, optional: str | None = None) -> None:
    """Refuse a layout without its placeholder, or with anything else in braces.

    Templates come with downloaded artifacts, so attribute access (`{question.__class__}`) and conversions are refused, too.
    """
    try:
        found = [
            (name, spec, conversion)
            for _, name, spec, conversion in Formatter().parse(layout)
            if name is not None
        ]
    except ValueError as error:
        msg = f"{where} of a RagTemplate is {layout!r}: {error}; write a literal brace twice"
        raise PromptError(msg) from error
    plain = all(
        name in (required, optional) and not spec and not conversion for name, spec, conversion in found
    )
    if not plain or [name for name, _, _ in found].count(required) != 1:
        allowed = f" and may contain {{{optional}}}" if optional else ""
        msg = f"{where} of a RagTemplate is {layout!r}; it must contain {{{required}}} once{allowed}, and nothing else in braces"
        raise PromptError(msg)
