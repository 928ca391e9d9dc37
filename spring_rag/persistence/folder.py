"""Read and write folders: the saved artifact, and PEFT's prompt-tuning adapters.

An artifact's description is in two places: in `config.json`, for people and the Hub, and in the header of
`virtual_tokens.safetensors`. One file can be replaced in one step, but two can't. If a save is interrupted
between them, the digest in `config.json` doesn't fit the matrix. Then the header's description is used, which came
with the matrix.
"""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor

from spring_rag.backbone import BackboneRecord
from spring_rag.errors import TokensError
from spring_rag.files import parse_json, replace_files
from spring_rag.persistence.artifact import Artifact
from spring_rag.persistence.card import model_card
from spring_rag.persistence.tensors import own_memory, read_safetensors, read_torch, refuse_empty
from spring_rag.prompt import RagTemplate

SCHEMA_VERSION = 1
TENSOR_NAME = "virtual_tokens"
TENSOR_FILE = "virtual_tokens.safetensors"
CONFIG_FILE = "config.json"
CARD_FILE = "README.md"
ADAPTER_CONFIG_FILE = "adapter_config.json"
ADAPTER_FILES = ("adapter_model.safetensors", "adapter_model.bin")
FILES_TO_READ = (TENSOR_FILE, CONFIG_FILE, ADAPTER_CONFIG_FILE, *ADAPTER_FILES)

_HEADER_KEY = "spring_rag"
_CALIBRATION = ("slope", "intercept")
_ADAPTER_TENSOR = "prompt_embeddings"

_MOST_BYTES = 2**20
"""Greatest size of a description. A template of megabytes would be put into every prompt."""


def write_folder(artifact: Artifact, folder: Path) -> None:
    """Write an artifact; see `VirtualTokens.save_pretrained`."""
    refuse_empty(artifact)
    refuse_foreign(folder)
    config = _config(artifact)
    _parsed(
        json.dumps(config, ensure_ascii=False, indent=2).encode(), folder / CONFIG_FILE
    )  # refuse what could not be read back
    tensor = safetensors.torch.save(
        {TENSOR_NAME: artifact.matrix}, metadata={"format": "pt", _HEADER_KEY: json.dumps(config)}
    )
    replace_files(
        folder,
        {
            TENSOR_FILE: tensor,  # first: once it is written, the new artifact is whole
            CONFIG_FILE: (json.dumps(config, indent=2, ensure_ascii=False) + "\n").encode(),
            CARD_FILE: model_card(artifact).encode(),
        },
    )


def refuse_foreign(folder: Path) -> None:
    """Refuse a folder in which an artifact would replace something else: a backbone's config.json, a project's README.

    Raises:
        TokensError: the folder holds such a file.
    """
    if (folder / TENSOR_FILE).exists() or (folder / ADAPTER_CONFIG_FILE).exists():
        return
    foreign = [name for name in (CONFIG_FILE, CARD_FILE) if (folder / name).exists()]
    try:
        ours = "schema_version" in parse_json((folder / CONFIG_FILE).read_bytes())
    except (OSError, ValueError, TypeError):
        ours = False
    if foreign and not ours:
        msg = f"{folder} holds {' and '.join(foreign)} of something else, which virtual tokens would replace; choose an empty or a new folder"
        raise TokensError(msg)


def read_folder(folder: Path) -> Artifact:
    """Read an artifact or a PEFT prompt-tuning adapter.

    Raises:
        TokensError: the folder holds neither, or a damaged one.
    """
    if (folder / TENSOR_FILE).is_file():
        return _read_artifact(folder)
    if (folder / ADAPTER_CONFIG_FILE).is_file():
        return _read_adapter(folder)
    msg = (
        f"{folder} holds no virtual tokens: expected {TENSOR_FILE} and {CONFIG_FILE} (written by "
        f"save_pretrained) or a PEFT prompt-tuning adapter ({ADAPTER_CONFIG_FILE})"
    )
    raise TokensError(msg)


def read_lone_safetensors(path: Path) -> Artifact:
    """Read a safetensors file by itself: one of ours, with the description in its header, or any other with a single tensor.

    Raises:
        TokensError: the file is damaged or holds several tensors, or its header and its matrix don't belong together.
    """
    file = read_safetensors(path)
    header = file.metadata.get(_HEADER_KEY)
    if header is None:
        return Artifact(file.tensor)
    return _build(file.tensor, _parsed(header.encode(), path), path)


def _config(artifact: Artifact) -> dict[str, Any]:
    more: dict[str, Any] = {"after_scaling": True} if artifact.after_scaling else {}
    if artifact.chat_template is not None:
        more["chat_template"] = artifact.chat_template
    if artifact.calibration is not None:
        more["calibration"] = dict(zip(_CALIBRATION, artifact.calibration, strict=True))
    return {
        "schema_version": SCHEMA_VERSION,
        "num_tokens": len(artifact),
        "hidden_size": artifact.hidden_size,
        "digest": artifact.digest,
        "task": artifact.task,
        "backbone": artifact.backbone.to_dict() if artifact.backbone else None,
        "template": artifact.template.to_dict() if artifact.template else None,
        "training": artifact.training,
        **more,
    }


