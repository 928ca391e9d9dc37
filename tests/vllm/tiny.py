"""Make tiny random checkpoints that vLLM's CPU build can run, and token sets for them."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import (
    AutoTokenizer,
    Gemma2Config,
    Gemma3TextConfig,
    GraniteConfig,
    LlamaConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Qwen3Config,
)
from transformers.models.auto.modeling_auto import AutoModelForCausalLM

from spring_rag.tokens import VirtualTokens

_DATA = os.environ.get("SPRING_RAG_DATA")
LLAMA_2 = Path(_DATA, "tokenizers/llama-2") if _DATA else None
"""Folder of the real tokenizer, where there is one."""

# vLLM's CPU attention takes heads of 32 at least. The spread of the weights makes answers differ from prompt to prompt.
_SHAPE = {
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 2048,
    "initializer_range": 0.1,
}

FAMILIES: dict[str, Callable[[dict[str, int]], PreTrainedConfig]] = {
    "llama": lambda ids: LlamaConfig(**ids, **_SHAPE),
    "gemma2": lambda ids: Gemma2Config(**ids, **_SHAPE, query_pre_attn_scalar=32, sliding_window=512),
    "gemma3": lambda ids: Gemma3TextConfig(**ids, **_SHAPE, query_pre_attn_scalar=32, sliding_window=512),
    "granite": lambda ids: GraniteConfig(
        **ids,
        **_SHAPE,
        embedding_multiplier=12.0,
        logits_scaling=0.5,
        residual_multiplier=0.22,
        attention_multiplier=0.1,
    ),
    "qwen3": lambda ids: Qwen3Config(**ids, **_SHAPE),
}


def save_tiny(family: str, folder: Path, tokenizer: PreTrainedTokenizerBase) -> tuple[Path, VirtualTokens]:
    """A checkpoint with random weights, and 50 random virtual tokens for it."""
    ids = {
        "vocab_size": -(-(len(tokenizer) + 8) // 64) * 64,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(FAMILIES[family](ids), dtype=torch.float32)
    _liven(model)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    table = model.get_input_embeddings().weight
    rows = torch.randn(50, table.shape[1], generator=torch.Generator().manual_seed(1)) * table.std()
    return folder, VirtualTokens(rows.detach())


def _liven(model: PreTrainedModel) -> None:
    """Let layers say more than the embedding that they add to: with tied weights a random model would only repeat its last token."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "o_proj" in name or "down_proj" in name:
                parameter.mul_(6)
            elif "post_feedforward" in name:  # Gemma's last word in a layer, whatever stands before it
                parameter.add_(4)


def save_tiny_llama(folder: Path, tokenizer: Path) -> tuple[Path, VirtualTokens]:
    """A Llama for a tokenizer from a folder."""
    return save_tiny("llama", folder, AutoTokenizer.from_pretrained(tokenizer))


def shuffled(tokens: VirtualTokens) -> VirtualTokens:
    """Another set of the same size: the rows from last to first, so that no prefix is shared."""
    return VirtualTokens(tokens.matrix.flip(0), backbone=tokens.backbone, template=tokens.template)
