"""Test trials of a model: half precision isn't held against it, a missing gradient is."""

import warnings

import pytest
import torch
from objective_parts import LONG, MIXED, examples_of, family, way_of
from torch import Tensor, nn

from spring_rag.errors import UnsupportedBackboneError
from spring_rag.training import objective
from spring_rag.training.ways import together


@pytest.mark.parametrize("name", ["llama", "gemma3", "gpt2"])
def test_half_precision_is_no_reason(name: str) -> None:
    model = family(name).to(torch.bfloat16)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        assert way_of(model, LONG) is together


class _WithoutGradient(nn.Module):
    """What a kernel without a backward pass is to autograd."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, hidden: Tensor) -> Tensor:
        return self.inner(hidden.detach()).detach()


def test_a_gradient_that_is_not_that_of_the_loss_is_refused() -> None:
    model = family("llama")
    for layer in model.model.layers:
        layer.mlp.down_proj = _WithoutGradient(layer.mlp.down_proj)
        layer.self_attn.o_proj = _WithoutGradient(layer.self_attn.o_proj)
    with pytest.raises(
        UnsupportedBackboneError,
        match="LlamaForCausalLM can't be trained as it is loaded: its gradient isn't that of its loss",
    ):
        objective(model, examples_of(MIXED), torch.randn(6, 32), 6)
    head = family("llama")
    head.lm_head = _WithoutGradient(head.lm_head)
    with pytest.raises(UnsupportedBackboneError, match="isn't that of its loss"):
        objective(head, examples_of(MIXED), torch.randn(6, 32), 6)
