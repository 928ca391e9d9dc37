"""Record which backbone virtual tokens belong to, and tell it from another of the same size."""

import base64
import binascii
import itertools
import math
import re
import struct
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from spring_rag.errors import BackboneMismatchError, TokensError

FINGERPRINT_ROWS = 16
FINGERPRINT_COLUMNS = 32

# bfloat16 rounds a value by up to 2^-9 of it, and the record and the loaded model may each have been rounded
# once, so twice that is allowed. The absolute part covers float16, which loses values below 2^-24.
_RELATIVE_TOLERANCE = 2.0**-8
_ABSOLUTE_TOLERANCE = 2.0**-23

QUANTIZED_LIKENESS = 0.8
"""Least correlation of a model's fingerprint with the table of a quantised form; see `Fingerprint.likeness`."""

QUANTIZATION_KEY = "gguf_quantization"
"""Key in the config of a model that was unpacked from a GGUF; its value is the GGUF's quantisation, such as "Q4_1"."""


def _spread(size: int, count: int) -> tuple[int, ...]:
    """Return the middles of `count` equal parts of `range(size)`, each once.

    The ends are avoided, because `<unk>` and padding rows are often zero in every model.
    """
    return tuple(sorted({(2 * i + 1) * size // (2 * count) for i in range(count)}))


class Table(Protocol):
    """What a check needs of an embedding table, shape `[vocab, hidden_size]`. A tensor has it; other tables may read rows on demand."""

    @property
    def shape(self) -> Sequence[int]:
        """Rows and columns."""

    @property
    def device(self) -> torch.device:
        """Where indices are expected."""

    @property
    def is_meta(self) -> bool:
        """Whether the table's numbers aren't loaded."""

    def is_floating_point(self) -> bool:
        """Return whether the table's numbers are floats, not packed integers."""

    def __getitem__(self, index: Tensor, /) -> Tensor:
        """Return the rows of these numbers, shape `[rows, hidden_size]`."""


def _is_readable(table: Table) -> bool:
    """Return False for a table whose numbers aren't loaded (offloaded to the meta device) or are packed integers."""
    return not table.is_meta and table.is_floating_point()


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """Some numbers of an embedding table, taken at fixed rows and columns.

    The positions are kept with the values, so that a table that grew by a few added tokens is still recognised.

    Args:
        rows: ids of the vocabulary, ascending.
        columns: positions in the hidden size, ascending.
        values: `table[rows][:, columns]` in row-major order, as float32.
    """

    rows: tuple[int, ...]
    columns: tuple[int, ...]
    values: tuple[float, ...]

    @classmethod
    def of(cls, table: Table) -> "Fingerprint":
        """Take the fingerprint of a table, shape `[vocab, hidden_size]`, any float dtype and device."""
        rows = _spread(table.shape[0], FINGERPRINT_ROWS)
        columns = _spread(table.shape[1], FINGERPRINT_COLUMNS)
        return cls(rows, columns, tuple(_sample(table, rows, columns).flatten().tolist()))

    def matches(self, table: Table) -> bool:
        """Return whether `table`, `[vocab, hidden_size]`, holds these values, up to a change of dtype."""
        if not self._fits(table):
            return False
        found = _sample(table, self.rows, self.columns).flatten()
        recorded = torch.tensor(self.values, dtype=torch.float32)
        allowed = _ABSOLUTE_TOLERANCE + _RELATIVE_TOLERANCE * recorded.abs()
        return bool(((found - recorded).abs() <= allowed).all())

    def likeness(self, table: Table) -> float:
        """Return the correlation of these values with those of `table`, `[vocab, hidden_size]`; at most 1.

        The mean of all rows is subtracted first, because rows of one table resemble each other. Measured on
        SmolLM2-135M, a table in four bits has .99 and one in two bits .89. Shuffled, shifted, rotated and random ones have .15
        at most. One that fine-tuning changed by a tenth has .99 too (`benchmarks/fingerprints.py`).
        """
        if not self._fits(table):
            return 0.0
        found = _sample(table, self.rows, self.columns)
        recorded = torch.tensor(self.values, dtype=torch.float32).view_as(found)
        pair = torch.stack([(part - part.mean(dim=0)).flatten().double() for part in (recorded, found)])
        return torch.nan_to_num(torch.corrcoef(pair))[0, 1].item()

    def _fits(self, table: Table) -> bool:
        return self.rows[-1] < table.shape[0] and self.columns[-1] < table.shape[1]

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON object of about three kilobytes; the values are base64 of little-endian float32."""
        packed = struct.pack(f"<{len(self.values)}f", *self.values)
        return {
            "rows": list(self.rows),
            "columns": list(self.columns),
            "values": base64.b64encode(packed).decode("ascii"),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Fingerprint":
        """Read `to_dict`'s object.

        Raises:
            TokensError: a part is missing or malformed.
        """
        try:
            rows, columns = (tuple(int(i) for i in data[key]) for key in ("rows", "columns"))
            packed = base64.b64decode(data["values"], validate=True)
            values = struct.unpack(f"<{len(rows) * len(columns)}f", packed)
        except (KeyError, TypeError, ValueError, binascii.Error, struct.error) as error:
            msg = f"the artifact's backbone fingerprint is malformed ({error!r}); save the artifact again"
            raise TokensError(msg) from error
        usable = (
            values
            and all(map(math.isfinite, values))
            and _ascending_from_zero(rows)
            and _ascending_from_zero(columns)
        )
        if not usable:
            msg = "the artifact's backbone fingerprint has no usable rows and columns; save it again"
            raise TokensError(msg)
        return cls(rows, columns, values)


def _ascending_from_zero(positions: tuple[int, ...]) -> bool:
    return positions[0] >= 0 and all(a < b for a, b in itertools.pairwise(positions))


def _sample(table: Table, rows: tuple[int, ...], columns: tuple[int, ...]) -> Tensor:
    """Return `table[rows][:, columns]` as float32 on the CPU; only these rows leave the table's device."""
    picked = table[torch.tensor(rows, device=table.device)].detach().to("cpu", torch.float32)
    return picked[:, list(columns)]


@dataclass(frozen=True, slots=True)
class BackboneRecord:
    """The backbone that virtual tokens were trained on.

    Args:
        model_id: Hub id or path that it was loaded from; None if unknown.
        hidden_size: width of its embedding table.
        fingerprint: part of its embedding table; None if the table couldn't be read (offloaded or packed
            weights) or was never seen (the published tables).
        quantization: quantisation of the GGUF that it was unpacked from, such as "Q4_1"; None for other models.
    """

    model_id: str | None
    hidden_size: int
    fingerprint: Fingerprint | None = None
    quantization: str | None = None

    @classmethod
    def of(cls, model: PreTrainedModel, model_id: str | None = None) -> "BackboneRecord":
        """Record a loaded model.

        A table that is on the meta device (offloaded by `device_map`) or holds packed integers can't be
        read. The record then names the model without a fingerprint, and later checks compare names.

        Args:
            model: any Hugging Face causal language model, also quantised or sharded; it is only read.
            model_id: the model's name, if it differs from the one in its config.
        """
        table = model.get_input_embeddings().weight
        assert isinstance(table, Tensor)
        return cls(
            model_id=_lasting(model_id or model.config.name_or_path or None),
            hidden_size=table.shape[1],
            fingerprint=Fingerprint.of(table) if _is_readable(table) else None,
            quantization=quantization_of(model.config),
        )

    def check(self, embedding_table: Table, model_id: str | None, quantization: str | None = None) -> None:
        """Check that a model is this backbone, a quantised form of it, or the model that this backbone is a quantised form of.

        If there is a fingerprint and the table can be read, the fingerprint decides, and names don't matter. If one of the two models
        is known to be quantised, similar tables are accepted with a warning. If neither is, similar tables are refused, because a
        fine-tuned copy's table is as similar to the original's as a quantised one's.
        Without fingerprint or table the names decide: two different Hub ids are an error, and names that prove
        nothing (a local folder, a quantised copy) are a warning.

        Args:
            embedding_table: the model's input embeddings, shape `[vocab, hidden_size]`; may be on the meta
                device.
            model_id: the model's Hub id or path.
            quantization: how the model is quantised, if `quantization_of` finds it in its config.

        Raises:
            BackboneMismatchError: it is another backbone; the error names both.
        """
        if self.hidden_size != embedding_table.shape[-1]:
            raise self._mismatch(
                model_id, f"the hidden sizes differ, {self.hidden_size} and {embedding_table.shape[-1]}"
            )
        if self.fingerprint is not None and _is_readable(embedding_table):
            if not self.fingerprint.matches(embedding_table):
                self._check_likeness(self.fingerprint.likeness(embedding_table), model_id, quantization)
            return
        same = _same_model(self.model_id, model_id)
        if same is False:
            raise self._mismatch(
                model_id,
                "the names differ and there is no fingerprint to compare (if it is a renamed copy of the "
                "same model, pass `VirtualTokens(tokens.matrix)`)",
            )
        if same is None:
            msg = (
                f"can't verify that {_named(model_id)} is {_named(self.model_id)}, which these virtual "
                "tokens were trained on: the hidden sizes agree, but there is no fingerprint to compare. On "
                "another model they would only do harm."
            )
            warnings.warn(msg, stacklevel=3)

    def _check_likeness(self, likeness: float, model_id: str | None, quantization: str | None) -> None:
        """Accept, with a warning, two tables that can be those of a model and its quantised form; refuse any others."""
        if likeness < QUANTIZED_LIKENESS:
            raise self._mismatch(model_id, "the hidden sizes agree, but the embedding tables differ")
        if self.quantization is None and quantization is None:
            raise self._mismatch(
                model_id,
                "the embedding tables are alike but differ, as those of a model and its fine-tuned copy do (if it is "
                "the same model in fewer bits, pass `VirtualTokens(tokens.matrix)`)",
            )
        msg = (
            f"these virtual tokens were trained on {_named(self.model_id, self.quantization)} and are attached to "
            f"{_named(model_id, quantization)}: the embedding tables agree as those of a model and its quantised form do "
            f"(correlation {likeness:.3f}). Answers can differ a little."
        )
        warnings.warn(msg, stacklevel=4)

    def _mismatch(self, model_id: str | None, reason: str) -> BackboneMismatchError:
        return BackboneMismatchError(
            f"virtual tokens trained on {_named(self.model_id)} can't be attached to {_named(model_id)}: "
            f"{reason}. Load the backbone that they were trained on, or train tokens for this one "
            "(`spring-rag train`)."
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the `backbone` object of an artifact's config.json."""
        return {
            "model_id": self.model_id,
            "hidden_size": self.hidden_size,
            "fingerprint": self.fingerprint.to_dict() if self.fingerprint else None,
            **({"quantization": self.quantization} if self.quantization else {}),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "BackboneRecord":
        """Read `to_dict`'s object.

        Raises:
            TokensError: a part is missing or malformed.
        """
        model_id, hidden_size = data.get("model_id"), data.get("hidden_size")
        fingerprint, quantization = data.get("fingerprint"), data.get("quantization")
        if (
            not (model_id is None or isinstance(model_id, str))
            or not isinstance(hidden_size, int)
            or not (fingerprint is None or isinstance(fingerprint, Mapping))
            or not (quantization is None or isinstance(quantization, str))
        ):
            msg = (
                "the artifact's backbone record is malformed: expected model_id, hidden_size and fingerprint"
            )
            raise TokensError(msg)
        return cls(
            model_id,
            hidden_size,
            Fingerprint.from_dict(fingerprint) if fingerprint is not None else None,
            quantization,
        )


def quantization_of(config: PreTrainedConfig) -> str | None:
    """Return the quantisation of the GGUF that a model was unpacked from, such as "Q4_1"; None if its config names none."""
    found = getattr(config, QUANTIZATION_KEY, None)
    return found if isinstance(found, str) else None


def _lasting(name: str | None) -> str | None:
    """Return a name that means the same in every working directory."""
    return str(Path(name).resolve()) if name and Path(name).is_dir() else name


def _named(model_id: str | None, quantization: str | None = None) -> str:
    name = repr(model_id) if model_id else "a backbone without a name"
    return f"{name} ({quantization})" if quantization else name


def is_hub_id(model_id: str) -> bool:
    """Return whether a name can only mean a Hub repository: `owner/name`, and no such folder here."""
    return re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", model_id) is not None and not Path(model_id).exists()


def _same_model(recorded: str | None, found: str | None) -> bool | None:
    """Return True if two names mean one model, False if they can't, None if that is unknown.

    Owners are ignored, because mirrors keep a model's own name. A name that continues the other
    (`…-v0.1-AWQ`) is usually a quantised copy, but not always.
    """
    if recorded is None or found is None:
        return None
    recorded, found = _hub_id_in_cache_path(recorded), _hub_id_in_cache_path(found)
    recorded_name, found_name = (name.rstrip("/").rsplit("/", 1)[-1].lower() for name in (recorded, found))
    if recorded_name == found_name:
        return True
    if found_name.startswith(f"{recorded_name}-") or not (is_hub_id(recorded) and is_hub_id(found)):
        return None
    return False


def _hub_id_in_cache_path(model_id: str) -> str:
    """Return the Hub id of the repository that a path into the Hub's cache is a copy of; return any other name unchanged."""
    cached = re.search(r"models--([^/]+?)--([^/]+)/snapshots/", model_id)
    return f"{cached[1]}/{cached[2]}" if cached else model_id
