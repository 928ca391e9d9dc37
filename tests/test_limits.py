"""Test how long a prompt may be according to configs: the same for inference and training."""

import pytest
from transformers import (
    BloomConfig,
    Gemma3Config,
    GPT2Config,
    LlamaConfig,
    MptConfig,
    Phi3Config,
    PreTrainedConfig,
    Qwen2Config,
)

from spring_rag.limits import context_length, longest_decides_positions, position_switch

YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 256}
LONGROPE = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 48, "long_factor": [2.0] * 48}


def by_layers(*kinds: dict[str, object]) -> PreTrainedConfig:
    """A config with other rotary embeddings for each type of layer, as Gemma 3 has them."""
    config = LlamaConfig(max_position_embeddings=256)
    config.rope_parameters = dict(zip(("full_attention", "sliding_attention"), kinds, strict=True))
    return config


PLAIN = {"rope_type": "default", "rope_theta": 1e4}


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (LlamaConfig(), False),
        (LlamaConfig(rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}), True),
        (LlamaConfig(rope_parameters={"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}), False),
        (
            Phi3Config(
                original_max_position_embeddings=64,
                rope_parameters={
                    "rope_type": "longrope",
                    "rope_theta": 1e4,
                    "short_factor": [1.0] * 48,
                    "long_factor": [2.0] * 48,
                },
            ),
            True,
        ),
    ],
)
def test_models_whose_longest_row_decides_for_all(config, expected):
    assert longest_decides_positions(config) is expected


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (LlamaConfig(max_position_embeddings=256), 256),
        (GPT2Config(n_positions=256), 256),
        (MptConfig(max_seq_len=256), 256),
        (PreTrainedConfig(seq_length=256), 256),
        (BloomConfig(), None),
        (Qwen2Config(max_position_embeddings=256, rope_parameters=YARN), 1024),
        (by_layers(YARN, PLAIN), 1024),
        (
            Phi3Config(
                max_position_embeddings=512, original_max_position_embeddings=64, rope_parameters=LONGROPE
            ),
            512,
        ),
        (Gemma3Config(text_config={"max_position_embeddings": 256}), 256),
    ],
)
def test_context_length(config: PreTrainedConfig, expected: int | None) -> None:
    assert context_length(config) == expected


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (LlamaConfig(), None),
        (Phi3Config(original_max_position_embeddings=64, rope_parameters=LONGROPE), 64),
        (Phi3Config(original_max_position_embeddings=64), 64),
        (
            LlamaConfig(rope_parameters={**LONGROPE, "original_max_position_embeddings": 64}),
            64,
        ),
        (by_layers({**LONGROPE, "original_max_position_embeddings": 64}, PLAIN), 64),
        # As DeepSeek's: YaRN stretches all lengths alike.
        (LlamaConfig(original_max_position_embeddings=64, rope_parameters=YARN), None),
        (by_layers(YARN, PLAIN), None),
    ],
)
def test_position_switch(config: PreTrainedConfig, expected: int | None) -> None:
    assert position_switch(config) == expected
