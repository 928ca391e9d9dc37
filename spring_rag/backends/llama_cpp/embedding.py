"""The embedding table of a GGUF, read row by row, and how llama.cpp expects virtual tokens."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, quants
from torch import Tensor

from spring_rag.backends.llama_cpp.engine import Engine, Piece
from spring_rag.errors import UnsupportedBackboneError
from spring_rag.gguf import GgufHeader

_SCALED_AT_LOOKUP = frozenset({"gemma", "gemma2", "gemma3", "gemma3n", "gemma4"})
"""Architectures whose embedding layer multiplies a row by √hidden_size on the way out."""

_PROBES = 8
_ALIKE = 0.02
"""Most that the logits after embeddings may differ from those after their ids, as a share of their size."""


class GgufTable:
    """An embedding table whose rows are read, and unpacked to float32, when they are asked for.

    Args:
        file: the GGUF.
        header: says where the table lies.
    """

    device = torch.device("cpu")
    is_meta = False

    def __init__(self, file: Path, header: GgufHeader) -> None:
        self.shape = header.table_shape
        self._type = GGMLQuantizationType(header.table_type)
        block, size = GGML_QUANT_SIZES[self._type]
        row_bytes = header.table_shape[1] // block * size
        self._rows: Any = np.memmap(
            file, np.uint8, "r", offset=header.table_offset, shape=(header.table_shape[0], row_bytes)
        )

    def is_floating_point(self) -> bool:
        """True: rows come as floats, however they are stored."""
        return True

    def __getitem__(self, index: Tensor, /) -> Tensor:
        """The rows of these ids, shape `[rows, hidden_size]`, float32."""
        return torch.from_numpy(
            quants.dequantize(self._rows[index.numpy()], self._type).astype(np.float32, copy=False)
        )


class GgufEmbedding:
    """What llama.cpp takes in place of ids: rows of the table, multiplied where it multiplies looked-up rows only.

    Args:
        file: the GGUF.
        header: what it says of itself.
        engine: that has loaded it; nothing stays in its cache.

    Raises:
        UnsupportedBackboneError: the engine answers otherwise from embeddings than from the ids themselves.
    """

    device = torch.device("cpu")
    dtype = torch.float32

    def __init__(self, file: Path, header: GgufHeader, engine: Engine) -> None:
        self._table = GgufTable(file, header)
        self.vocab_size, self.hidden_size = header.table_shape
        self.scale = self.hidden_size**0.5 if header.architecture in _SCALED_AT_LOOKUP else 1.0
        self._factor = self._find_factor(engine, header.architecture)

    def embed(self, ids: Tensor) -> Tensor:
        """Ids of shape `[n]`, int64 → embeddings of shape `[n, hidden_size]`, float32."""
        return self.virtual(self._table[ids])

    def virtual(self, rows: Tensor) -> Tensor:
        """Rows in the space of the table, shape `[..., hidden_size]` → embeddings of the same shape, float32."""
        return rows.to(self.dtype) * self._factor

    @contextmanager
    def table(self) -> Iterator[GgufTable]:
        """The table, shape `[vocab, hidden_size]`."""
        yield self._table

    def _find_factor(self, engine: Engine, architecture: str) -> float:
        """Try whether rows are expected multiplied or as the table has them: llama.cpp's families differ in it."""
        ids = torch.linspace(0, self.vocab_size - 1, _PROBES + 2).long()[1:-1]
        rows = self._table[ids]
        expected = _logits(engine, ids.tolist())
        tried = {
            factor: _difference(_logits(engine, rows * factor), expected) for factor in {self.scale, 1.0}
        }
        factor = min(tried, key=tried.__getitem__)
        if not tried[factor] <= _ALIKE:
            msg = (
                f"a GGUF of the architecture {architecture!r} can't take virtual tokens: llama.cpp answers otherwise from the embeddings "
                "of ids than from the ids themselves"
            )
            raise UnsupportedBackboneError(msg)
        return factor


def _logits(engine: Engine, tokens: list[int] | Tensor) -> Tensor:
    """Behind the last token, shape `[1, vocab]`."""
    try:
        return engine.decode([Piece(0, 0, tokens, asks=True)])
    finally:
        engine.remove(0)


def _difference(found: Tensor, expected: Tensor) -> float:
    """How far apart logits are, as a share of their size; what all have in common counts nothing."""
    found, expected = found - found.mean(), expected - expected.mean()
    return float((found - expected).norm() / expected.norm())
