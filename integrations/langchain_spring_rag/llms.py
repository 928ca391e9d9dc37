"""SpringLLM: a backbone with virtual tokens as a model that continues text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models import BaseLLM, LangSmithParams, LanguageModelInput
from langchain_core.outputs import Generation, GenerationChunk, LLMResult
from langchain_core.prompt_values import ChatPromptValue, PromptValue, StringPromptValue
from langchain_core.runnables import RunnableConfig
from pydantic import ConfigDict

from langchain_spring_rag.messages import with_marks
from langchain_spring_rag.parameters import PER_CALL, SpringParameters, usage_metadata
from spring_rag.backends.base import Generation as Answer
from spring_rag.bridge.marks import canonical, split
from spring_rag.bridge.settings import in_our_words
from spring_rag.bridge.threads import in_thread
from spring_rag.bridge.usage import token_counts
from spring_rag.encoding import warn_of_control_strings
from spring_rag.prompt import Prompt, parse_marked
from spring_rag.stream import Thought


class SpringLLM(SpringParameters, BaseLLM):
    r"""A backbone that continues text, with virtual tokens where a prompt has a slot.

    Prompts from `with_virtual_tokens` or `rag_prompt` have one; any other is answered by the plain backbone. Answers come
    without white space at their ends.

    Setup:
        `pip install 'spring-rag[langchain]'`

    Instantiate:
        ```python
        from langchain_spring_rag import SpringLLM

        llm = SpringLLM(
            model="mistralai/Mistral-7B-Instruct-v0.1",  # or a SpringModel that is loaded already
            virtual_tokens="mistral-7b-instruct",
            max_tokens=64,
            # num_tokens=10, tokens="finance", temperature=0.0, top_p=1.0, top_k=0, seed=1, stop=["\n"]
        )
        ```

    Invoke:
        ```python
        from langchain_core.documents import Document
        from langchain_spring_rag import format_passages, rag_prompt

        chain = rag_prompt() | llm
        passages = [Document("Hale and Sons built the lighthouse."), Document("It was lit in 1887.")]
        question = {"context": format_passages(passages), "question": "Who built the lighthouse?"}
        answer = chain.invoke(question)
        ```

    Stream:
        ```python
        for piece in chain.stream(question):
            print(piece, end="")
        ```

    Async:
        ```python
        answer = await chain.ainvoke(question)
        async for piece in chain.astream(question):
            print(piece, end="")
        ```

    Batch:
        ```python
        answers = chain.batch([question, question])  # one batch of the backbone
        plain = (rag_prompt() | llm.bind(num_tokens=0)).invoke(question)
        ```
    """

    model_config = ConfigDict(extra="forbid")

    @classmethod
    def is_lc_serializable(cls) -> bool:
        """True: a model made from names is saved as these names."""
        return True

    def generate_prompt(self, prompts: list[PromptValue], *args: Any, **kwargs: Any) -> LLMResult:
        """Answer prompts as one batch; arguments are those of LangChain's models."""
        return super().generate_prompt([self._convert_input(each) for each in prompts], *args, **kwargs)

    async def agenerate_prompt(self, prompts: list[PromptValue], *args: Any, **kwargs: Any) -> LLMResult:
        """The same, in async code."""
        return await super().agenerate_prompt(
            [self._convert_input(each) for each in prompts], *args, **kwargs
        )

    def generate(
        self, prompts: list[str], stop: list[str] | None = None, *args: Any, **kwargs: Any
    ) -> LLMResult:
        """Answer texts as one batch; arguments are those of LangChain's models."""
        model, others = self._for_call(stop, kwargs)
        return super(SpringLLM, model).generate(_for_cache(prompts), model.stop, *args, **others)

    async def agenerate(
        self, prompts: list[str], stop: list[str] | None = None, *args: Any, **kwargs: Any
    ) -> LLMResult:
        """The same, in async code."""
        model, others = self._for_call(stop, kwargs)
        return await super(SpringLLM, model).agenerate(_for_cache(prompts), model.stop, *args, **others)

    def batch(
        self,
        inputs: list[LanguageModelInput],
        config: RunnableConfig | list[RunnableConfig] | None = None,
        *,
        return_exceptions: bool = False,
        **kwargs: Any,
    ) -> list[str]:
        """Answer many prompts as one batch.

        With `return_exceptions`, a batch that fails is answered again prompt by prompt, so that one bad prompt spoils no other.
        """
        answers = super().batch(inputs, config, return_exceptions=return_exceptions, **kwargs)
        if len(inputs) > 1:
            for i, answer in enumerate(answers):
                if isinstance(answer, Exception):
                    own = config[i] if isinstance(config, list) else config
                    answers[i] = super().batch([inputs[i]], own, return_exceptions=True, **kwargs)[0]
        return answers

    async def abatch(
        self,
        inputs: list[LanguageModelInput],
        config: RunnableConfig | list[RunnableConfig] | None = None,
        *,
        return_exceptions: bool = False,
        **kwargs: Any,
    ) -> list[str]:
        """The same, in async code."""
        answers = await super().abatch(inputs, config, return_exceptions=return_exceptions, **kwargs)
        if len(inputs) > 1:
            for i, answer in enumerate(answers):
                if isinstance(answer, Exception):
                    own = config[i] if isinstance(config, list) else config
                    answers[i] = (await super().abatch([inputs[i]], own, return_exceptions=True, **kwargs))[0]
        return answers

    def _convert_input(self, model_input: LanguageModelInput) -> PromptValue:
        value = super()._convert_input(model_input)
        if isinstance(value, ChatPromptValue):
            return StringPromptValue(text=ChatPromptValue(messages=with_marks(value.messages)).to_string())
        return value

    def _for_call(self, stop: list[str] | None, kwargs: dict[str, Any]) -> tuple[SpringLLM, dict[str, Any]]:
        """The model with a call's settings, and the call's other arguments.

        LangChain's cache keys leave out what a call brings, so that k = 0 would be answered with what k = 50 had cached.
        """
        kwargs = in_our_words(kwargs)
        changes = {name: value for name, value in kwargs.items() if name in PER_CALL}
        others = {name: value for name, value in kwargs.items() if name not in PER_CALL}
        return self._configured(stop, changes), others

    def _generate(
        self,
        prompts: list[str],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,  # noqa: ARG002 - LangChain passes it
        **kwargs: Any,
    ) -> LLMResult:
        model = self._configured(stop, kwargs)
        found = model._answer([self._warned(parse_marked(prompt)) for prompt in prompts])
        generations: list[Any] = [
            [Generation(text=each.text.strip(), generation_info=model._info(each))] for each in found
        ]
        return LLMResult(
            generations=generations,
            # Under the names that LangChain's callbacks look for.
            llm_output={"token_usage": _total(found), "model_name": model.model_name},
        )

    async def _agenerate(
        self,
        prompts: list[str],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,  # noqa: ARG002 - LangChain passes it
        **kwargs: Any,
    ) -> LLMResult:
        return await in_thread(self._generate, prompts, stop, **kwargs)

    def _prompt(self, given: str) -> Prompt:
        return self._warned(Prompt(parts=split(given)))

    def _warned(self, prompt: Prompt) -> Prompt:
        warn_of_control_strings(prompt.text, self._spring.tokenizer)
        return prompt

    def _chunk(self, piece: str) -> GenerationChunk:
        return GenerationChunk(text="" if isinstance(piece, Thought) else piece)

    def _last_chunk(self, generation: Answer) -> GenerationChunk:
        return GenerationChunk(text="", generation_info=self._info(generation))

    def _info(self, generation: Answer) -> dict[str, Any]:
        return {
            "finish_reason": generation.finish_reason,
            "model_name": self.model_name,
            "usage_metadata": usage_metadata(generation),
        }

    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> LangSmithParams:
        return self._langsmith(super()._get_ls_params(stop=stop, **kwargs), stop, **kwargs)


def _for_cache(prompts: Sequence[str]) -> list[str]:
    """The prompts in a form that is the same in every process."""
    for prompt in prompts:
        split(prompt)  # warns of marks that aren't ours, which can't be told apart afterwards
    return [canonical(prompt) for prompt in prompts]


def _total(generations: Sequence[Answer]) -> dict[str, int]:
    counts = token_counts(each.usage for each in generations)
    return {**counts, "total_tokens": counts["prompt_tokens"] + counts["completion_tokens"]}
