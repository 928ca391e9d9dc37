"""Read and write single files with a matrix: safetensors, and the authors' `.pt`."""

import io
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from spring_rag.errors import TokensError
from spring_rag.files import replace_files
from spring_rag.persistence.artifact import Artifact


@dataclass(frozen=True)
class TensorFile:
    """The content of a safetensors file: one tensor, and the texts in its header."""

    tensor: Tensor
    metadata: Mapping[str, str] = field(default_factory=dict)


def read_safetensors(path: Path, name: str | None = None) -> TensorFile:
    """Read one tensor of a safetensors file.

    Args:
        path: the file.
        name: the tensor's name; None means the file's only tensor.

    Raises:
        TokensError: the file is damaged, lacks the tensor, or (without `name`) doesn't hold exactly one.
    """
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            names = sorted(file.keys())
            if name is None and len(names) == 1:
                name = names[0]
            if name is None or name not in names:
                expected = "exactly one tensor" if name is None else f"a tensor {name!r}"
                msg = f"{path} must hold {expected}; it holds {_listed(names)}"
                raise TokensError(msg)
            return TensorFile(file.get_tensor(name), file.metadata() or {})
    except (SafetensorError, OSError, ValueError, OverflowError) as error:
        if isinstance(error, TokensError):
            raise
        msg = f"{path} can't be read as safetensors; it may be truncated or another format: {error}"
        raise TokensError(msg) from error


def read_torch(path: Path) -> object:
    """Read what `torch.save` wrote, onto the CPU, without running any code that the file may carry.

    Raises:
        TokensError: the file is damaged, needs code to be read, or unpacks to more than its own size.
    """
    _refuse_zip_bomb(path)
    try:
        # weights_only builds tensors and plain containers and nothing else. Never fall back to full
        # unpickling, however tempting torch's own error message makes it sound.
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a hostile file can fail anywhere in the reader, with any exception
        msg = (
            f"{path} can't be read as a tensor written by torch.save; it is truncated, of another format, "
            f"or holds more than tensors, which is refused: it could run code ({type(error).__name__})"
        )
        raise TokensError(msg) from error


def read_pt(path: Path) -> Tensor:
    """Read the authors' format: one tensor (or `nn.Parameter`) of shape `[n, hidden_size]`.

    Raises:
        TokensError: the file is damaged, needs code to be read, unpacks to more than its own size, or doesn't hold one tensor.
    """
    return own_memory(read_torch(path), path)


def own_memory(found: object, path: Path) -> Tensor:
    """Check that an object is a tensor that is stored in full, and return it.

    A file of a few bytes can describe a tensor of terabytes, one number repeated by strides: copying it would
    bring the machine down.

    Raises:
        TokensError: it isn't a tensor, or stores fewer numbers than its shape says.
    """
    if not isinstance(found, Tensor):
        msg = (
            f"{path} must hold one float tensor of shape [n, hidden_size]; it holds a {type(found).__name__}"
        )
        raise TokensError(msg)
    is_plain = found.layout == torch.strided and not found.is_meta
    if is_plain and found.numel() * found.element_size() > found.untyped_storage().nbytes():
        msg = f"{path} claims shape {list(found.shape)} but doesn't hold that many numbers"
        raise TokensError(msg)
    return found


def _refuse_zip_bomb(path: Path) -> None:
    """Refuse an archive that unpacks to more than its own size: torch.save stores its records uncompressed."""
    try:
        if not zipfile.is_zipfile(path):
            return
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(record.file_size for record in archive.infolist())
    except (zipfile.BadZipFile, ValueError, NotImplementedError) as error:
        msg = f"{path} is a damaged archive: {error}"
        raise TokensError(msg) from error
    if unpacked > path.stat().st_size:
        msg = f"{path} unpacks to more than its own size, which no file written by torch.save does"
        raise TokensError(msg)


def write_pt(artifact: Artifact, path: Path) -> None:
    """Write the authors' format: one float32 tensor, shape `[n, hidden_size]`.

    Raises:
        TokensError: there are no rows to save.
    """
    refuse_empty(artifact)
    if artifact.after_scaling:
        msg = (
            f"{path} gets the rows as PEFT wrote them, after the scaling of the backbone's embedding layer; on a backbone "
            "that scales (Gemma) they are not what other readers of such a file expect"
        )
        warnings.warn(msg, stacklevel=3)
    buffer = io.BytesIO()
    torch.save(artifact.matrix.clone(), buffer)  # a slice would save the whole table's storage
    replace_files(path.parent, {path.name: buffer.getvalue()})


def refuse_empty(artifact: Artifact) -> None:
    """Refuse to save tokens without rows, which could not be read back.

    Raises:
        TokensError: there are no rows.
    """
    if len(artifact) == 0:
        msg = "there are no virtual tokens to save: this is the empty prefix, tokens[:0]"
        raise TokensError(msg)


def _listed(names: list[str]) -> str:
    shown = ", ".join(map(repr, names[:5]))
    return f"{len(names)} ({shown}{', …' if len(names) > 5 else ''})" if names else "none"
