"""Freeze a backbone for training: no dropout, no gradients of its own, but gradients through it."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

from torch import nn
from transformers import PreTrainedModel

from spring_rag.splice import evaluating


@contextmanager
def frozen(model: PreTrainedModel) -> Iterator[None]:
    """Turn off the parameters' gradients and dropout inside the block, and restore every flag afterwards.

    Gradients still flow through the model to its inputs.
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
    """Keep bitsandbytes' 4-bit layers, inside the block, in the layout that has a gradient.

    In evaluation mode, on processors with AVX-512, these layers pack their weights for a kernel without a gradient: to autograd its
    output is a constant, so virtual tokens would never change. In training mode they don't pack, and they have no dropout.
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
