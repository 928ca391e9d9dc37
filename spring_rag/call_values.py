"""Values of calls' arguments, as backbones write them: in JSON and its like, as text between markers, and in Python."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Mapping
from typing import Any

_JSON = json.JSONDecoder(strict=False)

_CONSTANTS = {
    "true": ("boolean", True),
    "false": ("boolean", False),
    "null": ("null", None),
    "none": ("null", None),
}
"""What templates and models write for values that JSON and Python spell differently: in small letters → kind, value."""

_KINDS = {bool: "boolean", type(None): "null", int: "integer", float: "number", list: "array", dict: "object"}


def decoded_at(text: str, start: int) -> tuple[Any, int]:
    """Decode the JSON value that follows white space there, and tell where it ends; None where there is none."""
    while start < len(text) and text[start].isspace():
        start += 1
    try:
        return _JSON.raw_decode(text, start)
    except (ValueError, RecursionError):
        return None, start


def quoted_at(text: str, start: int, quote: str) -> tuple[Any, int]:
    """Decode a value whose strings stand between other marks than JSON's, and whose keys between none."""
    string = re.escape(quote)
    piece = re.compile(rf"{string}(?P<text>.*?){string}|(?P<key>[\w.-]+)\s*:|(?P<other>.)", re.DOTALL)
    written, depth = "", 0
    for found in piece.finditer(text, start):
        quoted = found["text"] if found["text"] is not None else found["key"]
        other = found["other"] or ""
        written += other if quoted is None else json.dumps(quoted) + ":" * (found["key"] is not None)
        depth += (other in tuple("{[")) - (other in tuple("}]"))
        if depth == 0 and written.strip():
            return loaded(written), found.end()
    return None, start


def loaded(text: object) -> object:
    """The JSON value that a text is; None where it is none."""
    try:
        return _JSON.decode(text) if isinstance(text, str) else None
    except (ValueError, RecursionError):
        return None


def typed(text: str, schema: object) -> Any:
    """Give a value that is written as text a type that its schema names; where that is a string's among others, only if the value has one of them."""
    kinds, word = _kinds(schema), text.strip()
    kind, constant = _CONSTANTS.get(word.lower(), ("", None))
    if kind in kinds:
        return constant
    value = loaded(word)
    kind = _KINDS.get(type(value), "string")
    fits = kind in kinds - {"string"} or (kind == "integer" and "number" in kinds)
    if "string" in kinds and not fits:
        return text
    return text if value is None and word != "null" else value


def as_python(value: ast.expr) -> ast.expr:
    """Replace JSON's constants by Python's."""

    class Names(ast.NodeTransformer):
        def visit_Name(self, node: ast.Name) -> ast.expr:
            constants = {"true": True, "false": False, "null": None}
            return ast.copy_location(ast.Constant(constants[node.id]), node) if node.id in constants else node

    changed: ast.expr = Names().visit(value)
    return changed


def _kinds(schema: object) -> set[str]:
    """List the types that a JSON schema names, alternatives included."""
    if not isinstance(schema, Mapping):
        return set()
    named = schema.get("type")
    kinds = {each for each in (named if isinstance(named, list) else [named]) if isinstance(each, str)}
    others = [schema.get(key) for key in ("anyOf", "oneOf")]
    return kinds.union(*(_kinds(each) for other in others if isinstance(other, list) for each in other))
