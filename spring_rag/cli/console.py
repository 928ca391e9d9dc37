"""What the commands say and where: results on stdout, all else on stderr."""

import json
import logging
import os
import sys
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from errno import EACCES, EISDIR, ENOTDIR
from io import TextIOWrapper
from pathlib import Path
from threading import TIMEOUT_MAX, Event, Thread
from typing import TYPE_CHECKING, Any, Self

import typer

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.progress import Progress as RichProgress

_EVERY = "SPRING_RAG_PROGRESS_SECONDS"
"""Environment variable: seconds between two lines of progress, 30 if it isn't set."""


# Artifacts, documents and models may hold any character; a terminal must not obey it, nor show the text in another order.
_COMMANDS = {code: chr(0x2400 + code) for code in range(0x20) if chr(code) not in "\n\t"}
_COMMANDS |= {ord("\r"): "", 0x7F: "␡"} | dict.fromkeys(
    [*range(0x80, 0xA0), *range(0x202A, 0x202F), *range(0x2066, 0x206A)], "�"
)


def clean(text: str) -> str:
    """Make control characters visible, all but line ends and tabs."""
    return text.translate(_COMMANDS)


def say(text: str, end: str = "\n") -> None:
    """Print a result on stdout."""
    print(clean(text), end=end, flush=True)


def show(renderable: "RenderableType") -> None:
    """Print one of rich's tables or panels on stdout."""
    from rich.console import Console
    from rich.segment import Segment, Segments

    console = Console()
    # Only the text is cleaned: rich adds its colours afterwards.
    segments = [Segment(clean(each.text), each.style, each.control) for each in console.render(renderable)]
    console.print(Segments(segments), end="")


def note(message: str) -> None:
    """Print one line for the person at the terminal, on stderr."""
    print(clean(message), file=sys.stderr, flush=True)


def print_json(result: Mapping[str, Any]) -> None:
    """Print the one object of `--json` on stdout; what the terminal can't show, or would obey, is escaped."""
    text = json.dumps(result, ensure_ascii=False, allow_nan=False)
    encoding = sys.stdout.encoding or "utf-8"
    if clean(text) != text or text.encode(encoding, "replace").decode(encoding) != text:
        text = json.dumps(result, allow_nan=False).replace("\x7f", "\\u007f")
    print(text)


def open_closed_streams() -> None:
    """Discard what is written to a closed stream (`2>&-`); Python would print it on the other one, or fail."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open("w", encoding="utf-8"))  # noqa: SIM115 - to the end


def forgive_encodings() -> None:
    """Let a stream that can't write a character, such as an ASCII one, write the character's code instead."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


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


class Progress:
    """Shows on stderr how far a long computation is: a bar in a terminal, else a plain line every half minute.

    Use it as a context, and call it with the number done, the number to do, and what else is worth a look.

    Args:
        description: what is being done, as "answering".
        shown: False says nothing, as in all processes but the first.
        stays: leave the bar on the screen at the end.

    Example:
        >>> with Progress("answering") as report:
        ...     report(120, 600)
    """

    def __init__(self, description: str, *, shown: bool = True, stays: bool = False) -> None:
        from rich.console import Console

        self._description = description
        console = Console(stderr=True)
        in_terminal = console.is_terminal
        self._bar = _bar(description, console, stays) if shown and in_terminal else None
        self._lines = Thread(target=self._print_lines, daemon=True) if shown and not in_terminal else None
        self._ended, self._every = Event(), _seconds_between_lines()
        self._begun, self._before = 0.0, 0
        self._done, self._total, self._more = 0, 0, ""

    def __enter__(self) -> Self:
        self._begun = time.monotonic()
        if self._bar is not None:
            self._bar.start()
        if self._lines is not None:
            self._lines.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        if self._bar is not None:
            self._bar.stop()
        if self._lines is not None:
            self._lines.join()

    def __call__(self, done: int, total: int, more: str = "") -> None:
        """Show a new state."""
        self._done, self._total, self._more = done, total, more
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=done, total=total, more=more)

    def resume(self, done: int, total: int) -> None:
        """Begin where an earlier run stopped; the time left is estimated from this run alone."""
        self._begun, self._before = time.monotonic(), done
        self(done, total)

    def tell(self) -> None:
        """Print the line now, unless a bar is shown."""
        if self._lines is not None:
            note(self._line())

    def _print_lines(self) -> None:
        while not self._ended.wait(self._every):
            self.tell()

    def _line(self) -> str:
        if not self._total:
            return f"{self._description} …"
        left = ""
        if self._done - self._before > 0 and self._done < self._total:
            seconds_each = (time.monotonic() - self._begun) / (self._done - self._before)
            left = f" ({_duration(seconds_each * (self._total - self._done))} left)"
        more = f": {self._more}" if self._more else ""
        return f"{self._description}: {self._done} of {self._total}{left}{more}"


def _seconds_between_lines() -> float:
    text = os.environ.get(_EVERY, "30")
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < TIMEOUT_MAX:
        msg = f"the environment variable {_EVERY} is {text!r}; expected a positive number of seconds"
        raise typer.BadParameter(msg)
    return seconds


def _bar(description: str, console: "Console", stays: bool) -> "RichProgress":
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as RichProgress

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[more]}", markup=False),
        TimeRemainingColumn(),
    )
    bar = RichProgress(*columns, console=console, transient=not stays)
    bar.add_task(description, total=None, more="")
    return bar


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    if minutes < 1:
        return "less than a minute"
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


class _Clean(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return clean(super().format(record))


def show_log() -> None:
    """Show the library's log on stderr; it tells of steps that take long and happen once."""
    handler = logging.StreamHandler()
    handler.setFormatter(_Clean("%(message)s"))
    logger = logging.getLogger("spring_rag")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False


def show_warnings_in_one_line() -> None:
    """Show warnings without their line of source code, which is of no use to a user of the command."""

    def one_line(message: Warning | str, *_: object, **__: object) -> str:
        return clean(f"warning: {' '.join(str(message).split())}") + "\n"

    warnings.formatwarning = one_line


def check_folder(folder: Path) -> None:
    """Check, before a long computation, that its result can be written to a folder.

    Raises:
        OSError: it can't.
    """
    existing = next(one for one in (folder, *folder.absolute().parents) if one.exists())
    if not existing.is_dir():
        raise NotADirectoryError(ENOTDIR, "Not a folder", str(existing))
    if not os.access(existing, os.W_OK):
        raise PermissionError(EACCES, "Can't be written to", str(existing))


def check_file(file: Path, *sources: Path | str | None) -> None:
    """Check the same for a file. One that exists is replaced, unless the result is made from it.

    Raises:
        OSError: it can't be written.
        typer.BadParameter: it is one of the sources.
    """
    for source in sources:
        if source is not None and file.exists() and Path(source).exists() and file.samefile(source):
            msg = f"{file} is read, and would be overwritten; name another file to write"
            raise typer.BadParameter(msg)
    if file.is_dir():
        raise IsADirectoryError(EISDIR, "A folder; expected a file to write", str(file))
    check_folder(file.parent)
