"""Use a GGUF file as a backbone: recognise its name, and convert it once into a transformers folder.

transformers reads a GGUF by unpacking it, which takes minutes, while loading takes seconds. So the unpacked weights are kept in the
user's cache folder, in float32. llama.cpp reads the file itself, so for it only the tokenizer and the facts in the file's header are
kept there. That folder may be deleted at any time.
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
"""File that is written last into a converted folder, and says what it was made of and which files it has."""

_VERSION = 1
"""Version of the converted folders; a folder of another version is not used."""

_ON_THE_HUB = re.compile(r"([\w-][\w.-]*/[\w.-]+):(.+\.gguf)", re.IGNORECASE)
_PART = re.compile(r"-\d{5}-of-\d{5}\.gguf$", re.IGNORECASE)
_WEIGHTS = ("*.safetensors", "*.safetensors.index.json", "*.bin", "*.bin.index.json")

_UNQUANTIZED = (0, 1, 32)
"""Values of `general.file_type` for float32, float16 and bfloat16."""

_DIGITS_APART = {"smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"}
"""Pre-tokenizers of byte-level vocabularies that first split numbers into digits; transformers treats them like GPT-2's, which
splits white space before a digit differently."""

_ABANDONED_SECONDS = 24 * 3600

_HEADER_BYTES = 1 << 26
"""Number of bytes that hold any header: vocabularies of 262144 tokens with their merges take 16 MB."""

_TABLE = "token_embd.weight"
"""llama.cpp's name for the embedding table."""

_LONG_FACTORS = "rope_factors_long.weight"
"""llama.cpp's name for the factors that rotate positions in prompts beyond the short context length."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class GgufName:
    """The place of a GGUF.

    Args:
        file: path on disk, or inside the repository.
        repo_id: the Hub's repository; None for a file on disk.
    """

    file: str
    repo_id: str | None = None


@dataclass(frozen=True, slots=True)
class GgufHeader:
    """The facts in a GGUF's header, and its tokenizer.

    Args:
        tokenizer: folder of its tokenizer, in transformers' format.
        architecture: llama.cpp's name for the family, such as "llama" or "gemma3".
        ends: ids that end an answer.
        quantization: how its weights are stored, such as "Q4_1" or "Q4_K_M"; None for plain floats.
        table_offset: where in the file the embedding table begins, in bytes.
        table_type: ggml's number for the type of the table's rows.
        table_shape: `[vocab, hidden_size]`.
        longrope_length: the length beyond which models such as Phi-3 change their positions; None for all others.
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
    """Return the place of the GGUF that a backbone's name means; None if it means none.

    Args:
        backbone: a file, a folder, `owner/name:file.gguf`, or any other name.
        gguf_file: transformers' argument: the file in that folder or repository.
        subfolder: folder in that folder or repository.

    Raises:
        BackendError: a folder has several GGUFs, or there is no such file.
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
    """Return a folder's only GGUF; None if it has none, or has weights of transformers too."""
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
    """Return the transformers folder of a GGUF; make it if the cache doesn't have it.

    Several processes may do this at once: each converts into a folder of its own, and the first one's is kept.

    Args:
        file: the GGUF.
        name: its name in messages.

    Raises:
        MissingExtraError: the package `gguf` isn't installed.
        BackendError: it isn't a GGUF that transformers reads, or the cache can't be written; the error says why.
    """
    return _made(file, name, _convert)


def header(file: Path, name: str) -> GgufHeader:
    """Return a GGUF's header; read it and convert the tokenizer if the cache doesn't have them.

    Args:
        file: the GGUF.
        name: its name in messages.

    Raises:
        MissingExtraError: the package `gguf` isn't installed.
        BackendError: it isn't a GGUF whose tokenizer transformers reads, or the cache can't be written; the error says why.
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
    """Return the folder in the cache that `make` makes of a file, which is identified by its first `read` bytes."""
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
    except Exception as error:  # a damaged file can fail anywhere in the reader, with any exception
        msg = f"can't read the GGUF {name!r}: {' '.join(str(error).split()) or type(error).__name__}"
        raise BackendError(msg) from error
    return folder


def _digest(file: Path, read: int | None) -> str:
    """Return 16 hex digits that depend on the file's name, size and first `read` bytes (all for None), and on `_VERSION`."""
    sha = hashlib.sha256(f"{_VERSION}\0{file.name}\0{file.stat().st_size}\0".encode())
    with file.open("rb") as stream:
        part = stream if read is None else BytesIO(stream.read(read))
        sha.update(hashlib.file_digest(part, "sha256").digest())
    return sha.hexdigest()[:16]


def _is_whole(folder: Path) -> bool:
    """Return whether a folder still has all that was written into it, since anyone may delete it at any time."""
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
    """Delete what killed conversions left."""
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
    """Write a GGUF's model, in float32, and its tokenizer in transformers' format."""
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
    """Write a GGUF's tokenizer in transformers' format, and the facts in its header."""
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
    """Return the arguments by which transformers reads a GGUF."""
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
    """Return the ids that end an answer: the end of a text, and the end of a turn, which transformers doesn't look for."""
    ids = [known] if isinstance(known, int) else list(known or [])
    turn = metadata.get("tokenizer.ggml.eot_token_id")
    if isinstance(turn, int) and turn not in ids:
        ids.append(turn)
    return ids[0] if len(ids) == 1 else ids or None


def _quantization(metadata: Mapping[str, Any]) -> str | None:
    """Return a GGUF's quantisation, such as "Q4_1" or "Q4_K_M"; None if its weights are plain floats."""
    from gguf import LlamaFileType

    number = metadata.get("general.file_type", -1)
    if number in _UNQUANTIZED:
        return None
    try:
        return LlamaFileType(number).name.removeprefix("MOSTLY_")
    except ValueError:  # newer than the package, or not recorded
        return "GGUF"


def _seal(folder: Path, origin: Mapping[str, Any]) -> None:
    """Flush a folder's files to the disk, then record what the folder was made of."""
    sizes = {}
    for path in sorted(folder.iterdir()):
        with path.open("rb") as file:
            os.fsync(file.fileno())
        sizes[path.name] = path.stat().st_size
    text = json.dumps({**origin, "files": sizes}, indent=2, ensure_ascii=False)
    (folder / ORIGIN).write_text(f"{text}\n", encoding="utf-8")
