"""Reading the calls of tools in what a backbone wrote, by the form in which its chat template writes them.

There are four forms: a JSON value that holds name and arguments, a name before its arguments in JSON, a name before marked pairs, and Python.
"""

from __future__ import annotations

import ast
import json
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from spring_rag.call_values import as_python, decoded_at, loaded, quoted_at, typed
from spring_rag.files import as_json
from spring_rag.prompt import Part, Text, ToolCall

Call = tuple[str, dict[str, Any]]
"""A call's name and its arguments."""

Found = tuple[str, dict[str, Any], int]
"""A call's name, its arguments, and where in the text it ends."""

_TAG = re.compile(r"<[^<>]*>?[^<\[]*|\[[^\[\]]*\][^<\[]*")
"""A marker, with what follows it up to the next."""

PROBE_ID = "a1b2c3d4e"
"""Of the call that templates are asked to write."""

_OTHERS = ((PROBE_ID, r"[\w.:-]*"), (":0", r":\d+"), ('"1"', r'"\d+"'), ('"string"', r'"\w+"'))
"""What differs from call to call, as the call that templates are asked to write has it, and a pattern for others."""


@dataclass(frozen=True)
class CallForm(ABC):
    """How a chat template writes calls, and reading them in what a backbone wrote.

    Attributes:
        opening: what stands before a call, without white space at its end; empty where nothing does.
        closing: what stands after it, without white space around; empty where nothing does.
        begun: a call up to the name, white space included.
        following: what stands between the name and the arguments.
        id_format: how a call's id is made of its `{name}` and `{number}`, where a template writes the id in the name's place; else empty.
        in_content: whether calls are a part of an answer's text, because the template has no other place for them.
    """

    opening: str
    closing: str
    begun: str
    following: str
    id_format: str = ""
    in_content: bool = field(default=False, kw_only=True)

    @property
    def markers(self) -> tuple[str, ...]:
        """Return the markers that occur only in calls, in the order of the opening."""
        return tuple(each.strip() for each in _TAG.findall(self.opening)) or tuple(
            filter(None, [self.opening])
        )

    @property
    def literals(self) -> str:
        """All that the form consists of."""
        return f"{self.begun}{self.following}{self.opening}{self.closing}"

    def beginning(self, name: str | None) -> str:
        """Return the beginning of a call, up to its arguments or, if no name is given, up to the name.

        White space at the end would be part of the token that follows, and that before it is the template's own, so both are left out.
        """
        begun = self.begun.lstrip().partition(PROBE_ID)[0]
        return (
            begun.rstrip()
            if name is None
            else f"{begun}{name}{self.following.partition(PROBE_ID)[0].rstrip()}"
        )

    def read(self, text: str, tools: Sequence[Mapping[str, Any]]) -> tuple[str, list[Call]]:
        """Part calls from the text around them; what can't be read as a call stays text.

        Args:
            text: what a backbone wrote.
            tools: what it may call.

        Returns:
            The text, and the calls in order.
        """
        pattern = re.compile(_optional(self.opening) if self.markers else r"\A")
        calls: list[Call] = []
        kept, done, led = "", 0, False
        while (match := pattern.search(text, done)) is not None:
            found = list(self._calls_at(text, match.end(), tools))
            end = found[-1][2] if found else max(match.end(), done + 1)
            kept += text[done : match.start() if found else end]
            led = led if calls else bool(kept.strip())
            calls += [(name, arguments) for name, arguments, _ in found]
            done = _after(self.closing, text, end) if found else end
            if not self.markers:
                break
        kept += text[done:]
        # A text that begins before the calls keeps its beginning, which a stream has shown by then.
        return (kept.rstrip() if led else kept.strip()) if calls else kept, calls

    def write(self, calls: Sequence[ToolCall]) -> tuple[Part, ...]:
        """Write calls as a part of an answer's text."""
        texts = [self._written(call) for call in calls]
        if self.begun.startswith(f"{self.opening}["):
            texts, gap = [f"[{', '.join(texts)}]"], ""
        else:
            gap = "\n"
        parts: list[Part] = []
        for text in texts:
            parts += [
                Text(self.opening + gap, trusted=True),
                Text(text),
                Text(gap + self.closing, trusted=True),
            ]
        return tuple(parts)

    def _written(self, call: ToolCall) -> str:
        """Write one call without its markers; only forms that stand in an answer's text are asked to."""
        raise NotImplementedError

    def _whole(
        self, read: Sequence[Call | None], end: int, tools: Sequence[Mapping[str, Any]]
    ) -> Iterator[Found]:
        """Calls that stand together: all of them or none; where no marker tells them from text, only calls of known tools."""
        calls = [each for each in read if each is not None]
        if len(calls) == len(read) and (self.markers or _declared({name for name, _ in calls}, tools)):
            for name, arguments in calls:
                yield name, arguments, end

    @abstractmethod
    def _calls_at(self, text: str, start: int, tools: Sequence[Mapping[str, Any]]) -> Iterator[Found]:
        """Read the calls behind an opening that ends there; none where no call follows."""


