"""llama.cpp itself, by its C interface: one model and one cache of keys and values, which many sequences share."""

import ctypes
import logging
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
import torch
from torch import Tensor

from spring_rag.errors import BackendError, UnsupportedBackboneError

BATCH_TOKENS = 512
"""Tokens that are computed at once, and between two looks at whether anybody still waits for them."""

_WARNING, _ERROR, _CONTINUED = 3, 4, 5
"""Levels of llama.cpp's messages; the last one belongs to the message before."""

_log = logging.getLogger(__name__)
_complaints: deque[str] = deque(maxlen=3)


def _listen(level: int, text: bytes, _: object) -> None:
    """Take llama.cpp's messages, which it would print, into Python's log."""
    message = text.decode(errors="replace").strip()
    if level in (_WARNING, _ERROR):
        _complaints.append(message)
    if level != _CONTINUED and message:
        _log.debug(message)


_listener = llama_cpp.llama_log_callback(_listen)  # as long as llama.cpp may call it
llama_cpp.llama_log_set(_listener, None)
llama_cpp.llama_backend_init()


@dataclass(frozen=True, slots=True)
class Piece:
    """Tokens that follow one another in one sequence.

    Args:
        sequence: its number.
        start: position of the first of them.
        tokens: ids, or embeddings of shape `[n, hidden_size]`, float32; at least one.
        asks: whether the logits behind the last one are wanted.
    """

    sequence: int
    start: int
    tokens: Sequence[int] | Tensor
    asks: bool = False


