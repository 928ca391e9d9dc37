"""Prompt templates with a slot. Made by `with_virtual_tokens`; each is a subclass of the template that it comes from.

A string template carries the slot as `SLOT_MARKER` in its text. While it is rendered the marker is an unguessable name,
so that no value can hold it, whatever the format does with values; what comes out is a `MarkedText`.
"""

from __future__ import annotations

import secrets
import warnings
from collections.abc import Sequence
from typing import Any, TypeVar, cast

from langchain_core.messages import BaseMessage, HumanMessage, get_buffer_string
from langchain_core.prompt_values import StringPromptValue
from langchain_core.prompts import (
    AIMessagePromptTemplate,
    ChatMessagePromptTemplate,
    FewShotPromptTemplate,
    FewShotPromptWithTemplates,
    HumanMessagePromptTemplate,
    MessagesPlaceholder,
    PromptTemplate,
    StringPromptTemplate,
    SystemMessagePromptTemplate,
)
from langchain_core.prompts.loading import type_to_loader_dict
from langchain_core.prompts.message import BaseMessagePromptTemplate

from langchain_spring_rag.messages import content_of, is_slot, with_slot_first, without_slot
from spring_rag.errors import PromptError
from spring_rag.prompt import SLOT_MARKER, escape, parse_marked

TemplateT = TypeVar("TemplateT", bound=StringPromptTemplate)
MessageT = TypeVar("MessageT", bound=BaseMessage)


class MarkedText(str):
    """Text in which `SLOT_MARKER` is the slot and everything else is escaped, as `parse_marked` reads it.

    In any other `str` a marker is just text: a question or a document may have brought it.
    """

    __slots__ = ()


def mark(text: str) -> MarkedText:
    """A text that comes from anywhere, without a slot; `MarkedText` stays as it is."""
    if isinstance(text, MarkedText):
        return text
    if SLOT_MARKER in text:
        msg = (
            "a text holds the marker of the slot, but no prompt from with_virtual_tokens rendered it: it is ordinary text and "
            "gets no virtual tokens. Pass the prompt's value on as it is (prompt | llm), not pieced together with other strings"
        )
        warnings.warn(msg, stacklevel=2)
    return MarkedText(escape(text))


class MarkedPromptValue(StringPromptValue):
    """What a string template with a slot renders to: marked text for an LLM, content parts for a chat model."""

    @classmethod
    def get_lc_namespace(cls) -> list[str]:
        """Where the class lives."""
        return cls.__module__.split(".")

    def to_string(self) -> str:
        """The marked text."""
        return MarkedText(self.text)

    def to_messages(self) -> list[BaseMessage]:
        """One message of the user's, with the slot as a content part."""
        return [HumanMessage(content_of(parse_marked(self.text).parts))]


def marked_buffer(messages: Sequence[BaseMessage]) -> MarkedText:
    """A chat as LangChain writes it for models that continue text (`Human: …`), with its slot."""
    name = _secret_name()
    named = []
    for message in messages:
        if not isinstance(message.content, str):
            content = [{"type": "text", "text": name} if is_slot(part) else part for part in message.content]
            message = message.model_copy(update={"content": content})
        named.append(message)
    return _marked(get_buffer_string(named), name)


class _Slotted(StringPromptTemplate):
    """A string template that renders to marked text."""

    @classmethod
    def get_lc_namespace(cls) -> list[str]:
        """Where the class lives."""
        return cls.__module__.split(".")

    def format(self, **kwargs: Any) -> str:
        """The marked text; see `format` of the class without slot."""
        name = _secret_name()
        plain = cast(Any, super(_Slotted, self._named(name)))
        return _marked(plain.format(**kwargs), name)

    async def aformat(self, **kwargs: Any) -> str:
        """The same, in async code."""
        return self.format(**kwargs)

    def format_prompt(self, **kwargs: Any) -> MarkedPromptValue:
        """The rendered prompt."""
        return MarkedPromptValue(text=self.format(**kwargs))

    async def aformat_prompt(self, **kwargs: Any) -> MarkedPromptValue:
        """The same, in async code."""
        return MarkedPromptValue(text=await self.aformat(**kwargs))

    def _named(self, name: str) -> _Slotted:
        """A copy with `name` in the marker's place."""
        raise NotImplementedError


class SpringPromptTemplate(_Slotted, PromptTemplate):
    """A `PromptTemplate` with a slot."""

    @property
    def _prompt_type(self) -> str:
        return "spring_rag_prompt"

    def __add__(self, other: Any) -> PromptTemplate:
        return cast(PromptTemplate, slotted(super().__add__(other)))

    def __radd__(self, other: Any) -> PromptTemplate:
        if isinstance(other, str):
            other = PromptTemplate.from_template(other, template_format=self.template_format)
        return cast(PromptTemplate, slotted(PromptTemplate.__add__(other, self)))

    def _named(self, name: str) -> SpringPromptTemplate:
        return self.model_copy(update={"template": self.template.replace(SLOT_MARKER, name)})


class SpringFewShotPromptTemplate(_Slotted, FewShotPromptTemplate):
    """A `FewShotPromptTemplate` with a slot in its prefix or suffix."""

    @property
    def _prompt_type(self) -> str:
        return "spring_rag_few_shot"

    async def aformat(self, **kwargs: Any) -> str:
        """The marked text; the example selector is awaited."""
        name = _secret_name()
        return _marked(await super(_Slotted, self._named(name)).aformat(**kwargs), name)

    def _named(self, name: str) -> SpringFewShotPromptTemplate:
        sides = {side: getattr(self, side).replace(SLOT_MARKER, name) for side in ("prefix", "suffix")}
        return self.model_copy(update=sides)


