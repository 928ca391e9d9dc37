"""`spring-rag serve`: vLLM, started so that it takes virtual tokens."""

import os
import shlex
import sys
from typing import Annotated

import typer

from spring_rag.cli.console import note, quiet_libraries, say

EXTRA_ARGUMENTS = {"allow_extra_args": True, "ignore_unknown_options": True}
"""Context settings of the command: what it doesn't know is vLLM's."""


def serve(
    context: typer.Context,
    model: Annotated[
        str,
        typer.Option(
            metavar="M",
            help="Backbone: Hub id or folder, as vLLM takes it, or a GGUF, which is unpacked for it.",
        ),
    ],
    python: Annotated[
        str, typer.Option(metavar="PATH", help="Python that has vLLM.", show_default="this one")
    ] = sys.executable,
    only_print: Annotated[
        bool, typer.Option("--print", help="Print the line that would start it, and don't.")
    ] = False,
) -> None:
    """Start vLLM so that it takes virtual tokens. Further options are vLLM's own.

    For example: spring-rag serve --model mistralai/Mistral-7B-Instruct-v0.1 --port 8000 --tensor-parallel-size 2

    It listens on this machine only, unless --host names another address (0.0.0.0: all networks). vLLM gets --enable-prompt-embeds,
    --chat-template-content-format openai and a chat template that lays chats out as the model's own does, and takes prompts that are
    laid out already. A --chat-template of yours is used as it is.
    """
    with quiet_libraries():
        from spring_rag.backends.vllm.serving import check_version, serving_command, write_template
        from spring_rag.loading import find

        flags = context.args
        if not only_print:
            check_version(python)
        own = any(flag.split("=")[0].replace("_", "-") == "--chat-template" for flag in flags)
        revision = _revision(flags)
        where = {"revision": revision, "trust_remote_code": "--trust-remote-code" in flags}
        place = find(model, where).place
        template = None if own else write_template(place, where)
        command = serving_command(python, place, template, flags)
    if only_print:
        say(shlex.join(command))
        return
    note(shlex.join(command))
    os.execvp(command[0], command)


def _revision(flags: list[str]) -> str | None:
    """Return the revision of the tokenizer, or of the model, that vLLM is told."""
    for name in ("--tokenizer-revision", "--revision"):
        for index, flag in enumerate(flags):
            if flag.startswith(f"{name}="):
                return flag.partition("=")[2]
            if flag == name and index + 1 < len(flags):
                return flags[index + 1]
    return None
