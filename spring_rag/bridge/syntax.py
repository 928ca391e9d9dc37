"""Where the text of a template uses its variables, and where text can be put into it without changing the rest."""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Iterable, Iterator
from dataclasses import dataclass, replace

from jinja2 import Environment

from spring_rag.rendering import Range

_CHAT = "chat"
"""The block of a jinja template of LlamaIndex that is one message."""


@dataclass(frozen=True, slots=True)
class Tag:
    """A piece of a template that isn't text, as `{name}`, `{{ name }}` or `{% for … %}`.

    Attributes:
        start: its first character.
        end: the one after its last.
        names: words in it, variables among them.
        block: what a block's first and last tag have in common; empty for any other tag.
        closes: whether it ends a block.
        block_end: of a block's first tag, the end of the whole block.
    """

    start: int
    end: int
    names: frozenset[str]
    block: str = ""
    closes: bool = False
    block_end: int | None = None


@dataclass(frozen=True, slots=True)
class Syntax:
    """A format of templates.

    Attributes:
        tags: all tags of a template, in order, blocks not yet paired.
        layout: what a template consists of, but for a text that was put in. Where that is the same with the text and without it,
            everything else renders as it did.
        normal: the template as the other functions take it; it renders as before.
    """

    tags: Callable[[str], Iterable[Tag]]
    layout: Callable[[str, str], list[Hashable]] = lambda _template, _text: []
    normal: Callable[[str], str] = str

    def names(self, template: str) -> set[str]:
        """The words that stand in its tags, variables among them."""
        return {name for tag in self.tags(template) for name in tag.names if name}

    def uses(self, template: str, name: str) -> list[Range]:
        """The ranges that render a variable: a tag, or the whole of the outermost block that the tag stands in."""
        tags = _paired(self.tags(template))
        blocks = [(tag.start, tag.block_end) for tag in tags if tag.block_end and tag.block != _CHAT]
        found = set()
        for tag in tags:
            if name in tag.names:
                around = [(start, end) for start, end in blocks if start <= tag.start and tag.end <= end]
                found.add(min(around, default=(tag.start, tag.end)))
        return sorted(found)

    def messages(self, template: str) -> list[Range]:
        """The ranges of the messages' contents; without `{% chat %}` blocks the whole template is one."""
        chats = [
            (tag.end, tag.block_end)
            for tag in _paired(self.tags(template))
            if tag.block == _CHAT and tag.block_end
        ]
        return [(start, template.rindex("{%", start, end)) for start, end in chats] or [(0, len(template))]

    def insert(self, template: str, text: str, offset: int) -> str | None:
        """The template with a text put in, or None where something else would render otherwise than it did.

        Beside a tag that happens: the white space around a tag may mean something else once text stands in it.
        """
        changed = template[:offset] + text + template[offset:]
        return changed if self.layout(changed, text) == self.layout(template, text) else None


def jinja(environment: Environment) -> Syntax:
    """The syntax of jinja2 by the rules of an environment, of which the white space around tags depends."""

    def layout(template: str, text: str) -> list[Hashable]:
        tokens = [
            (token.kind, token.value.replace(text, "")) for token in _jinja_tokens(environment, template)
        ]
        return [token for token in tokens if token != ("data", "")]

    return Syntax(
        tags=lambda template: _jinja_tags(environment, template),
        layout=layout,
        # The lexer makes every line break "\n"; positions must hold in what it reads.
        normal=lambda template: re.sub(r"\r\n?", "\n", template),
    )


def _paired(tags: Iterable[Tag]) -> list[Tag]:
    """The tags, each first tag of a block with the end of the block."""
    found: list[Tag] = []
    opened: list[int] = []
    for tag in tags:
        found.append(tag)
        if tag.block and not tag.closes:
            opened.append(len(found) - 1)
        # What has no end of its own (`else`, `set x = 1`) lies on the stack, too, and goes with the block that it is in.
        while tag.closes and opened:
            first = opened.pop()
            if found[first].block == tag.block:
                found[first] = replace(found[first], block_end=tag.end)
                break
    return found


def _f_string(template: str) -> Iterator[Tag]:
    # LangChain allows neither attributes nor nested fields.
    for found in re.finditer(r"{{|}}|{([^{}]*)}", template):
        if found[1] is not None:
            yield Tag(*found.span(), frozenset([re.split("[!:]", found[1], maxsplit=1)[0]]))


def _braces(template: str) -> Iterator[Tag]:
    for found in re.finditer(r"{([^{}]+)}", template):
        yield Tag(*found.span(), frozenset([found[1]]))


_MUSTACHE = re.compile(r"{{({)?\s*([#^/&!>=]?)\s*([^{}]*?)\s*}}(?(1)})")


def _mustache(template: str) -> Iterator[Tag]:
    for found in _MUSTACHE.finditer(template):
        sign, path = found[2], found[3]
        names = frozenset([path.partition(".")[0]] if sign in ("", "&", "#", "^") else [])
        yield Tag(*found.span(), names, path if sign in tuple("#^/") else "", closes=sign == "/")


def _mustache_layout(template: str, _text: str) -> list[Hashable]:
    """Whether each section's tag stands alone on its line, which it takes with it then."""
    layout: list[Hashable] = []
    for found in _MUSTACHE.finditer(template):
        before = template[: found.start()].rpartition("\n")[2]
        after = template[found.end() :].partition("\n")[0]
        layout.append(found[2] in tuple("#^/") and not (before + after).strip())
    return layout


@dataclass(frozen=True, slots=True)
class _Token:
    kind: str
    value: str
    start: int
    end: int


def _jinja_tags(environment: Environment, template: str) -> Iterator[Tag]:
    start, names = 0, list[str]()
    for token in _jinja_tokens(environment, template):
        if token.kind in ("block_begin", "variable_begin"):
            start, names = token.start, []
        elif token.kind == "name":
            names.append(token.value)
        elif token.kind == "variable_end":
            yield Tag(start, token.end, frozenset(names))
        elif token.kind == "block_end":
            word = names[0]
            yield Tag(
                start,
                token.end,
                frozenset(names[1:]),
                word.removeprefix("end"),
                closes=word.startswith("end"),
            )


def _jinja_tokens(environment: Environment, template: str) -> Iterator[_Token]:
    """The tokens that aren't empty. What the lexer drops, white space around tags, lies between one's end and the next one's start."""
    end = 0
    for _, kind, value in environment.lex(template):
        if value:
            start = template.index(value, end)
            end = start + len(value)
            yield _Token(kind, value, start, end)


F_STRING = Syntax(_f_string)
BRACES = Syntax(_braces)
MUSTACHE = Syntax(_mustache, _mustache_layout)
JINJA = jinja(Environment())