class Engine:
    """A model of llama.cpp with a cache. One thread at a time may call it.

    Args:
        file: the GGUF.
        cells: tokens that the cache is to hold, those of all sequences together; what several share counts once.
        sequences: how many there may be.
        threads: that compute.
        gpu_layers: how many layers go to the GPU; -1 is all, where the library is built for one; with 0 it computes nothing.
        float32: whether keys and values are kept in float32, not in float16; None is as the weights are.

    Raises:
        BackendError: llama.cpp can't load the file, or there is no memory for the cache; says why.
        UnsupportedBackboneError: the model isn't a causal language model.
    """

    def __init__(
        self, file: Path, *, cells: int, sequences: int, threads: int, gpu_layers: int, float32: bool | None
    ) -> None:
        _complaints.clear()
        settings = llama_cpp.llama_model_default_params()
        settings.n_gpu_layers = gpu_layers
        self._model = llama_cpp.llama_model_load_from_file(str(file).encode(), settings)
        if not self._model:
            msg = f"llama.cpp can't load {str(file)!r}: {_why()}"
            raise BackendError(msg)
        # Not at exit, when a stream that nobody read to its end may still compute in a thread.
        self._release = weakref.finalize(self, llama_cpp.llama_model_free, self._model)
        self._release.atexit = False
        if llama_cpp.llama_model_has_encoder(self._model) or llama_cpp.llama_model_is_diffusion(self._model):
            msg = f"{str(file)!r} can't take virtual tokens: expected a causal language model, as Llama, Qwen or Mistral"
            raise UnsupportedBackboneError(msg)
        if float32 is None:
            float32 = llama_cpp.llama_model_ftype(self._model) == llama_cpp.LLAMA_FTYPE_ALL_F32
        stored = llama_cpp.GGML_TYPE_F32 if float32 else llama_cpp.GGML_TYPE_F16
        told = llama_cpp.llama_context_default_params()
        told.n_ctx = cells
        told.n_batch = told.n_ubatch = BATCH_TOKENS
        told.n_seq_max = told.n_outputs_max = sequences
        told.n_threads = told.n_threads_batch = threads
        told.type_k = told.type_v = stored
        # Without layers there the GPU would still read long prompts.
        told.offload_kqv = told.op_offload = gpu_layers != 0
        on_gpu = gpu_layers != 0 and llama_cpp.llama_supports_gpu_offload()
        # llama.cpp's flash attention rounds float32 to float16, and on a CPU it makes each further token slower.
        if float32 or not on_gpu:
            told.flash_attn_type = llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED
        told.kv_unified = True  # sequences share the cells of a context, so that copying one costs nothing
        told.swa_full = True  # a sliding window would lose what a copy still needs
        self._context = llama_cpp.llama_init_from_model(self._model, told)
        if not self._context:
            msg = f"llama.cpp can't make room for {cells} tokens (n_ctx) of {str(file)!r}: {_why()}"
            raise BackendError(msg)
        self._release.detach()
        weakref.finalize(self, _free, self._context, self._model).atexit = False
        self._memory = llama_cpp.llama_get_memory(self._context)
        vocabulary = llama_cpp.llama_model_get_vocab(self._model)
        self.vocab_size: int = llama_cpp.llama_vocab_n_tokens(vocabulary)
        self.trained_length: int = llama_cpp.llama_model_n_ctx_train(self._model)
        self.cells: int = llama_cpp.llama_n_ctx(self._context)

    def decode(self, pieces: Sequence[Piece], check: Callable[[], None] = lambda: None) -> Tensor:
        """Read tokens into the cache, behind those that their sequences have.

        Args:
            pieces: at least one, all of ids or all of embeddings.
            check: called between batches; what it raises ends the work.

        Returns:
            The logits that the pieces ask for, in their order, shape `[asked, vocab]`, float32.

        Raises:
            BackendError: llama.cpp can't go on.
        """
        lengths = [len(piece.tokens) for piece in pieces]
        starts = [piece.start for piece in pieces]
        tokens: Any = (
            torch.cat([piece.tokens for piece in pieces if isinstance(piece.tokens, Tensor)]).numpy()
            if isinstance(pieces[0].tokens, Tensor)
            else np.concatenate([np.asarray(piece.tokens, dtype=np.int32) for piece in pieces])
        )
        sequences = np.repeat(np.asarray([piece.sequence for piece in pieces], dtype=np.int32), lengths)
        ends = np.cumsum(lengths)
        positions = np.arange(ends[-1], dtype=np.int32) + np.repeat(starts - ends + lengths, lengths).astype(
            np.int32
        )
        asked = np.zeros(ends[-1], dtype=np.int8)
        asked[ends - 1] = [piece.asks for piece in pieces]
        logits = np.empty((int(asked.sum()), self.vocab_size), dtype=np.float32)
        done = 0
        for first in range(0, len(tokens), BATCH_TOKENS):
            check()
            part = slice(first, first + BATCH_TOKENS)
            self._decode(tokens[part], positions[part], sequences[part], asked[part])
            for index in np.flatnonzero(asked[part]).tolist():
                pointer = llama_cpp.llama_get_logits_ith(self._context, index)
                logits[done] = np.ctypeslib.as_array(pointer, (self.vocab_size,))
                done += 1
        return torch.from_numpy(logits)

    def _decode(self, tokens: Any, positions: Any, sequences: Any, asked: Any) -> None:
        count = len(tokens)
        embeddings = tokens.ndim == 2
        if embeddings:
            # Families with positions in several dimensions (Qwen's for pictures) read one after the other; text has but the last at 0.
            positions = np.concatenate([positions, positions, positions, np.zeros_like(positions)])
        ones = np.ones(count, dtype=np.int32)
        # Each token's list of sequences has one entry.
        lists = sequences.ctypes.data + sequences.itemsize * np.arange(count, dtype=np.uintp)
        batch = llama_cpp.llama_batch(
            n_tokens=count,
            pos=_pointer(positions, ctypes.c_int32),
            n_seq_id=_pointer(ones, ctypes.c_int32),
            seq_id=_pointer(lists, ctypes.POINTER(ctypes.c_int32)),
            logits=_pointer(asked, ctypes.c_int8),
            **{"embd": _pointer(tokens, ctypes.c_float)}
            if embeddings
            else {"token": _pointer(tokens, ctypes.c_int32)},
        )
        _complaints.clear()
        if code := llama_cpp.llama_decode(self._context, batch):
            msg = f"llama.cpp failed to read {count} tokens (code {code}): {_why()}"
            raise BackendError(msg)

    def copy(self, source: int, target: int) -> None:
        """Let an empty sequence begin with all that another one holds."""
        llama_cpp.llama_memory_seq_cp(self._memory, source, target, -1, -1)

    def remove(self, sequence: int) -> None:
        """Empty a sequence."""
        llama_cpp.llama_memory_seq_rm(self._memory, sequence, -1, -1)

    def save(self, sequence: int) -> Any:
        """Copy all that a sequence holds out of the cache.

        Raises:
            BackendError: llama.cpp can't.
        """
        saved = np.empty(llama_cpp.llama_state_seq_get_size(self._context, sequence), dtype=np.uint8)
        self._move(llama_cpp.llama_state_seq_get_data, saved, sequence, "put a context aside")
        return saved

    def restore(self, sequence: int, saved: Any) -> None:
        """Fill an empty sequence with what `save` gave.

        Raises:
            BackendError: llama.cpp can't.
        """
        self._move(llama_cpp.llama_state_seq_set_data, saved, sequence, "take a context back")

    def _move(self, move: Callable[..., int], saved: Any, sequence: int, what: str) -> None:
        """Move all that a sequence holds to `saved`, or back."""
        size = len(saved)
        if move(self._context, _pointer(saved, ctypes.c_uint8), size, sequence) != size:
            msg = f"llama.cpp failed to {what}: {_why()}"
            raise BackendError(msg)


def _pointer(array: Any, kind: Any) -> Any:
    return array.ctypes.data_as(ctypes.POINTER(kind))


def _free(context: Any, model: Any) -> None:
    llama_cpp.llama_free(context)
    llama_cpp.llama_model_free(model)


def _why() -> str:
    return " ".join("; ".join(_complaints).split()) or "it doesn't say why"
