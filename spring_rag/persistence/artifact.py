"""What is saved of virtual tokens, as checked plain data."""

import copy
import hashlib
from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass
from math import isfinite
from typing import Any, Self

import torch
from torch import Tensor

from spring_rag.backbone import BackboneRecord
from spring_rag.errors import TokensError
from spring_rag.files import as_json
from spring_rag.prompt import RagTemplate


@dataclass(frozen=True, eq=False)
class Artifact:
    """A matrix and what is known about it; `VirtualTokens` says what each field means.

    Raises:
        TokensError: the matrix can't be virtual tokens, its width isn't the backbone's hidden size, `training` isn't JSON, or
            the calibration isn't made of finite numbers.
    """

    matrix: Tensor
    _: KW_ONLY
    backbone: BackboneRecord | None = None
    template: RagTemplate | None = None
    training: Mapping[str, Any] | None = None
    after_scaling: bool = False
    chat_template: str | None = None
    task: str = "answer"
    calibration: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "matrix", _checked(self.matrix))
        if self.backbone is not None and self.backbone.hidden_size != self.hidden_size:
            msg = (
                f"virtual tokens for {self.backbone.model_id!r} must have its hidden size, "
                f"{self.backbone.hidden_size}; this matrix has {self.hidden_size}"
            )
            raise TokensError(msg)
        if self.training is not None:
            try:
                object.__setattr__(self, "training", as_json(self.training))
            except ValueError as error:
                msg = f"`training` must be a JSON object of finite numbers, texts, lists and objects: {error}"
                raise TokensError(msg) from error
        if self.calibration is not None:
            slope, intercept = map(float, self.calibration)
            if not (isfinite(slope) and isfinite(intercept)):
                msg = f"a calibration is made of two finite numbers, slope and intercept, not {slope} and {intercept}"
                raise TokensError(msg)
            object.__setattr__(self, "calibration", (slope, intercept))

    def __len__(self) -> int:
        return self.matrix.shape[0]

    @property
    def hidden_size(self) -> int:
        """Width of a row."""
        return self.matrix.shape[1]

    @property
    def digest(self) -> str:
        """16 hex digits of the SHA-256 of the matrix's shape and float32 values."""
        sha = hashlib.sha256(f"{tuple(self.matrix.shape)}".encode())
        sha.update(self.matrix.numpy().astype("<f4", copy=False).tobytes())
        return sha.hexdigest()[:16]

    def first(self, k: int) -> Self:
        """Take the first k rows. An empty prefix can be used but not saved."""
        prefix = copy.copy(self)
        object.__setattr__(prefix, "matrix", self.matrix[:k])
        return prefix


def _checked(matrix: object) -> Tensor:
    """Check that a matrix can be virtual tokens, and return a float32 copy on the CPU.

    Raises:
        TokensError: it isn't.
    """
    if not isinstance(matrix, Tensor):
        msg = f"virtual tokens must be a float tensor of shape [n, hidden_size], not {type(matrix).__name__}"
        raise TokensError(msg)
    shape = list(matrix.shape)
    if matrix.layout != torch.strided or matrix.is_meta or not matrix.is_floating_point():
        what = "without values" if matrix.is_meta else f"of {matrix.dtype} in {matrix.layout} layout"
        msg = f"virtual tokens must be a dense float tensor of shape [n, hidden_size], not one {what}"
        raise TokensError(msg)
    if matrix.dim() != 2:
        msg = f"virtual tokens must have two dimensions, [n, hidden_size]; this tensor has shape {shape}"
        raise TokensError(msg)
    if matrix.numel() == 0:
        msg = f"virtual tokens must not be empty; this tensor has shape {shape}"
        raise TokensError(msg)
    copy = matrix.detach().to("cpu", torch.float32, copy=True).contiguous()
    bad_rows = (~copy.isfinite()).any(dim=1).nonzero().flatten().tolist()
    if bad_rows:
        msg = (
            f"virtual tokens must be finite; {len(bad_rows)} of {shape[0]} rows hold NaN or infinite values, "
            f"the first is row {bad_rows[0]}"
        )
        raise TokensError(msg)
    return copy