@dataclass(frozen=True)
class JsonForm(CallForm):
    """A JSON object with name and arguments, or a list of such.

    Attributes:
        keys: of the name and the arguments.
        wrapper: key of the object that holds both, if they don't stand in the outer one.
    """

    keys: tuple[str, str] = ("name", "arguments")
    wrapper: str | None = None

    def _written(self, call: ToolCall) -> str:
        return json.dumps(dict(zip(self.keys, (call.name, call.arguments), strict=True)), ensure_ascii=False)

    def _calls_at(self, text: str, start: int, tools: Sequence[Mapping[str, Any]]) -> Iterator[Found]:
        value, end = decoded_at(text, start)
        # Models write one call where their template shows a list, and one after another.
        items = value if isinstance(value, list) else [value]
        read = [self._call(item) for item in items]
        yield from self._whole(read, end, tools)

    def _call(self, item: object) -> Call | None:
        if isinstance(item, dict) and self.wrapper is not None:
            item = item.get(self.wrapper)
        if not isinstance(item, dict):
            return None
        # Which of the two usual names a model writes isn't always that of its template.
        arguments: object = next(
            (item[key] for key in (self.keys[1], "arguments", "parameters") if key in item), {}
        )
        return _checked(item.get(self.keys[0]), arguments)


@dataclass(frozen=True)
class NamedForm(CallForm):
    """A name, and then its arguments in JSON.

    Attributes:
        quote: what stands around strings in place of a quotation mark, in JSON whose keys have none; empty for plain JSON.
    """

    quote: str = ""

    @property
    def literals(self) -> str:
        """All that the form consists of."""
        return super().literals + self.quote

    def _calls_at(self, text: str, start: int, tools: Sequence[Mapping[str, Any]]) -> Iterator[Found]:  # noqa: ARG002
        # Models don't always write all that their template puts between name and arguments, but its last marker.
        marks = _TAG.findall(self.following)
        shorter = rf"|(?![\w.-])[^{{}}]*?{_loose(marks[-1].strip())}" if marks else ""
        name = re.compile(rf"\s*([\w.-]+?)(?:{_loose(self.following)}{shorter})(?=\s*(?:[^\w\s.-]|\Z))")
        match = name.match(text, start)
        if match is None:
            return
        value, end = quoted_at(text, match.end(), self.quote) if self.quote else decoded_at(text, match.end())
        call = _checked(match[1], value)
        if call is not None:
            yield *call, end


@dataclass(frozen=True)
class PairsForm(CallForm):
    """A name, and then each argument's name and value between marks of their own.

    Attributes:
        before_key: what stands before an argument's name.
        before_value: what stands between that and the value.
        after_value: what ends a value.
    """

    before_key: str = ""
    before_value: str = ""
    after_value: str = ""

    def _calls_at(self, text: str, start: int, tools: Sequence[Mapping[str, Any]]) -> Iterator[Found]:
        after_name = _loose("".join(self.following.split()[:1])) or r"\s"
        match = re.compile(rf"\s*([\w.-]+?)(?={after_name}|\s*\Z|\s*<)").match(text, start)
        if match is None:
            return
        schema = _parameters(match[1], tools)
        before_key, before_value, after_value = map(
            _loose, (self.before_key, self.before_value, self.after_value)
        )
        lead = _loose(self.following.strip().removesuffix(self.before_key))
        pair = re.compile(
            rf"\s*{before_key}\s*([\w.-]+?)\s*{before_value}\n?(.*?)\n?{after_value}", re.DOTALL
        )
        arguments, end = {}, match.end()
        led = re.compile(lead).match(text, end)
        end = led.end() if led else end
        closing = next(iter(_TAG.findall(self.closing)), self.closing)
        limit = text.find(closing, end) if closing else -1
        while (found := pair.match(text, end)) is not None:
            arguments[found[1]] = typed(found[2], schema.get(found[1]))
            end = found.end()
        call = _checked(match[1], arguments)
        if call is not None:
            yield *call, max(end, limit if limit >= 0 else end)


