"""Prompts for `ChatOpenAI` on a vLLM server: virtual tokens as content parts, so that no model of ours is needed."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, SystemMessage
from langchain_core.prompt_values import ChatPromptValue, PromptValue, StringPromptValue
from langchain_core.prompts import BasePromptTemplate
from pydantic import ConfigDict, Field, SkipValidation

from langchain_spring_rag.messages import to_prompt
from spring_rag.bridge.marks import split
from spring_rag.bridge.parameters import ChatParameters
from spring_rag.bridge.served import served_messages
from spring_rag.errors import PromptError
from spring_rag.model import SpringModel
from spring_rag.prompt import Prompt

SERVED_SETTINGS = ("num_tokens", "tokens", *ChatParameters.LAYOUT)
"""What a `ServedPromptTemplate` can be told of its virtual tokens and its chat."""

_KINDS: dict[str, type[BaseMessage]] = {"user": HumanMessage, "assistant": AIMessage, "system": SystemMessage}


class ServedPromptTemplate(ChatParameters, BasePromptTemplate[Any]):
    """A prompt template whose virtual tokens travel with its messages. Made by `with_virtual_tokens(…, on_vllm=…)`.

    A string template becomes one message that the server takes as text (the server must know such messages: `spring-rag serve`), a chat
    template a chat in the tokenizer's own layout.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True)

    prompt: SkipValidation[BasePromptTemplate[Any]]
    """The template with a slot."""

    model: SpringModel = Field(exclude=True)
    """Tokenizer, virtual tokens and rows of the embedding table; on a vLLM server."""

    num_tokens: int | None = None
    """k, how many virtual tokens to use; None is all of the set."""

    tokens: str | None = None
    """Name of the set; None is the default set."""

    @classmethod
    def is_lc_serializable(cls) -> bool:
        """False: it holds a loaded model."""
        return False

    @property
    def _prompt_type(self) -> str:
        return "spring_rag_served"

    def format_prompt(self, **kwargs: Any) -> PromptValue:
        """The messages for `ChatOpenAI`.

        Raises:
            PromptError: the server would read something else than this prompt, as where a document holds a control string.
        """
        return self._served(self._plain(kwargs).format_prompt(**kwargs))

    async def aformat_prompt(self, **kwargs: Any) -> PromptValue:
        """The same, in async code."""
        return self._served(await self._plain(kwargs).aformat_prompt(**kwargs))

    def format(self, **kwargs: Any) -> Any:
        """The prompt as text, without virtual tokens."""
        return self.format_prompt(**kwargs).to_string()

    async def aformat(self, **kwargs: Any) -> Any:
        """The same, in async code."""
        return (await self.aformat_prompt(**kwargs)).to_string()

    def _plain(self, values: dict[str, Any]) -> BasePromptTemplate[Any]:
        """The template with the variables that this one was given by `partial`."""
        bound = {name: value for name, value in self.partial_variables.items() if name not in values}
        return self.prompt.partial(**bound) if bound else self.prompt

    def _served(self, value: PromptValue) -> PromptValue:
        is_text = isinstance(value, StringPromptValue)
        prompt = Prompt(parts=split(value.to_string())) if is_text else to_prompt(value.to_messages())
        prompt = replace(prompt, thinking=self.thinking, chat_template_kwargs=self.chat_template_kwargs)
        found = served_messages(self.model.backend, prompt, self.tokens, self.num_tokens)
        return ChatPromptValue(messages=[_message(each) for each in found])


def _message(message: dict[str, Any]) -> BaseMessage:
    role = message["role"]
    if role not in _KINDS:
        msg = (
            f"a message has the role {role!r}, which ChatOpenAI can't be given; expected {', '.join(_KINDS)}"
        )
        raise PromptError(msg)
    return _KINDS[role](content=message["content"], name=message.get("name"))
