"""A GGUF file as a backbone: what names one, and the transformers folder that is made of it once.

transformers reads a GGUF by unpacking it, which takes minutes where loading takes seconds. So the unpacked weights are kept in the
user's cache folder, in float32. llama.cpp reads the file itself: then only the tokenizer is kept there, and what the file's header says.
That folder may be deleted at any time.
"""

import hashlib
import json
import logging
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from io import BytesIO
from pathlib import Path
from typing import Any

import torch

from spring_rag.backbone import QUANTIZATION_KEY
from spring_rag.errors import BackendError
from spring_rag.extras import extra
from spring_rag.files import cache_folder

SUFFIX = ".gguf"
ORIGIN = "origin.json"
"""Written last into a converted folder: what it was made of, and which files it has."""

_VERSION = 1
"""Of what this module writes; another one doesn't use what an older one left."""

_ON_THE_HUB = re.compile(r"([\w-][\w.-]*/[\w.-]+):(.+\.gguf)", re.IGNORECASE)
_PART = re.compile(r"-\d{5}-of-\d{5}\.gguf$", re.IGNORECASE)
_WEIGHTS = ("*.safetensors", "*.safetensors.index.json", "*.bin", "*.bin.index.json")

_UNQUANTIZED = (0, 1, 32)
"""`general.file_type` of float32, float16 and bfloat16."""

_DIGITS_APART = {"smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"}
"""Pre-tokenizers of byte-level vocabularies that cut numbers into digits first; transformers takes them for GPT-2's, which
reads white space before a digit in other pieces."""

_ABANDONED_SECONDS = 24 * 3600

_HEADER_BYTES = 1 << 26
"""More than the largest header: vocabularies of 262144 tokens with their merges take 16 MB."""

_TABLE = "token_embd.weight"
"""What llama.cpp calls the embedding table."""

_LONG_FACTORS = "rope_factors_long.weight"
"""What it calls the factors by which positions beyond the short form's are rotated."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class GgufName:
    """A GGUF that somebody named.

    Args:
        file: on disk, or inside the repository.
        repo_id: the Hub's repository; None is the disk.
    """

    file: str
    repo_id: str | None = None


@dataclass(frozen=True, slots=True)
class GgufHeader:
    """What a GGUF says of itself, beside its weights.

    Args:
        tokenizer: transformers' folder of its tokenizer.
        architecture: llama.cpp's name for the family, as "llama" or "gemma3".
        ends: ids that end an answer.
        quantization: how its weights are stored, as "Q4_1" or "Q4_K_M"; None for plain floats.
        table_offset: where in the file the embedding table begins, in bytes.
        table_type: number of ggml's type of its rows.
        table_shape: `[vocab, hidden_size]`.
        longrope_length: the length from which on Phi-3's kin have other positions; None where there is none.
    """

    tokenizer: str
    architecture: str
    ends: tuple[int, ...]
    quantization: str | None
    table_offset: int
    table_type: int
    table_shape: tuple[int, int]
    longrope_length: int | None


def gguf_name(backbone: str, gguf_file: str | None = None, subfolder: str | None = None) -> GgufName | None:
    """What a backbone's name says, if it means a GGUF.

    Args:
        backbone: a file, a folder, `owner/name:file.gguf`, or any other name.
        gguf_file: transformers' argument: the file in that folder or repository.
        subfolder: of that folder or repository.

    Raises:
        BackendError: a folder has several, or there is no such file.
    """
    path = Path(os.path.expanduser(backbone))
    inner = Path(subfolder or "")
    if path.is_dir():
        found = path / inner / gguf_file if gguf_file else _only_one(path / inner)
        return GgufName(str(_existing(found))) if found else None
    if path.suffix.lower() == SUFFIX and (path.is_file() or ":" not in backbone):
        return GgufName(str(_existing(path)))
    if gguf_file:
        return GgufName(str(inner / gguf_file), backbone)
    named = _ON_THE_HUB.fullmatch(backbone)
    return GgufName(str(inner / named[2]), named[1]) if named else None


def _only_one(folder: Path) -> Path | None:
    """The one GGUF of a folder that has no weights of transformers' kind; None if it has none."""
    if any(any(folder.glob(pattern)) for pattern in _WEIGHTS):
        return None
    found = sorted(path for path in folder.glob("*") if path.suffix.lower() == SUFFIX)
    if len(found) > 1 and not all(_PART.search(path.name) for path in found):
        names = ", ".join(path.name for path in found)
        msg = f"{str(folder)!r} holds {len(found)} GGUF files ({names}); name one of them: {str(found[0])!r}"
        raise BackendError(msg)
    return found[0] if found else None


