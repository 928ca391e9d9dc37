"""How a slot travels through a framework, which hands templates and prompts around as plain strings.

A framework puts a template's string into another template, renders it into a message, or writes a chat history with it; an app sends
rendered text on as a message. So escaping the values of our own templates wouldn't do. Instead, the mark that stands for the slot holds a
secret of this process and of those that it starts: no document, question or chat message can write it.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import warnings

from spring_rag.errors import PromptError
from spring_rag.prompt import SLOT_MARKER, Part, Prompt, RagPrompt, Slot, Text, escape

SECRET = "SPRING_RAG_SLOT_SECRET"
"""Environment variable that the mark is made from. Servers that hand rendered prompts to each other set it to one unguessable value."""

_OPEN, _CLOSE = SLOT_MARKER[:-1], SLOT_MARKER[-1]


def _digest() -> str:
    # A process that this one starts inherits the environment, and with it the mark: templates can be pickled to it.
    secret = os.environ.setdefault(SECRET, secrets.token_hex(16))
    return hashlib.sha256(secret.encode()).hexdigest()[:16]


_DIGEST = _digest()

MARK = f"{_OPEN}:{_DIGEST}{_CLOSE}"
"""Stands for the slot in rendered text."""

FOLLOWING_MARK = f"{_OPEN}:{_DIGEST}:next{_CLOSE}"
"""Stands for a slot that belongs in front of a later message, the question, where the text is a message of a chat."""

_OWN = re.compile(f"({re.escape(MARK)}|{re.escape(FOLLOWING_MARK)})")
_WRITTEN = re.compile(f"{re.escape(_OPEN)}(:[0-9a-f]{{16}})?(:next)?{re.escape(_CLOSE)}")


class FollowingSlot(Slot):
    """The slot of a `FOLLOWING_MARK`. In a text prompt it is a slot like any other."""


def is_marked(text: str) -> bool:
    """Whether a text holds a mark of this process."""
    return _OWN.search(text) is not None


def split(text: str) -> tuple[Part, ...]:
    """Split a rendered text at its marks. What is template and what is value can't be told any more, so all text is untrusted.

    Warns of a mark that isn't this process's: it is ordinary text.
    """
    if _WRITTEN.search(_OWN.sub("", text)):
        msg = (
            "a text holds a mark of the slot that no prompt from with_virtual_tokens rendered in this process: it is ordinary text "
            "and gets no virtual tokens. Render the prompt with the framework's own methods; processes that hand rendered prompts "
            f"to each other need one {SECRET} in their environment"
        )
        warnings.warn(msg, stacklevel=2)
    parts: list[Part] = []
    for piece in _OWN.split(text):
        if piece == MARK:
            parts.append(Slot())
        elif piece == FOLLOWING_MARK:
            parts.append(FollowingSlot())
        else:
            parts.append(Text(piece))
    return tuple(parts)


def join(parts: tuple[Part, ...]) -> str:
    """Write parts as a text that `split` reads as the same parts."""
    return "".join(part.text if isinstance(part, Text) else _mark_of(part) for part in parts)


def without_marks(text: str) -> str:
    """Leave the marks out of a text, as a plain backbone reads it."""
    return _OWN.sub("", text)


def adopt(template: str, mark: str) -> str:
    """Put a mark into a template's text where its author wrote `SLOT_MARKER`, or another process put its own mark."""
    return _WRITTEN.sub(lambda found: FOLLOWING_MARK if found[2] else mark, template)


def render_text(prompt: Prompt | RagPrompt) -> str:
    """The text of a prompt made in code, to be handed to a model of a framework in this process.

    Raises:
        PromptError: a chat prompt, which isn't one text.

    Example:
        >>> prompt = render_text(RagPrompt("Who built it?", ["Hale built it."]))
        >>> llm.complete(prompt, formatted=True)  # doctest: +SKIP
    """
    if isinstance(prompt, RagPrompt):
        prompt = prompt.to_prompt()
    if prompt.messages:
        msg = (
            "a chat prompt has no single text; use a RagTemplate with chat=False, or the framework's messages"
        )
        raise PromptError(msg)
    return join(prompt.parts)


def canonical(text: str) -> str:
    """Write a rendered text in a form that is the same in every process, for keys of caches; `parse_marked` reads it."""
    return SLOT_MARKER.join(escape(piece) for piece in text.replace(FOLLOWING_MARK, MARK).split(MARK))


def _mark_of(slot: Slot) -> str:
    return FOLLOWING_MARK if isinstance(slot, FollowingSlot) else MARK
