"""Test the cache of a context, with recurrent states in it, and where logits are computed."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from objective_parts import EMPTY, MIXED, assert_right, examples_of, family, plain_loss, way_of
from torch import Tensor

from spring_rag.encoding import Encoded
from spring_rag.splice import InputEmbedding
from spring_rag.training import objective, objectives, ways
from spring_rag.training.ways import together

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))
from tiny_families import tiny

HYBRIDS = [
    "qwen3_next",
    "qwen3_5_text",
    "granitemoehybrid",
    "nemotron_h",
    "falcon_h1",
    "lfm2",
    "bamba",
    "zamba2",
]


@pytest.mark.parametrize("name", HYBRIDS)
def test_states_of_hybrids_are_computed_once(name: str) -> None:
    model = tiny(name)
    assert way_of(model, MIXED) is together
    assert_right(model, examples_of(MIXED), [4, 1, 6])
    assert_right(model, examples_of(EMPTY), [3, 2])


@pytest.mark.parametrize("name", ["qwen3_next", "falcon_h1", "lfm2"])
def test_several_ks_and_questions_share_the_states_of_a_context(name: str) -> None:
    model = tiny(name)
    examples = examples_of(MIXED)
    encoded, target = examples[0]
    examples.append((Encoded((*encoded.context_ids, 7, 9), encoded.slot), target))
    with InputEmbedding(model).table() as table:
        matrix = table[8:14].detach().clone().requires_grad_()
    # One token at most behind the slot: layers that convolve have a way of their own for it.
    for some in (examples, [(Encoded(one.context_ids, one.slot), ids[:1]) for one, ids in examples]):
        found = objectives(model, some, matrix, [1, 6, [1, 2, 3, 4]])
        (gradient,) = torch.autograd.grad(found.sum(), matrix)
        ks = [[1] * 4, [6] * 4, [1, 2, 3, 4]]
        expected = torch.stack([plain_loss(model, some, matrix, one) for one in ks])
        (expected_gradient,) = torch.autograd.grad(expected.sum(), matrix)
        assert torch.allclose(found, expected, rtol=1e-4)
        assert (gradient - expected_gradient).norm() <= 1e-4 * expected_gradient.norm()


@pytest.mark.parametrize("without", ["mask", "argument"])
def test_backbones_with_less_choice_of_logits(without: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, examples, matrix = family("llama"), examples_of(MIXED), torch.randn(6, 32)
    expected = objective(model, examples, matrix, [4, 1, 6])
    if without == "mask":
        monkeypatch.setattr(ways, "_KEEPS_BY_MASK", False)
    else:
        whole = model.forward

        def forward(
            inputs_embeds: Tensor,
            attention_mask: Any = None,
            position_ids: Any = None,
            past_key_values: Any = None,
            use_cache: Any = None,
        ) -> Any:
            return whole(
                inputs_embeds=inputs_embeds,
                attention_mask=attention_mask,
                position_ids=position_ids,
                past_key_values=past_key_values,
                use_cache=use_cache,
            )

        monkeypatch.setattr(model, "forward", forward)
    found = objective(model, examples, matrix, [4, 1, 6], embedding=InputEmbedding(family("llama")))
    assert torch.allclose(found, expected, rtol=1e-6)