def _existing(path: Path) -> Path:
    if not path.is_file():
        msg = f"there is no GGUF file {str(path)!r}"
        raise BackendError(msg)
    return path.resolve()


def converted(file: Path, name: str) -> Path:
    """The transformers folder of a GGUF, which is made unless the cache has it.

    Several processes may ask at once: each converts aside, the first one's folder is kept.

    Args:
        file: the GGUF.
        name: what messages call it.

    Raises:
        MissingExtraError: the package `gguf` isn't installed.
        BackendError: it isn't a GGUF that transformers reads, or the cache can't be written; says why.
    """
    return _made(file, name, _convert)


def header(file: Path, name: str) -> GgufHeader:
    """What a GGUF says of itself; read once, and its tokenizer converted, unless the cache has it.

    Args:
        file: the GGUF.
        name: what messages call it.

    Raises:
        MissingExtraError: the package `gguf` isn't installed.
        BackendError: it isn't a GGUF whose tokenizer transformers reads, or the cache can't be written; says why.
    """
    folder = _made(file, name, _convert_header, read=_HEADER_BYTES, suffix="-header")
    told = json.loads((folder / ORIGIN).read_text(encoding="utf-8"))["header"]
    values: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value for key, value in told.items()
    }
    return GgufHeader(tokenizer=str(folder), **values)


def _made(
    file: Path,
    name: str,
    make: Callable[[Path, Path, str], None],
    *,
    read: int | None = None,
    suffix: str = "",
) -> Path:
    """The folder in the cache that `make` makes of a file, which is known by its first `read` bytes."""
    if _PART.search(file.name):
        msg = (
            f"{name!r} is one part of a GGUF that was split; join them first: "
            "llama-gguf-split --merge FIRST_PART.gguf WHOLE.gguf"
        )
        raise BackendError(msg)
    cache = cache_folder("gguf")
    folder = cache / f"{file.stem}-{_digest(file, read)}{suffix}"
    if _is_whole(folder):
        return folder
    with extra("gguf"):
        for package in ("gguf", "accelerate"):
            import_module(package)
    _log.info("converting %s for transformers, once; it is kept in %s", name, folder)
    try:
        cache.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(cache)
        with _aside(cache) as aside:
            make(file, aside / "made", name)
            _publish(aside / "made", folder)
    except BackendError:
        raise
    except Exception as error:  # a damaged file fails anywhere in the reader, with any exception
        msg = f"can't read the GGUF {name!r}: {' '.join(str(error).split()) or type(error).__name__}"
        raise BackendError(msg) from error
    return folder


def _digest(file: Path, read: int | None) -> str:
    """16 hex digits that change with the file's name, size and first `read` bytes (all for None), and with what is made of it."""
    sha = hashlib.sha256(f"{_VERSION}\0{file.name}\0{file.stat().st_size}\0".encode())
    with file.open("rb") as stream:
        part = stream if read is None else BytesIO(stream.read(read))
        sha.update(hashlib.file_digest(part, "sha256").digest())
    return sha.hexdigest()[:16]


def _is_whole(folder: Path) -> bool:
    """Whether a folder has all that was written into it; somebody may be deleting it."""
    try:
        sizes = json.loads((folder / ORIGIN).read_text(encoding="utf-8"))["files"]
        return all((folder / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError, KeyError, AttributeError):
        return False


@contextmanager
def _aside(cache: Path) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir=cache, prefix=".converting-", ignore_cleanup_errors=True) as aside:
        yield Path(aside)


def _remove_abandoned(cache: Path) -> None:
    """Delete what conversions left that were killed."""
    for left in cache.glob(".converting-*"):
        if time.time() - left.stat().st_mtime > _ABANDONED_SECONDS:
            shutil.rmtree(left, ignore_errors=True)


def _publish(made: Path, folder: Path) -> None:
    """Move a finished folder to its place, unless another process was first."""
    try:
        made.rename(folder)
    except OSError:
        if _is_whole(folder):
            return
        shutil.rmtree(folder, ignore_errors=True)  # half deleted
        made.rename(folder)


