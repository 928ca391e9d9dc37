"""How a local model decodes: what transformers' `generate` is told, when it stops, and how its ids become text."""

import copy
import inspect
import re
import threading
from collections.abc import Callable, Sequence
from itertools import groupby
from typing import Any, cast

import torch
from torch import BoolTensor, FloatTensor, LongTensor, Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    StoppingCriteria,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)
from transformers.generation.streamers import BaseStreamer

from spring_rag.backends.base import Generation, GenerationSettings, Usage
from spring_rag.calls import call_tokens
from spring_rag.encoding import Encoded
from spring_rag.errors import BackendError, UnsupportedBackboneError
from spring_rag.reasoning import kept_tokens
from spring_rag.splice import InputEmbedding, inner_model

_REFUSED: dict[str, tuple[Any, ...]] = {
    "assistant_early_exit": (None,),
    "constraints": (None,),
    "dola_layers": (None,),
    "encoder_no_repeat_ngram_size": (None, 0),
    "encoder_repetition_penalty": (None, 1.0),
    "force_words_ids": (None,),
    "guidance_scale": (None, 1.0),
    "max_time": (None,),
    "num_beam_groups": (None, 1),
    "num_beams": (None, 1),
    "num_return_sequences": (None, 1),
    "penalty_alpha": (None, 0.0),
    "prompt_lookup_num_tokens": (None,),
    "stop_strings": (None,),
    "token_healing": (None, False),
    "use_mtp": (None, False),
}
"""What a model's generation_config may not ask, with the values that ask for nothing.

Each searches, drafts or guides in a way that needs the prompt as ids, or gives other than one answer that ends where the settings say."""

_SAMPLING = ("temperature", "top_k", "top_p", "min_p", "top_h", "typical_p", "epsilon_cutoff", "eta_cutoff")

_BYTE_TOKEN = re.compile("<0x[0-9A-F]{2}>")
"""How sentencepiece tokenizers spell a byte of a character that they don't know."""


def generation_arguments(
    own: GenerationConfig, settings: GenerationSettings, eos_ids: frozenset[int]
) -> dict[str, Any]:
    """What to pass to `generate`, which takes whatever isn't named here from the model's own config.

    Arguments, not a `GenerationConfig`: only an argument can say None where the model's own config says something.

    Args:
        own: the model's; only read.
        settings: how to decode.
        eos_ids: where an answer ends; may be empty.

    Raises:
        BackendError: the model's own config asks for something in `_REFUSED`.
    """
    for name, neutral in _REFUSED.items():
        if (asked := getattr(own, name, None)) not in neutral:
            msg = (
                f"the model's generation_config sets {name}={asked!r}, which doesn't work with virtual tokens; "
                f"set model.generation_config.{name} = {neutral[0]!r}"
            )
            raise BackendError(msg)
    return {
        "max_new_tokens": settings.max_new_tokens,
        "max_length": None,
        "do_sample": False,  # sampling, if any, is done by `Sampler`
        **dict.fromkeys(_SAMPLING),
        "eos_token_id": sorted(eos_ids) or None,
        # Fills up rows that ended before others and is cut off again; its value says nothing, but without one transformers warns.
        "pad_token_id": min(eos_ids, default=0),
        "return_dict_in_generate": False,
        "output_attentions": False,
        "output_hidden_states": False,
        "output_scores": False,
        "output_logits": False,
    }


def check_generates(hf_model: PreTrainedModel, embedding: InputEmbedding) -> None:
    """Make sure that a model's `generate` works from embeddings, once it is `accepting_embeddings`.

    Raises:
        UnsupportedBackboneError: its `prepare_inputs_for_generation` doesn't hand them on.
    """
    if _names_embeddings(hf_model):
        return
    reason = "its `prepare_inputs_for_generation` hands no `inputs_embeds` on"
    if hasattr(hf_model, "get_base_model"):
        reason = "its `generate` takes embeddings only without PEFT's wrapper; call merge_and_unload() first"
    else:
        ids = torch.zeros(1, 2, dtype=torch.int64, device=embedding.device)
        embeddings = embedding.embed(ids)
        try:
            prepared = cast(Any, hf_model).prepare_inputs_for_generation(
                ids, inputs_embeds=embeddings, attention_mask=torch.ones_like(ids), is_first_iteration=True
            )
        except Exception:  # a family that doesn't expect them may fail anyhow
            prepared = {}
        found = prepared.get("inputs_embeds")
        if found is not None and torch.equal(found, embeddings) and prepared.get("input_ids") is None:
            return
    msg = f"{type(hf_model).__name__} can't answer with virtual tokens: {reason}"
    raise UnsupportedBackboneError(msg)


