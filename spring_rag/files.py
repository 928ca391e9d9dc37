"""Files that are replaced as a whole, and the user's cache folder."""

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path


def replace_files(folder: Path, contents: Mapping[str, bytes]) -> None:
    """Write files into a folder so that each is, at any moment, wholly old or wholly new.

    All are written and flushed aside first, so a full disk changes nothing; then they take their places in
    the order given.

    Raises:
        OSError: they can't be written; names the folder at least.
    """
    try:
        _replace_files(folder, contents)
    except OSError as error:
        if error.filename is not None:
            raise
        # As when the disk is full.
        raise type(error)(error.errno, error.strerror, str(folder)) from error


def _replace_files(folder: Path, contents: Mapping[str, bytes]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".saving-") as aside:
        for name, content in contents.items():
            with Path(aside, name).open("xb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        for name in contents:
            os.replace(Path(aside, name), folder / name)


def cache_folder(name: str) -> Path:
    """The part of the user's cache folder that has this name; what lies there can be made again."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "spring-rag" / name
