"""How a chat template writes calls of tools, and reading calls that a backbone writes in the same way.

Nothing here knows a model by name. A template is asked to write an answer that calls a tool; where name and arguments stand in it is the
form. There are three kinds: a JSON value that holds both, a name before its arguments in JSON, and a name before marked pairs.
"""

from __future__ import annotations

import ast
import json
import re
import secrets
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from typing import TYPE_CHECKING, Any

from spring_rag.templates import tried

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Call = tuple[str, dict[str, Any]]
"""A call's name and its arguments."""

Found = tuple[str, dict[str, Any], int]
"""A call's name, its arguments, and where in the text it ends."""

_JSON = json.JSONDecoder(strict=False)

_TAG = re.compile(r"<[^<>]*>?[^<\[]*|\[[^\[\]]*\][^<\[]*")
"""A marker, with what follows it up to the next."""

_ID = "a1b2c3d4e"
"""Of the call that templates are asked to write."""


@dataclass(frozen=True)
class CallForm(ABC):
    """How calls are written.

    Attributes:
        opening: what stands before a call, without white space at its end; empty where nothing does.
        closing: what stands after it, without white space around; empty where nothing does.
        begun: a call up to the name, white space included.
        following: what stands between the name and the arguments.
    """

    opening: str
    closing: str
    begun: str
    following: str

    @property
    def markers(self) -> tuple[str, ...]:
        """What can't stand in a text that calls nothing, in the order in which the opening has it."""
        return tuple(each.strip() for each in _TAG.findall(self.opening)) or tuple(
            filter(None, [self.opening])
        )

    @property
    def literals(self) -> str:
        """All that the form consists of."""
        return f"{self.begun}{self.following}{self.opening}{self.closing}"

    def beginning(self, name: str | None) -> str:
        """The beginning of a call, up to its arguments; without a name up to that.

        White space at the end would be part of the token that follows, so it is left out.
        """
        begun = self.begun.lstrip().partition(_ID)[0]
        return begun.rstrip() if name is None else f"{begun}{name}{self.following.partition(_ID)[0].rstrip()}"

    def read(self, text: str, tools: Sequence[Mapping[str, Any]]) -> tuple[str, list[Call]]:
        """The text without its calls, and the calls. What can't be read as a call stays text.

        Args:
            text: what a backbone wrote.
            tools: that it may call.
        """
        pattern = re.compile(_optional(self.opening) if self.markers else r"\A")
        calls: list[Call] = []
        kept, done = "", 0
        while (match := pattern.search(text, done)) is not None:
            found = list(self._calls_at(text, match.end(), tools))
            end = found[-1][2] if found else max(match.end(), done + 1)
            kept += text[done : match.start() if found else end]
            calls += [(name, arguments) for name, arguments, _ in found]
            done = _after(self.closing, text, end) if found else end
            if not self.markers:
                break
        kept += text[done:]
        return kept.strip() if calls else kept, calls

    def _whole(
        self, read: Sequence[Call | None], end: int, tools: Sequence[Mapping[str, Any]]
    ) -> Iterator[Found]:
        """Calls that stand together, if all of them are calls; without markers, of tools that there are."""
        calls = [each for each in read if each is not None]
        if len(calls) == len(read) and (self.markers or _declared({name for name, _ in calls}, tools)):
            for name, arguments in calls:
                yield name, arguments, end

    @abstractmethod
    def _calls_at(self, text: str, start: int, tools: Sequence[Mapping[str, Any]]) -> Iterator[Found]:
        """The calls that follow an opening which ends there; none where that is no call."""


@dataclass(frozen=True)
class JsonForm(CallForm):
    """A JSON object with name and arguments, or a list of such.

    Attributes:
        keys: of the name and the arguments.
        wrapper: key of the object that holds both, if they don't stand in the outer one.
    """

    keys: tuple[str, str] = ("name", "arguments")
    wrapper: str | None = None

    def _calls_at(self, text: str, start: int, tools: Sequence[Mapping[str, Any]]) -> Iterator[Found]:
        value, end = _value_at(text, start)
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
    """A name, and then its arguments in JSON."""

    def _calls_at(self, text: str, start: int, tools: Sequence[Mapping[str, Any]]) -> Iterator[Found]:  # noqa: ARG002
        match = re.compile(rf"\s*([\w.-]+?){_loose(self.following)}").match(text, start)
        if match is None:
            return
        value, end = _value_at(text, match.end())
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
        match = re.compile(rf"\s*([\w.-]+?)(?={_loose(self.following.split()[0])}|\s*\Z|\s*<)").match(
            text, start
        )
        if match is None:
            return
        schema = _parameters(match[1], tools)
        pair = re.compile(
            rf".{{0,3}}?{_loose(self.before_key)}\s*([\w.-]+?)\s*{_loose(self.before_value)}\n?(.*?)\n?{_loose(self.after_value)}",
            re.DOTALL,
        )
        arguments, end = {}, match.end()
        closing = next(iter(_TAG.findall(self.closing)), self.closing)
        limit = text.find(closing, end) if closing else -1
        while (found := pair.match(text, end)) is not None:
            arguments[found[1]] = _typed(found[2], schema.get(found[1]))
            end = found.end()
        yield match[1], arguments, max(end, limit if limit >= 0 else end)


