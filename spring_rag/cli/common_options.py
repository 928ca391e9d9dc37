"""Options that mean the same in every command that has them."""

from typing import Annotated, Literal

import typer

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
SkipBad = Annotated[bool, typer.Option("--skip-bad", help="Leave out bad lines, and count them.")]
Seed = Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Of every draw.")]

Device = Annotated[str, typer.Option(help="auto takes CUDA, else MPS, else the CPU.")]
Dtype = Annotated[str, typer.Option(help="Of the backbone: auto, float32, bfloat16, float16.")]
Revision = Annotated[
    str | None, typer.Option(help="Branch, tag or commit of the backbone.", show_default=False)
]
Quantize = Annotated[
    Literal["8bit", "4bit"] | None,
    typer.Option(help="Load the backbone in fewer bits, by bitsandbytes.", show_default=False),
]
DeviceMap = Annotated[
    str | None,
    typer.Option(
        metavar="auto|balanced|…",
        help="Spread one copy of the backbone over all devices, when it doesn't fit on one (one process).",
        show_default=False,
    ),
]