class SpringFewShotPromptWithTemplates(_Slotted, FewShotPromptWithTemplates):
    """A `FewShotPromptWithTemplates` with a slot in its prefix or suffix."""

    async def aformat(self, **kwargs: Any) -> str:
        """The marked text; the example selector is awaited."""
        name = _secret_name()
        return _marked(await super(_Slotted, self._named(name)).aformat(**kwargs), name)

    def _named(self, name: str) -> SpringFewShotPromptWithTemplates:
        sides = {}
        for side in ("prefix", "suffix"):
            prompt = getattr(self, side)
            if isinstance(prompt, PromptTemplate):
                text = prompt.template.replace(SLOT_MARKER, name)
                sides[side] = prompt.model_copy(update={"template": text})
        return self.model_copy(update=sides)


class _SlottedMessage(BaseMessagePromptTemplate):
    """A message template, one of whose string templates has a slot, that renders to content parts."""

    @classmethod
    def get_lc_namespace(cls) -> list[str]:
        """Where the class lives."""
        return cls.__module__.split(".")

    def format(self, **kwargs: Any) -> BaseMessage:
        """The message, with the slot as a content part."""
        return _with_parts(cast(BaseMessage, cast(Any, super()).format(**kwargs)))

    async def aformat(self, **kwargs: Any) -> BaseMessage:
        """The same, in async code."""
        return _with_parts(cast(BaseMessage, await cast(Any, super()).aformat(**kwargs)))


class SpringHumanMessagePromptTemplate(_SlottedMessage, HumanMessagePromptTemplate):
    """A `HumanMessagePromptTemplate` with a slot."""


class SpringAIMessagePromptTemplate(_SlottedMessage, AIMessagePromptTemplate):
    """An `AIMessagePromptTemplate` with a slot."""


class SpringSystemMessagePromptTemplate(_SlottedMessage, SystemMessagePromptTemplate):
    """A `SystemMessagePromptTemplate` with a slot."""


class SpringChatMessagePromptTemplate(_SlottedMessage, ChatMessagePromptTemplate):
    """A `ChatMessagePromptTemplate` with a slot."""


class HistoryPlaceholder(MessagesPlaceholder):
    """A placeholder beside a slot: the messages that fill it bring none of their own."""

    @classmethod
    def get_lc_namespace(cls) -> list[str]:
        """Where the class lives."""
        return cls.__module__.split(".")

    def format_messages(self, **kwargs: Any) -> list[BaseMessage]:
        """The messages, without slots."""
        return [without_slot(message) for message in super().format_messages(**kwargs)]


class QuestionPlaceholder(HistoryPlaceholder):
    """A placeholder whose last message is the question: the slot stands in front of it."""

    def format_messages(self, **kwargs: Any) -> list[BaseMessage]:
        """The messages, the last one with the slot in front."""
        messages = super().format_messages(**kwargs)
        return [*messages[:-1], *map(with_slot_first, messages[-1:])]


_SLOTTED: dict[type, type] = {
    PromptTemplate: SpringPromptTemplate,
    FewShotPromptTemplate: SpringFewShotPromptTemplate,
    FewShotPromptWithTemplates: SpringFewShotPromptWithTemplates,
    HumanMessagePromptTemplate: SpringHumanMessagePromptTemplate,
    AIMessagePromptTemplate: SpringAIMessagePromptTemplate,
    SystemMessagePromptTemplate: SpringSystemMessagePromptTemplate,
    ChatMessagePromptTemplate: SpringChatMessagePromptTemplate,
    MessagesPlaceholder: HistoryPlaceholder,
}


def slotted(prompt: Any, /, **changes: Any) -> Any:
    """A template as its subclass with a slot, with some fields changed.

    Raises:
        PromptError: a template of a class that is not known, or two slots.
    """
    kind = type(prompt) if type(prompt) in _SLOTTED.values() else _SLOTTED.get(type(prompt))
    if kind is None:
        known = ", ".join(each.__name__ for each in _SLOTTED)
        msg = f"a {type(prompt).__name__} can't hold virtual tokens; expected one of {known}, or a ChatPromptTemplate of these"
        raise PromptError(msg)
    fields = {name: getattr(prompt, name) for name in type(prompt).model_fields}
    made = kind(**{**fields, **changes})
    if isinstance(made, PromptTemplate) and made.template.count(SLOT_MARKER) > 1:
        msg = "a prompt can have one slot, this one would have two; put virtual tokens into one of the templates only"
        raise PromptError(msg)
    return made


def _secret_name() -> str:
    return f"slot{secrets.token_hex(16)}"


def _marked(rendered: str, name: str) -> MarkedText:
    return MarkedText(SLOT_MARKER.join(escape(piece) for piece in rendered.split(name)))


def _with_parts(message: MessageT) -> MessageT:
    """A message whose marked texts became content parts."""
    if isinstance(message.content, str):
        content = content_of(parse_marked(message.content).parts)
        return message.model_copy(update={"content": content})
    parts: list[Any] = []
    for part in message.content:
        text = part.get("text") if isinstance(part, dict) else None
        if not isinstance(text, MarkedText):
            parts.append(part)
            continue
        content = content_of(parse_marked(text).parts)
        parts += [{"type": "text", "text": content}] if isinstance(content, str) else content
    return message.model_copy(update={"content": parts})


def _register(plain: str, with_slot: str) -> None:
    """Let LangChain's `load_prompt` read what `save` of a template with a slot writes."""

    def load(config: dict[str, Any], *, allow_dangerous_paths: bool = False) -> Any:
        loader = cast(Any, type_to_loader_dict[plain])
        return slotted(loader(config, allow_dangerous_paths=allow_dangerous_paths))

    type_to_loader_dict[with_slot] = load


_register("prompt", "spring_rag_prompt")
_register("few_shot", "spring_rag_few_shot")
