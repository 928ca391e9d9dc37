"""How a slot travels through LlamaIndex, which hands templates and prompts around as plain strings.

Its chat engines take a template's string, put it into another template and format the chat history with it; `complete` and
`chat` take any string. So escaping the values of our own templates wouldn't do. Instead, the mark that stands for the slot holds a secret
of this process: no document, question or chat message can write it.
"""

import re
import secrets

from spring_rag.errors import PromptError
from spring_rag.prompt import SLOT_MARKER, Part, Prompt, RagPrompt, Slot, Text

_OPEN, _CLOSE = SLOT_MARKER[:-1], SLOT_MARKER[-1]

MARK = f"{_OPEN}:{secrets.token_hex(8)}{_CLOSE}"
"""Stands for the slot in this process's templates and in what they render to."""

_WRITTEN = re.compile(f"{re.escape(_OPEN)}(:[0-9a-f]{{16}})?{re.escape(_CLOSE)}")


def split_at_mark(text: str) -> tuple[Part, ...]:
    """The parts of a rendered text. What is template and what is value can't be told any more, so all of it is untrusted."""
    first, *others = text.split(MARK)
    parts: list[Part] = [Text(first)]
    for piece in others:
        parts += [Slot(), Text(piece)]
    return tuple(parts)


def adopt(template: str) -> str:
    """A template's text with this process's mark where its author wrote `SLOT_MARKER`, or where another process put its own."""
    return _WRITTEN.sub(MARK, template)


def render_text(prompt: Prompt | RagPrompt) -> str:
    """The text of a prompt made in code, to be handed to `SpringLLM.complete` (with `formatted=True`) in this process.

    Raises:
        PromptError: a chat prompt, which isn't one text.

    Example:
        >>> from spring_rag import RagPrompt
        >>> prompt = render_text(RagPrompt("Who built it?", ["Hale built it."]))
        >>> llm.complete(prompt, formatted=True)  # doctest: +SKIP
    """
    if isinstance(prompt, RagPrompt):
        prompt = prompt.to_prompt()
    if prompt.messages:
        msg = "a chat prompt has no single text; use a RagTemplate with chat=False, or SpringLLM.chat"
        raise PromptError(msg)
    return "".join(MARK if isinstance(part, Slot) else part.text for part in prompt.parts)