def accepting_embeddings(hf_model: PreTrainedModel) -> PreTrainedModel:
    """The model as one whose `generate` takes embeddings.

    `generate` looks for `inputs_embeds` among the named parameters of `prepare_inputs_for_generation`. Some families hand on whatever they
    get without naming it (Gemma 3 with its image encoder, Bamba, Falcon-H1, Nemotron-H, Zamba): they come back as a shallow
    copy that does name it. Weights and modules are the model's own, which stays as it is.
    """
    if _names_embeddings(hf_model):
        return hf_model

    def prepare(input_ids: Tensor, inputs_embeds: Tensor | None = None, **kwargs: Any) -> dict[str, Any]:
        prepared: dict[str, Any] = cast(Any, hf_model).prepare_inputs_for_generation(
            input_ids, inputs_embeds=inputs_embeds, **kwargs
        )
        return prepared

    accepting = copy.copy(hf_model)
    accepting.__dict__["prepare_inputs_for_generation"] = prepare
    return accepting


def _names_embeddings(hf_model: PreTrainedModel) -> bool:
    prepare = getattr(inner_model(hf_model), "prepare_inputs_for_generation", None)
    return prepare is not None and "inputs_embeds" in inspect.signature(prepare).parameters


class Sampler(LogitsProcessor):
    """Samples by adding Gumbel noise to the scores, so that the greedy choice among them is a draw from their softmax.

    Unlike `do_sample=True` this never touches the process's global random state, which other threads share, and each row has
    a generator of its own: the answer to a prompt doesn't depend on its neighbours in the batch.

    Args:
        settings: `temperature` above 0, and `top_k` and `top_p`, applied in transformers' order.
        seeds: one per row.
        device: where the scores lie.
    """

    def __init__(self, settings: GenerationSettings, seeds: Sequence[int], device: torch.device) -> None:
        self._warpers = LogitsProcessorList()
        if settings.temperature != 1:
            self._warpers.append(TemperatureLogitsWarper(float(settings.temperature)))
        if settings.top_k:
            self._warpers.append(TopKLogitsWarper(settings.top_k))
        if settings.top_p < 1:
            self._warpers.append(TopPLogitsWarper(settings.top_p))
        self._generators = [torch.Generator(device).manual_seed(seed) for seed in seeds]

    def __call__(self, input_ids: LongTensor, scores: FloatTensor) -> FloatTensor:
        """Shapes `[B, length]` and `[B, vocab]`; returns `[B, vocab]`."""
        warped = self._warpers(input_ids, scores)
        noise = torch.empty_like(warped)
        for row, generator in zip(noise, self._generators, strict=True):
            row.exponential_(generator=generator)
        return cast(FloatTensor, warped - noise.log())


def draw_seeds(settings: GenerationSettings, rows: int) -> list[int]:
    """A seed for each row: the one that is set, or else one from the process's global generator."""
    if settings.seed is not None:
        return [settings.seed] * rows
    seeds: list[int] = torch.randint(2**63 - 1, (rows,)).tolist()
    return seeds


class Cancellation(StoppingCriteria):
    """Stops all rows once an event is set."""

    def __init__(self, event: threading.Event) -> None:
        self._event = event

    def __call__(self, input_ids: LongTensor, scores: FloatTensor, **kwargs: Any) -> BoolTensor:  # noqa: ARG002
        """Shapes `[B, length]` and `[B, vocab]`; returns `[B]`."""
        stopped = torch.full((input_ids.shape[0],), self._event.is_set(), device=input_ids.device)
        return cast(BoolTensor, stopped)


class StopStrings(StoppingCriteria):
    """Stops a row when its text holds a stop string.

    transformers' own criterion compares tokens without decoding them, prompt included, and so would also stop at a
    string that begins in the prompt. This one reads the text, at the price of copying the last few ids to the host at each step.

    Args:
        decode: from ids to text.
        stop: at least one string, none empty.
        prompt_length: columns before the first generated one.
        rows: number of rows.

    Attributes:
        ends: for each row the number of tokens generated when its text was complete; None while it isn't.
    """

    def __init__(
        self, decode: Callable[[list[int]], str], stop: Sequence[str], prompt_length: int, rows: int
    ) -> None:
        self._decode = decode
        self._stop = stop
        self._prompt_length = prompt_length
        # No token is shorter than a byte, but for some control tokens; a few more make up for those.
        self._window = max(len(string.encode()) for string in stop) + 8
        self.ends: list[int | None] = [None] * rows

    def __call__(self, input_ids: LongTensor, scores: FloatTensor, **kwargs: Any) -> BoolTensor:  # noqa: ARG002
        """Shapes `[B, length]` and `[B, vocab]`; returns `[B]`."""
        generated = input_ids.shape[1] - self._prompt_length
        tails = input_ids[:, -min(generated, self._window) :].tolist()
        for row, tail in enumerate(tails):
            # A window that begins inside a character may read otherwise than the whole, which has the last word.
            if (
                self.ends[row] is None
                and self._holds_stop(tail)
                and self._holds_stop(input_ids[row, self._prompt_length :].tolist())
            ):
                self.ends[row] = generated
        ended = torch.tensor([end is not None for end in self.ends], device=input_ids.device)
        return cast(BoolTensor, ended)

    def _holds_stop(self, ids: list[int]) -> bool:
        return cut(self._decode(ids), self._stop)[1]


