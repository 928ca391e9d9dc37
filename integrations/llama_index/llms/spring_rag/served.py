"""Virtual tokens for LlamaIndex's own model of an OpenAI-like server, where that is vLLM."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from llama_index.core.base.llms.types import (
    ChatMessage,
    ChatResponse,
    ChatResponseAsyncGen,
    ChatResponseGen,
)
from llama_index.core.bridge.pydantic import Field
from llama_index.llms.openai_like import OpenAILike

from llama_index.llms.spring_rag.messages import to_prompt
from spring_rag.bridge.marks import is_marked
from spring_rag.bridge.parameters import ChatParameters
from spring_rag.bridge.served import served_messages
from spring_rag.model import SpringModel


class SpringOpenAILike(ChatParameters, OpenAILike):
    """`OpenAILike` that sends the virtual tokens of prompts with a slot, and leaves everything else as it is.

    LlamaIndex's converter has no content part for embeddings, so this puts them into the body of the request. Prompts get their
    slot from `with_virtual_tokens` or `upgrade_engine`. There is no other form to fall back to: where the server would
    read a prompt otherwise, as with a control string in a document, it is an error.

    Example:
        ```python
        from llama_index.llms.spring_rag.served import SpringOpenAILike
        from spring_rag import SpringModel

        url = "http://localhost:8000/v1"
        virtual = SpringModel.from_pretrained("path/to/backbone", tokens="path/to/tokens", base_url=url)
        llm = SpringOpenAILike(model="backbone", api_base=url, api_key="none", is_chat_model=True, virtual=virtual)
        ```
    """

    virtual: SpringModel = Field(
        description="Tokenizer and virtual tokens, on the same server.", exclude=True
    )
    num_virtual: int | None = Field(default=None, description="k, how many of them; None is all of the set.")
    virtual_set: str | None = Field(default=None, description="Name of the set; None is the default set.")

    @classmethod
    def class_name(cls) -> str:
        """The name under which LlamaIndex serialises this component."""
        return "SpringOpenAILike"

    def _use_chat_completions(self, kwargs: dict[str, Any]) -> bool:  # noqa: ARG002 - LlamaIndex passes it
        """Always: only chats can hold embeddings between texts."""
        return True

    def _chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        return super()._chat(messages, **self._with_parts(messages, kwargs))  # type: ignore[no-any-return]

    def _stream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponseGen:
        return super()._stream_chat(messages, **self._with_parts(messages, kwargs))  # type: ignore[no-any-return]

    async def _achat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        return await super()._achat(messages, **self._with_parts(messages, kwargs))  # type: ignore[no-any-return]

    async def _astream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponseAsyncGen:
        return await super()._astream_chat(messages, **self._with_parts(messages, kwargs))  # type: ignore[no-any-return]

    def _with_parts(self, messages: Sequence[ChatMessage], kwargs: dict[str, Any]) -> dict[str, Any]:
        """The arguments of a call, with our messages in place of those that the converter makes."""
        if not any(is_marked(message.content or "") for message in messages):
            return kwargs
        prompt = replace(
            to_prompt(messages), thinking=self.thinking, chat_template_kwargs=self.chat_template_kwargs
        )
        found = served_messages(self.virtual.backend, prompt, self.virtual_set, self.num_virtual)
        return {**kwargs, "extra_body": {**kwargs.get("extra_body", {}), "messages": found}}