@dataclass(frozen=True)
class PythonForm(CallForm):
    """Calls as Python writes them, in a list or one alone."""

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
                    each.arg: ast.literal_eval(_as_python(each.value)) for each in call.keywords if each.arg
                }
            except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
                return
            read.append(_checked(ast.unparse(call.func), arguments))
        yield from self._whole(read, end, tools)


@dataclass(frozen=True)
class ResponseForm(CallForm):
    """The one that a tokenizer's own `response_template` describes, read by transformers.

    Attributes:
        template: its part for calls, with all other text as the content.
    """

    template: Mapping[str, Any] = field(default_factory=dict, hash=False)

    def beginning(self, name: str | None) -> str:  # noqa: ARG002
        """Nothing: how a call begins isn't known well enough to write it."""
        return ""

    def read(self, text: str, tools: Sequence[Mapping[str, Any]]) -> tuple[str, list[Call]]:
        """As every form; raises nothing where transformers can't read it."""
        from transformers.utils.chat_parsing import parse_response

        try:
            message = parse_response(text, dict(self.template), prefix="", tools=[*map(dict, tools)])
        except (ValueError, KeyError):
            return text, []
        found = message.get("tool_calls") or []
        nested = [each for item in found for each in (item if isinstance(item, list) else [item])]
        functions = [each.get("function", each) for each in nested if isinstance(each, dict)]
        calls = [_checked(each.get("name"), each.get("arguments")) for each in functions]
        read = [each for each in calls if each is not None]
        return (str(message.get("content") or ""), read) if read and len(read) == len(nested) else (text, [])

    def _calls_at(self, text: str, start: int, tools: Sequence[Mapping[str, Any]]) -> Iterator[Found]:
        raise NotImplementedError


def described_form(tokenizer: PreTrainedTokenizerBase) -> ResponseForm | None:
    """The form that a tokenizer's `response_template` describes; None where it has none, or none for calls."""
    own = getattr(tokenizer, "response_template", None)
    calls = own.get("fields", {}).get("tool_calls") if isinstance(own, dict) else None
    if calls is None:
        return None
    opening, closing = (_literal(calls, name) for name in ("open", "close"))
    reduced = {"start_anchor": "\n", "fields": {"content": {}, "tool_calls": calls}}
    return ResponseForm(opening, closing, "", "", reduced)


def learned_form(tokenizer: PreTrainedTokenizerBase) -> CallForm | None:
    """The form in which a tokenizer's chat template writes calls; None where it writes none, or in a form that isn't known."""
    words = [f"probe{secrets.token_hex(8)}" for _ in range(5)]
    name, *pairs = words
    arguments = dict(zip(pairs[::2], pairs[1::2], strict=True))
    for given in (arguments, json.dumps(arguments)):
        written = _written_call(tokenizer, name, given)
        if written is not None and all(written.count(word) == 1 for word in words):
            return _form(written, name, arguments)
    return None


def _written_call(tokenizer: PreTrainedTokenizerBase, name: str, arguments: object) -> str | None:
    """What the template writes in the assistant's turn where it calls a tool, without what begins and ends every turn."""
    tool = tool_of(name)
    call = {"type": "function", "id": _ID, "function": {"name": name, "arguments": arguments}}
    content = f"probe{secrets.token_hex(8)}"
    plain = tried(tokenizer, {"tools": [tool]}, {"content": content})
    turn = tried(tokenizer, {"tools": [tool]}, {"content": "", "tool_calls": [call]})
    if plain is None or turn is None or plain.count(content) != 1:
        return None
    head, _, tail = plain.partition(content)
    written = turn[len(_whole_tags(_shared(head, turn))) :]
    suffix = _shared(tail[::-1], written[::-1])[::-1]
    # The end of a marker that both have isn't the end of the turn.
    suffix = re.sub(r"\A[^<>\[\]]*[>\]]", "", suffix)
    return written.removesuffix(suffix)


def tool_of(name: str) -> dict[str, Any]:
    """A tool that takes nothing, as templates expect it."""
    parameters = {"type": "object", "properties": {}, "required": []}
    return {"type": "function", "function": {"name": name, "description": name, "parameters": parameters}}