def _convert(file: Path, folder: Path, name: str) -> None:
    """Write a GGUF's model, in float32, and its tokenizer as transformers does."""
    from transformers import AutoModelForCausalLM, GgufConfig

    metadata, tokenizer = _metadata_and_tokenizer(file)
    loaded: Any = AutoModelForCausalLM.from_pretrained(
        **_in_file(file),
        dtype=torch.float32,
        quantization_config=GgufConfig(dequantize=True),
        output_loading_info=True,
    )
    hf_model, report = loaded
    if missing := sorted(report["missing_keys"]):
        msg = f"the GGUF {name!r} is incomplete: {len(missing)} weights are missing, the first is {missing[0]!r}"
        raise BackendError(msg)
    hf_model.generation_config.eos_token_id = _ends(metadata, hf_model.generation_config.eos_token_id)
    quantization = _quantization(metadata)
    if quantization is not None:
        setattr(hf_model.config, QUANTIZATION_KEY, quantization)
    hf_model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    _seal(folder, {"name": name, "file": str(file), "quantization": quantization})


def _convert_header(file: Path, folder: Path, name: str) -> None:
    """Write a GGUF's tokenizer as transformers does, and what else is to be known of the file."""
    from gguf import GGUFReader

    metadata, tokenizer = _metadata_and_tokenizer(file)
    tensors = {tensor.name: tensor for tensor in GGUFReader(file).tensors}
    table = tensors.get(_TABLE)
    if table is None:
        msg = f"the GGUF {name!r} has no embedding table ({_TABLE}); it is no language model"
        raise BackendError(msg)
    ends = _ends(metadata, metadata.get("tokenizer.ggml.eos_token_id"))
    architecture = metadata["general.architecture"]
    tokenizer.save_pretrained(folder)
    told = {
        "architecture": architecture,
        "ends": [ends] if isinstance(ends, int) else ends or [],
        "quantization": _quantization(metadata),
        "table_offset": int(table.data_offset),
        "table_type": int(table.tensor_type),
        "table_shape": [int(size) for size in reversed(table.shape)],
        "longrope_length": (
            metadata.get(f"{architecture}.rope.scaling.original_context_length")
            if _LONG_FACTORS in tensors
            else None
        ),
    }
    _seal(folder, {"name": name, "file": str(file), "header": told})


def _metadata_and_tokenizer(file: Path) -> tuple[dict[str, Any], Any]:
    from transformers import AutoTokenizer
    from transformers.integrations.gguf.reader import read_gguf_metadata

    metadata, _ = read_gguf_metadata(str(file))
    tokenizer = AutoTokenizer.from_pretrained(**_in_file(file))
    if metadata.get("tokenizer.ggml.pre") in _DIGITS_APART:
        _split_digits(tokenizer)
    return metadata, tokenizer


def _in_file(file: Path) -> dict[str, Any]:
    """How transformers is told to read a GGUF."""
    return {
        "pretrained_model_name_or_path": file.parent,
        "gguf_file": file.name,
        "trust_remote_code": False,
    }


def _split_digits(tokenizer: Any) -> None:
    from tokenizers import pre_tokenizers

    backend = tokenizer.backend_tokenizer
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )


def _ends(metadata: Mapping[str, Any], known: int | list[int] | None) -> int | list[int] | None:
    """The ids that end an answer: with the end of a text, that of a turn, which transformers doesn't look for."""
    ids = [known] if isinstance(known, int) else list(known or [])
    turn = metadata.get("tokenizer.ggml.eot_token_id")
    if isinstance(turn, int) and turn not in ids:
        ids.append(turn)
    return ids[0] if len(ids) == 1 else ids or None


def _quantization(metadata: Mapping[str, Any]) -> str | None:
    """What a GGUF says of itself, as "Q4_1" or "Q4_K_M"; None where its weights are plain floats."""
    from gguf import LlamaFileType

    number = metadata.get("general.file_type", -1)
    if number in _UNQUANTIZED:
        return None
    try:
        return LlamaFileType(number).name.removeprefix("MOSTLY_")
    except ValueError:  # newer than the package, or not said
        return "GGUF"


def _seal(folder: Path, origin: Mapping[str, Any]) -> None:
    """Say what a folder was made of, once its files are surely on the disk."""
    sizes = {}
    for path in sorted(folder.iterdir()):
        with path.open("rb") as file:
            os.fsync(file.fileno())
        sizes[path.name] = path.stat().st_size
    text = json.dumps({**origin, "files": sizes}, indent=2, ensure_ascii=False)
    (folder / ORIGIN).write_text(f"{text}\n", encoding="utf-8")
