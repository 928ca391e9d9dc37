"""A backbone in this process, run by transformers' own `generate`."""

import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import Tensor
from transformers import (
    Cache,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    StoppingCriteria,
    StoppingCriteriaList,
)

from spring_rag.backbone import quantization_of
from spring_rag.backends.base import Backend, Generation, GenerationSettings, Request
from spring_rag.backends.batching import together
from spring_rag.backends.checks import fitting_rows, new_tokens
from spring_rag.backends.decoding import (
    Cancellation,
    Sampler,
    StopStrings,
    TextStreamer,
    accepting_embeddings,
    check_generates,
    chosen,
    decoder,
    draw_seeds,
    finished,
    generation_arguments,
)
from spring_rag.backends.gathering import Gathering
from spring_rag.backends.likelihood import Likelihood
from spring_rag.backends.prefix import parts
from spring_rag.backends.streaming import pieces
from spring_rag.encoding import Encoded
from spring_rag.errors import BackendError, MissingExtraError, PromptTooLongError, UnsupportedBackboneError
from spring_rag.fitting import crossing
from spring_rag.limits import context_length, position_switch
from spring_rag.loading import find, split_arguments
from spring_rag.splice import InputEmbedding, TokenBank, evaluating, splice_batch
from spring_rag.stream import Stream