@dataclass(frozen=True)
class PythonForm(CallForm):
    """One call, or a list of calls, in Python's notation."""

    def _written(self, call: ToolCall) -> str:
        # Strings between double quotation marks, as models of this form write them.
        values = {
            key: json.dumps(value, ensure_ascii=False) if isinstance(value, str) else repr(value)
            for key, value in call.arguments.items()
        }
        return f"{call.name}({', '.join(f'{key}={value}' for key, value in values.items())})"

    def _calls_at(self, text: str, start: int, tools: Sequence[Mapping[str, Any]]) -> Iterator[Found]:
        end = text.find(self.closing, start) if self.closing else -1
        end = end if end >= 0 else len(text)
        try:
            value = ast.parse(text[start:end].strip(), mode="eval").body
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            return
        calls = value.elts if isinstance(value, ast.List) else [value]
        read = []
        for call in calls:
            if not isinstance(call, ast.Call) or call.args:
                return
            try:
                arguments = {
                    each.arg: ast.literal_eval(as_python(each.value)) for each in call.keywords if each.arg
                }
                name = ast.unparse(call.func)
            except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
                return
            read.append(_checked(name, arguments))
        yield from self._whole(read, end, tools)


@dataclass(frozen=True)
class ResponseForm(CallForm):
    """Whatever a tokenizer's own `response_template` describes; transformers reads it.

    Attributes:
        template: the part of it that describes calls; all other text is the content.
    """

    template: Mapping[str, Any] = field(default_factory=dict, hash=False)

    def beginning(self, name: str | None) -> str:  # noqa: ARG002
        """Give nothing: a `response_template` tells how to read a call, not how to begin one."""
        return ""

    def read(self, text: str, tools: Sequence[Mapping[str, Any]]) -> tuple[str, list[Call]]:
        """Part calls from the text, as every form does; where transformers can't, all of it stays text."""
        from transformers.utils.chat_parsing import parse_response

        try:
            message = parse_response(text, dict(self.template), prefix="", tools=[*map(dict, tools)])
        except (ValueError, KeyError, RecursionError):
            return text, []
        found = message.get("tool_calls") or []
        nested = [each for item in found for each in (item if isinstance(item, list) else [item])]
        functions = [each.get("function", each) for each in nested if isinstance(each, dict)]
        calls = [_checked(each.get("name"), each.get("arguments")) for each in functions]
        read = [each for each in calls if each is not None]
        return (str(message.get("content") or ""), read) if read and len(read) == len(nested) else (text, [])

    def _calls_at(self, text: str, start: int, tools: Sequence[Mapping[str, Any]]) -> Iterator[Found]:
        raise NotImplementedError


def _checked(name: object, arguments: object) -> Call | None:
    """Take name and arguments for a call, if the name is a word and the arguments are an object that JSON can hold, or the JSON of one."""
    if isinstance(arguments, str):
        arguments = loaded(arguments)
    if arguments is None:
        arguments = {}
    if not (isinstance(name, str) and re.fullmatch(r"[\w.-]+", name) and isinstance(arguments, dict)):
        return None
    try:
        return name, as_json(arguments)
    except ValueError:
        return None


def _declared(names: set[str], tools: Sequence[Mapping[str, Any]]) -> bool:
    """Tell whether all names are those of tools."""
    return names <= {tool["function"]["name"] for tool in tools}


def _parameters(name: str, tools: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    for tool in tools:
        if tool["function"]["name"] == name:
            return (tool["function"].get("parameters") or {}).get("properties") or {}
    return {}


def _after(closing: str, text: str, place: int) -> int:
    """Skip as much of a closing as stands there."""
    tags = _TAG.findall(closing)
    for piece in (closing.removesuffix("".join(tags)), *tags):
        match = re.compile(r"\s*" + _loose(piece.strip())).match(text, place) if piece.strip() else None
        place = match.end() if match else place
    return place


def _optional(opening: str) -> str:
    """Make a pattern of an opening; only the last of its markers must be there, as before a second call."""
    *first, last = [each.strip() for each in _TAG.findall(opening)] or [opening]
    return "".join(rf"(?:{_loose(each)}\s*)?" for each in first) + _loose(last)


def _loose(literal: str) -> str:
    """Make a pattern of a text that leaves open how long its white space is, and what differs from call to call."""
    pattern = r"\s*".join(re.escape(each) for each in re.split(r"\s+", literal))
    for shown, others in _OTHERS:
        pattern = pattern.replace(shown, others)
    return pattern
