"""Load virtual tokens from a path, a published name or a Hub id."""

import os
from dataclasses import replace
from pathlib import Path

from spring_rag.backbone import BackboneRecord, is_hub_id
from spring_rag.errors import TokensError
from spring_rag.persistence.artifact import Artifact
from spring_rag.persistence.folder import (
    FILES_TO_READ,
    read_folder,
    read_lone_safetensors,
)
from spring_rag.persistence.hub import fetch_files
from spring_rag.persistence.published import PUBLISHED, PUBLISHED_NUM_TOKENS, PUBLISHED_REPO
from spring_rag.persistence.tensors import read_pt

_TORCH_SUFFIXES = (".pt", ".pth", ".bin")
_FILE_SUFFIXES = (".safetensors", *_TORCH_SUFFIXES)


def load(src: str | os.PathLike[str], *, revision: str | None, token: str | None) -> Artifact:
    """Load virtual tokens from what `src` names; see `VirtualTokens.from_pretrained`."""
    path = Path(os.path.expanduser(src))
    if path.is_dir():
        return read_folder(path)
    if path.is_file():
        return _read_file(path)
    name = os.fspath(src)
    if name in PUBLISHED:
        return _load_published(name, revision=revision, token=token)
    if isinstance(src, str) and path.suffix not in _FILE_SUFFIXES and is_hub_id(name):
        return _load_from_hub(name, revision=revision, token=token)
    msg = (
        f"no virtual tokens at {name!r}: it is neither a folder or file here, nor a Hub id (owner/name), "
        f"nor a published name ({', '.join(PUBLISHED)})"
    )
    raise TokensError(msg)


def _read_file(path: Path) -> Artifact:
    if path.suffix == ".safetensors":
        return read_lone_safetensors(path)
    if path.suffix in _TORCH_SUFFIXES:
        return Artifact(read_pt(path))
    msg = f"{path} has no suffix that virtual tokens are saved with: expected {', '.join(_FILE_SUFFIXES)}"
    raise TokensError(msg)


def _load_published(name: str, *, revision: str | None, token: str | None) -> Artifact:
    """Download one of the authors' tables and bind it to its backbone.

    Raises:
        TokensError: the Hub can't be reached, or the file isn't the table of that backbone.
    """
    table = PUBLISHED[name]
    path = fetch_files(PUBLISHED_REPO, [table.filename], revision=revision, token=token) / table.filename
    if not path.is_file():
        msg = f"can't load {name!r}: the Hub repository {PUBLISHED_REPO!r} has no file {table.filename}"
        raise TokensError(msg)
    rows = Artifact(read_pt(path))
    expected = (PUBLISHED_NUM_TOKENS, table.hidden_size)
    found = (len(rows), rows.hidden_size)
    if found != expected:
        msg = (
            f"the table {name!r} ({table.filename} of {PUBLISHED_REPO}) must be {expected[0]} × "
            f"{expected[1]}, the hidden size of {table.backbone}; the file there is {found[0]} × {found[1]}"
        )
        raise TokensError(msg)
    return replace(
        rows,
        backbone=BackboneRecord(table.backbone, table.hidden_size),
        training={"source": f"{PUBLISHED_REPO}/{table.filename}"},
    )


def _load_from_hub(repo_id: str, *, revision: str | None, token: str | None) -> Artifact:
    folder = fetch_files(repo_id, FILES_TO_READ, revision=revision, token=token)
    try:
        return read_folder(folder)
    except TokensError as error:
        hint = f"; its tables load by name: {', '.join(PUBLISHED)}" if repo_id == PUBLISHED_REPO else ""
        msg = f"the Hub repository {repo_id!r} can't be loaded as virtual tokens{hint}: {error}"
        raise TokensError(msg) from error
