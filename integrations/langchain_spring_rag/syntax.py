"""Where a string template uses its variables, for the three formats that LangChain knows."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace

from jinja2 import Environment

from spring_rag.errors import PromptError


@dataclass(frozen=True, slots=True)
class Use:
    """A piece of a template that uses variables. Blocks (`{% for … %}`, `{{#section}}`) are one piece, from end to end.

    Attributes:
        start: its first character.
        end: the character after its last.
        names: the variables.
        trims_before: text in front of it depends on what stands there, so nothing may be put right before it.
        trims_after: the same for the text behind it.
    """

    start: int
    end: int
    names: frozenset[str]
    trims_before: bool = False
    trims_after: bool = False


def uses(template: str, template_format: str) -> list[Use]:
    """The pieces of a template that use variables, in order.

    Raises:
        PromptError: a format that isn't known.
    """
    if template_format not in _FORMATS:
        msg = f"the template format is {template_format!r}; expected one of {', '.join(_FORMATS)}"
        raise PromptError(msg)
    return _blocks(_FORMATS[template_format](template))


@dataclass(frozen=True, slots=True)
class _Tag:
    use: Use
    depth: int
    """+1 where it opens a block, -1 where it closes one."""


def _f_string(template: str) -> Iterator[_Tag]:
    # LangChain allows neither attributes nor nested fields.
    for found in re.finditer(r"{{|}}|{([^{}]*)}", template):
        if found[1] is not None:
            name = re.split("[!:]", found[1], maxsplit=1)[0]
            yield _Tag(Use(*found.span(), frozenset([name])), 0)


def _mustache(template: str) -> Iterator[_Tag]:
    for found in re.finditer(r"{{({)?\s*([#^/&!>=]?)\s*([^{}]*?)\s*}}(?(1)})", template):
        sign, path = found[2], found[3]
        names = frozenset([path.partition(".")[0]]) if sign in ("", "&", "#", "^") else frozenset()
        # A section's tag that stands alone on its line takes the line with it.
        before = template[: found.start()].rpartition("\n")[2]
        after = template[found.end() :].partition("\n")[0]
        alone = sign in tuple("#^/") and not (before + after).strip()
        use = Use(*found.span(), names, trims_before=alone, trims_after=alone)
        yield _Tag(use, {"#": 1, "^": 1, "/": -1}.get(sign, 0))


def _jinja2(template: str) -> Iterator[_Tag]:
    # The lexer makes every line break "\n"; one character each, so that positions stay true.
    template = template.replace("\r\n", " \n").replace("\r", "\n")
    position, start, kind, opening = 0, 0, "", ""
    words: list[str] = []
    for _, token, value in Environment(keep_trailing_newline=True).lex(template):
        # Whitespace that a tag trims is left out of the lexer's pieces.
        position = template.index(value, position)
        if token in ("variable_begin", "block_begin"):
            start, words, kind, opening = position, [], token, value
        elif token in ("variable_end", "block_end"):
            use = Use(
                start,
                position + len(value.rstrip("\n") if kind == "block_begin" else value),
                frozenset(words),
                trims_before="-" in opening,
                trims_after="-" in value,
            )
            yield _Tag(use, _depth(words) if kind == "block_begin" else 0)
        elif token in ("name", "operator"):
            words.append(value)
        position += len(value)


def _depth(words: list[str]) -> int:
    if words[0].startswith("end"):
        return -1
    opens = words[0] in {"for", "if", "macro", "call", "filter", "with", "autoescape", "block"}
    return int(opens or (words[0] == "set" and "=" not in words))


def _blocks(tags: Iterator[_Tag]) -> list[Use]:
    """Each outermost block as one piece."""
    found: list[Use] = []
    depth = 0
    for tag in tags:
        if depth:
            block = found[-1]
            found[-1] = replace(
                block,
                end=tag.use.end,
                names=block.names | tag.use.names,
                trims_after=tag.use.trims_after,
            )
        else:
            found.append(tag.use)
        depth = max(depth + tag.depth, 0)
    return found


_FORMATS = {"f-string": _f_string, "mustache": _mustache, "jinja2": _jinja2}
