"""SpringLLM: a backbone with virtual tokens as a language model of LlamaIndex."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from llama_index.core.base.llms.generic_utils import messages_to_prompt as generic_messages_to_prompt
from llama_index.core.base.llms.types import (
    ChatMessage,
    ChatResponse,
    ChatResponseAsyncGen,
    ChatResponseGen,
    CompletionResponse,
    CompletionResponseAsyncGen,
    CompletionResponseGen,
    LLMMetadata,
    MessageRole,
)
from llama_index.core.bridge.pydantic import Field, PrivateAttr, model_validator
from llama_index.core.constants import DEFAULT_CONTEXT_WINDOW
from llama_index.core.llms.callbacks import llm_chat_callback, llm_completion_callback
from llama_index.core.llms.function_calling import FunctionCallingLLM
from llama_index.core.llms.llm import ToolSelection, default_completion_to_prompt

from llama_index.llms.spring_rag.counting import saying_how_it_counts
from llama_index.llms.spring_rag.messages import Layout, to_prompt
from llama_index.llms.spring_rag.responses import (
    chat_response,
    chat_responses,
    completion,
    completions,
    single_call,
    tool_selections,
)
from spring_rag.bridge.loading import load_shared, not_pickled
from spring_rag.bridge.marks import split
from spring_rag.bridge.parameters import SETTINGS, AnswerParameters, ChatParameters
from spring_rag.bridge.settings import in_our_words
from spring_rag.bridge.threads import in_thread, iterate_in_thread
from spring_rag.bridge.tools import forbids_tools, tool_choice
from spring_rag.calls import check_takes_tools, takes_tools
from spring_rag.encoding import warn_of_control_strings
from spring_rag.model import EngineName, SpringModel, TokensLike
from spring_rag.prompt import ANY_TOOL, Prompt

if TYPE_CHECKING:
    import torch
    from llama_index.core.tools.types import BaseTool

    from spring_rag.backends.base import Generation

_PER_CALL = (*SETTINGS, *ChatParameters.LAYOUT)

# Of one process: the loaded model, and callbacks with their queues and files.
_NOT_PICKLED = {"model", "callback_manager"}


class SpringLLM(AnswerParameters, ChatParameters, FunctionCallingLLM):
    """A backbone that you run yourself, with virtual tokens in the slots of its prompts.

    Prompts get their slot from `with_virtual_tokens` or `upgrade_engine`. One without a slot (a refine step, say, or the rephrasing
    of a question) is answered by the plain backbone. All of a rendered prompt counts as a user's: control strings such as `</s>`
    in it are ordinary text.

    Answers come without white space at both ends, streamed ones too. The settings can also be given per call, as
    in `llm.complete(prompt, num_tokens=10, max_tokens=20)`.

    A backbone that thinks before it answers is asked not to. With `thinking=True`, what it thinks is a `ThinkingBlock` of a chat's
    answer, and `additional_kwargs["thinking"]` of a text's.

    Example:
        `pip install 'spring-rag[llama-index]'`

        ```python
        from llama_index.core import Settings
        from llama_index.llms.spring_rag import NumberedPassages, SpringLLM, upgrade_engine

        Settings.llm = SpringLLM.from_pretrained("mistralai/Mistral-7B-Instruct-v0.1", tokens="mistral-7b-instruct")
        Settings.tokenizer = Settings.llm.model.tokenizer.encode  # counts what fits into the context

        engine = index.as_query_engine(node_postprocessors=[NumberedPassages()])
        print(upgrade_engine(engine))
        print(engine.query("Who built the bridge?"))
        ```

    """

    model: SpringModel = Field(description="Backbone and virtual tokens.", exclude=True)
    is_chat_model: bool | None = Field(
        default=None,
        description=(
            "Whether LlamaIndex gives it chats rather than texts. None is as the virtual tokens were trained; without "
            "any, whether the tokenizer has a chat template."
        ),
    )

    _source: dict[str, Any] | None = PrivateAttr(default=None)

    @classmethod
    def from_pretrained(
        cls,
        backbone: str | os.PathLike[str],
        *,
        tokens: TokensLike | None = None,
        device: str | torch.device = "auto",
        dtype: str | torch.dtype = "auto",
        revision: str | None = None,
        base_url: str | Sequence[str] | None = None,
        api_key: str | None = None,
        engine: EngineName = "transformers",
        model_kwargs: Mapping[str, Any] | None = None,
        **settings: Any,
    ) -> SpringLLM:
        """Load a backbone and virtual tokens.

        Args:
            backbone: folder, Hub id or GGUF of a causal language model, as `SpringModel.from_pretrained` takes it.
            tokens: the default set: virtual tokens, or where they are.
            device: "auto" takes CUDA, else MPS, else the CPU.
            dtype: "auto" takes the checkpoint's on an accelerator and float32 on the CPU.
            revision: branch, tag or commit of the backbone on the Hub.
            base_url: of a vLLM server that has the backbone, or of several; no backbone is loaded then.
            api_key: of the servers.
            engine: what runs the backbone in this process: "transformers", or "llama.cpp", which reads a GGUF as it is.
            model_kwargs: further arguments of `SpringModel.from_pretrained`.
            settings: the fields of this class.

        Raises:
            BackendError: the backbone can't be loaded, or a server can't be reached.
            BackboneMismatchError: the tokens belong to another backbone.
            TokensError: the tokens can't be read.
        """
        source = {
            "backbone": os.fspath(backbone),
            "tokens": os.fspath(tokens) if isinstance(tokens, os.PathLike) else tokens,
            "device": str(device),
            "dtype": str(dtype).removeprefix("torch."),
            "revision": revision,
            "base_url": base_url,
            "api_key": api_key,
            "engine": engine,
        }
        llm = cls(model=load_shared(**source, **(model_kwargs or {})), **settings)
        llm._source = {**source, "model_kwargs": model_kwargs}
        return llm

    def __reduce__(self) -> tuple[Any, ...]:
        if self._source is None:
            raise not_pickled(self, "SpringLLM.from_pretrained('…', tokens='…')")
        fields = {name: getattr(self, name) for name in self.model_fields_set - _NOT_PICKLED}
        return _unpickled, (type(self), self._source, fields)

    @model_validator(mode="before")
    @classmethod
    def _take_other_names(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        found = in_our_words(values)
        # LlamaIndex drops what it doesn't know without a word.
        if unknown := sorted(set(found) - set(cls.model_fields) - {"class_name"}):
            msg = (
                f"SpringLLM takes no {', '.join(unknown)}; its settings are {', '.join(_PER_CALL)}. What loads a backbone goes to "
                "SpringLLM.from_pretrained"
            )
            raise ValueError(msg)
        return found

    @model_validator(mode="after")
    def _check(self) -> SpringLLM:
        self._generation_settings()
        # LlamaIndex lays chats out by itself for models that take texts; the slot has to be in its place before.
        if not isinstance(self.messages_to_prompt, Layout):
            self.messages_to_prompt = Layout(self.messages_to_prompt or generic_messages_to_prompt)
        # An unknown set or too large a k should be found out here, not at the first question.
        available = self._available(self.tokens)
        if self.num_tokens is not None and not 0 <= self.num_tokens <= available:
            msg = f"num_tokens is {self.num_tokens}; expected a number from 0 to {available}"
            raise ValueError(msg)
        if self.is_chat_model and not (self._has_own_layout or self.model.tokenizer.chat_template):
            msg = "is_chat_model is True, but the tokenizer has no chat template; give it one, or a messages_to_prompt"
            raise ValueError(msg)
        return self

    @classmethod
    def class_name(cls) -> str:
        """The name under which LlamaIndex serialises this component."""
        return "SpringLLM"

    @property
    def metadata(self) -> LLMMetadata:
        """What LlamaIndex plans its prompts with.

        The context window is the room for text: the backbone's context less the virtual tokens, which LlamaIndex can't count.
        """
        virtual = self.num_tokens if self.num_tokens is not None else self._available(self.tokens)
        window = self.model.backend.context_length or DEFAULT_CONTEXT_WINDOW
        return LLMMetadata(
            context_window=window - virtual,
            num_output=self.max_tokens,
            is_chat_model=self._is_chat,
            is_function_calling_model=not self._has_own_layout and takes_tools(self.model.tokenizer),
            model_name=self.model.backend.model_id or "unknown",
        )

    @llm_completion_callback()
    def complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        """Answer a text.

        Args:
            prompt: the text; with a slot if a template of `with_virtual_tokens` rendered it.
            formatted: whether the text goes to the backbone as it is. If not, a chat model gets it as a user's message, others
                get what `completion_to_prompt` makes of it.
            kwargs: settings for this call, named as the fields of this class.

        Raises:
            PromptTooLongError: it doesn't fit the context; says by how much.
            TokensError: an unknown set, or more virtual tokens than it has.
            ValueError: an unknown setting, or one out of its range.
        """
        return completion(self._generate(self._text_prompt(prompt, formatted), kwargs))

    @llm_completion_callback()
    def stream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponseGen:
        """Answer a text piece by piece; takes and raises what `complete` does. Closing the generator stops the backbone."""
        return self._stream(self._text_prompt(prompt, formatted), kwargs)

    @llm_completion_callback()
    async def acomplete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        """What `complete` does, in another thread."""
        generation = await in_thread(self._generate, self._text_prompt(prompt, formatted), kwargs)
        return completion(generation)

    @llm_completion_callback()
    async def astream_complete(
        self, prompt: str, formatted: bool = False, **kwargs: Any
    ) -> CompletionResponseAsyncGen:
        """What `stream_complete` does, in another thread. Cancelling it stops the backbone."""
        prompt_ = self._text_prompt(prompt, formatted)
        return iterate_in_thread(await in_thread(self._stream, prompt_, kwargs))

    @llm_chat_callback()
    def chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        """Answer a chat, laid out by the tokenizer's chat template; where it has none, by `messages_to_prompt`.

        Where a template wants user and assistant to take turns, neighbouring messages of one role are joined, and a system
        message becomes the first part of the user's. Takes the settings that `complete` takes, and raises what it raises.

        Raises:
            PromptError: a message with something else than text, or one that the chat template refuses.
        """
        return chat_response(completion(self._generate(self._chat_prompt(messages), kwargs)))

    @llm_chat_callback()
    def stream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponseGen:
        """Answer a chat piece by piece; takes and raises what `chat` does. Closing the generator stops the backbone."""
        return chat_responses(self._stream(self._chat_prompt(messages), kwargs))

    @llm_chat_callback()
    async def achat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        """What `chat` does, in another thread."""
        generation = await in_thread(self._generate, self._chat_prompt(messages), kwargs)
        return chat_response(completion(generation))

    @llm_chat_callback()
    async def astream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponseAsyncGen:
        """What `stream_chat` does, in another thread. Cancelling it stops the backbone."""
        prompt = self._chat_prompt(messages)
        return iterate_in_thread(chat_responses(await in_thread(self._stream, prompt, kwargs)))

    def get_tool_calls_from_response(
        self,
        response: ChatResponse,
        error_on_no_tool_call: bool = True,
        **kwargs: Any,  # noqa: ARG002 - LlamaIndex passes them
    ) -> list[ToolSelection]:
        """The tools that an answer calls.

        Raises:
            ValueError: the answer calls no tool, and `error_on_no_tool_call` is True.
        """
        return tool_selections(response, required=error_on_no_tool_call)

    def _prepare_chat_with_tools(
        self,
        tools: Sequence[BaseTool],
        user_msg: str | ChatMessage | None = None,
        chat_history: list[ChatMessage] | None = None,
        verbose: bool = False,  # noqa: ARG002 - LlamaIndex passes it
        allow_parallel_tool_calls: bool = False,  # noqa: ARG002 - LlamaIndex passes it
        tool_required: bool = False,
        tool_choice: str | dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """The arguments of `chat`.

        Raises:
            ToolsError: the chat template has no place for tools.
        """
        if tools:
            check_takes_tools(self.model.tokenizer)
        question = (
            ChatMessage(role=MessageRole.USER, content=user_msg) if isinstance(user_msg, str) else user_msg
        )
        return {
            "messages": [*(chat_history or ()), *([question] if question else ())],
            "tools": [tool.metadata.to_openai_tool(skip_length_check=True) for tool in tools],
            "tool_choice": tool_choice or (ANY_TOOL if tool_required and tools else None),
            **kwargs,
        }

    def _validate_chat_with_tools_response(
        self,
        response: ChatResponse,
        tools: Sequence[BaseTool],  # noqa: ARG002 - LlamaIndex passes it
        allow_parallel_tool_calls: bool = False,
        **kwargs: Any,  # noqa: ARG002 - LlamaIndex passes them
    ) -> ChatResponse:
        return response if allow_parallel_tool_calls else single_call(response)

    @property
    def _is_chat(self) -> bool:
        if self.is_chat_model is not None:
            return self.is_chat_model
        attached = self.model.backend.tokens(self.tokens)
        return self.model.template(self.tokens).chat if attached else bool(self.model.tokenizer.chat_template)

    @property
    def _has_own_layout(self) -> bool:
        return self.messages_to_prompt != Layout(generic_messages_to_prompt)

    def _available(self, tokens: str | None) -> int:
        attached = self.model.backend.tokens(tokens)
        return len(attached) if attached is not None else 0

    def _text_prompt(self, text: str, formatted: bool) -> Prompt:
        if not formatted:
            own = self.completion_to_prompt not in (None, default_completion_to_prompt)
            if self._is_chat and not own:
                return self._chat_prompt([ChatMessage(role=MessageRole.USER, content=text)])
            assert self.completion_to_prompt is not None
            text = self.completion_to_prompt(text)
        return self._as_text(text)

    def _chat_prompt(self, messages: Sequence[ChatMessage]) -> Prompt:
        assert self.messages_to_prompt is not None
        if self._has_own_layout or not self.model.tokenizer.chat_template:
            return self._as_text(self.messages_to_prompt(messages))
        return to_prompt(messages)

    def _as_text(self, text: str) -> Prompt:
        warn_of_control_strings(text, self.model.tokenizer)
        return Prompt(parts=split(text))

    def _generate(self, prompt: Prompt, overrides: Mapping[str, Any]) -> Generation:
        prompt, settings = self._asked(prompt, overrides)
        with saying_how_it_counts(self.model.tokenizer):
            return self.model.generate([prompt], **settings)[0]

    def _stream(self, prompt: Prompt, overrides: Mapping[str, Any]) -> CompletionResponseGen:
        prompt, settings = self._asked(prompt, overrides)
        with saying_how_it_counts(self.model.tokenizer):
            return completions(self.model.stream(prompt, **settings))

    def _asked(self, prompt: Prompt, overrides: Mapping[str, Any]) -> tuple[Prompt, dict[str, Any]]:
        """Part what a call says of its prompt from what it says of the answer; give both."""
        overrides = in_our_words(overrides)
        choice = overrides.pop("tool_choice", None)
        tools = overrides.pop("tools", None) or ()
        if unknown := sorted(set(overrides) - set(_PER_CALL)):
            msg = f"SpringLLM has no setting {', '.join(unknown)}; a call can set {', '.join(_PER_CALL)}"
            raise ValueError(msg)
        tools = () if forbids_tools(choice) else tuple(tools)
        if prompt.messages or tools:
            own = {name: overrides.get(name, getattr(self, name)) for name in self.LAYOUT}
            prompt = replace(prompt, **own, tools=tools, tool_choice=tool_choice(choice))
        return prompt, self._arguments(overrides)


def _unpickled(kind: type[SpringLLM], source: dict[str, Any], fields: dict[str, Any]) -> SpringLLM:
    return kind.from_pretrained(**source, **fields)
