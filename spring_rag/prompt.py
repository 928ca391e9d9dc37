"""Prompts made of parts around one slot, and the markers that carry a slot through string templates."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from string import Formatter
from typing import Any

from spring_rag.errors import PromptError
from spring_rag.prompt_checks import (
    check_placeholders,
    check_role,
    check_tool_name,
    checked_kwargs,
    checked_tool,
    json_object,
    require,
)

SLOT_MARKER = "⟦spring-rag:slot⟧"
"""Stands for the slot in a string template. It has no character that f-strings, mustache, jinja2 or HTML escaping change."""

BRIEF = "Answer with a few words only.\n"
"""Asks for a brief answer in words, where no virtual tokens do."""

ANY_TOOL = "any"
"""As a prompt's `tool_choice`: one of its tools must be called, whichever."""

_ESCAPES = {"⟦": "⧹(", "⧹": "⧹⧹"}
_UNESCAPES = {escaped: plain for plain, escaped in _ESCAPES.items()}


@dataclass(frozen=True, slots=True)
class Text:
    """A piece of a prompt's text.

    Args:
        text: the characters, verbatim.
        trusted: True for what a template's author wrote, whose control strings (`</s>`) mean control tokens; False for
            what came from a user, a document or anywhere else, whose control strings are ordinary text.
    """

    text: str
    trusted: bool = False

    def __post_init__(self) -> None:
        require(self.text, str, "the text of a prompt's part")


@dataclass(frozen=True, slots=True)
class Slot:
    """The place of the virtual tokens. It has no content, so all slots are equal."""


Part = Text | Slot


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call of a tool that a backbone asks for.

    Args:
        name: of the tool, a word.
        arguments: by name, as JSON has them. None of their strings is trusted.
        id: what the tool's result refers to.
    """

    name: str
    arguments: Mapping[str, Any] = field(hash=False)
    id: str = ""

    def __post_init__(self) -> None:
        check_tool_name(self.name)
        require(self.id, str, "the id of a tool call")
        object.__setattr__(
            self, "arguments", json_object(self.arguments, f"arguments of the tool {self.name!r}")
        )


@dataclass(frozen=True, slots=True)
class Message:
    """One message of a chat prompt.

    Args:
        role: as the chat template names it: "system", "user", "assistant", "tool".
        parts: its content in order.
        tool_calls: what an assistant's message asks for.
        tool_call_id: of a tool's result, the call that it answers.
        name: of a tool's result, the tool.
    """

    role: str
    parts: tuple[Part, ...]
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None
    name: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "parts", _checked(self.parts))
        require(self.tool_call_id, str | None, "the tool_call_id of a message")
        require(self.name, str | None, "the name of a message")
        check_role(self.role)

    @property
    def text(self) -> str:
        """The content without the slot."""
        return _join(self.parts)


@dataclass(frozen=True, slots=True)
class Prompt:
    """A text prompt (`parts`) or a chat prompt (`messages`) with at most one slot.

    Without a slot the plain backbone answers.

    Args:
        parts: of a text prompt.
        messages: of a chat.
        thinking: whether the backbone of a chat is to think before it answers; None leaves it to the chat template.
        chat_template_kwargs: what the chat template is given besides the messages, as JSON has it, such as
            `{"date_string": "26 Jul 2024"}`, which stands for today's date in any template that prints it. These win over `thinking`.
        tools: that the backbone of a chat may call, each as OpenAI describes it: `{"type": "function", "function": {"name": …,
            "description": …, "parameters": …}}`. None of their strings is trusted.
        tool_choice: the tool that it must call; `ANY_TOOL` is any of them, None leaves it to the backbone.

    Raises:
        PromptError: two slots, neither or both of `parts` and `messages`, something in them that is no part, tools that aren't
            described so or that a text prompt has, or a choice that isn't among them.
    """

    parts: tuple[Part, ...] = ()
    messages: tuple[Message, ...] = ()
    thinking: bool | None = None
    chat_template_kwargs: Mapping[str, Any] = field(default_factory=dict, hash=False)
    tools: tuple[Mapping[str, Any], ...] = field(default=(), hash=False)
    tool_choice: str | None = None

    def __post_init__(self) -> None:
        require(self.thinking, bool | None, "thinking of a Prompt")
        object.__setattr__(self, "tools", tuple(checked_tool(tool) for tool in self.tools))
        self._check_choice()
        object.__setattr__(
            self, "chat_template_kwargs", checked_kwargs(self.chat_template_kwargs, "a Prompt")
        )
        object.__setattr__(self, "parts", _checked(self.parts))
        object.__setattr__(self, "messages", tuple(self.messages))
        for message in self.messages:
            require(message, Message, "a message of a prompt")
        if bool(self.parts) == bool(self.messages):
            msg = "a prompt needs either parts (a text prompt) or messages (a chat prompt); the other stays empty"
            raise PromptError(msg)
        slots = sum(isinstance(part, Slot) for part in self._all_parts())
        if slots > 1:
            msg = (
                f"a prompt can have one slot, this one has {slots}; put the virtual tokens in one place only"
            )
            raise PromptError(msg)

    def _check_choice(self) -> None:
        names = [tool["function"]["name"] for tool in self.tools]
        if names and not self.messages:
            msg = "a text prompt can't have tools, only a chat can: its chat template tells the backbone of them"
            raise PromptError(msg)
        if self.tool_choice is not None and self.tool_choice not in (names and [ANY_TOOL, *names]):
            msg = f"the tool to call is {self.tool_choice!r}; expected one of the prompt's tools ({', '.join(names) or 'it has none'})"
            raise PromptError(msg)

    @property
    def text(self) -> str:
        """The text without the slot. A chat's contents stand one under the other, without what its chat template would add."""
        return "\n".join(message.text for message in self.messages) if self.messages else _join(self.parts)

    @property
    def has_slot(self) -> bool:
        """Whether virtual tokens have a place in it."""
        return any(isinstance(part, Slot) for part in self._all_parts())

    def _all_parts(self) -> Iterator[Part]:
        yield from self.parts
        for message in self.messages:
            yield from message.parts


