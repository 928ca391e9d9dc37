"""What is saved of virtual tokens, as plain data that is checked."""

import copy
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite
from typing import Any

import torch
from torch import Tensor

from spring_rag.backbone import BackboneRecord
from spring_rag.errors import TokensError
from spring_rag.prompt import RagTemplate


@dataclass(frozen=True, eq=False)
class Artifact:
    """A matrix and what is known about it; `VirtualTokens` says what each field means.

    Args:
        matrix: shape `[n, hidden_size]`, n ≥ 1, any float dtype and device; copied to float32 on the CPU.
        backbone: the model that it was trained on.
        template: layout of the prompts that it was trained with.
        training: how it was trained, as JSON.
        after_scaling: whether the rows stand behind the scaling of the backbone's embedding layer.
        chat_template: digest of the chat template that it was trained with, if it was trained in chats.
        task: name of the skill that it was trained for.
        calibration: slope and intercept that make a probability of what a skill's scores say.

    Raises:
        TokensError: the matrix isn't fit to be virtual tokens, its width isn't the backbone's hidden size, `training` isn't JSON, or
            the calibration isn't made of finite numbers.
    """

    matrix: Tensor
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
            object.__setattr__(self, "training", _as_json(self.training))
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

    def first(self, k: int) -> "Artifact":
        """The first k rows, also none of them, which can be used but not saved."""
        prefix = copy.copy(self)
        object.__setattr__(prefix, "matrix", self.matrix[:k])
        return prefix


def _checked(matrix: object) -> Tensor:
    """A float32 copy on the CPU of `matrix`, if it is fit to be virtual tokens.

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


def _as_json(training: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of `training` as JSON gives it back, so that what is kept equals what is saved."""
    try:
        copy: dict[str, Any] = json.loads(json.dumps(dict(training), allow_nan=False))
    except (TypeError, ValueError, RecursionError) as error:
        msg = f"`training` must be a JSON object of finite numbers, texts, lists and objects: {error}"
        raise TokensError(msg) from error
    return copy
