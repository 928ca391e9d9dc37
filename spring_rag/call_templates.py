"""Finding out in which form a chat template writes calls of tools.

Nothing here knows a model by name. A template is asked to write an answer that calls a tool; where name and arguments stand in it tells the
form. Where a template writes no calls of its own, its instructions or the tokenizer's added tokens name the markers, and calls go into the
text of an answer.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from spring_rag.call_forms import (
    PROBE_ID,
    CallForm,
    JsonForm,
    NamedForm,
    PairsForm,
    PythonForm,
    ResponseForm,
)
from spring_rag.call_values import decoded_at, loaded
from spring_rag.errors import PromptError
from spring_rag.reasoning import markers, shared
from spring_rag.templates import remembered, tried

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_MENTIONED: tuple[tuple[str, str, type[JsonForm] | type[PythonForm], str, str], ...] = (
    ("<tool_call>", "</tool_call>", JsonForm, '\n{"name": "', '", "arguments": '),
    ("<|tool_call|>", "<|/tool_call|>", JsonForm, '[{"name": "', '", "arguments": '),
    ("<|tool_call_start|>", "<|tool_call_end|>", PythonForm, "[", "("),
)
"""Markers that templates only mention: before calls, behind them, which some leave out; the form; what precedes and follows a call's name."""

_NAMING_ID = "functions.{name}:{number}"
"""How templates that write a call's id in place of the tool's name (Kimi K2's) expect it."""


def form_of(tokenizer: PreTrainedTokenizerBase) -> CallForm | None:
    """Find the form of calls: as the chat template writes them, else as the tokenizer describes them, else as instructions mention them."""
    learned: CallForm | None = remembered(tokenizer, "calls", lambda: learned_form(tokenizer))
    if found := learned or _described_form(tokenizer):
        return found
    mentioned: CallForm | None = remembered(tokenizer, "mentioned calls", lambda: _mentioned_form(tokenizer))
    return mentioned