@dataclass(frozen=True, slots=True)
class RagTemplate:
    """How a question and its passages become a prompt. The default is the layout of SPRING's authors.

    The fields' own text is trusted; what replaces `{passage}` and `{question}` is not. A literal brace is doubled.

    Args:
        passage: one passage, with `{passage}` and, if wanted, its rank `{number}` from 1.
        question: the question's line, with `{question}`.
        context_end: stands after the last passage, before the slot; left out where there are no passages.
        instruction: stands between the slot and the question's line.
        opening: stands before the first passage, or first where there are no passages.
        system: the system message of a chat.
        chat: the prompt is one user message, laid out by the tokenizer's chat template.
        thinking: whether the backbone is to think before it answers, where its chat template has a say in that; None leaves it to
            the template.
        chat_template_kwargs: what else the chat template is given, as `Prompt` takes it.

    Raises:
        PromptError: an unknown or a missing placeholder, a system message without `chat`, or what no chat template may be given.
    """

    passage: str = "[{number}] {passage}\n"
    question: str = "Question: {question}\nAnswer:"
    context_end: str = "\n"
    instruction: str = ""
    opening: str = ""
    system: str | None = None
    chat: bool = False
    thinking: bool | None = False
    chat_template_kwargs: Mapping[str, Any] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        for name in ("passage", "question", "context_end", "instruction", "opening"):
            require(getattr(self, name), str, f"{name} of a RagTemplate")
        require(self.system, str | None, "system of a RagTemplate")
        require(self.chat, bool, "chat of a RagTemplate")
        require(self.thinking, bool | None, "thinking of a RagTemplate")
        object.__setattr__(
            self, "chat_template_kwargs", checked_kwargs(self.chat_template_kwargs, "a RagTemplate")
        )
        if self.system is not None and not self.chat:
            msg = "a RagTemplate with a system message needs chat=True; in a text prompt put its words into `instruction`"
            raise PromptError(msg)
        check_placeholders("passage", self.passage, required="passage", optional="number")
        check_placeholders("question", self.question, required="question")

    def render(self, question: str, passages: Sequence[str]) -> Prompt:
        """Lay out a question and its passages, best passage first."""
        parts: list[Part] = [Text(self.opening, trusted=True)]
        for number, passage in enumerate(passages, start=1):
            values = {"passage": Text(passage), "number": Text(str(number), trusted=True)}
            parts += _fill(self.passage, values)
        if passages:
            parts.append(Text(self.context_end, trusted=True))
        parts.append(Slot())
        parts.append(Text(self.instruction, trusted=True))
        parts += _fill(self.question, {"question": Text(question)})
        parts = [part for part in parts if isinstance(part, Slot) or part.text]
        if not self.chat:
            return Prompt(parts=tuple(parts))
        messages = [Message("user", tuple(parts))]
        if self.system is not None:
            messages.insert(0, Message("system", (Text(self.system, trusted=True),)))
        return Prompt((), tuple(messages), self.thinking, self.chat_template_kwargs)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain values for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> RagTemplate:
        """Read the template that `to_dict` wrote. Where `thinking` isn't recorded, as in earlier versions, the chat template decides.

        Raises:
            PromptError: a field that no template has, as a later version may write, or a value of a wrong type.
        """
        unknown = sorted(set(values) - {each.name for each in fields(cls)})
        if unknown:
            msg = (
                f"a RagTemplate has no {', '.join(unknown)}; was it written by a later version of spring-rag?"
            )
            raise PromptError(msg)
        thinking = None if values.get("chat") else False
        return cls(**{"thinking": thinking, **values})


