"""The backbone as training uses it: frozen, without dropout, and with a gradient."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

from torch import nn
from transformers import PreTrainedModel

from spring_rag.splice import evaluating


@contextmanager
def frozen(model: PreTrainedModel) -> Iterator[None]:
    """No gradients into the model's own parameters and no dropout; every flag is put back at the end.

    Gradients still flow through the model to what is put into it.
    """
    trainable = [p for p in model.parameters() if p.requires_grad]
    for parameter in trainable:
        parameter.requires_grad_(False)
    try:
        with evaluating(model), _differentiable(model):
            yield
    finally:
        for parameter in trainable:
            parameter.requires_grad_(True)


@contextmanager
def _differentiable(model: PreTrainedModel) -> Iterator[None]:
    """4-bit layers of bitsandbytes laid out as for training.

    On processors with AVX-512 they pack their weights in evaluation, for a kernel without a gradient: what it gives is
    a constant to autograd, and virtual tokens would stay as they are. A layer in training mode doesn't pack; it has no dropout.
    """
    layers = [module for module in model.modules() if getattr(module, "support_avx512bf16_for_cpu", False)]
    for layer in layers:
        _unpack(layer)
        layer.training = True
    try:
        yield
    finally:
        for layer in layers:
            layer.training = False


def _unpack(layer: nn.Module) -> None:
    weight = cast(Any, layer.weight)
    if getattr(weight.quant_state, "packing_format_for_cpu", False):
        from bitsandbytes.functional import (
            _convert_weight_packed_for_cpu_inverse,  # installed, or no such layer
        )

        weight.data, weight.quant_state = _convert_weight_packed_for_cpu_inverse(
            weight.data, weight.quant_state
        )
