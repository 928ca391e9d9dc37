"""What the commands say and where: results on stdout, all else on stderr."""

import json
import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from errno import EACCES, EISDIR, ENOTDIR
from pathlib import Path
from typing import Any


def note(message: str) -> None:
    """One line for the human in front of it, on stderr."""
    print(message, file=sys.stderr, flush=True)


def print_json(result: Mapping[str, Any]) -> None:
    """The one object of `--json`, on stdout."""
    print(json.dumps(result, ensure_ascii=False, allow_nan=False))


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Keep the chatter of libraries off stdout, and most of it off the screen.

    Enter this before they are imported: transformers and huggingface_hub read their settings then. What a user has
    set in the environment stays.
    """
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("ANONYMIZED_TELEMETRY", "false")
    os.environ.setdefault("TQDM_DISABLE", "1")
    with redirect_stdout(sys.stderr):
        yield


@contextmanager
def progress(description: str) -> Iterator[Callable[[int, int], None]]:
    """A progress bar on stderr, for as long as this block runs; nothing where stderr isn't a terminal.

    Yields:
        What to call with the number done and the number to do.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(description, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def show_log() -> None:
    """Let what the library logs be read on stderr: what takes long and happens once."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger = logging.getLogger("spring_rag")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False


def show_warnings_in_one_line() -> None:
    """A warning is for the user of the command, who has no use for a line of source code."""

    def one_line(message: Warning | str, *_: object, **__: object) -> str:
        return f"warning: {' '.join(str(message).split())}\n"

    warnings.formatwarning = one_line


def check_folder(folder: Path) -> None:
    """Find out before a long computation whether its result can be written there.

    Raises:
        OSError: it can't.
    """
    existing = next(one for one in (folder, *folder.absolute().parents) if one.exists())
    if not existing.is_dir():
        raise NotADirectoryError(ENOTDIR, "Not a folder", str(existing))
    if not os.access(existing, os.W_OK):
        raise PermissionError(EACCES, "Can't be written to", str(existing))


def check_file(file: Path) -> None:
    """The same for a file, which is replaced if it exists.

    Raises:
        OSError: it can't be written.
    """
    if file.is_dir():
        raise IsADirectoryError(EISDIR, "A folder; expected a file to write", str(file))
    check_folder(file.parent)
