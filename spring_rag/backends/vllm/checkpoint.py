"""The input-embedding table of a checkpoint, without its model.

The file that holds it is mapped into memory, so only the rows that are looked up are ever read.
"""

import json
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import EntryNotFoundError
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from spring_rag.errors import BackendError, MissingExtraError, UnsupportedBackboneError
from spring_rag.loading import BackboneSource, find

_INDEX = "model.safetensors.index.json"
_SINGLE = "model.safetensors"

_TABLE = re.compile(r"(^|\.)(embed_tokens|wte|embed_in|word_embeddings|tok_embeddings)\.weight$")
"""What transformers' families call the table. Those of other modalities have other names."""

_SCALED_AT_LOOKUP = frozenset({"gemma", "gemma2", "gemma3", "gemma3_text"})
"""Model types whose rows vLLM multiplies by √hidden_size while it looks them up (`embed_input_ids`), so that embeddings must come multiplied.

Granite and its kin multiply inside `forward`, whatever they are given: their embeddings must come as the table has them."""


class CheckpointEmbedding:
    """What a vLLM server's look-up gives for ids and for virtual tokens, computed here from the checkpoint's table.

    Args:
        table: shape `[vocab, hidden_size]`, any float dtype, on the CPU.
        config: the backbone's.
        dtype: what is computed in and sent; that of the server, or float32, which it rounds to its own.

    Raises:
        UnsupportedBackboneError: the backbone's layers need more than input embeddings.
    """

    device = torch.device("cpu")

    def __init__(self, table: Tensor, config: PreTrainedConfig, dtype: torch.dtype = torch.float32) -> None:
        text = config.get_text_config(decoder=True)
        if getattr(text, "hidden_size_per_layer_input", 0):
            msg = f"{config.model_type} can't take virtual tokens: every layer of it reads the token ids, and a virtual token has none"
            raise UnsupportedBackboneError(msg)
        if table.dim() != 2 or table.shape[1] != text.hidden_size or not table.is_floating_point():
            msg = (
                f"{config.model_type} can't take virtual tokens: its embedding table is {table.dtype} of shape {list(table.shape)}, "
                f"expected floats of shape [vocabulary, {text.hidden_size}]"
            )
            raise UnsupportedBackboneError(msg)
        self._table = table
        self.vocab_size, self.hidden_size = table.shape
        self.dtype = dtype
        scale = self.hidden_size**0.5 if config.model_type in _SCALED_AT_LOOKUP else 1.0
        self.scale = torch.tensor(scale, dtype=dtype).item()

    def embed(self, ids: Tensor) -> Tensor:
        """Ids of shape `[...]`, int64 → embeddings of shape `[..., hidden_size]` in `dtype`."""
        return self.virtual(self._table[ids])

    def virtual(self, rows: Tensor) -> Tensor:
        """Rows in the space of the table, shape `[..., hidden_size]` → embeddings of the same shape in `dtype`."""
        return rows.to(self.dtype) * self.scale

    @contextmanager
    def table(self) -> Iterator[Tensor]:
        """The table, shape `[vocab, hidden_size]`."""
        yield self._table


def load_checkpoint(
    backbone: str | Path, **where: Any
) -> tuple[PreTrainedTokenizerBase, PreTrainedConfig, Tensor]:
    """A backbone's tokenizer, config and input-embedding table, shape `[vocab, hidden_size]`, in the checkpoint's dtype.

    Args:
        backbone: as `spring_rag.loading.find` takes it; in safetensors, if it isn't a GGUF.
        where: as `find` takes them.

    Raises:
        MissingExtraError: it is a GGUF, and the package `gguf` isn't installed.
        BackendError: something isn't there or can't be read; says what.
    """
    try:
        source = find(backbone, where)
        return source.tokenizer(), source.config(), _read_table(source)
    except (BackendError, MissingExtraError):
        raise
    except Exception as error:  # whatever is wrong with a folder or a hub comes as errors of a dozen kinds
        msg = f"can't read tokenizer, config and embedding table of the backbone {str(backbone)!r}: {' '.join(str(error).split())}"
        raise BackendError(msg) from error


def _read_table(source: BackboneSource) -> Tensor:
    backbone = source.place

    def find_file(name: str) -> Path | None:
        if Path(backbone).is_dir():
            path = Path(backbone, source.arguments.get("subfolder", ""), name)
            return path if path.is_file() else None
        try:
            return source.download(name)
        except EntryNotFoundError:
            return None

    index = find_file(_INDEX)
    if index is not None:
        shards = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        name = _table_name(shards, backbone)
        file = find_file(shards[name])
    else:
        file, name = find_file(_SINGLE), None
    if file is None:
        what = f"the shard {shards[name]!r} that its index names" if name else f"{_SINGLE} or {_INDEX}"
        msg = (
            f"the backbone {backbone!r} has no {what}: the client of a vLLM server reads the embedding table from safetensors; "
            "save the model again with save_pretrained"
        )
        raise BackendError(msg)
    try:
        with safe_open(file, framework="pt") as tensors:
            return tensors.get_tensor(name or _table_name(tensors.keys(), backbone))  # type: ignore[no-any-return]
    except SafetensorError as error:
        msg = f"{file} is damaged: {error}; copy or download it again"
        raise BackendError(msg) from error


def _table_name(names: Iterable[str], backbone: str) -> str:
    found = [name for name in names if _TABLE.search(name)]
    if len(found) != 1:
        what = f"{len(found)} tensors that may be it ({', '.join(sorted(found))})" if found else "none"
        msg = f"can't tell which tensor of the checkpoint {backbone!r} is the input-embedding table: found {what}"
        raise BackendError(msg)
    return found[0]
