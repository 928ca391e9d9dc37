"""Replace files in one step, read other people's files, and find the user's cache folder."""

import json
import os
import stat
import tempfile
from collections.abc import Mapping
from errno import EINVAL
from pathlib import Path
from typing import Any


def replace_files(folder: Path, contents: Mapping[str, bytes]) -> None:
    """Write files into a folder so that each is, at any moment, wholly old or wholly new.

    First all are written and flushed to a temporary folder, so that a full disk changes nothing. Then they are moved into place, in the
    order given.

    Raises:
        OSError: they can't be written; the error names at least the folder.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".saving-") as aside:
            for name, content in contents.items():
                with Path(aside, name).open("xb") as file:
                    file.write(content)
                    file.flush()
                    os.fsync(file.fileno())
            for name in contents:
                os.replace(Path(aside, name), folder / name)
    except OSError as error:
        if error.filename is not None:
            raise
        # A full disk is reported without a file name.
        raise type(error)(error.errno, error.strerror, str(folder)) from error


def read_text(path: Path) -> str:
    """Read a UTF-8 text file without its byte order mark. Pipes are read to their end; devices, which have no end, are refused.

    Raises:
        OSError: it can't be read, or is a device.
        UnicodeDecodeError: it isn't UTF-8.
    """
    mode = path.stat().st_mode
    if stat.S_ISCHR(mode) or stat.S_ISBLK(mode):
        raise OSError(EINVAL, "A device; expected a file", str(path))
    return path.read_text(encoding="utf-8-sig")


def parse_json(text: str | bytes) -> Any:
    """Parse a JSON text.

    Raises:
        ValueError: it isn't JSON, or is nested too deeply.
    """
    try:
        return json.loads(text)
    except RecursionError as error:
        msg = "nested too deeply"
        raise ValueError(msg) from error


def as_json(values: Mapping[str, Any]) -> dict[str, Any]:
    """Copy values by way of JSON, so that what is kept equals what is saved.

    Raises:
        ValueError: a value that JSON can't hold, such as a number that isn't finite or half a character.
    """
    try:
        text = json.dumps(dict(values), ensure_ascii=False, allow_nan=False).encode()
    except (TypeError, RecursionError) as error:
        raise ValueError(str(error)) from error
    copy: dict[str, Any] = json.loads(text)
    return copy


def cache_folder(name: str) -> Path:
    """Return the folder of this name in the user's cache, for what can be made again."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "spring-rag" / name