def _read_artifact(folder: Path) -> Artifact:
    config_path = folder / CONFIG_FILE
    if not config_path.is_file():
        msg = f"{folder} has no {CONFIG_FILE}; to use the rows by themselves, load {folder / TENSOR_FILE}"
        raise TokensError(msg)
    config = _read_json(config_path)
    _require_known_schema(config, config_path)
    file = read_safetensors(folder / TENSOR_FILE, TENSOR_NAME)
    header = file.metadata.get(_HEADER_KEY)
    if header is not None and config.get("digest") != Artifact(file.tensor).digest:
        return _build(file.tensor, _parsed(header.encode(), folder / TENSOR_FILE), folder / TENSOR_FILE)
    return _build(file.tensor, config, config_path)


def _build(tensor: Tensor, config: Mapping[str, Any], origin: Path) -> Artifact:
    """Make an artifact of rows and their description.

    Raises:
        TokensError: the description is malformed, or belongs to another matrix.
    """
    _require_known_schema(config, origin)
    try:
        expected = (config["num_tokens"], config["hidden_size"], config["digest"])
        backbone, template, calibration = config["backbone"], config["template"], config.get("calibration")
        described: dict[str, Any] = {
            "backbone": None if backbone is None else BackboneRecord.from_dict(backbone),
            "template": None if template is None else RagTemplate.from_dict(template),
            "training": config["training"],
            "after_scaling": bool(config.get("after_scaling", False)),
            "chat_template": config.get("chat_template"),
            "task": str(config.get("task", "answer")),  # which the first artifacts don't say
            "calibration": None
            if calibration is None
            else tuple(float(calibration[name]) for name in _CALIBRATION),
        }
    except TokensError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        msg = (
            f"the description of virtual tokens in {origin} is malformed ({error!r}); save the artifact again"
        )
        raise TokensError(msg) from error
    artifact = Artifact(tensor, **described)
    found = (len(artifact), artifact.hidden_size, artifact.digest)
    if found != expected:
        msg = (
            f"the matrix and its description in {origin} don't belong together: described are {expected[0]} "
            f"× {expected[1]} with digest {expected[2]}, found are {found[0]} × {found[1]} with {found[2]}; "
            "copy or download the whole folder again"
        )
        raise TokensError(msg)
    return artifact


def _require_known_schema(config: Mapping[str, Any], origin: Path) -> None:
    version = config.get("schema_version")
    if version != SCHEMA_VERSION:
        msg = (
            f"{origin} has schema version {version!r}; this spring-rag reads version {SCHEMA_VERSION}. "
            "If a newer spring-rag wrote it, upgrade; if none did, load the tensor file by itself"
        )
        raise TokensError(msg)


def _read_adapter(folder: Path) -> Artifact:
    """Read an adapter that PEFT's prompt tuning saved.

    PEFT puts its rows beside the output of the embedding layer, so they come after any scaling by it (Gemma's).

    Raises:
        TokensError: it is another kind of adapter, or damaged.
    """
    path = folder / ADAPTER_CONFIG_FILE
    config = _read_json(path)
    kind, n, backbone_id = (
        config.get(k) for k in ("peft_type", "num_virtual_tokens", "base_model_name_or_path")
    )
    if kind != "PROMPT_TUNING":
        msg = f"{folder} is a PEFT adapter of type {kind!r}; only PROMPT_TUNING adapters hold virtual tokens"
        raise TokensError(msg)
    tensor_path = next((folder / name for name in ADAPTER_FILES if (folder / name).is_file()), None)
    if tensor_path is None:
        msg = f"{folder} is a PEFT adapter without its weights: expected {' or '.join(ADAPTER_FILES)}"
        raise TokensError(msg)
    if tensor_path.suffix == ".safetensors":
        tensor = read_safetensors(tensor_path, _ADAPTER_TENSOR).tensor
    else:
        state = read_torch(tensor_path)
        tensor = own_memory(state.get(_ADAPTER_TENSOR) if isinstance(state, dict) else state, tensor_path)
    rows = Artifact(tensor)
    if len(rows) != n:
        msg = f"{path} names {n!r} virtual tokens, but the adapter's weights have {len(rows)} rows"
        raise TokensError(msg)
    record = BackboneRecord(backbone_id, rows.hidden_size) if isinstance(backbone_id, str) else None
    return replace(rows, backbone=record, training={"method": "PEFT prompt tuning"}, after_scaling=True)


def _read_json(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return _parsed(file.read(_MOST_BYTES + 1), path)


def _parsed(text: bytes, origin: Path) -> dict[str, Any]:
    if len(text) > _MOST_BYTES:
        msg = f"{origin} describes virtual tokens in more than {_MOST_BYTES:,} bytes, which is refused: a few thousand do"
        raise TokensError(msg)
    try:
        data = parse_json(text)
    except ValueError as error:
        msg = f"{origin} isn't valid JSON: {error}"
        raise TokensError(msg) from error
    if not isinstance(data, dict):
        msg = f"{origin} must hold a JSON object, not a {type(data).__name__}"
        raise TokensError(msg)
    return data
