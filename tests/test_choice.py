"""Test backbones whose context can't be computed once, in a batch, or beyond some length: this is found out, and they are trained right."""

import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from objective_parts import LONG, LONG_ROPE, MIXED, assert_right, examples_of, family, model_of, way_of
from torch import Tensor

from spring_rag.splice import InputEmbedding
from spring_rag.training import objective
from spring_rag.training.ways import by_context, together, whole

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))
from tiny_families import tiny

GPT_NEO = {"num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]]}
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
