"""`spring-rag tokens`: look into virtual tokens, and write them as the authors' `.pt`."""

from pathlib import Path
from typing import Annotated

import typer

from spring_rag.cli.console import check_file, print_json, quiet_libraries, say
from spring_rag.cli.options import Json
from spring_rag.errors import counted

app = typer.Typer(
    help="Look into virtual tokens, or convert them.", no_args_is_help=True, rich_markup_mode=None
)

TokensSource = Annotated[
    str,
    typer.Argument(
        metavar="SRC", help="A saved folder, a .safetensors or .pt file, a Hub id, or a published name."
    ),
]


@app.command()
def show(
    src: TokensSource,
    json: Json = False,
) -> None:
    """Show what is known about virtual tokens: size, backbone, template, training."""
    with quiet_libraries():
        from spring_rag.prompt import RagTemplate
        from spring_rag.tokens import VirtualTokens

        tokens = VirtualTokens.from_pretrained(src)
    facts = {
        "num_tokens": len(tokens),
        "hidden_size": tokens.hidden_size,
        "backbone": tokens.backbone.model_id if tokens.backbone else None,
        "digest": tokens.digest,
        "template": (tokens.template or RagTemplate()).to_dict(),
        "training": tokens.training,
    }
    if json:
        print_json(facts)
        return
    for name, value in facts.items():
        if isinstance(value, dict):
            say(f"{name}:")
            for key, entry in value.items():
                say(f"    {key}: {entry!r}")
        else:
            say(f"{name}: {'not recorded' if value is None else value}")


@app.command()
def export(
    src: TokensSource,
    out: Annotated[
        Path, typer.Argument(metavar="OUT.pt", help="File to write; one that exists is replaced.")
    ],
) -> None:
    """Write virtual tokens as the SPRING authors' .pt file: one float tensor, no record of the backbone."""
    if out.suffix != ".pt":
        msg = f"{out} must end in .pt"
        raise typer.BadParameter(msg, param_hint="OUT.pt")
    check_file(out, src)
    with quiet_libraries():
        from spring_rag.tokens import VirtualTokens

        tokens = VirtualTokens.from_pretrained(src)
        tokens.save_pt(out)
    say(f"{counted(len(tokens), 'virtual token')} of hidden size {tokens.hidden_size} written to {out}")