def decoder(tokenizer: PreTrainedTokenizerBase) -> Callable[[list[int]], str]:
    """From generated ids to the text as the model wrote it: no tidying of its spaces, no special tokens but those of thoughts and calls."""
    kept = _kept(tokenizer)

    def plain(ids: list[int]) -> str:
        return cast(str, tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))

    def decode(ids: list[int]) -> str:
        runs = groupby(ids, key=kept.get)
        return "".join(
            plain(list(run)) if marker is None else marker * len(list(run)) for marker, run in runs
        )

    return decode if kept else plain


def _kept(tokenizer: PreTrainedTokenizerBase) -> dict[int, str]:
    return kept_tokens(tokenizer) | call_tokens(tokenizer)


def finished(
    ids: Sequence[int],
    encoded: Encoded,
    virtual: int,
    stop: Sequence[str],
    eos_ids: frozenset[int],
    decode: Callable[[list[int]], str],
) -> Generation:
    """Generated ids as an answer.

    Args:
        ids: up to a stop string if there was one; what follows an end-of-sequence id is left out.
        encoded: the prompt.
        virtual: number of its virtual tokens.
        stop: strings that end an answer.
        eos_ids: where an answer ends.
        decode: from ids to text.
    """
    end = next((at + 1 for at, one in enumerate(ids) if one in eos_ids), None)
    kept = list(ids[:end])
    text, stopped = cut(decode(kept), stop)
    return Generation(
        text=text,
        finish_reason="stop" if stopped or end is not None else "length",
        usage=usage(encoded, virtual, len(kept)),
        token_ids=tuple(kept),
    )


def chosen(encoded: Encoded, virtual: int, choices: Sequence[int], logits: Tensor) -> Generation:
    """How likely each of some ids is to follow, in place of an answer.

    Args:
        encoded: the prompt.
        virtual: number of its virtual tokens.
        choices: the ids.
        logits: of what follows, shape `[vocab]`.
    """
    logprobs = logits.float().log_softmax(dim=-1)[list(choices)].tolist()
    return Generation("", "length", usage(encoded, virtual, 0), token_ids=(), logprobs=tuple(logprobs))


def usage(encoded: Encoded, virtual: int, generated: int) -> Usage:
    """What an answer of so many tokens cost, to a prompt with so many virtual ones."""
    context = encoded.slot or 0
    return Usage(context, virtual, len(encoded.ids) - context, generated)


def cut(text: str, stop: Sequence[str]) -> tuple[str, bool]:
    """The text before the first stop string, and whether there was one."""
    found = [at for string in stop if (at := text.find(string)) >= 0]
    return (text[: min(found)], True) if found else (text, False)


class TextStreamer(BaseStreamer):
    """Hands on the text of one row as soon as no later token can change it.

    Held back are unfinished characters, runs of byte tokens (of which one bad byte spoils all) and whatever may
    turn out to be the beginning of a stop string. So the pieces are a prefix of the final text, always.

    Args:
        tokenizer: the backbone's.
        stop: strings that end the text.
        emit: is called with each piece, none of them empty.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, stop: Sequence[str], emit: Callable[[str], None]
    ) -> None:
        self._tokenizer = tokenizer
        self._decode = decoder(tokenizer)
        added = tokenizer.added_tokens_decoder
        special = {*tokenizer.all_special_ids, *(number for number, token in added.items() if token.special)}
        self._hidden = special - set(_kept(tokenizer))
        self._stop = stop
        self._emit = emit
        self._ids: list[int] = []
        self._shown = ""
        self._at_prompt = True

    def put(self, value: Tensor) -> None:
        """Take the next ids; the first call brings the prompt's."""
        if self._at_prompt:
            self._at_prompt = False
            return
        self._ids += value.flatten().tolist()
        text, stopped = cut(self._decode(self._settled()).rstrip("\ufffd"), self._stop)
        if not stopped:
            text = text[: len(text) - self._begun_stop(text)]
        if len(text) > len(self._shown) and text.startswith(self._shown):
            self._emit(text[len(self._shown) :])
            self._shown = text

    def end(self) -> None:
        """Nothing: `rest` gives what was held back, since only the caller knows the final text."""

    def rest(self, text: str) -> str:
        """What of the final text wasn't shown."""
        return text[len(self._shown) :]

    def _settled(self) -> list[int]:
        """The ids without a run of byte tokens at their end. What isn't shown (control tokens, unused ids) doesn't end a run."""
        end = len(self._ids)
        while end and not self._ends_run(self._ids[end - 1]):
            end -= 1
        return self._ids[:end]

    def _ends_run(self, token_id: int) -> bool:
        token = self._tokenizer.convert_ids_to_tokens(token_id)
        return token is not None and token_id not in self._hidden and not _BYTE_TOKEN.fullmatch(str(token))

    def _begun_stop(self, text: str) -> int:
        """Length of the longest end of `text` with which a stop string begins."""
        longest = max((len(string) for string in self._stop), default=1) - 1
        for length in range(min(longest, len(text)), 0, -1):
            if any(string.startswith(text[-length:]) for string in self._stop):
                return length
        return 0
