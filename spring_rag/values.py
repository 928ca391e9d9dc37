"""Finding the strings of JSON values, such as descriptions of tools and arguments of calls, in a text that a chat template wrote.

A template writes such a string as it is, as JSON, or in some other notation. To find out how and where, the text is rendered once more with an
unguessable probe in the place of each string, which holds the characters that notations write differently.
"""

from __future__ import annotations

import html
import json
import re
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from spring_rag.errors import PromptError

_TELLING = "\"\\\n\u00e9<&>'"
"""Characters that tell notations from each other."""

_WORD = re.compile(r"[\w.-]*")


def _as_json(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)[1:-1]


def _in_single_quotes(text: str) -> str:
    # Python writes them around a text that holds both kinds.
    both = "'\""
    return repr(text + both).removesuffix("\\'\"'") + "'"


_NOTATIONS: tuple[Callable[[str], str], ...] = (
    lambda text: text,
    _as_json,
    lambda text: json.dumps(text)[1:-1],
    lambda text: _as_json(_as_json(text)),
    lambda text: repr(text)[1:-1],
    lambda text: _in_single_quotes(text)[1:-1],
    # As jinja's own `tojson` and `escape`.
    lambda text: json.dumps(text)[1:-1].translate({ord(each): f"\\u{ord(each):04x}" for each in "<>&'"}),
    html.escape,
    lambda text: html.escape(text).replace("&#x27;", "&#39;").replace("&quot;", "&#34;"),
)


def strings_of(value: Any) -> list[str]:
    """List the strings in a JSON value, keys included, each once, but for words, which can't hold a control string."""
    return list(dict.fromkeys(each for each in _walk(value) if not _WORD.fullmatch(each)))


def replaced(value: Any, names: Mapping[str, str]) -> Any:
    """Put other strings in the place of some."""
    if isinstance(value, str):
        return names.get(value, value)
    if isinstance(value, Mapping):
        return {names.get(key, key): replaced(each, names) for key, each in value.items()}
    if isinstance(value, list):
        return [replaced(each, names) for each in value]
    return value


def where_written(
    rendered: str, strings: Sequence[str], write: Callable[[Mapping[str, str]], str]
) -> list[tuple[int, int]]:
    """Find the ranges of a rendered text that come from these strings.

    Args:
        rendered: with the strings as they are.
        strings: each once.
        write: renders with other strings in their place.

    Raises:
        PromptError: the template changes a string in a way that can't be followed.
    """
    if not strings:
        return []
    marks = [(secrets.token_hex(16), secrets.token_hex(16)) for _ in strings]
    probes = [f"probe{first}{_TELLING}{last}probe" for first, last in marks]
    probed = write(dict(zip(strings, probes, strict=True)))
    found: list[tuple[int, int, list[Callable[[str], str]], str]] = []
    for string, probe, (first, last) in zip(strings, probes, marks, strict=True):
        for match in re.finditer(f"probe{first}.*?{last}probe", probed, re.DOTALL):
            notations = [each for each in _NOTATIONS if each(probe) == match[0]]
            start, end = match.span()
            if probed[max(start - 1, 0) : end + 1] == repr(probe):
                # Which quotation marks Python takes depends on the text.
                start, end, notations = start - 1, end + 1, [repr, _in_single_quotes]
            found.append((start, end, notations, string))
    found.sort(key=lambda each: each[:2])
    ranges, text, done = [], "", 0
    for start, end, notations, string in found:
        text += probed[done:start]
        texts = [each(string) for each in notations] or [""]
        written = next((each for each in texts if rendered.startswith(each, len(text))), texts[0])
        ranges.append((len(text), len(text) + len(written)))
        text += written
        done = end
    text += probed[done:]
    if text == rendered and all(notations for _, _, notations, _ in found):
        return ranges
    # Nothing between the first and the last of them is trusted then, the template's own additions included.
    before = probed[: found[0][0]] if found else probed
    after = probed[found[-1][1] :] if found else ""
    end = len(rendered) - len(after)
    if not rendered.startswith(before) or not rendered.endswith(after) or end < len(before):
        msg = (
            "the chat template changes the text of a tool, or of a call of one, in a way that can't be followed; reword "
            f"{strings[0][:80]!r}" + (" and its like" if len(strings) > 1 else "")
        )
        raise PromptError(msg)
    return [(len(before), end)]


def _walk(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, each in value.items():
            yield key
            yield from _walk(each)
    elif isinstance(value, list):
        for each in value:
            yield from _walk(each)
