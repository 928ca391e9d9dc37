"""Loading the backbone that a training command names."""

import os
from typing import TYPE_CHECKING, Any

from spring_rag.extras import extra

if TYPE_CHECKING:
    from spring_rag.backends.local import LocalBackend


def load_backbone(
    model: str,
    *,
    device: str,
    dtype: str,
    revision: str | None,
    quantize: str | None,
    device_map: str | None,
) -> "LocalBackend":
    """The backbone, on this process's device.

    Args:
        model: Hub id, folder or GGUF.
        device: "auto" takes the process's own GPU under torchrun and accelerate launch.
        dtype: as `LocalBackend.from_pretrained` takes it.
        revision: on the Hub.
        quantize: "8bit", "4bit" or None.
        device_map: as transformers takes it, or None.

    Raises:
        MissingExtraError: bitsandbytes isn't installed, or gguf for a GGUF.
        BackendError: the backbone can't be loaded.
    """
    from spring_rag.backends.local import LocalBackend

    placed = placement(
        device=device, dtype=dtype, revision=revision, quantize=quantize, device_map=device_map
    )
    return LocalBackend.from_pretrained(model, **placed)


def placement(
    *, device: str, dtype: str, revision: str | None, quantize: str | None, device_map: str | None
) -> dict[str, Any]:
    """What `from_pretrained` takes for these options, which are those of `load_backbone`.

    Raises:
        MissingExtraError: bitsandbytes isn't installed.
    """
    import torch

    options: dict[str, Any] = {}
    if device_map is not None:
        options["device_map"] = device_map
    if quantize is not None:
        options["quantization_config"] = _bits(quantize)
    if device == "auto" and "LOCAL_RANK" in os.environ and torch.cuda.is_available():
        device = f"cuda:{os.environ['LOCAL_RANK']}"
        if quantize is not None and device_map is None:
            options["device_map"] = {"": device}
    return {"device": device, "dtype": dtype, "revision": revision, **options}


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
