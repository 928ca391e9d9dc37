"""A tokenizer's chat template: applying it, what it is told of thinking and of the date, and what it is known by."""

from __future__ import annotations

import ctypes
import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import date, datetime
from functools import lru_cache
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from jinja2 import Environment, TemplateError
from jinja2.meta import find_undeclared_variables

from spring_rag.errors import PromptError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from spring_rag.prompt import Prompt, RagTemplate

DATE = "date_string"
"""The argument that stands for today's date: Llama's templates read it, and others get it where they ask for the date."""

DATE_FORMAT = "%d %b %Y"
"""How Llama's templates write a date."""

_DATE_FORMATS = (DATE_FORMAT, "%Y-%m-%d", "%d %B %Y", "%B %d, %Y", "%b %d, %Y", "%d.%m.%Y")
_DIRECTIVES = "aAbBdHIjmMpSUwWxXyYcZ%"

_MOST_SECONDS = 20.0
"""How long a chat template may take: thousands of times what the longest chats need, since other programs may keep the processor."""

_SWITCHES: tuple[tuple[str, tuple[Any, ...], tuple[Any, ...]], ...] = (
    ("enable_thinking", (False,), (True,)),
    ("thinking", (False,), (True,)),
    ("reasoning", (False,), (True,)),
    ("thinking_budget", (0,), ()),
    ("thinking_mode", ("off", "disabled", "chat", "no_think"), ("on", "enabled", "thinking", "think")),
    ("reasoning_effort", ("none", "no_think", "minimal", "low"), ("high",)),
)
"""Variables by which templates turn thinking off and on: name, values for off, values for on, the first that a template knows."""

_OTHER_TOOLS = ("xml_tools",)
"""Further names of the argument `tools`: SmolLM3's."""

_EFFORT_IN_ANY_CASE = "low"
"""Templates that write the effort as it is given (gpt-oss) don't name its values; all such models were trained with this one."""

_endless: set[str] = set()
"""Templates that once took too long, so that nobody waits for them twice."""

_known: WeakKeyDictionary[PreTrainedTokenizerBase, dict[tuple[str, str], Any]] = WeakKeyDictionary()


def apply_template(
    chat: Sequence[dict[str, Any]],
    tokenizer: PreTrainedTokenizerBase,
    arguments: Mapping[str, Any] | None = None,
    *,
    add_generation_prompt: bool,
) -> str:
    """Render messages by the tokenizer's chat template.

    Args:
        chat: the messages, as transformers takes them.
        tokenizer: only read.
        arguments: what the template is given besides.
        add_generation_prompt: whether the beginning of an answer follows.

    Raises:
        PromptError: there is no chat template, it refuses the messages, or it doesn't come to an end.
    """
    given = dict(arguments or {})
    tools = given.get("tools")
    template = template_text(tokenizer, tools=tools)
    if tools and _reads_tools_in_system(template):
        chat = _with_tools_in_system(chat, tools)
    elif tools:
        given.update(dict.fromkeys(_OTHER_TOOLS, tools))
    if DATE in given:
        template = _with_date(template, str(given[DATE]))

    def apply() -> str:
        text = tokenizer.apply_chat_template(
            list(chat),
            chat_template=template,
            add_generation_prompt=add_generation_prompt,
            tokenize=False,
            **given,
        )
        return str(text)

    try:
        return _in_time(apply, template)
    except (
        TemplateError,
        TypeError,
        ValueError,
        LookupError,
        AttributeError,
        ArithmeticError,
        RecursionError,
        MemoryError,
        TimeoutError,
    ) as error:
        roles = ", ".join(message["role"] for message in chat)
        msg = f"the tokenizer's chat template refuses a chat with the roles {roles}: {error}"
        raise PromptError(msg) from error


@lru_cache(maxsize=64)
def _reads_tools_in_system(template: str) -> bool:
    """Tell whether a template takes tools from the system message, as Phi-4-mini's does, having no argument for them."""
    if not re.search(r"message(?:\.tools\b|\[['\"]tools['\"]\])", template):
        return False
    try:
        parsed = Environment(extensions=["jinja2.ext.loopcontrols"]).parse(template)
    except TemplateError:
        return False
    return not {"tools", *_OTHER_TOOLS} & find_undeclared_variables(parsed)


