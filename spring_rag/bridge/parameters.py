"""How to answer, as fields that the models of both frameworks have."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, ClassVar

from pydantic import BaseModel, Field, field_validator

from spring_rag.backends.base import GenerationSettings


class AnswerParameters(BaseModel):
    """Settings of an answer, whatever its prompt."""

    num_tokens: int | None = None
    """k, how many virtual tokens to use; None is all of the set, 0 the plain backbone."""

    tokens: str | None = None
    """Name of the set of virtual tokens, where the model has several; None is the default set."""

    max_tokens: int = 128
    """Most tokens of an answer."""

    temperature: float = 0.0
    """0 decodes greedily."""

    top_p: float = 1.0
    """Share of probability that is sampled from; 1 turns it off."""

    top_k: int = 0
    """Number of tokens that are sampled from; 0 turns it off."""

    seed: int | None = None
    """Makes sampling repeat."""

    stop: list[str] | None = None
    """Strings that end an answer; it is cut before them."""

    @field_validator("stop", mode="before")
    @classmethod
    def _one_stop_as_list(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value

    def _generation_settings(self) -> GenerationSettings:
        """The settings, checked: a ValueError names one that is out of its range."""
        return GenerationSettings(
            self.max_tokens, self.temperature, self.top_p, self.top_k, tuple(self.stop or ()), self.seed
        )

    def _arguments(self, changes: Mapping[str, Any] = MappingProxyType({})) -> dict[str, Any]:
        """The settings as `SpringModel` takes them, some of them changed."""
        arguments = {name: changes.get(name, getattr(self, name)) for name in SETTINGS}
        arguments["max_new_tokens"] = arguments.pop("max_tokens")
        return arguments


class ChatParameters(BaseModel):
    """Settings of the prompt of a chat."""

    LAYOUT: ClassVar[tuple[str, ...]] = ("thinking", "chat_template_kwargs")
    """Their names."""

    thinking: bool | None = False
    """Whether the backbone is to think before it answers, where its chat template has a say in that; None leaves it to the template."""

    chat_template_kwargs: dict[str, Any] = Field(default_factory=dict)
    """What else the chat template is given, as `{"date_string": "26 Jul 2024"}`, which stands for today's date. It wins over `thinking`."""


SETTINGS = tuple(AnswerParameters.model_fields)
"""Names of the settings of an answer."""
