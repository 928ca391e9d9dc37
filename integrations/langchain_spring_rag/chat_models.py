"""ChatSpring: a backbone with virtual tokens as a chat model."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Self

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel, LangSmithParams, LanguageModelInput
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
from langchain_core.messages.tool import tool_call_chunk
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult, LLMResult
from langchain_core.runnables import Runnable, RunnableConfig
from langchain_core.runnables.config import get_config_list
from langchain_core.tools import BaseTool
from langchain_core.utils.function_calling import convert_to_openai_tool
from pydantic import BaseModel, ConfigDict, Field, model_validator

from langchain_spring_rag.messages import canonical_messages, to_prompt, to_tool_calls
from langchain_spring_rag.parameters import SpringParameters, usage_metadata
from spring_rag.backends.base import BATCH_SIZE, Generation
from spring_rag.bridge.parameters import ChatParameters
from spring_rag.bridge.threads import in_thread
from spring_rag.bridge.tools import forbids_tools, tool_choice
from spring_rag.calls import check_takes_tools, takes_tools
from spring_rag.encoding import warn_of_control_strings
from spring_rag.prompt import Prompt
from spring_rag.stream import Thought

REASONING = "reasoning_content"
"""Where LangChain looks for thoughts: `AIMessage.content_blocks` makes a reasoning block of it."""


class ChatSpring(SpringParameters, ChatParameters, BaseChatModel):  # type: ignore[misc] # `_stream`'s prompt has a name for both models
    r"""A backbone that answers chats, with virtual tokens where a prompt has a slot.

    Prompts from `with_virtual_tokens` or `rag_prompt` have one; any other is answered by the plain backbone. The chat is laid
    out by the chat template of the backbone's tokenizer. Where a template wants user and assistant to take turns (Mistral's,
    Gemma's), neighbouring messages of one role are joined, and a system message becomes the first part of the user's. A backbone that
    thinks before it answers is asked not to; with `thinking=True` its thoughts are the reasoning block of `answer.content_blocks`.

    Setup:
        `pip install 'spring-rag[langchain]'`

    Instantiate:
        ```python
        from langchain_spring_rag import ChatSpring

        llm = ChatSpring(
            model="mistralai/Mistral-7B-Instruct-v0.1",  # or a SpringModel that is loaded already
            virtual_tokens="mistral-7b-instruct",
            max_tokens=64,
            # num_tokens=10, tokens="finance", temperature=0.0, top_p=1.0, top_k=0, seed=1, stop=["\n"], thinking=True
        )
        ```

    Invoke:
        ```python
        from langchain_core.prompts import ChatPromptTemplate
        from langchain_spring_rag import with_virtual_tokens

        prompt = ChatPromptTemplate.from_messages(
            [("system", "Answer from the context.\n\n{context}"), ("human", "{question}")]
        )
        chain = with_virtual_tokens(prompt) | llm
        question = {"context": "Hale and Sons built the lighthouse.", "question": "Who built the lighthouse?"}
        answer = chain.invoke(question)
        answer.text, answer.usage_metadata, answer.response_metadata["finish_reason"]
        ```

    Stream:
        ```python
        for chunk in chain.stream(question):
            print(chunk.text, end="")
        ```

    Async:
        ```python
        answer = await chain.ainvoke(question)
        async for chunk in chain.astream(question):
            print(chunk.text, end="")
        ```

    Batch:
        ```python
        answers = chain.batch([question, question], {"max_concurrency": 32})
        plain = (with_virtual_tokens(prompt) | llm.bind(num_tokens=0)).invoke(question)
        ```

    Tools, where the backbone's chat template has them:
        ```python
        llm.bind_tools([search]).invoke("Who built the lighthouse?").tool_calls
        ```
    """

    model_config = ConfigDict(extra="forbid")

    _in_prompts: ClassVar[tuple[str, ...]] = (*ChatParameters.LAYOUT, "tools", "tool_choice")

    tools: list[dict[str, Any]] = Field(default_factory=list)
    """What the backbone may call, as OpenAI describes it; `bind_tools` makes it of anything that LangChain has for tools."""

    tool_choice: str | None = None
    """The tool that it must call; "any" is any of them, None leaves it to the backbone."""

    streaming: bool | None = None
    """Whether `invoke` streams as well, for callbacks that want every piece."""

    @model_validator(mode="before")
    @classmethod
    def _take_tools(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        choice = values.get("tool_choice")
        tools = [] if forbids_tools(choice) else values.get("tools") or []
        return {
            **values,
            "tools": [convert_to_openai_tool(tool) for tool in tools],
            "tool_choice": tool_choice(choice),
        }

    @classmethod
    def is_lc_serializable(cls) -> bool:
        """True: a model made from names is saved as these names."""
        return True

    def bind_tools(
        self,
        tools: Sequence[dict[str, Any] | type | Callable[..., Any] | BaseTool],
        *,
        tool_choice: str | None = None,
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, AIMessage]:
        """The same model with tools that the backbone may call, through its own chat template.

        What it calls is in `AIMessage.tool_calls`. A step without a slot is the plain backbone's, as any prompt without one.

        Args:
            tools: functions, classes, tools of LangChain's, or OpenAI's descriptions.
            tool_choice: a tool's name, "any" or "required" make the answer a call; "auto" and None leave it to the backbone, "none"
                leaves the tools out.
            kwargs: settings of a call.

        Raises:
            ToolsError: the chat template has no place for tools. A `NotImplementedError`, as LangChain expects.
        """
        if tools:
            check_takes_tools(self._spring.tokenizer)
        return self.bind(
            tools=[convert_to_openai_tool(tool) for tool in tools], tool_choice=tool_choice, **kwargs
        )

    def with_structured_output(
        self, schema: dict[str, Any] | type, *, include_raw: bool = False, **kwargs: Any
    ) -> Runnable[LanguageModelInput, dict[str, Any] | BaseModel]:
        """The same model with answers in a form, for which the backbone is made to call a tool that takes it.

        Args:
            schema: a pydantic class, a `TypedDict` or a JSON schema.
            include_raw: whether to get the message and what was wrong with it, too.
            kwargs: `method` and `strict` are taken and mean nothing here.

        Raises:
            NotImplementedError: the chat template has no place for tools.
        """
        if not takes_tools(self._spring.tokenizer):
            return super().with_structured_output(schema, **kwargs)  # type: ignore[no-any-return] # refuses
        return BaseChatModel.with_structured_output(self, schema, include_raw=include_raw, **kwargs)

    def batch(
        self,
        inputs: list[LanguageModelInput],
        config: RunnableConfig | list[RunnableConfig] | None = None,
        **kwargs: Any,
    ) -> list[AIMessage]:
        """Answer many chats, in as many threads as the backbone or its servers take at once, if `config` doesn't say how many."""
        configs = get_config_list(config, len(inputs))
        limit = self._spring.backend.concurrency or BATCH_SIZE
        at_once: list[RunnableConfig] = [{"max_concurrency": limit, **each} for each in configs]
        return super().batch(inputs, at_once, **kwargs)

    def generate(self, messages: list[list[BaseMessage]], *args: Any, **kwargs: Any) -> LLMResult:
        """Answer chats; arguments are those of LangChain's models."""
        return super().generate([canonical_messages(each) for each in messages], *args, **kwargs)

    async def agenerate(self, messages: list[list[BaseMessage]], *args: Any, **kwargs: Any) -> LLMResult:
        """The same, in async code."""
        return await super().agenerate([canonical_messages(each) for each in messages], *args, **kwargs)

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,  # noqa: ARG002 - LangChain passes it
        **kwargs: Any,
    ) -> ChatResult:
        model = self._configured(stop, kwargs)
        generation = model._answer([model._prompt(messages)])[0]
        message = AIMessage(
            content=generation.text.strip(),
            additional_kwargs={} if generation.reasoning is None else {REASONING: generation.reasoning},
            tool_calls=to_tool_calls(generation.tool_calls),
            usage_metadata=usage_metadata(generation),
            response_metadata=model._metadata(generation),
        )
        return ChatResult(generations=[ChatGeneration(message=message)])

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,  # noqa: ARG002 - LangChain passes it
        **kwargs: Any,
    ) -> ChatResult:
        return await in_thread(self._generate, messages, stop, **kwargs)

    def _chunk(self, piece: str) -> ChatGenerationChunk:
        if isinstance(piece, Thought):
            thought = AIMessageChunk(content="", additional_kwargs={REASONING: str(piece)})
            return ChatGenerationChunk(message=thought)
        return ChatGenerationChunk(message=AIMessageChunk(content=piece))

    def _last_chunk(self, generation: Generation) -> ChatGenerationChunk:
        message = AIMessageChunk(
            content="",
            tool_call_chunks=[
                tool_call_chunk(
                    name=call.name,
                    args=json.dumps(call.arguments, ensure_ascii=False),
                    id=call.id,
                    index=number,
                )
                for number, call in enumerate(generation.tool_calls)
            ],
            usage_metadata=usage_metadata(generation),
            response_metadata=self._metadata(generation),
            chunk_position="last",
        )
        return ChatGenerationChunk(message=message)

    def _prompt(self, given: Sequence[BaseMessage]) -> Prompt:
        """The messages as a prompt.

        Raises:
            PromptError: they aren't text.
        """
        prompt = replace(to_prompt(given), **{name: getattr(self, name) for name in self._in_prompts})
        if len(given) == 1:
            # A chat that an app has laid out by itself comes as one message.
            warn_of_control_strings(prompt.text, self._spring.tokenizer)
        return prompt

    def _configured(self, stop: Sequence[str] | None, changes: dict[str, Any]) -> Self:
        if changes.get("tools"):
            check_takes_tools(self._spring.tokenizer)
        return super()._configured(stop, changes)

    def _metadata(self, generation: Generation) -> dict[str, Any]:
        return {"finish_reason": generation.finish_reason, "model_name": self.model_name}

    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> LangSmithParams:
        return self._langsmith(super()._get_ls_params(stop=stop, **kwargs), stop, **kwargs)

    def _get_llm_string(self, stop: list[str] | None = None, **kwargs: Any) -> str:
        """The cache's key besides the messages: LangChain's own knows neither digest nor the k that is meant by None."""
        return str(sorted(self._configured(stop, kwargs).asdict().items()))