class LocalBackend(Backend):
    """Any causal language model of transformers, with virtual tokens in its input embeddings.

    The model and the tokenizer are used as they are, quantised or spread over devices, and never changed. Several threads may
    call at once: streams and sampled answers take turns, and what is asked for greedily with equal settings meanwhile is gathered
    into batches. (In half precision the shape of a batch can flip a near-tie, so there an answer may depend on what else is asked.)

    What the model's own `generation_config` asks is treated like this:

    - How to sample and how long an answer may be is ignored: `GenerationSettings` alone says it.
    - Its end-of-sequence ids end an answer, and so does the tokenizer's, which training puts after every answer.
    - Penalties and bans (`repetition_penalty`, `no_repeat_ngram_size`, `bad_words_ids`, `suppress_tokens`, …) hold as in plain
      generation: they see the prompt's plain ids. Virtual tokens have no ids and are never penalised.
    - What doesn't work from embeddings, or gives other than one answer per prompt, is refused by name: beams, prompt look-up,
      guidance, token healing and their like.

    Args:
        hf_model: a loaded model.
        tokenizer: its tokenizer.

    Raises:
        UnsupportedBackboneError: the model can't work from embeddings; names its class and why.
    """

    def __init__(self, hf_model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        self.hf_model = hf_model
        self.tokenizer = tokenizer
        self.embedding = InputEmbedding(hf_model)
        check_generates(hf_model, self.embedding)
        self.model_id = hf_model.config.name_or_path or None
        self.hidden_size = self.embedding.hidden_size
        self.context_length = context_length(hf_model.config)
        self.position_switch = position_switch(hf_model.config)
        self.concurrency = None
        self._lock = threading.Lock()
        self.bank = TokenBank(
            self.embedding,
            model_id=self.model_id,
            quantization=quantization_of(hf_model.config),
            turn=self._lock,
        )
        self._decode = decoder(tokenizer)
        self._gathering = Gathering(self._run, self._lock)

    @classmethod
    def from_pretrained(
        cls,
        backbone: str | Path,
        *,
        device: str | torch.device = "auto",
        dtype: str | torch.dtype = "auto",
        revision: str | None = None,
        **model_kwargs: Any,
    ) -> "LocalBackend":
        """Load a model and its tokenizer.

        Args:
            backbone: folder, Hub id, `model.gguf`, a folder that holds one, or `owner/name:file.gguf`. A GGUF is unpacked
                into the user's cache folder first.
            device: "auto" takes CUDA, else MPS, else the CPU. Without effect on quantised models and with `device_map`.
            dtype: "auto" takes the checkpoint's on an accelerator and float32 on the CPU.
            revision: branch, tag or commit on the Hub.
            model_kwargs: go to the model's own `from_pretrained`, as `device_map` or `quantization_config`;
                those that say where it is found (`subfolder`, `cache_dir`, `gguf_file`, …) hold for the tokenizer too.

        Raises:
            MissingExtraError: it is a GGUF, and the package `gguf` isn't installed.
            BackendError: it can't be loaded; says why.
            UnsupportedBackboneError: it is no causal language model, or can't work from embeddings.
        """
        target = _device(device)
        placed = "device_map" in model_kwargs
        if dtype == "auto" and target.type == "cpu":
            dtype = torch.float32
        where, model_kwargs = split_arguments({"revision": revision, **model_kwargs})
        try:
            source = find(backbone, where)
            tokenizer = source.tokenizer()
            hf_model, report = source.model(dtype=dtype, **model_kwargs)
            if not placed and getattr(hf_model, "hf_quantizer", None) is None:
                cast(Any, hf_model).to(target)
        except (BackendError, MissingExtraError, UnsupportedBackboneError):
            raise
        except (
            Exception
        ) as error:  # whatever is wrong with a folder or a hub comes as errors of a dozen kinds
            looks_local = (
                Path(backbone).is_absolute() or str(backbone).startswith(".") or Path(backbone).exists()
            )
            what = "folder" if looks_local else "folder or Hub id"
            msg = f"can't load the backbone from the {what} {str(backbone)!r}: {' '.join(str(error).split())}"
            raise BackendError(msg) from error
        if missing := sorted(report["missing_keys"]):
            msg = f"the backbone {str(backbone)!r} is incomplete: {len(missing)} weights are missing, the first is {missing[0]!r}"
            raise BackendError(msg)
        return cls(hf_model, tokenizer)

    def generate(self, requests: Sequence[Request], settings: GenerationSettings) -> list[Generation]:
        """Answer all requests, as one batch where no answer depends on its neighbours; results in their order.

        Raises:
            PromptTooLongError: prompt and `max_new_tokens` don't fit the context; says by how much.
            PromptError: an empty prompt, or one that another tokenizer encoded.
            TokensError: an unknown set, or more virtual tokens than it has.
            BackendError: the model's generation_config asks for what can't be done.
        """
        if not requests:
            return []
        rows = self._rows_for(requests, settings)
        if settings.greedy:
            return self._gathering.answer(requests, rows, settings)
        with self._lock:
            return self._run(requests, rows, settings)

    def stream(self, request: Request, settings: GenerationSettings) -> Stream:
        """Answer one request in pieces of text that concatenate to the text that `generate` gives.

        Closing the stream stops the model. Raises what `generate` raises, some of it at once.
        """
        rows = self._rows_for([request], settings)

        def run(streamer: TextStreamer, cancelled: threading.Event) -> Generation:
            return self._run([request], rows, settings, streamer, cancelled)[0]

        return Stream(pieces(run, self.tokenizer, settings.stop, self._lock))

    def _rows_for(self, requests: Sequence[Request], settings: GenerationSettings) -> list[Tensor]:
        """The virtual tokens of each request, shape `[k, hidden_size]`, once it is known that they fit the context."""
        rows = [fitting_rows(self, request, settings) for request in requests]
        for request, virtual in zip(requests, rows, strict=True):
            self._check_rope_switch(request, len(virtual), settings)
        return rows

    def _check_rope_switch(self, request: Request, virtual: int, settings: GenerationSettings) -> None:
        """Refuse an answer that grows over the length at which Phi-3's kin change their positions.

        transformers then computes the whole prompt again, from ids, which would quietly drop the virtual tokens.
        """
        switch, length = self.position_switch, len(request.encoded.ids) + virtual
        if switch is not None and len(request.encoded.ids) in crossing(
            switch, [virtual], new_tokens(request, settings)
        ):
            msg = (
                f"{type(self.hf_model).__name__} changes its positions at {switch} tokens, and an answer with virtual tokens can't "
                f"grow over that: the prompt has {length} tokens, so max_new_tokens may be {switch - length + 1} at most"
            )
            raise PromptTooLongError(msg)

    def _run(
        self,
        requests: Sequence[Request],
        rows: Sequence[Tensor],
        settings: GenerationSettings,
        streamer: TextStreamer | None = None,
        cancelled: threading.Event | None = None,
    ) -> list[Generation]:
        """Generate; the caller has the lock."""
        answers: dict[int, Generation] = {}
        model = accepting_embeddings(self.hf_model)
        encoded = [request.encoded for request in requests]
        lengths = [len(prompt.ids) + len(virtual) for prompt, virtual in zip(encoded, rows, strict=True)]
        new = settings.max_new_tokens
        with torch.no_grad(), evaluating(model):
            for batch in together(model, self.embedding, lengths, new):
                prompts, virtual = [encoded[row] for row in batch], [rows[row] for row in batch]
                choosing = {at for at, row in enumerate(batch) if requests[row].choices}
                for part in parts(model, self.embedding, prompts, virtual, new, choosing):
                    its = [batch[at] for at in part.rows]
                    inputs = ([encoded[row] for row in its], [rows[row] for row in its], part.cache)
                    choices = [requests[row].choices for row in its]
                    if choices[0]:
                        found = self._choose_part(model, *inputs, choices)
                    else:
                        found = self._decode_part(model, *inputs, settings, streamer, cancelled)
                    answers.update(zip(its, found, strict=True))
                    del part  # or its cache would stay while that of the next is made
        return [answers[row] for row in range(len(requests))]

    def _decode_part(
        self,
        model: PreTrainedModel,
        encoded: Sequence[Encoded],
        rows: Sequence[Tensor],
        cache: Cache | None,
        settings: GenerationSettings,
        streamer: TextStreamer | None,
        cancelled: threading.Event | None,
    ) -> list[Generation]:
        """Generate for prompts of which `cache`, if there is one, holds the first columns."""
        eos_ids = self._eos_ids()
        width = max(len(prompt.ids) + len(virtual) for prompt, virtual in zip(encoded, rows, strict=True))
        stops = StopStrings(self._decode, settings.stop, width, len(encoded)) if settings.stop else None
        likelihood = Likelihood() if settings.logprob else None
        criteria: list[StoppingCriteria] = [one for one in (likelihood, stops) if one is not None]
        if cancelled is not None:
            criteria.append(Cancellation(cancelled))
        sequences: Tensor = self._generate(
            model,
            encoded,
            rows,
            cache,
            settings,
            logits_processor=[
                *([likelihood.seen] if likelihood else []),
                *self._samplers(settings, len(encoded)),
            ],
            stopping_criteria=StoppingCriteriaList(criteria),
            streamer=streamer,
        )
        generated = sequences[:, width:].tolist()
        ends = stops.ends if stops else [None] * len(encoded)
        answers = [
            finished(ids[:end], prompt, len(virtual), settings.stop, eos_ids, self._decode)
            for ids, end, prompt, virtual in zip(generated, ends, encoded, rows, strict=True)
        ]
        return likelihood.add(answers) if likelihood else answers

    def _choose_part(
        self,
        model: PreTrainedModel,
        encoded: Sequence[Encoded],
        rows: Sequence[Tensor],
        cache: Cache | None,
        choices: Sequence[tuple[int, ...]],
    ) -> list[Generation]:
        """The log-probabilities of ids that these prompts may go on with, in one pass."""
        settings = GenerationSettings(max_new_tokens=1)
        found = self._generate(
            model, encoded, rows, cache, settings, return_dict_in_generate=True, output_logits=True
        )
        return [
            chosen(prompt, len(virtual), ids, logits)
            for prompt, virtual, ids, logits in zip(encoded, rows, choices, found.logits[0], strict=True)
        ]

    def _generate(
        self,
        model: PreTrainedModel,
        encoded: Sequence[Encoded],
        rows: Sequence[Tensor],
        cache: Cache | None,
        settings: GenerationSettings,
        **more: Any,
    ) -> Any:
        """The model's own `generate`, from embeddings."""
        batch = splice_batch(self.embedding, encoded, rows)
        plain_ids = _plain_ids(encoded, batch.inputs_embeds.shape[1]).to(self.embedding.device)
        assert model.generation_config is not None
        return cast(Any, model).generate(
            plain_ids,
            inputs_embeds=batch.inputs_embeds,
            attention_mask=batch.attention_mask,
            **({} if cache is None else {"past_key_values": cache}),
            **(generation_arguments(model.generation_config, settings, self._eos_ids()) | more),
        )

    def _samplers(self, settings: GenerationSettings, rows: int) -> list[Sampler]:
        if settings.greedy:
            return []
        return [Sampler(settings, draw_seeds(settings, rows), self.embedding.device)]

    def _eos_ids(self) -> frozenset[int]:
        own = self.hf_model.generation_config.eos_token_id if self.hf_model.generation_config else None
        ids = own if isinstance(own, list) else [own]
        return frozenset(one for one in [*ids, self.tokenizer.eos_token_id] if isinstance(one, int))


def _plain_ids(encoded: Sequence[Encoded], length: int) -> Tensor:
    """The prompts' ids without virtual tokens, for what looks at ids while decoding; shape `[B, length]`, int64.

    Filled up on the left with an id that the prompt holds anyway, so that to a repetition penalty it makes no difference.
    """
    fillers = [prompt.ids[0] if prompt.ids else 0 for prompt in encoded]
    return torch.tensor(
        [
            [filler] * (length - len(prompt.ids)) + [*prompt.ids]
            for filler, prompt in zip(fillers, encoded, strict=True)
        ]
    )


def _device(device: str | torch.device) -> torch.device:
    if device == "auto":
        accelerator: Literal["cuda", "mps", "cpu"] = "cpu"
        if torch.cuda.is_available():
            accelerator = "cuda"
        elif torch.backends.mps.is_available():
            accelerator = "mps"
        return torch.device(accelerator)
    try:
        target = torch.device(device)
    except RuntimeError as error:
        msg = f"{device!r} is no device: expected 'auto', 'cpu', 'cuda', 'cuda:1' or 'mps'"
        raise BackendError(msg) from error
    available: dict[str, Callable[[], bool]] = {
        "cuda": torch.cuda.is_available,
        "mps": torch.backends.mps.is_available,
    }
    if not available.get(target.type, lambda: True)():
        msg = f"device {str(target)!r} isn't available here; use device='auto'"
        raise BackendError(msg)
    return target
