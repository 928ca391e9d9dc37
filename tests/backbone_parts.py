"""Tiny random backbones of every family."""

from __future__ import annotations

from collections.abc import Callable

import torch
from transformers import (
    FalconConfig,
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    GPTNeoXConfig,
    GraniteConfig,
    LlamaConfig,
    MistralConfig,
    OPTConfig,
    Phi3Config,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
)
from transformers.models.auto.modeling_auto import AutoModelForCausalLM

MODEL_VOCAB_SIZE = 352  # real models, too, have more rows than their tokenizer has tokens

_SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "initializer_range": 0.2}
_LLAMA_LIKE = {**_SIZES, "intermediate_size": 64, "num_key_value_heads": 2, "max_position_embeddings": 256}
_IDS = {"vocab_size": MODEL_VOCAB_SIZE, "bos_token_id": 1, "eos_token_id": 2}

FAMILIES: dict[str, Callable[[], PreTrainedConfig]] = {
    "llama": lambda: LlamaConfig(**_IDS, **_LLAMA_LIKE),
    "mistral": lambda: MistralConfig(**_IDS, **_LLAMA_LIKE, sliding_window=8),
    "qwen2": lambda: Qwen2Config(**_IDS, **_LLAMA_LIKE),
    "qwen3": lambda: Qwen3Config(**_IDS, **_LLAMA_LIKE, head_dim=16),
    "phi3": lambda: Phi3Config(**_IDS, **_LLAMA_LIKE, pad_token_id=330),
    "gemma2": lambda: Gemma2Config(
        **_IDS, **_LLAMA_LIKE, head_dim=8, sliding_window=8, query_pre_attn_scalar=8, pad_token_id=0
    ),
    "gemma3": lambda: Gemma3TextConfig(
        **_IDS, **_LLAMA_LIKE, head_dim=8, sliding_window=8, query_pre_attn_scalar=8, pad_token_id=0
    ),
    "gpt2": lambda: GPT2Config(
        **_IDS, n_embd=32, n_layer=2, n_head=4, n_positions=256, initializer_range=0.2, pad_token_id=None
    ),
    "gpt_neox": lambda: GPTNeoXConfig(**_IDS, **_SIZES, intermediate_size=64, max_position_embeddings=256),
    "opt": lambda: OPTConfig(
        **_IDS,
        hidden_size=32,
        word_embed_proj_dim=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        ffn_dim=64,
        max_position_embeddings=256,
        init_std=0.2,
        pad_token_id=1,
    ),
    "falcon-rotary": lambda: FalconConfig(**_IDS, **_SIZES, alibi=False, max_position_embeddings=256),
    "falcon-alibi": lambda: FalconConfig(**_IDS, **_SIZES, alibi=True, max_position_embeddings=256),
    "granite": lambda: GraniteConfig(
        **_IDS,
        **_LLAMA_LIKE,
        embedding_multiplier=12.0,
        logits_scaling=0.5,
        residual_multiplier=0.22,
        attention_multiplier=0.1,
        pad_token_id=0,
    ),
}


def build(
    family: str, *, tied: bool = True, seed: int = 0, dtype: torch.dtype = torch.float32
) -> PreTrainedModel:
    """A tiny model with random weights, the same for the same arguments, without touching the global random state."""
    config = FAMILIES[family]()
    config.tie_word_embeddings = tied
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return AutoModelForCausalLM.from_config(config, dtype=dtype).eval()