def shows_tools(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the tokenizer's chat template tells a backbone of the tools that it is given."""

    def find() -> bool:
        name = _probe()
        try:
            return name in (tried(tokenizer, {"tools": [tool_of(name)]}) or "")
        except PromptError:
            return False

    shown: bool = bool(tokenizer.chat_template) and remembered(tokenizer, "tools", find)
    return shown


def tool_of(name: str) -> dict[str, Any]:
    """Describe a tool that takes nothing, as templates expect it."""
    parameters = {"type": "object", "properties": {}, "required": []}
    return {"type": "function", "function": {"name": name, "description": name, "parameters": parameters}}


def learned_form(tokenizer: PreTrainedTokenizerBase) -> CallForm | None:
    """Learn the form in which a tokenizer's chat template writes calls; None where it writes none, or in a form that isn't known."""
    name, *values = (_probe() for _ in range(3))
    # Sorted, as some templates sort them.
    arguments = dict(zip(sorted(_probe() for _ in values), values, strict=True))
    words = [name, *arguments, *values]
    for id_format in ("", _NAMING_ID):
        call_id = id_format.format(name=name, number=0) or PROBE_ID
        for given in (arguments, json.dumps(arguments)):
            written = _written_call(tokenizer, name, given, call_id)
            # Python's notation of the arguments shows that the template takes them as text.
            if written is None or repr(arguments) in written:
                continue
            if all(written.count(word) == 1 for word in words):
                # A template that makes the id by itself must find the same one with the result.
                own = _NAMING_ID.format(name=name, number=0) in written
                return _form(written, name, arguments, _NAMING_ID if own else id_format)
    return None


def _described_form(tokenizer: PreTrainedTokenizerBase) -> ResponseForm | None:
    """Take the form that a tokenizer's `response_template` describes; None where it has none, or none for calls."""
    own = getattr(tokenizer, "response_template", None)
    calls = own.get("fields", {}).get("tool_calls") if isinstance(own, dict) else None
    if calls is None:
        return None
    opening, closing = (_literal(calls, name) for name in ("open", "close"))
    reduced = {"start_anchor": "\n", "fields": {"content": {}, "tool_calls": calls}}
    return ResponseForm(opening, closing, "", "", template=reduced)


def _mentioned_form(tokenizer: PreTrainedTokenizerBase) -> JsonForm | PythonForm | None:
    """Take the form whose markers the prompt's instructions or the tokenizer's added tokens mention; None where they mention none."""
    told = tried(tokenizer, {"tools": [tool_of(_probe())]}) or ""
    told += "\0".join(token.content for token in tokenizer.added_tokens_decoder.values())
    for opening, closing, form, begun, following in _MENTIONED:
        if opening in told:
            end = closing if closing in told else ""
            return form(opening, end, opening + begun, following, in_content=True)
    return None


def _written_call(
    tokenizer: PreTrainedTokenizerBase, name: str, arguments: object, call_id: str
) -> str | None:
    """Let the template write an answer that calls a tool, and take off what begins and ends every answer."""
    given = {"tools": [tool_of(name)]}
    call = {"type": "function", "id": call_id, "function": {"name": name, "arguments": arguments}}
    content = _probe()
    plain = tried(tokenizer, given, {"content": content})
    turn = tried(tokenizer, given, {"content": "", "tool_calls": [call]})
    if plain is None or turn is None or plain.count(content) != 1:
        return None
    head, _, tail = plain.partition(content)
    written = turn[len(_whole_tags(shared(head, turn))) :]
    # The end of thoughts isn't the call's, either, however much white space stands before it.
    if known := markers(tokenizer):
        thoughts = rf"\s*(?:{re.escape(known.open)}\s*)?{re.escape(known.close)}"
        written = re.sub(rf"\A{thoughts}", "", written)
    # What stands around the content of such an answer only, as in Llama 4's, isn't the call's.
    both = tried(tokenizer, given, {"content": content, "tool_calls": [call]}) or ""
    if wrapped := re.match(rf"{re.escape(head)}(<[^<>]*>){content}(<[^<>]*>)", both):
        written = written.removeprefix("".join(wrapped.groups()))
    if (ending := _whole_tags(shared(tail, written))).strip():
        tail = tail.removeprefix(ending)
    suffix = shared(tail[::-1], written[::-1])[::-1]
    # The end of a marker that both have isn't the end of the turn.
    suffix = re.sub(r"\A[^<>\[\]]*[>\]]", "", suffix)
    return written.removesuffix(suffix)


def _form(written: str, name: str, arguments: dict[str, str], id_format: str) -> CallForm | None:
    """Tell the form of a call that holds this name and these arguments; None where it isn't known."""
    for match in re.finditer(r"[\[{]", written):
        value, end = decoded_at(written, match.start())
        item = value[0] if isinstance(value, list) and len(value) == 1 else value
        if item == arguments:
            return _named(written, name, match.start(), end, id_format)
        for wrapper in (None, "function"):
            inner = item.get(wrapper) if isinstance(item, dict) and wrapper else item
            keys = _keys(inner, name, arguments)
            if keys is not None:
                begun, _, rest = written.partition(name)
                opening, closing = written[: match.start()].strip(), written[end:].strip()
                return JsonForm(
                    opening, closing, begun, rest[: rest.find("{")], id_format, keys=keys, wrapper=wrapper
                )
    (first, value), (second, other) = arguments.items()
    quoted = re.search(rf"\{{{first}:(\W+){value}\1,{second}:\1{other}\1\}}", written)
    if quoted is not None:
        return _named(written, name, *quoted.span(), id_format, quote=quoted[1])
    parts = re.fullmatch(
        f"(.*?){name}(.*?){first}(.*?){value}(.*?){second}(.*?){other}(.*)", written, re.DOTALL
    )
    return None if parts is None else _marked(*parts.groups())


def _named(
    written: str, name: str, start: int, end: int, id_format: str, quote: str = ""
) -> NamedForm | None:
    """Tell the form of a call whose arguments lie in this range, behind its name."""
    place = written.find(name)
    if not 0 <= place < start:
        return None
    begun, following = written[:place], written[place + len(name) : start]
    return NamedForm(begun.strip(), written[end:].strip(), begun, following, id_format, quote=quote)


def _marked(
    begun: str, following: str, before_value: str, between: str, _: str, end: str
) -> PythonForm | PairsForm | None:
    """Tell the form of a call from what stands around its name, keys and values."""
    if following.strip() == "(":
        opening = begun.strip().removesuffix("[").strip()
        closing = end.partition(")")[2].strip().removeprefix("]").strip()
        return PythonForm(opening, closing, begun, following)
    after_value = _whole_tags(shared(between.lstrip(), end.lstrip())).strip()
    before_key = between.lstrip().removeprefix(after_value).strip()
    if not before_value.strip() or not after_value:
        return None
    return PairsForm(
        begun.strip(),
        end.strip().removeprefix(after_value).strip(),
        begun,
        following,
        before_key=before_key,
        before_value=before_value.strip(),
        after_value=after_value,
    )


def _keys(item: object, name: str, arguments: dict[str, str]) -> tuple[str, str] | None:
    """Find the keys under which an object holds the name and the arguments of a call."""
    if not isinstance(item, dict):
        return None
    names = [key for key, value in item.items() if value == name]
    holders = [key for key, value in item.items() if value == arguments or loaded(value) == arguments]
    return (names[0], holders[0]) if names and holders else None


def _literal(field: Mapping[str, Any], name: str) -> str:
    """Take what opens or closes a field; of a pattern only the literal text at its start."""
    given = field.get(name, "")
    if f"{name}_pattern" in field:
        start = re.match(r"(?:\\\W|[^\\(\[.*+?^$|{])*", field[f"{name}_pattern"])
        return re.sub(r"\\(\W)", r"\1", start[0]) if start else ""
    return given if isinstance(given, str) else given[0]


def _whole_tags(text: str) -> str:
    """Cut off a marker that is only begun at a text's end."""
    return re.sub(r"[<\[][^<>\[\]]*\Z", "", text)


def _probe() -> str:
    """Make up a word that nobody can guess."""
    return f"probe{secrets.token_hex(8)}"
