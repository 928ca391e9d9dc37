"""Write docs/commands.md from the command line's own help: `python docs/scripts/commands.py [--check]`."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

from spring_rag.cli import app

PAGE = Path(__file__).parents[1] / "commands.md"
WIDTH = 100
INTRODUCTION = """\
# Commands

<!-- Written by `make docs-update`; change the help texts in spring_rag/cli instead. -->

Every command prints its result on standard output and everything else on standard error. With `--json` the result is one JSON object.
The exit code is 0 when it is done, 1 when it failed (one line on standard error says why), 2 on wrong usage, and 130 when it
was interrupted.
"""


def helps(command: Any, path: str, parent: Any = None) -> Iterator[tuple[str, str]]:
    """Yield the command line and the help text of a command and of all its subcommands."""
    context = command.context_class(
        command, info_name=path, parent=parent, terminal_width=WIDTH, max_content_width=WIDTH
    )
    yield context.command_path, command.get_help(context)
    for name, child in getattr(command, "commands", {}).items():
        yield from helps(child, name, context)


def page() -> str:
    """Return the whole page."""
    command = typer.main.get_command(app)
    sections = [
        f"## `{line}`\n\n```text\n{text.rstrip()}\n```\n" for line, text in helps(command, "spring-rag")
    ]
    return "\n".join([INTRODUCTION, *sections])


def main() -> None:
    """Write the page; with `--check`, only check whether it is up to date."""
    if "--check" not in sys.argv[1:]:
        PAGE.write_text(page(), encoding="utf-8")
    elif PAGE.read_text(encoding="utf-8") != page():
        sys.exit(f"docs/{PAGE.name} is stale; write it again: make docs-update")


if __name__ == "__main__":
    main()
