"""A GGUF as a backbone, run by llama.cpp."""

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import llama_cpp
import torch

from spring_rag.backends.base import Backend, Generation, GenerationSettings, Request
from spring_rag.backends.checks import fitting_rows
from spring_rag.backends.gathering import Gathering
from spring_rag.backends.llama_cpp.answers import Writer
from spring_rag.backends.llama_cpp.embedding import GgufEmbedding
from spring_rag.backends.llama_cpp.engine import Engine
from spring_rag.backends.llama_cpp.room import SEQUENCES
from spring_rag.backends.streaming import pieces
from spring_rag.errors import BackendError
from spring_rag.gguf import GgufHeader, header
from spring_rag.loading import find_gguf, load_tokenizer, split_arguments
from spring_rag.splice import TokenBank
from spring_rag.stream import Stream

N_CTX = 8192
"""Tokens that the cache holds where nobody says otherwise."""

_FLOAT32: dict[str, bool | None] = {"auto": None, "float32": True, "float16": False}


class LlamaCppBackend(Backend):
    """A GGUF on llama.cpp, with virtual tokens as embeddings between the ids of the context and those of the suffix.

    Its answers differ from those of `local` on the same weights by rounding alone: llama.cpp computes with a quantised matrix's own few bits,
    where `local` unpacks it, and keeps keys and values in float16 unless the weights are float32. So a near-tie may go the other way, and in such
    files it may depend on what is answered side by side.

    Contexts are kept, the most recently used ones: another question, another k or another set on the same passages begins behind them. Several threads may call at once: what arrives while the model is busy is gathered and answered side by side.

    Args:
        file: the GGUF.
        model_id: what it is called.
        device: "auto" and "cuda" or "mps" put all layers on the GPU, where llama-cpp-python is built for one; "cpu" none.
        dtype: of keys and values: "float16", "float32", or "auto", which is float32 where the weights are.
        n_ctx: tokens that the cache holds, those of all answers in progress and of what they go on from together. A prompt and its answer
            may take all of it, but no more than the backbone was trained for. Contexts that wait to be asked about again are kept beside
            the cache, as many tokens at most. None is 8192; for those of Phi-3's kin whose long form has positions of its own, at most
            the length of the short one.
        n_threads: that compute; None is as many as PyTorch would take.
        n_gpu_layers: how many layers go to the GPU, whatever `device` says; -1 is all. A build for the CPU puts none there.

    Raises:
        ValueError: a number that is too small.
        BackendError: the file can't be loaded; says why.
        UnsupportedBackboneError: it can't take virtual tokens.
    """

    def __init__(
        self,
        file: Path,
        model_id: str | None = None,
        *,
        device: str | torch.device = "auto",
        dtype: str | torch.dtype = "auto",
        n_ctx: int | None = None,
        n_threads: int | None = None,
        n_gpu_layers: int | None = None,
    ) -> None:
        self.model_id = model_id or str(file)
        least = (("n_ctx", n_ctx, 1), ("n_threads", n_threads, 1), ("n_gpu_layers", n_gpu_layers, -1))
        for name, value, smallest in least:
            if value is not None and value < smallest:
                msg = f"{name} is {value}; it must be at least {smallest}"
                raise ValueError(msg)
        told = header(file, self.model_id)
        self.tokenizer = load_tokenizer(told.tokenizer)
        engine = Engine(
            file,
            cells=n_ctx or _cells(told),
            sequences=SEQUENCES,
            threads=n_threads or torch.get_num_threads(),
            gpu_layers=_gpu_layers(device) if n_gpu_layers is None else n_gpu_layers,
            float32=_float32(dtype),
        )
        self.embedding = GgufEmbedding(file, told, engine)
        self.hidden_size = self.embedding.hidden_size
        self.context_length = min(engine.trained_length, n_ctx or _cells(told))
        self.concurrency = None
        self._lock = threading.Lock()
        self.bank = TokenBank(self.embedding, model_id=self.model_id, quantization=told.quantization)
        eos = self.tokenizer.eos_token_id
        eos_ids = frozenset(one for one in (*told.ends, eos) if isinstance(one, int))
        self._writer = Writer(engine, self.embedding, self.tokenizer, eos_ids)
        self._gathering = Gathering(self._writer.write, self._lock)

    @classmethod
    def from_pretrained(
        cls, backbone: str | Path, *, revision: str | None = None, **settings: Any
    ) -> "LlamaCppBackend":
        """Load a GGUF.

        Args:
            backbone: `model.gguf`, a folder that holds one and no other weights, or `owner/name:file.gguf`.
            revision: branch, tag or commit on the Hub.
            settings: further arguments of the class, and those of transformers that say where a file is found (`token`,
                `subfolder`, `cache_dir`, `gguf_file`, …).

        Raises:
            MissingExtraError: the package `gguf` isn't installed.
            BackendError: it isn't there, is no GGUF, or can't be loaded; says why.
            UnsupportedBackboneError: it can't take virtual tokens.
        """
        where, settings = split_arguments({"revision": revision, **settings})
        if unknown := sorted(settings.keys() - {"device", "dtype", "n_ctx", "n_threads", "n_gpu_layers"}):
            msg = f"llama.cpp takes no {', '.join(unknown)}; a GGUF is loaded with device, dtype, n_ctx, n_threads and n_gpu_layers"
            raise BackendError(msg)
        file, model_id = find_gguf(backbone, where)
        return cls(file, model_id, **settings)

    @property
    def kept_contexts(self) -> tuple[tuple[int, ...], ...]:
        """Ids of the contexts that needn't be computed again, the least recently used first."""
        return self._writer.room.contexts

    def generate(self, requests: Sequence[Request], settings: GenerationSettings) -> list[Generation]:
        """Answer all requests, side by side as far as the cache has room; results in their order.

        Raises:
            PromptTooLongError: prompt and `max_new_tokens` don't fit the context; says by how much.
            PromptError: an empty prompt, or one that another tokenizer encoded.
            TokensError: an unknown set, or more virtual tokens than it has.
            BackendError: llama.cpp can't go on.
        """
        if not requests:
            return []
        rows = [fitting_rows(self, request, settings) for request in requests]
        return self._gathering.answer(requests, rows, settings)

    def stream(self, request: Request, settings: GenerationSettings) -> Stream:
        """Answer one request in pieces of text that concatenate to the text that `generate` gives.

        Closing the stream stops llama.cpp, within the batch that it computes. Raises what `generate` raises, some of it at once.
        """
        rows = fitting_rows(self, request, settings)

        def run(streamer: Any, cancelled: threading.Event) -> Generation:
            return self._writer.write([request], [rows], settings, streamer, cancelled)[0]

        return Stream(pieces(run, self.tokenizer, settings.stop, self._lock))


def _cells(told: GgufHeader) -> int:
    return min(N_CTX, told.longrope_length or N_CTX)


def _gpu_layers(device: str | torch.device) -> Literal[-1, 0]:
    kind = str(device).partition(":")[0]
    if kind not in ("auto", "cpu", "cuda", "mps"):
        msg = f"{str(device)!r} is no device for llama.cpp: expected 'auto', 'cpu', 'cuda' or 'mps'"
        raise BackendError(msg)
    if kind in ("cuda", "mps") and not llama_cpp.llama_supports_gpu_offload():
        msg = f"device {str(device)!r} isn't available: llama-cpp-python was built for the CPU only; install a build for the GPU, or use device='auto'"
        raise BackendError(msg)
    return 0 if kind == "cpu" else -1


def _float32(dtype: str | torch.dtype) -> bool | None:
    name = str(dtype).removeprefix("torch.")
    if name not in _FLOAT32:
        msg = f"dtype is {name!r}; llama.cpp keeps keys and values in 'float16' or 'float32', or 'auto'"
        raise BackendError(msg)
    return _FLOAT32[name]