def _with_tools_in_system(
    chat: Sequence[dict[str, Any]], tools: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """Put tools into the system message, which is made where there is none."""
    functions = json.dumps([tool["function"] for tool in tools], ensure_ascii=False)
    has_system = bool(chat) and chat[0]["role"] == "system"
    empty = "" if isinstance(chat[0]["content"], str) else [{"type": "text", "text": ""}]
    system = chat[0] if has_system else {"role": "system", "content": empty}
    return [{**system, "tools": functions}, *chat[has_system:]]


def template_text(
    tokenizer: PreTrainedTokenizerBase, tools: Sequence[Mapping[str, Any]] | None = None
) -> str:
    """Return the tokenizer's chat template; if it has several, the default one, or the one for tools if there are tools.

    Raises:
        PromptError: it has none.
    """
    if not tokenizer.chat_template:
        msg = "the tokenizer has no chat template, so it can't take a chat; use a text prompt, or set tokenizer.chat_template"
        raise PromptError(msg)
    try:
        return str(tokenizer.get_chat_template(tools=[*map(dict, tools)] if tools else None))
    except ValueError as error:
        msg = f"the tokenizer has several chat templates and no default one: {error}"
        raise PromptError(msg) from error


def template_digest(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """Return 16 hex digits that change with any character of the chat template; None if there is none."""
    if not tokenizer.chat_template:
        return None
    return hashlib.sha256(template_text(tokenizer).encode()).hexdigest()[:16]


def template_arguments(prompt: Prompt | RagTemplate, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """Return what the chat template is given besides the messages: its own switch for thinking, and the prompt's `chat_template_kwargs`."""
    switch = {} if prompt.thinking is None else thinking_switch(tokenizer, on=prompt.thinking)
    return {**switch, **prompt.chat_template_kwargs}


def prints_date(tokenizer: PreTrainedTokenizerBase, arguments: Mapping[str, Any]) -> bool:
    """Return whether the chat template writes today's date into every prompt."""

    def on(day: date) -> str | None:
        return tried(tokenizer, {**arguments, DATE: f"{day:{DATE_FORMAT}}"})

    return on(date(2001, 2, 3)) != on(date(2004, 5, 6))


def tried(
    tokenizer: PreTrainedTokenizerBase,
    arguments: Mapping[str, Any],
    answer: Mapping[str, Any] | None = None,
    system: str | None = None,
) -> str | None:
    """Render a minimal chat with these arguments; return None if the chat template refuses.

    Args:
        tokenizer: only read.
        arguments: what the template is given.
        answer: what the assistant's message holds, as `{"content": …}`; without it the beginning of an answer follows the question.
        system: what a system message holds, if there is to be one.
    """
    for as_list in (False, True):
        chat: list[dict[str, Any]] = [{"role": "system", "content": system}] if system else []
        chat.append({"role": "user", "content": "a"})
        if answer is not None:
            chat.append({"role": "assistant", **answer})
        if as_list:
            chat = [{**each, "content": [{"type": "text", "text": each["content"]}]} for each in chat]
        try:
            return apply_template(chat, tokenizer, arguments, add_generation_prompt=answer is None)
        except PromptError:
            continue
    return None


def remembered(tokenizer: PreTrainedTokenizerBase, what: str, find: Callable[[], Any]) -> Any:
    """Find something out about a tokenizer's chat template, and remember it."""
    known = _known.setdefault(tokenizer, {})
    key = (what, str(tokenizer.chat_template))
    if key not in known:
        known[key] = find()
    return known[key]


def thinking_switch(tokenizer: PreTrainedTokenizerBase, *, on: bool) -> dict[str, Any]:
    """Return the arguments that turn thinking on or off; empty if the template does so by itself, or has no say in it."""

    def find() -> dict[str, Any]:
        text = template_text(tokenizer)
        plain = tried(tokenizer, {})
        found: dict[str, Any] = {}
        for name, off_values, on_values in _SWITCHES:
            if plain is None or not re.search(rf"\b{name}\b", text):
                continue
            off = next(_accepted(tokenizer, name, off_values, text), None)
            if off is None:
                continue
            if not on and off[1] != plain:
                found[name] = off[0]
            # A backbone that thinks by itself keeps the effort that its template sets.
            if on and off[1] == plain:
                value = next(_accepted(tokenizer, name, on_values, text), None)
                if value is not None and value[1] != plain:
                    found[name] = value[0]
        return found

    switch: dict[str, Any] = remembered(tokenizer, f"thinking={on}", find)
    return switch


def _accepted(
    tokenizer: PreTrainedTokenizerBase, name: str, values: Sequence[Any], text: str
) -> Iterator[tuple[Any, str]]:
    """Yield those of a variable's values that the template knows, each with what it writes then."""
    for value in values:
        named = not isinstance(value, str) or re.search(rf"""(["']){value}\1""", text)
        if named or value == _EFFORT_IN_ANY_CASE:
            written = tried(tokenizer, {name: value})
            if written is not None:
                yield value, written


def _with_date(template: str, text: str) -> str:
    """Give a template another clock, which tells this date in any format that the template asks for; a date that can't be read is written as it is."""
    day = _parsed_date(text)
    expression = repr(text)  # Python writes a text as jinja reads it
    if day is not None:
        # `%%` comes last, so that no per cent sign that it writes begins another directive.
        directives = [f"%{letter}" for letter in _DIRECTIVES]
        replacements = [f".replace({each!r}, {day.strftime(each)!r})" for each in directives]
        expression = "format" + "".join(replacements)
    # A line break right behind a block belongs to it, so that the template begins where it did.
    return f"{{% macro strftime_now(format) %}}{{{{ {expression} }}}}{{% endmacro %}}\n{template}"


def _parsed_date(text: str) -> datetime | None:
    for form in _DATE_FORMATS:
        try:
            return datetime.strptime(text.strip(), form)
        except ValueError:
            continue
    return None


class _LateError(BaseException):
    """Raised inside a template that takes too long; no template can catch it."""


def _in_time(render: Callable[[], str], template: str) -> str:
    """Return what a template writes, if that takes no longer than `_MOST_SECONDS`.

    The template runs in a thread of its own, in which an exception can be raised from outside: jinja's sandbox bounds a range, but not loops within
    loops, and knows no time.

    Raises:
        TimeoutError: it takes longer, or did before.
    """
    found: list[str] = []
    failed: list[BaseException] = []

    def work() -> None:
        try:
            found.append(render())
        except BaseException as error:  # belongs to the thread that asked
            failed.append(error)

    if template not in _endless:
        worker = threading.Thread(target=work, name="spring-rag-template", daemon=True)
        worker.start()
        worker.join(_MOST_SECONDS)
        if worker.is_alive():
            _endless.add(template)
            ident = ctypes.c_ulong(worker.ident or 0)
            ctypes.pythonapi.PyThreadState_SetAsyncExc(ident, ctypes.py_object(_LateError))
    if template in _endless:
        msg = f"it isn't done after {_MOST_SECONDS:g} seconds, so it may have no end"
        raise TimeoutError(msg)
    if failed:
        raise failed[0]
    return found[0]
