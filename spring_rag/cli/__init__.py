"""The `spring-rag` command.

A command is a module of this package with one function, or with a `typer.Typer` of several; to add one, import it and
name it below. Modules import torch, transformers and chromadb inside their functions only, so that `--help` is quick.
"""

import os
import sys
import traceback
from typing import Annotated

import typer

from spring_rag import __version__
from spring_rag.cli import ask, collections, data, demo, index, playground, serve, tokens, train
from spring_rag.cli import eval as eval_command
from spring_rag.cli.console import (
    forgive_encodings,
    note,
    open_closed_streams,
    say,
    show_log,
    show_warnings_in_one_line,
)
from spring_rag.errors import SpringError

__all__ = ["app", "main"]


# Plain help: in rich's markup a "[1]" or "[chroma]" of a help text would vanish.
app = typer.Typer(
    name="spring-rag",
    help="Trained virtual tokens between a RAG app's context and its question: the same frozen model answers better.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        say(f"spring-rag {__version__}")
        raise typer.Exit


@app.callback()
def _without_command(
    _: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Take the options that stand before any command."""


app.command("demo")(demo.demo)
app.command("index")(index.index)
app.add_typer(collections.app, name="collections")
app.command("ask")(ask.ask)
app.command("playground")(playground.playground)
app.command("train")(train.train)
app.add_typer(data.app, name="data")
app.command("eval")(eval_command.evaluate)
app.command("serve", context_settings=serve.EXTRA_ARGUMENTS)(serve.serve)
app.add_typer(tokens.app, name="tokens")


def main() -> None:
    """Run the command line; exits with 0 when done, 1 when it failed, 2 on wrong usage, 130 when interrupted."""
    open_closed_streams()
    forgive_encodings()
    show_warnings_in_one_line()
    show_log()
    try:
        try:
            app(prog_name="spring-rag")
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        # Whoever read our output has closed it (`spring-rag … | head`). Without this, Python would complain again while exiting.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        if os.environ.get("SPRING_RAG_DEBUG"):
            traceback.print_exc()
        note(f"error: {_one_line(error)}")
        sys.exit(1)


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    if isinstance(error, SpringError):
        return text
    if isinstance(error, OSError):
        return f"{error.strerror}: {error.filename}" if error.strerror and error.filename else text
    return f"unexpected {type(error).__name__}: {text} (for the traceback, set SPRING_RAG_DEBUG=1)"
