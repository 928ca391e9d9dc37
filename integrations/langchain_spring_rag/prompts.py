"""Prompt templates with a slot. Made by `with_virtual_tokens`; each is a subclass of the template that it comes from.

Such a template carries the slot as `SLOT_MARKER` in its text, so that it can be saved, pickled and compared anywhere. Only while it is rendered
the marker becomes the mark, which no value can hold.
"""

from __future__ import annotations

from typing import Any, cast

from langchain_core.messages import BaseMessage
from langchain_core.prompts import (
    FewShotPromptTemplate,
    FewShotPromptWithTemplates,
    MessagesPlaceholder,
    PromptTemplate,
    StringPromptTemplate,
)
from langchain_core.prompts.loading import type_to_loader_dict

from langchain_spring_rag.messages import with_slot_first
from spring_rag.bridge.marks import MARK
from spring_rag.errors import PromptError
from spring_rag.prompt import SLOT_MARKER


class _Slotted(StringPromptTemplate):
    """A string template that renders its marker to the mark."""

    @classmethod
    def get_lc_namespace(cls) -> list[str]:
        """Where the class lives."""
        return cls.__module__.split(".")

    def format(self, **kwargs: Any) -> str:
        """The rendered text; see `format` of the class without slot."""
        return str(cast(Any, super(_Slotted, self._marked())).format(**kwargs))

    async def aformat(self, **kwargs: Any) -> str:
        """The same, in async code."""
        return str(await cast(Any, super(_Slotted, self._marked())).aformat(**kwargs))

    def _marked(self) -> _Slotted:
        """A copy with the mark in the marker's place."""
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

    def _marked(self) -> SpringPromptTemplate:
        return self.model_copy(update={"template": self.template.replace(SLOT_MARKER, MARK)})


class SpringFewShotPromptTemplate(_Slotted, FewShotPromptTemplate):
    """A `FewShotPromptTemplate` with a slot in its prefix or suffix."""

    @property
    def _prompt_type(self) -> str:
        return "spring_rag_few_shot"

    def _marked(self) -> SpringFewShotPromptTemplate:
        sides = {side: getattr(self, side).replace(SLOT_MARKER, MARK) for side in ("prefix", "suffix")}
        return self.model_copy(update=sides)


class SpringFewShotPromptWithTemplates(_Slotted, FewShotPromptWithTemplates):
    """A `FewShotPromptWithTemplates` with a slot in its prefix or suffix."""

    def _marked(self) -> SpringFewShotPromptWithTemplates:
        sides = {}
        for side in ("prefix", "suffix"):
            prompt = getattr(self, side)
            if isinstance(prompt, PromptTemplate):
                text = prompt.template.replace(SLOT_MARKER, MARK)
                sides[side] = prompt.model_copy(update={"template": text})
        return self.model_copy(update=sides)


class QuestionPlaceholder(MessagesPlaceholder):
    """A placeholder whose last message is the question: the slot stands in front of it."""

    @classmethod
    def get_lc_namespace(cls) -> list[str]:
        """Where the class lives."""
        return cls.__module__.split(".")

    def format_messages(self, **kwargs: Any) -> list[BaseMessage]:
        """The messages, the last one with the slot in front."""
        messages = super().format_messages(**kwargs)
        return [*messages[:-1], *map(with_slot_first, messages[-1:])]


_SLOTTED: dict[type, type] = {
    PromptTemplate: SpringPromptTemplate,
    FewShotPromptTemplate: SpringFewShotPromptTemplate,
    FewShotPromptWithTemplates: SpringFewShotPromptWithTemplates,
    MessagesPlaceholder: QuestionPlaceholder,
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


def _register(plain: str, with_slot: str) -> None:
    """Let LangChain's `load_prompt` read what `save` of a template with a slot writes."""

    def load(config: dict[str, Any], *, allow_dangerous_paths: bool = False) -> Any:
        loader = cast(Any, type_to_loader_dict[plain])
        return slotted(loader(config, allow_dangerous_paths=allow_dangerous_paths))

    type_to_loader_dict[with_slot] = load


_register("prompt", "spring_rag_prompt")
_register("few_shot", "spring_rag_few_shot")
