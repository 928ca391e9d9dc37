"""Test the frozen backbone: its 4-bit layers have a gradient, and are restored afterwards."""

from pathlib import Path

import pytest
import torch
from objective_parts import MIXED, examples_of, way_of
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from spring_rag.training import objective
from spring_rag.training.ways import together

TOY = Path(__file__).parent / "toy" / "backbone"


def test_four_bits_have_a_gradient() -> None:
    """On processors with AVX-512 the weights are packed as soon as the model is read without a graph, for a kernel without one."""
    pytest.importorskip("bitsandbytes")
    quantised = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    model = AutoModelForCausalLM.from_pretrained(
        TOY, dtype=torch.float32, quantization_config=quantised
    ).eval()
    with torch.no_grad():
        model(torch.tensor([[5, 6, 7]]))
    examples = examples_of(MIXED)
    rows = model.get_input_embeddings().weight[5:11].detach().clone().requires_grad_()
    (gradient,) = torch.autograd.grad(objective(model, examples, rows, 6), rows)
    step = 0.03 * gradient / gradient.norm()
    with torch.no_grad():
        change = objective(model, examples, rows + step, 6) - objective(model, examples, rows - step, 6)
    assert change == pytest.approx(0.06 * float(gradient.norm()), rel=0.1)
    assert not any(module.training for module in model.modules())
    assert way_of(model, MIXED) is together