def _form(written: str, name: str, arguments: dict[str, str]) -> CallForm | None:
    for match in re.finditer(r"[\[{]", written):
        try:
            value, end = _JSON.raw_decode(written, match.start())
        except ValueError:
            continue
        closing = written[end:].strip()
        item = value[0] if isinstance(value, list) and len(value) == 1 else value
        if item == arguments:
            place = written.find(name)
            if not 0 <= place < match.start():
                return None
            begun, following = written[:place], written[place + len(name) : match.start()]
            return NamedForm(begun.strip(), closing, begun, following)
        for wrapper in (None, "function"):
            inner = item.get(wrapper) if isinstance(item, dict) and wrapper else item
            keys = _keys(inner, name, arguments)
            if keys is not None:
                begun, _, rest = written.partition(name)
                following = rest[: rest.find("{")]
                return JsonForm(written[: match.start()].strip(), closing, begun, following, keys, wrapper)
    (first, value), (second, _) = arguments.items()
    parts = re.fullmatch(
        f"(.*?){name}(.*?){first}(.*?){value}(.*?){second}(.*?){arguments[second]}(.*)", written, re.DOTALL
    )
    if parts is None:
        return None
    begun, following, before_value, between, _, end_of_call = parts.groups()
    if following.strip() == "(":
        opening = begun.strip().removesuffix("[").strip()
        closing = end_of_call.partition(")")[2].strip().removeprefix("]").strip()
        return PythonForm(opening, closing, begun, following)
    after_value = _whole_tags(_shared(between.lstrip(), end_of_call.lstrip())).strip()
    before_key = between.lstrip().removeprefix(after_value).strip()
    if not before_value.strip() or not after_value:
        return None
    closing = end_of_call.strip().removeprefix(after_value).strip()
    return PairsForm(begun.strip(), closing, begun, following, before_key, before_value.strip(), after_value)


def _literal(field: Mapping[str, Any], name: str) -> str:
    """What opens or closes a field; of a pattern what stands in it literally at its start."""
    given = field.get(name, "")
    if f"{name}_pattern" in field:
        start = re.match(r"(?:\\\W|[^\\(\[.*+?^$|{])*", field[f"{name}_pattern"])
        return re.sub(r"\\(\W)", r"\1", start[0]) if start else ""
    return given if isinstance(given, str) else given[0]


def _keys(item: object, name: str, arguments: dict[str, str]) -> tuple[str, str] | None:
    if not isinstance(item, dict):
        return None
    names = [key for key, value in item.items() if value == name]
    holders = [key for key, value in item.items() if value == arguments or _loaded(value) == arguments]
    return (names[0], holders[0]) if names and holders else None


def _value_at(text: str, start: int) -> tuple[Any, int]:
    """The JSON value that follows, white space left out, and where it ends; None where there is none."""
    while start < len(text) and text[start].isspace():
        start += 1
    try:
        return _JSON.raw_decode(text, start)
    except (ValueError, RecursionError):
        return None, start


def _checked(name: object, arguments: object) -> Call | None:
    if isinstance(arguments, str):
        arguments = _loaded(arguments)
    if arguments is None:
        arguments = {}
    readable = isinstance(name, str) and re.fullmatch(r"[\w.-]+", name) and isinstance(arguments, dict)
    return (str(name), arguments) if readable and isinstance(arguments, dict) else None


def _loaded(text: object) -> object:
    try:
        return _JSON.decode(text) if isinstance(text, str) else None
    except (ValueError, RecursionError):
        return None


def _declared(names: set[str], tools: Sequence[Mapping[str, Any]]) -> bool:
    """Where nothing marks a call, only the name of a tool tells it from an answer in JSON."""
    return names <= {tool["function"]["name"] for tool in tools}


def _parameters(name: str, tools: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    for tool in tools:
        if tool["function"]["name"] == name:
            return (tool["function"].get("parameters") or {}).get("properties") or {}
    return {}


def _typed(text: str, schema: object) -> Any:
    """A value that is written as text, as its schema has it."""
    kind = schema.get("type") if isinstance(schema, Mapping) else None
    if kind == "string":
        return text
    if kind == "boolean" and text.strip().lower() in ("true", "false"):
        return text.strip().lower() == "true"
    value = _loaded(text.strip())
    return text if value is None and text.strip() != "null" else value


def _as_python(value: ast.expr) -> ast.expr:
    """The expression with JSON's names for constants as Python's."""

    class Names(ast.NodeTransformer):
        def visit_Name(self, node: ast.Name) -> ast.expr:
            constants = {"true": True, "false": False, "null": None}
            return ast.copy_location(ast.Constant(constants[node.id]), node) if node.id in constants else node

    changed: ast.expr = Names().visit(value)
    return changed


def _shared(one: str, other: str) -> str:
    """The longest beginning of both."""
    return "".join(a for a, _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))


def _whole_tags(text: str) -> str:
    """The text without the beginning of a marker at its end."""
    return re.sub(r"[<\[][^<>\[\]]*\Z", "", text)


def _after(closing: str, text: str, place: int) -> int:
    """Where a text goes on behind as many markers of the closing as stand there."""
    for tag in _TAG.findall(closing) or [closing]:
        match = re.compile(r"\s*" + _loose(tag.strip())).match(text, place)
        place = match.end() if match else place
    return place


def _optional(opening: str) -> str:
    """A pattern for an opening, of whose markers a further call has only the last."""
    *first, last = [each.strip() for each in _TAG.findall(opening)] or [opening]
    return "".join(rf"(?:{_loose(each)}\s*)?" for each in first) + _loose(last)


def _loose(literal: str) -> str:
    """A pattern for a text, in which runs of white space may have any length, and the call's id and number are others."""
    pattern = r"\s*".join(re.escape(each) for each in re.split(r"\s+", literal))
    return pattern.replace(_ID, r"[\w.:-]*").replace(":0", r":\d+")
