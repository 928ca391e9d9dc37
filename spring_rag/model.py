"""SpringModel: a frozen backbone that answers prompts, with virtual tokens in their slots."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal, Unpack, get_args

from spring_rag import answering, asking
from spring_rag.answering import PromptLike, Settings, per_prompt, settings_of
from spring_rag.asking import RagAnswer
from spring_rag.backends.base import BATCH_SIZE, DEFAULT_TOKENS, Backend, Generation
from spring_rag.callbacks import OnProgress
from spring_rag.errors import TokensError
from spring_rag.fitting import fit_beside
from spring_rag.prompt import Prompt, RagPrompt, RagTemplate
from spring_rag.skills import ANSWER
from spring_rag.stream import Stream
from spring_rag.tokens import VirtualTokens

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

EngineName = Literal["transformers", "llama.cpp"]
"""What runs a backbone in this process."""

TokensLike = VirtualTokens | str | os.PathLike[str]
"""Virtual tokens, or whatever `VirtualTokens.from_pretrained` takes."""


class SpringModel:
    """A frozen backbone with sets of virtual tokens. Several threads may call it at once.

    A prompt without slot is answered by the plain backbone, and so is every prompt with `num_tokens=0` or while no virtual
    tokens are attached.

    Args:
        hf_model: a loaded causal language model of transformers; never changed.
        hf_tokenizer: its tokenizer; never changed.
        tokens: the default set; checked against the model.

    Raises:
        UnsupportedBackboneError: the model can't take virtual tokens.
        BackboneMismatchError: the tokens belong to another backbone.
        TokensError: the tokens can't be read.

    Example:
        >>> model = SpringModel.from_pretrained("mistralai/Mistral-7B-Instruct-v0.1", tokens="mistral-7b-instruct")  # doctest: +SKIP
        >>> model.answer("Who built the lighthouse?", ["Hale and Sons built the lighthouse."])  # doctest: +SKIP
        'Hale and Sons'
    """

    def __init__(
        self,
        hf_model: PreTrainedModel,
        hf_tokenizer: PreTrainedTokenizerBase,
        *,
        tokens: TokensLike | None = None,
    ) -> None:
        from spring_rag.backends.local import LocalBackend

        self._set_up(LocalBackend(hf_model, hf_tokenizer), tokens)

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
        **model_kwargs: Any,
    ) -> SpringModel:
        """Load a backbone and its tokenizer, and attach virtual tokens.

        Args:
            backbone: folder or Hub id of a causal language model; or a GGUF: `model.gguf`, a folder that holds one, or
                `owner/name:file.gguf`. It is unpacked once into the user's cache folder, and loads from there.
            tokens: the default set.
            device: "auto" takes CUDA, else MPS, else the CPU. Without effect with `base_url`.
            dtype: "auto" takes the checkpoint's on an accelerator and float32 on the CPU. With `base_url` it is that of the
                embeddings that are sent.
            revision: branch, tag or commit of the backbone on the Hub.
            base_url: of a running vLLM server that has the backbone, as "http://localhost:8000/v1", or of several that take turns.
                The model isn't loaded then.
            api_key: of the servers.
            engine: what runs the backbone in this process: "transformers", or "llama.cpp", which reads a GGUF as it is.
            model_kwargs: go to the model's own `from_pretrained`, as `device_map` or `quantization_config`; with `base_url` to
                `VLLMBackend.from_pretrained`, as `timeout` or `concurrency`, and on llama.cpp to `LlamaCppBackend`, as `n_ctx`. Those that say where the backbone is found
                (`subfolder`, `cache_dir`, `local_files_only`, `gguf_file`, …) apply to its tokenizer too.

        Raises:
            MissingExtraError: the backbone is a GGUF, and the package `gguf` isn't installed; or llama-cpp-python isn't.
            BackendError: the backbone can't be loaded, or a server can't be reached.
            UnsupportedBackboneError: it can't take virtual tokens.
            BackboneMismatchError: the tokens belong to another backbone.
            TokensError: the tokens can't be read.
            ValueError: an unknown engine, or one beside `base_url`.
        """
        _check_engine(engine, base_url)
        # Tokens come first: a wrong path should be noticed before a backbone loads for minutes.
        tokens = _load(tokens) if tokens is not None else None
        name = os.fspath(backbone)
        model_kwargs |= {"dtype": dtype, "revision": revision}
        backend: Backend
        if base_url is not None:
            from spring_rag.backends.vllm import VLLMBackend

            backend = VLLMBackend.from_pretrained(name, base_url, api_key=api_key, **model_kwargs)
        elif engine == "llama.cpp":
            from spring_rag.backends.llama_cpp import LlamaCppBackend

            backend = LlamaCppBackend.from_pretrained(name, device=device, **model_kwargs)
        else:
            from spring_rag.backends.local import LocalBackend

            backend = LocalBackend.from_pretrained(name, device=device, **model_kwargs)
        return cls.from_backend(backend, tokens=tokens)

    @classmethod
    def from_backend(cls, backend: Backend, *, tokens: TokensLike | None = None) -> SpringModel:
        """Make a model on any backend. Raises what the constructor raises."""
        model = cls.__new__(cls)
        model._set_up(backend, tokens)
        return model

    def _set_up(self, backend: Backend, tokens: TokensLike | None) -> None:
        self.backend = backend
        if tokens is not None:
            self.add_tokens(DEFAULT_TOKENS, tokens)

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The backbone's tokenizer."""
        return self.backend.tokenizer

    def add_tokens(self, name: str, tokens: TokensLike) -> None:
        """Attach another set, to be used with `tokens=name`; a set of that name is replaced. The default set is called "default".

        Raises:
            BackboneMismatchError: the tokens belong to another backbone.
            TokensError: the tokens can't be read.
        """
        self.backend.add_tokens(name, _load(tokens))

    def add_skill(self, tokens: TokensLike) -> None:
        """Attach virtual tokens for `ask` and `check`, under the name of the task that they were trained for, such as "answerable" or "cite".

        Raises:
            BackboneMismatchError: the tokens belong to another backbone.
            TokensError: the tokens can't be read, or were trained to answer, which is what `add_tokens` is for.
        """
        loaded = _load(tokens)
        if loaded.task == ANSWER:
            msg = "these virtual tokens were trained to answer, which is no further skill; attach them with add_tokens and a name"
            raise TokensError(msg)
        self.add_tokens(loaded.task, loaded)

    def generate(
        self,
        prompts: PromptLike | Sequence[PromptLike],
        *,
        num_tokens: int | Sequence[int | None] | None = None,
        tokens: str | Sequence[str | None] | None = None,
        batch_size: int = BATCH_SIZE,
        progress: OnProgress | None = None,
        into: dict[int, Generation] | None = None,
        **settings: Unpack[Settings],
    ) -> list[Generation]:
        """Answer prompts.

        Args:
            prompts: one or many. A `RagPrompt` that is too long for the context loses its lowest-ranked passages.
            num_tokens: k, how many virtual tokens to use, one for all or one per prompt; None is all of the set.
            tokens: name of the set, one for all or one per prompt; None is the default set.
            batch_size: most prompts that run at once. Those with the same context run together, so that it is computed once; else
                those of similar length. A server batches by itself: it gets as many at once as its backend's `concurrency`.
            progress: called after each batch with the number of answers so far, and of all.
            into: an empty dict, filled after each batch with answers by prompt number; it keeps them if the call is interrupted.
            settings: how to decode: `max_new_tokens` (128 unless given), `temperature` (0: greedily), `top_p`, `top_k`, `stop` and
                `seed`, as `GenerationSettings` has them; `stop` may be one string.

        Returns:
            One `Generation` per prompt, in the order of the prompts; a list also for one prompt.

        Raises:
            PromptTooLongError: a prompt doesn't fit the context, a `RagPrompt` not even without passages.
            TokensError: an unknown set, more virtual tokens than it has, or not one value per prompt.
            ValueError: a setting out of its range.
        """
        decoding = settings_of(settings)
        many = [prompts] if isinstance(prompts, (str, Prompt, RagPrompt)) else list(prompts)
        counts = per_prompt("num_tokens", num_tokens, len(many))
        names = per_prompt("tokens", tokens, len(many))
        requests = [
            answering.request(self.backend, prompt, name, count, decoding)
            for prompt, name, count in zip(many, names, counts, strict=True)
        ]
        return answering.answers(self.backend, requests, decoding, batch_size, progress, into)

    def stream(
        self,
        prompt: PromptLike,
        *,
        num_tokens: int | None = None,
        tokens: str | None = None,
        **settings: Unpack[Settings],
    ) -> Stream:
        """Answer one prompt in pieces that concatenate to the text that `generate` gives.

        Iterate over the stream, then ask it for the whole answer (`stream.generation`). What the backbone thinks before it answers is
        left out; `stream.with_thoughts()` brings it, too. Calls of tools come with the whole answer. Closing it (`.close()`, or leaving a loop
        and dropping it) stops the backbone. Arguments and errors are those of `generate`; errors in arguments are raised at
        once, not at the first piece.
        """
        decoding = settings_of(settings)
        request = answering.request(self.backend, prompt, tokens, num_tokens, decoding)
        return answering.stream(self.backend, request, decoding)

    def answer(
        self,
        question: str,
        passages: Sequence[str],
        *,
        num_tokens: int | None = None,
        tokens: str | None = None,
        template: RagTemplate | None = None,
        thinking: bool | None = None,
        **settings: Unpack[Settings],
    ) -> str:
        """Answer a question from passages, best passage first.

        Args:
            question: in the user's words.
            passages: retrieved texts; the lowest-ranked are left out if they don't all fit.
            num_tokens: k, how many virtual tokens to use; None is all of the set.
            tokens: name of the set; None is the default set.
            template: layout of the prompt; None is the one that the set was trained with.
            thinking: whether the backbone is to think before it answers, in a chat; None is as the template says, which is not to.
            settings: how to decode, as `generate` takes them.

        Returns:
            The answer without its thoughts, stripped at both ends.

        Raises:
            PromptTooLongError: the question alone doesn't fit the context.
            TokensError: an unknown set, or more virtual tokens than it has.
            ValueError: a setting out of its range.
        """
        layout = template or self.template(tokens)
        if thinking is not None:
            layout = replace(layout, thinking=thinking)
        prompt = RagPrompt(question=question, passages=passages, template=layout)
        return self.generate([prompt], num_tokens=num_tokens, tokens=tokens, **settings)[0].text.strip()

    def fitted(
        self,
        prompt: RagPrompt,
        *,
        num_tokens: int | None = None,
        tokens: str | None = None,
        max_new_tokens: int = 128,
    ) -> RagPrompt:
        """Return the prompt as `generate` cuts it to fit beside its virtual tokens and its answer; `dropped` names the passages left out.

        Takes and raises what `generate` does.
        """
        count = answering.num_used(self.backend, tokens, num_tokens)
        [(fitted, _)] = fit_beside([prompt], self.backend, [count], max_new_tokens)
        return fitted

    def ask(
        self,
        question: str,
        passages: Sequence[str],
        min_answerable: float | None = None,
        *,
        num_tokens: int | None = None,
        tokens: str | None = None,
        template: RagTemplate | None = None,
        **settings: Unpack[Settings],
    ) -> RagAnswer:
        """Answer a question, and let the attached skills say whether the passages hold the answer, and which of them do.

        All are asked in one batch over one context, which is computed once where their tokens were trained with the same layout of
        passages. Each says exactly what it says alone. Attach skills with `add_skill`.

        Args:
            question: in the user's words.
            passages: retrieved texts, best first; the lowest-ranked are left out if they don't all fit.
            min_answerable: withhold the answer where the probability that the passages hold it is below; needs the skill `answerable`.
            num_tokens: k of the answer's tokens; None is all of the set. Skills use all of theirs.
            tokens: name of the set that answers; None is the default set.
            template: layout of the answer's prompt; None is the one that the set was trained with.
            settings: how to decode the answer, as `generate` takes them.

        Raises:
            PromptTooLongError: the question alone doesn't fit the context.
            TokensError: an unknown set, more virtual tokens than it has, or `min_answerable` without the skill `answerable`.
            ValueError: a setting out of its range.
        """
        prompt = RagPrompt(question, passages, template or self.template(tokens))
        return self.ask_many([prompt], min_answerable, num_tokens=num_tokens, tokens=tokens, **settings)[0]

    def ask_many(
        self,
        prompts: Sequence[RagPrompt],
        min_answerable: float | None = None,
        *,
        num_tokens: int | Sequence[int | None] | None = None,
        tokens: str | Sequence[str | None] | None = None,
        **settings: Unpack[Settings],
    ) -> list[RagAnswer]:
        """`ask` for several questions, in the layouts of their prompts; `num_tokens` and `tokens` may be one per prompt.

        Takes and raises what `ask` does.
        """
        counts = per_prompt("num_tokens", num_tokens, len(prompts))
        names = per_prompt("tokens", tokens, len(prompts))
        return asking.ask_many(self.backend, prompts, names, counts, settings_of(settings), min_answerable)

    def check(self, question: str, answer: str, passages: Sequence[str]) -> float:
        """Return the probability that passages support an answer, also one that another model gave.

        Args:
            question: that is answered.
            answer: in words.
            passages: best first; the lowest-ranked are left out if they don't all fit.

        Returns:
            A probability, from 0 to 1.

        Raises:
            TokensError: the skill `check` isn't attached.
            PromptTooLongError: question and answer alone don't fit the context.
        """
        return asking.check(self.backend, question, answer, passages)

    def template(self, tokens: str | None = None) -> RagTemplate:
        """Return the prompt layout that a set was trained with; None names the default set.

        Without virtual tokens it is the backbone's own: an instruct model, whose tokenizer has a chat template, gets a chat, since it
        was trained to end its answers there only.

        Raises:
            TokensError: no set has this name.
        """
        attached = self.backend.tokens(tokens)
        if attached is None:
            return RagTemplate(chat=bool(self.tokenizer.chat_template))
        return attached.template or RagTemplate()


def _check_engine(engine: str, base_url: object) -> None:
    if engine not in get_args(EngineName):
        msg = f"engine is {engine!r}; expected {' or '.join(map(repr, get_args(EngineName)))}"
        raise ValueError(msg)
    if base_url is not None and engine != "transformers":
        msg = f"engine={engine!r} runs the backbone in this process; with base_url a server has it: give one of the two"
        raise ValueError(msg)


def _load(tokens: TokensLike) -> VirtualTokens:
    return tokens if isinstance(tokens, VirtualTokens) else VirtualTokens.from_pretrained(tokens)
