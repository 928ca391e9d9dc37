"""What both models have in common: the backbone, how to answer, and what is told about it."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Generator, Iterator, Sequence
from contextlib import closing
from typing import Any, ClassVar, Self

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models import LangSmithParams
from langchain_core.messages import UsageMetadata
from pydantic import ConfigDict, Field, PrivateAttr, SecretStr, field_validator, model_validator

from spring_rag.asking import RagAnswer
from spring_rag.backends.base import Generation
from spring_rag.bridge.loading import load_shared, not_pickled
from spring_rag.bridge.parameters import SETTINGS, AnswerParameters
from spring_rag.bridge.settings import in_our_words
from spring_rag.bridge.threads import iterate_in_thread
from spring_rag.encoding import encode
from spring_rag.errors import TokensError
from spring_rag.model import EngineName, SpringModel
from spring_rag.prompt import Prompt
from spring_rag.stream import Stream

PER_CALL = tuple(name for name in SETTINGS if name != "stop")
"""Settings that a call can bring as arguments of its own; LangChain has one for `stop`."""

_NETWORK = ("timeout", "max_retries")
_TOOLS = ("tools", "tool_choice", "functions", "function_call", "response_format")


class SpringParameters(AnswerParameters):
    """Fields and behaviour that `ChatSpring` and `SpringLLM` share."""

    model_config = ConfigDict(arbitrary_types_allowed=True)

    _in_prompts: ClassVar[tuple[str, ...]] = ()
    """Names of the settings that a call can bring and that its prompt takes."""

    model: SpringModel | str
    """A loaded `SpringModel`, or the folder, Hub id or GGUF of a backbone to load. Models made from the same names share one."""

    virtual_tokens: str | None = None
    """What to load with a backbone: a folder, a file, a Hub id or a published name."""

    device: str = "auto"
    """Where a backbone is loaded to: "auto", "cpu", "cuda", "cuda:1", "mps"."""

    dtype: str = "auto"
    """How a backbone is loaded: "auto", "float32", "bfloat16", …"""

    revision: str | None = None
    """Branch, tag or commit of a backbone on the Hub."""

    base_url: str | list[str] | None = None
    """Address of a vLLM server that has the backbone, or of several; no backbone is loaded then."""

    api_key: SecretStr | None = None
    """Of the servers; without one VLLM_API_KEY or OPENAI_API_KEY is used."""

    engine: EngineName = "transformers"
    """What runs a backbone in this process: "transformers", or "llama.cpp", which reads a GGUF as it is."""

    model_kwargs: dict[str, Any] = Field(default_factory=dict)
    """Further arguments for loading a backbone, as `SpringModel.from_pretrained` takes them."""

    _spring: SpringModel = PrivateAttr()

    @model_validator(mode="before")
    @classmethod
    def _take_other_names(cls, values: Any) -> Any:
        """Take other models' names for settings, and LangChain's standard parameters, of which two mean nothing to a model in this process."""
        if not isinstance(values, dict):
            return values
        values = in_our_words(values)
        network = {name: values[name] for name in _NETWORK if values.get(name) is not None}
        others = {name: value for name, value in values.items() if name not in _NETWORK}
        if network and others.get("base_url"):
            others["model_kwargs"] = {**(others.get("model_kwargs") or {}), **network}
        return others

    @field_validator("model", "virtual_tokens", mode="before")
    @classmethod
    def _path_as_text(cls, value: Any) -> Any:
        return os.fspath(value) if isinstance(value, os.PathLike) else value

    @field_validator("device", "dtype", mode="before")
    @classmethod
    def _torch_name_as_text(cls, value: Any) -> Any:
        return str(value).removeprefix("torch.")

    def __init__(self, **values: Any) -> None:
        super().__init__(**values)
        # Not in a validator: pydantic would wrap the core's errors into its own.
        self._generation_settings()
        self._spring = self.model if isinstance(self.model, SpringModel) else self._load(self.model)

    @property
    def lc_secrets(self) -> dict[str, str]:
        """What LangChain leaves out of a serialised model, and the environment variables that have it when it is loaded."""
        return {"api_key": "VLLM_API_KEY"}

    @property
    def spring_model(self) -> SpringModel:
        """Backbone and virtual tokens."""
        return self._spring

    @property
    def model_name(self) -> str:
        """The backbone's Hub id or path."""
        return self._spring.backend.model_id or type(self._spring.backend).__name__

    @property
    def _llm_type(self) -> str:
        return "spring-rag"

    @property
    def _identifying_params(self) -> dict[str, Any]:
        """All that an answer depends on, for cache keys and traces."""
        attached, count = self._tokens_in_use()
        return {
            "model": self.model_name,
            # A model without a name is known by nothing but being the same object.
            **({} if self._spring.backend.model_id else {"object": id(self._spring)}),
            "revision": self.revision,
            "device": self.device,
            "dtype": self.dtype,
            "engine": self.engine,
            "model_kwargs": {
                name: repr(value) for name, value in sorted(self.model_kwargs.items()) if name not in _NETWORK
            },
            "virtual_tokens": attached,
            **{name: getattr(self, name) for name in (*PER_CALL, *self._in_prompts)},
            "num_tokens": count,
            "stop": self.stop,
        }

    def get_token_ids(self, text: str) -> list[int]:
        """The ids of a text by the backbone's tokenizer, with those that it puts around every text."""
        return list(encode(text, self._spring.tokenizer).ids)

    def with_structured_output(self, schema: Any, **kwargs: Any) -> Any:
        """Refused: a backbone answers in text.

        Raises:
            NotImplementedError: always.
        """
        msg = (
            f"{type(self).__name__} can't force the backbone {self.model_name!r} into a schema, which takes a chat template that has tools; "
            "ask for the form in the prompt and parse the text, as with JsonOutputParser"
        )
        raise NotImplementedError(msg)

    def to_json(self) -> Any:
        """The serialised form; a model made from a `SpringModel` object has none that could be loaded again."""
        if isinstance(self.model, SpringModel):
            return self.to_json_not_implemented()  # type: ignore[attr-defined]
        return super().to_json()  # type: ignore[misc]

    def _configured(self, stop: Sequence[str] | None, changes: dict[str, Any]) -> Self:
        """This model with what one call asks for.

        Raises:
            NotImplementedError: the call brings tools or a schema.
            ValueError: it brings something else that isn't known, or a value out of its range.
        """
        changes = in_our_words(changes)
        if refused := sorted(name for name in _TOOLS if name not in self._in_prompts and changes.get(name)):
            msg = (
                f"{type(self).__name__} takes no {', '.join(refused)}: give a ChatSpring tools with bind_tools, and a schema with "
                "with_structured_output"
            )
            raise NotImplementedError(msg)
        per_call = (*PER_CALL, *self._in_prompts)
        known = {name: value for name, value in changes.items() if name in per_call}
        unknown = set(changes) - set(known) - {"stream", *_TOOLS}
        if unknown:
            msg = f"{type(self).__name__} takes no {', '.join(sorted(unknown))} in a call; it takes {', '.join(per_call)} and stop"
            raise ValueError(msg)
        if stop is not None:
            known["stop"] = stop
        if not known:
            return self
        fields = {name: value for name, value in self.__dict__.items() if name in type(self).model_fields}
        return type(self)(**{**fields, **known, "model": self._spring})

    def _answer(self, prompts: Sequence[Prompt]) -> list[Generation]:
        return self._spring.generate(prompts, **self._arguments())

    def _pieces(self, prompt: Prompt) -> Stream:
        """Stream an answer without white space at its ends."""
        return self._spring.stream(prompt, **self._arguments()).stripped()

    def _stream(
        self,
        prompt: Any,
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[Any]:
        with closing(self._chunks(prompt, stop, kwargs)) as chunks:
            for chunk in chunks:
                if run_manager:
                    run_manager.on_llm_new_token(chunk.text, chunk=chunk)
                yield chunk

    async def _astream(
        self,
        prompt: Any,
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[Any]:
        async for chunk in iterate_in_thread(self._chunks(prompt, stop, kwargs)):
            if run_manager:
                await run_manager.on_llm_new_token(chunk.text, chunk=chunk)
            yield chunk

    def _chunks(
        self, prompt: Any, stop: list[str] | None, changes: dict[str, Any]
    ) -> Generator[Any, None, None]:
        """Give a chunk for each piece of the answer, and a last one without text that tells how it ended."""
        model = self._configured(stop, changes)
        with closing(model._pieces(model._prompt(prompt))) as pieces:
            for piece in pieces.with_thoughts():
                yield model._chunk(piece)
            yield model._last_chunk(pieces.generation)

    def _prompt(self, given: Any) -> Prompt:
        """What LangChain gives this kind of model, as a prompt of the core."""
        raise NotImplementedError

    def _chunk(self, piece: str) -> Any:
        """A piece of an answer, or a `Thought` before it, as LangChain wants it of this kind of model."""
        raise NotImplementedError

    def _last_chunk(self, generation: Generation) -> Any:
        """What is known once an answer is complete."""
        raise NotImplementedError

    def _tokens_in_use(self) -> tuple[str | None, int | None]:
        """Digest of the set and k; None where the call itself will say what is wrong with them."""
        try:
            attached = self._spring.backend.tokens(self.tokens)
        except TokensError:
            return None, self.num_tokens
        if attached is None:
            return None, self.num_tokens or 0
        return attached.digest, len(attached) if self.num_tokens is None else self.num_tokens

    def _langsmith(self, base: LangSmithParams, stop: list[str] | None, **kwargs: Any) -> LangSmithParams:
        """LangChain's own parameters for traces, with what it can't guess."""
        base["ls_provider"] = "spring_rag"
        base["ls_model_name"] = kwargs.get("model") or self.model_name
        if stop or self.stop:
            base["ls_stop"] = stop or self.stop
        return base

    def _load(self, backbone: str) -> SpringModel:
        return load_shared(
            backbone,
            tokens=self.virtual_tokens,
            device=self.device,
            dtype=self.dtype,
            revision=self.revision,
            base_url=self.base_url,
            api_key=self.api_key.get_secret_value() if self.api_key else None,
            engine=self.engine,
            **self.model_kwargs,
        )

    def __reduce__(self) -> tuple[Any, ...]:
        if isinstance(self.model, SpringModel):
            raise not_pickled(self, f"{type(self).__name__}(model='…', virtual_tokens='…')")
        return _unpickled, (type(self), {name: getattr(self, name) for name in self.model_fields_set})


def _unpickled(kind: type[SpringParameters], fields: dict[str, Any]) -> SpringParameters:
    return kind(**fields)


def usage_metadata(generation: Generation | RagAnswer) -> UsageMetadata:
    """Numbers of tokens as LangChain counts them, the prompt's told apart by where they stand."""
    usage = generation.usage
    prompt = usage.context + usage.virtual + usage.suffix
    details: Any = {"context": usage.context, "virtual": usage.virtual, "suffix": usage.suffix}
    return UsageMetadata(
        input_tokens=prompt,
        output_tokens=usage.generated,
        total_tokens=prompt + usage.generated,
        input_token_details=details,
    )