@dataclass(frozen=True)
class RagPrompt:
    r"""A question with the passages retrieved for it.

    Args:
        question: in the user's words, verbatim.
        passages: retrieved texts, verbatim, best first.
        template: the layout; virtual tokens answer best in the one they were trained with.
        dropped: passages that `fitting.fit` left out, best first.

    Example:
        >>> prompt = RagPrompt("Who built it?", ["Hale built it."])
        >>> prompt.to_prompt().text
        '[1] Hale built it.\n\nQuestion: Who built it?\nAnswer:'
    """

    question: str
    passages: Sequence[str]
    template: RagTemplate = field(default_factory=RagTemplate)
    dropped: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        require(self.question, str, "the question of a RagPrompt")
        if isinstance(self.passages, str):
            msg = "the passages of a RagPrompt are one str; put even a single passage into a list"
            raise PromptError(msg)
        object.__setattr__(self, "passages", tuple(self.passages))
        for passage in self.passages:
            require(passage, str, "a passage of a RagPrompt")

    def to_prompt(self) -> Prompt:
        """Lay out the parts by the template."""
        return self.template.render(self.question, self.passages)


def as_prompt(prompt: str | Prompt | RagPrompt) -> Prompt:
    """Turn whatever can be answered into a `Prompt`; a `str` is user text without a slot."""
    if isinstance(prompt, str):
        return Prompt(parts=(Text(prompt),))
    return prompt.to_prompt() if isinstance(prompt, RagPrompt) else prompt


def escape(text: str) -> str:
    """Return text that can neither hold the slot's marker nor become part of one, whatever it is joined to or cut into.

    Escaping is done character by character (`escape(a + b) == escape(a) + escape(b)`), and is undone by `parse_marked`.
    """
    return re.sub("[⟦⧹]", lambda match: _ESCAPES[match[0]], text)


def unescape(text: str) -> str:
    """Undo `escape`."""
    return re.sub(r"⧹[(⧹]", lambda match: _UNESCAPES[match[0]], text)


def parse_marked(text: str) -> Prompt:
    """Read a prompt that a string template rendered, with `SLOT_MARKER` where the slot is and every value `escape`d.

    Nobody can tell any more which part of a rendered string is the template's and which is a value's, so all of it is untrusted.

    Raises:
        PromptError: more than one marker.
    """
    parts: list[Part] = []
    for piece in text.split(SLOT_MARKER):
        parts += [Text(unescape(piece)), Slot()]
    return Prompt(parts=tuple(parts[:-1]))


def _checked(parts: Iterable[Part]) -> tuple[Part, ...]:
    checked = tuple(parts)
    for part in checked:
        require(part, Part, "a part of a prompt")
    return checked


def _join(parts: Iterable[Part]) -> str:
    return "".join(part.text for part in parts if isinstance(part, Text))


def _fill(layout: str, values: Mapping[str, Text]) -> list[Text]:
    parts: list[Text] = []
    for literal, name, _, _ in Formatter().parse(layout):
        parts.append(Text(literal, trusted=True))
        if name is not None:
            parts.append(values[name])
    return parts
