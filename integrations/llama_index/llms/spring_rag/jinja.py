"""Where variables stand in the jinja2 template of a `RichPromptTemplate`, and where text can be put in without changing the rest.

LlamaIndex renders these templates with banks, whose environment has its own rules for the whitespace around tags.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from banks.env import env  # type: ignore[import-untyped]

from spring_rag.errors import PromptError

Range = tuple[int, int]
"""First character and the one after the last."""


@dataclass(frozen=True, slots=True)
class _Token:
    kind: str
    value: str
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class _Tag:
    """`{{ … }}` or `{% … %}`, and for the first tag of a block also the end of the whole block."""

    word: str
    names: frozenset[str]
    start: int
    end: int
    block_end: int | None = None


def messages(source: str) -> list[Range]:
    """The ranges of the messages' contents; without `{% chat %}` blocks the whole template is one."""
    chats = [(tag.end, tag.block_end) for tag in _tags(source) if tag.word == "chat" and tag.block_end]
    return [(start, source.rindex("{%", start, end)) for start, end in chats] or [(0, len(source))]


def occurrences(source: str, name: str) -> list[Range]:
    """The ranges that render a variable: an expression, or the whole of the loop or condition that it stands in."""
    tags = _tags(source)
    blocks = [(tag.start, tag.block_end) for tag in tags if tag.word != "chat" and tag.block_end]
    found = []
    for tag in tags:
        if name in tag.names:
            around = [(start, end) for start, end in blocks if start <= tag.start and tag.end <= end]
            found.append(min(around, default=(tag.start, tag.end)))
    return sorted(set(found))


def insert(source: str, text: str, offsets: Iterable[int]) -> str:
    """The template with a text put in at the first of these offsets where everything else renders as it did.

    Beside a tag that isn't sure: the whitespace around a tag means something else once text stands in it.

    Raises:
        PromptError: there is no such offset.
    """
    plain = [(token.kind, token.value) for token in _tokens(source)]
    for offset in offsets:
        changed = source[:offset] + text + source[offset:]
        tokens = [(token.kind, token.value.replace(text, "")) for token in _tokens(changed)]
        if [token for token in tokens if token != ("data", "")] == plain:
            return changed
    msg = "there is no safe place for the slot in this template; put spring_rag.prompt.SLOT_MARKER where it should be"
    raise PromptError(msg)


def _tags(source: str) -> list[_Tag]:
    tags: list[_Tag] = []
    opened: list[int] = []
    start, names = 0, list[str]()
    for token in _tokens(source):
        if token.kind in ("block_begin", "variable_begin"):
            start, names = token.start, []
        elif token.kind == "name":
            names.append(token.value)
        elif token.kind == "variable_end":
            tags.append(_Tag("", frozenset(names), start, token.end))
        elif token.kind == "block_end":
            word = names[0]
            if not word.startswith("end"):
                opened.append(len(tags))
                tags.append(_Tag(word, frozenset(names[1:]), start, token.end))
                continue
            # What has no end of its own (`else`, `set x = 1`) lies on the stack, too, and goes with the block that it is in.
            while opened:
                first = opened.pop()
                if tags[first].word == word.removeprefix("end"):
                    tags[first] = replace(tags[first], block_end=token.end)
                    break
    return tags


def _tokens(source: str) -> Iterator[_Token]:
    """The tokens that aren't empty. What the lexer drops, whitespace around tags, lies between one's end and the next one's start."""
    end = 0
    for _, kind, value in env.lex(source):
        if value:
            start = source.index(value, end)
            end = start + len(value)
            yield _Token(kind, value, start, end)
