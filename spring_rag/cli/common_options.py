"""Options that mean the same in every command that has them."""

from typing import Annotated

import typer

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
SkipBad = Annotated[bool, typer.Option("--skip-bad", help="Leave out bad lines, and count them.")]
Seed = Annotated[int, typer.Option(min=0, help="Of every draw.")]

Device = Annotated[str, typer.Option(help="auto takes CUDA, else MPS, else the CPU.")]
Dtype = Annotated[str, typer.Option(help="Of the backbone: auto, float32, bfloat16, float16.")]
Revision = Annotated[
    str | None, typer.Option(help="Branch, tag or commit of the backbone.", show_default=False)
]
