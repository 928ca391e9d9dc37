"""Backbones whose context can't be computed once, or not in a batch, or not from some length on: found out, and trained right."""

import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from test_objective import EMPTY, MIXED, examples_of, family, plain_loss
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from spring_rag.encoding import Encoded
from spring_rag.errors import UnsupportedBackboneError
from spring_rag.splice import InputEmbedding
from spring_rag.training import Example, objective, objectives
from spring_rag.training.choice import proven_way
from spring_rag.training.frozen import frozen
from spring_rag.training.ways import Way, by_context, together, whole

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))
from tiny_families import tiny

LONG = [(101, 5, 3), (41, 8, 2), (62, 1, 4)]


def model_of(model_type: str, **settings: Any) -> PreTrainedModel:
    torch.manual_seed(7)
    small = {
        "vocab_size": 96, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "max_position_embeddings": 256, "pad_token_id": 0,
    }  # fmt: skip
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **{**small, **settings}))
    for parameter in model.parameters():
        parameter.data.add_(torch.randn_like(parameter) * 0.15)
    return model.eval()


def way_of(model: PreTrainedModel, shapes: Sequence[tuple[int, int, int]], k: int = 4) -> Way:
    with frozen(model):
        return proven_way(model, InputEmbedding(model), examples_of(shapes), [[k] * len(shapes)])


def assert_right(model: PreTrainedModel, examples: Sequence[Example], ks: Sequence[int]) -> None:
    """Loss and gradient are those of the whole sequence."""
    embedding = InputEmbedding(model)
    with embedding.table() as table:
        matrix = (table[8:14].detach().clone() + 0.1).requires_grad_()
    loss = objective(model, examples, matrix, ks)
    (gradient,) = torch.autograd.grad(loss, matrix)
    expected = plain_loss(model.eval(), examples, matrix, ks)
    (expected_gradient,) = torch.autograd.grad(expected, matrix)
    assert torch.allclose(loss, expected, rtol=1e-4)
    assert expected_gradient.norm() > 1e-4
    assert (gradient - expected_gradient).norm() <= 1e-4 * expected_gradient.norm()


GPT_NEO = {"num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]]}
LONG_ROPE = {
    "original_max_position_embeddings": 64, "rope_parameters": {
        "rope_type": "longrope", "rope_theta": 1e4, "original_max_position_embeddings": 64, "short_factor": [1.0] * 4,
        "long_factor": [4.0] * 4,
    },
}  # fmt: skip
LLAMA4 = {
    "floor_scale": 50, "attn_scale": 5.0, "attn_temperature_tuning": True, "no_rope_layers": [0, 1], "head_dim": 8,
    "attention_chunk_size": 512, "intermediate_size_mlp": 48, "num_local_experts": 2, "moe_layers": [],
}  # fmt: skip
DYNAMIC = {
    "rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0},
    "max_position_embeddings": 64,
}


@pytest.mark.parametrize(
    ("model_type", "settings"),
    [
        ("gpt_neo", {**GPT_NEO, "window_size": 50}),
        ("phi3", LONG_ROPE),
        ("llama4_text", LLAMA4),
        ("llama", DYNAMIC),
    ],
    ids=["local-attention-in-the-mask", "longrope", "attention-temperature", "dynamic-rope"],
)
def test_what_changes_with_length_is_found_out_where_a_batch_gets_there(
    model_type: str, settings: dict[str, Any]
) -> None:
    model = model_of(model_type, **settings)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        assert way_of(model, [(17, 2, 2), (9, 3, 1)]) is together
    with pytest.warns(UserWarning, match=r"trains slower than others from \d\d tokens on: with .* off, so "):
        assert_right(model, examples_of(LONG), [4, 6, 2])
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        assert_right(model, examples_of(LONG, seed=1), [4, 6, 2])
        assert way_of(model, [(17, 2, 2), (9, 3, 1)]) is together


def test_short_windows_in_the_mask_are_found_out_at_once() -> None:
    model = model_of("gpt_neo", **GPT_NEO, window_size=6)
    with pytest.warns(
        UserWarning,
        match="GPTNeoForCausalLM trains slower than others: with different contexts in one batch its gradient",
    ):
        assert_right(model, examples_of(MIXED), [4, 6, 2])
    assert way_of(model, MIXED) is by_context


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


@pytest.mark.parametrize("name", ["mamba", "rwkv", "recurrent_gemma"])
def test_whole_sequences_where_nothing_can_be_kept(name: str) -> None:
    model = tiny(name)
    with pytest.warns(
        UserWarning, match=r"trains slower than others: with .*, so every step computes the whole sequence"
    ) as said:
        assert_right(model, examples_of(MIXED), [4, 1, 6])
    assert len([one for one in said if "slower" in str(one.message)]) == 1
    assert way_of(model, MIXED) is whole


def test_the_callers_modes_make_no_difference() -> None:
    model = family("llama")
    examples, matrix = examples_of(MIXED), torch.randn(6, 32)
    with warnings.catch_warnings(), torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
        warnings.simplefilter("error", UserWarning)
        objective(model, examples, matrix, 6)
    assert way_of(model, MIXED) is together


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


def test_running_out_of_memory_is_no_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    model = family("llama")
    embedding = InputEmbedding(model)
    inside = model.forward

    def forward(
        inputs_embeds: Tensor, past_key_values: Any = None, use_cache: Any = None, **others: Any
    ) -> Any:
        if past_key_values is not None:
            raise torch.OutOfMemoryError
        return inside(inputs_embeds=inputs_embeds, use_cache=use_cache, **others)

    monkeypatch.setattr(model, "forward", forward)
    with pytest.raises(torch.OutOfMemoryError):
        objective(model, examples_of(MIXED), torch.randn(6, 32), 6, embedding=embedding)
