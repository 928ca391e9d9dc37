"""The options of every command that loads a backbone."""

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from spring_rag.extras import extra

if TYPE_CHECKING:
    from spring_rag.backends.local import LocalBackend


@dataclass(frozen=True)
class BackboneOptions:
    """Where a backbone runs, and in how many bits."""

    device: Annotated[str, typer.Option(help="auto takes CUDA, else MPS, else the CPU.")] = "auto"
    dtype: Annotated[str, typer.Option(help="Dtype of the backbone: auto, float32, bfloat16, float16.")] = (
        "auto"
    )
    quantize: Annotated[
        Literal["8bit", "4bit"] | None, typer.Option(help="Load the backbone in fewer bits, by bitsandbytes.")
    ] = None
    device_map: Annotated[
        str | None,
        typer.Option(
            metavar="auto|balanced|…",
            help="Spread one copy of the backbone over all devices, when it doesn't fit on one (one process).",
        ),
    ] = None
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of the backbone.")] = None

    trust_remote_code: Annotated[
        bool,
        typer.Option(
            "--trust-remote-code", help="Run the Python code that the backbone brings: only if you trust it."
        ),
    ] = False

    def where(self) -> dict[str, Any]:
        """Return the arguments that say which files are read, for tokenizer and model alike."""
        return {"revision": self.revision, "trust_remote_code": self.trust_remote_code}

    def arguments(self) -> dict[str, Any]:
        """Return the options as arguments of `from_pretrained`. Under torchrun and accelerate launch, "auto" is the process's own GPU.

        Raises:
            MissingExtraError: bitsandbytes isn't installed.
        """
        import torch

        device = self.device
        options: dict[str, Any] = {}
        if self.device_map is not None:
            options["device_map"] = self.device_map
        if self.quantize is not None:
            options["quantization_config"] = _bits(self.quantize)
        if device == "auto" and "LOCAL_RANK" in os.environ and torch.cuda.is_available():
            device = f"cuda:{os.environ['LOCAL_RANK']}"
            if self.quantize is not None and self.device_map is None:
                options["device_map"] = {"": device}
        return {"device": device, "dtype": self.dtype, **self.where(), **options}

    def load(self, model: str) -> "LocalBackend":
        """Load the backbone that a training command names.

        Raises:
            MissingExtraError: bitsandbytes isn't installed, or gguf for a GGUF.
            BackendError: the backbone can't be loaded.
        """
        from spring_rag.backends.local import LocalBackend

        return LocalBackend.from_pretrained(model, **self.arguments())


def _bits(quantize: str) -> Any:
    from importlib import import_module

    import torch
    from transformers import BitsAndBytesConfig

    with extra("quantize"):
        import_module("bitsandbytes")
    if quantize == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16
    )
