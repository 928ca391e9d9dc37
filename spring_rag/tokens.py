"""Virtual tokens: the trained matrix, and what is known about it.

Reading and writing files, the Hub and the model card live in `spring_rag.persistence`.
"""

import hashlib
import json
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from spring_rag.backbone import BackboneRecord
from spring_rag.errors import BackboneMismatchError, TokensError
from spring_rag.prompt import RagTemplate

__all__ = ["BackboneRecord", "VirtualTokens", "digest_of"]


class VirtualTokens:
    """A trained matrix whose row i is virtual token i+1, in the space of its backbone's embedding table.

    Args:
        matrix: shape `[n, hidden_size]`, n ≥ 1, any float dtype and device; copied to float32 on the CPU.
        backbone: the model that it was trained on; without it the tokens attach wherever their size fits,
            with a warning.
        template: layout of the prompts that it was trained with; None is the default layout.
        training: how it was trained, as JSON; kept in config.json and shown in the model card.
        after_scaling: the rows stand behind the scaling that the backbone's embedding layer applies (Gemma's), as PEFT's do; they are
            divided by it where they are attached. Without effect on backbones that don't scale.

    Raises:
        TokensError: the matrix isn't 2-D, is empty, isn't of floats, or holds NaN or infinite values; its
            width isn't the backbone's hidden size; `training` isn't JSON.
    """

    def __init__(
        self,
        matrix: Tensor,
        *,
        backbone: BackboneRecord | None = None,
        template: RagTemplate | None = None,
        training: Mapping[str, Any] | None = None,
        after_scaling: bool = False,
    ) -> None:
        self._matrix = _checked(matrix)
        if backbone is not None and backbone.hidden_size != self.hidden_size:
            msg = (
                f"virtual tokens for {backbone.model_id!r} must have its hidden size, "
                f"{backbone.hidden_size}; this matrix has {self.hidden_size}"
            )
            raise TokensError(msg)
        self._backbone = backbone
        self._template = template
        self._training = _as_json(training) if training is not None else None
        self._after_scaling = after_scaling

    @property
    def matrix(self) -> Tensor:
        """The rows, shape `[n, hidden_size]`, float32, on the CPU."""
        return self._matrix

    @property
    def backbone(self) -> BackboneRecord | None:
        """The model that the tokens were trained on, if known."""
        return self._backbone

    @property
    def template(self) -> RagTemplate | None:
        """The layout of the prompts that the tokens were trained with; None is the default layout."""
        return self._template

    @property
    def training(self) -> dict[str, Any] | None:
        """How the tokens were trained, if known; a JSON object."""
        return self._training

    @property
    def after_scaling(self) -> bool:
        """Whether the rows stand behind the scaling of the backbone's embedding layer, as PEFT's do, and not before it."""
        return self._after_scaling

    def in_table_space(self, scale: float) -> Tensor:
        """The rows as the backbone's embedding table would hold them.

        Args:
            scale: what the backbone's embedding layer multiplies rows of its table by; 1 on all families but Gemma's and its like.

        Returns:
            Shape `[n, hidden_size]`, float32, on the CPU; `matrix` itself unless the rows are `after_scaling`.
        """
        return self._matrix / scale if self._after_scaling else self._matrix

    @property
    def hidden_size(self) -> int:
        """Width of a row."""
        return self._matrix.shape[1]

    @property
    def digest(self) -> str:
        """16 hex digits that change with any value or with the shape."""
        return digest_of(self._matrix)

    def __len__(self) -> int:
        return self._matrix.shape[0]

    def __getitem__(self, index: slice) -> "VirtualTokens":
        """The first k tokens, `tokens[:k]` with 0 ≤ k ≤ n, with the same record of how they came to be.

        Only a prefix has a meaning: training used the first k rows for every k, never others.

        Raises:
            TokensError: any other index or slice, or k beyond n.
        """
        is_prefix = isinstance(index, slice) and index.start in (None, 0) and index.step in (None, 1)
        if not is_prefix:
            msg = f"only a prefix of virtual tokens is usable, as in tokens[:10], not {index}"
            raise TokensError(msg)
        k = len(self) if index.stop is None else index.stop
        if not isinstance(k, int) or not 0 <= k <= len(self):
            msg = f"can't take the first {k} virtual tokens: expected a number from 0 to {len(self)}"
            raise TokensError(msg)
        prefix = object.__new__(VirtualTokens)
        prefix._matrix = self._matrix[:k]  # no constructor: an empty prefix is legal, an empty artifact isn't
        prefix._backbone, prefix._template, prefix._training = self._backbone, self._template, self._training
        prefix._after_scaling = self._after_scaling
        return prefix

    def __repr__(self) -> str:
        backbone = self._backbone.model_id if self._backbone else None
        return (
            f"VirtualTokens({len(self)} × {self.hidden_size}, backbone={backbone!r}, digest={self.digest!r})"
        )

    def check(self, embedding_table: Tensor, model_id: str | None, quantization: str | None = None) -> None:
        """Make sure that these tokens may be attached to a model.

        Tokens that record no backbone attach wherever their size fits, with one warning.

        Args:
            embedding_table: the model's input embeddings, shape `[vocab, hidden_size]`; on the meta device if
                its values aren't at hand, in which case names are compared.
            model_id: the model's Hub id or path; None if it has none.
            quantization: how the model is quantised, as "Q4_1", if its embeddings are. Tokens of the same model in other
                bits then attach, with one warning.

        Raises:
            BackboneMismatchError: the tokens belong to another backbone; names both.
        """
        if self._backbone is not None:
            self._backbone.check(embedding_table, model_id, quantization)
            return
        name = repr(model_id) if model_id else "a backbone without a name"
        if self.hidden_size != embedding_table.shape[-1]:
            msg = (
                f"virtual tokens of an unrecorded backbone with hidden size {self.hidden_size} can't be "
                f"attached to {name}, whose hidden size is {embedding_table.shape[-1]}"
            )
            raise BackboneMismatchError(msg)
        msg = (
            f"these virtual tokens don't record their backbone; they are attached to {name} because the "
            f"hidden size, {self.hidden_size}, fits. If they were trained on another model they only do "
            "harm: prefer a saved folder or a published name."
        )
        warnings.warn(msg, stacklevel=2)

    @classmethod
    def from_pretrained(
        cls, src: str | os.PathLike[str], *, revision: str | None = None, token: str | None = None
    ) -> "VirtualTokens":
        """Load virtual tokens. Never runs code from a file.

        Args:
            src: a folder written by `save_pretrained` or by PEFT's prompt tuning; a `.safetensors` or the
                authors' `.pt` file; a published name such as `"mistral-7b-instruct"`; or a Hub id,
                `"owner/name"`. What exists on disk comes first.
            revision: branch, tag or commit on the Hub.
            token: access token for the Hub; by default the one that `hf auth login` saved.

        Raises:
            TokensError: nothing usable is there; the text says what was found and what was expected.
        """
        from spring_rag.persistence import load

        return load(src, revision=revision, token=token)

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Write `virtual_tokens.safetensors`, `config.json` and a model card, `README.md`, into a folder.

        Other files there are left alone. A save that is interrupted at any moment leaves a whole artifact,
        the old one or the new.

        Raises:
            TokensError: there are no rows to save, or a config.json or README.md of something else lies there.
            OSError: the folder can't be written.
        """
        from spring_rag.persistence import write_folder

        write_folder(self, Path(folder))

    def save_pt(self, path: str | os.PathLike[str]) -> None:
        """Write the authors' format, atomically: one float32 tensor `[n, hidden_size]` by `torch.save`.

        It holds the rows only; backbone, template and training are lost. Rows that are `after_scaling` are written as they are, with a
        warning.

        Raises:
            TokensError: there are no rows to save.
            OSError: the file can't be written.
        """
        from spring_rag.persistence import write_pt

        write_pt(self, Path(path))

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool | None = None,
        revision: str | None = None,
        commit_message: str = "Upload virtual tokens",
        token: str | None = None,
    ) -> str:
        """Publish what `save_pretrained` writes as one commit, creating the repository if need be.

        Args:
            repo_id: `"owner/name"` on the Hub.
            private: whether a new repository is private; None is the account's default.
            revision: branch to commit to; None is the main one.
            commit_message: first line of the commit.
            token: access token with the right to write; by default the one that `hf auth login` saved.

        Returns:
            The commit's address.

        Raises:
            TokensError: the Hub can't be reached or refuses.
        """
        from spring_rag.persistence import push

        return push(
            self, repo_id, private=private, revision=revision, commit_message=commit_message, token=token
        )


def digest_of(matrix: Tensor) -> str:
    """16 hex digits of the SHA-256 of a matrix's shape and float32 values; `matrix` is float32 on the CPU."""
    sha = hashlib.sha256(f"{tuple(matrix.shape)}".encode())
    sha.update(matrix.numpy().astype("<f4", copy=False).tobytes())
    return sha.hexdigest()[:16]


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
