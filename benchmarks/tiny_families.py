"""Make a tiny random model of any causal family of the installed transformers, from its config class.

Settings of size are recognised by their names; `SPECIAL` has what else a family needs.
"""

import re
from dataclasses import MISSING, fields
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

FAMILIES = sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
VOCAB = 96

_SIZES: list[tuple[str, int]] = [
    (r"(encoder|decoder|num|n)_?(hidden|h|mtp|nextn_predict)?_?layers?|num_blocks|layer_num", 4),
    (r"num_(key_value|kv)_heads|num_key_value_groups|multi_query_group_num", 2),
    (r"(num|n|encoder|decoder)_?(attention|query)?_?heads?|linear_num_(key|value)_heads", 4),
    (r"mamba_n_heads|mamba_num_heads", 8),
    (r"mamba_d_head|mamba_head_dim|mamba_d_state|ssm_state_size|state_size", 16),
    (r"mamba_d_ssm", 128),
    (r"n_groups|mamba_n_groups", 1),
    (r".*chunk_size", 8),
    (r"qk_rope_head_dim|rotary_dim|index_rope_head_dim", 8),
    (r"head_dim|.*_head_dim|d_kv|head_size|attention_head_size", 16),
    (
        r"hidden_size|d_model|n_embd|dim|embed_dim|embedding_size|hidden_dim|width|lru_width|attention_hidden_size",
        64,
    ),
    (r"(.*_)?intermediate_size|.*ffn_dim|d_ff|n_inner|ffn_hidden_size|dim_ff|.*_inner_dim|ffn_size", 64),
    (r"(n|num)_(routed_|local_)?experts|moe_num_experts", 4),
    (r"num_experts_per_tok(en)?|moe_k|moe_top_?k|top_k_experts|num_selected_experts", 2),
    (r"n_group|topk_group|n_shared_experts|num_shared_experts|moe_num_shared_experts", 1),
    (r"(q|kv|o)_lora_rank|.*_lora_rank|.*lora_dim", 16),
    (
        r"max_position_embeddings|n_positions|max_seq_len|n_ctx|max_sequence_length|max_target_positions|max_source_positions",
        512,
    ),
    (r"sliding_window|attention_window_size|local_attention_window|window_size", 12),
    (r"attention_chunk_size", 16),
    (r"image_size", 32),
    (r"vocab_size|.*_vocab_size|vocab_size_per_layer_input|codebook_size", VOCAB),
]

_HYBRID = ["linear_attention", "hybrid", "linear_attention", "hybrid"]
_INDEXER = {
    "indexer_n_heads": 2,
    "indexer_kv_heads": 1,
    "indexer_head_dim": 16,
    "indexer_budget": 16,
    "indexer_compress_ratio": 4,
}
_DOTS3 = {"num_key_value_heads": 4, "per_layer_config": {}, "head_dim": 24}
SPECIAL: dict[str, dict[str, Any]] = {
    "bailing_hybrid": {"layer_types": ["linear_attention", "full_attention"] * 2},
    "bamba": {"attn_layer_indices": [1, 3]},
    "deepseek_v2": {"num_experts_per_tok": 2},
    "dots1": {
        "num_experts_per_tok": 2,
        "n_routed_experts": 4,
        "n_shared_experts": 1,
        "n_group": 1,
        "topk_group": 1,
    },
    "dots3_note": _DOTS3,
    "dots3_note_text": _DOTS3,
    "gemma3n_text": {
        "num_kv_shared_layers": 2,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "activation_sparsity_pattern": [0.0] * 4,
    },
    "gpt_neo": {"attention_types": [[["global", "local"], 2]]},
    "granitemoehybrid": {"layer_types": ["linear_attention", "full_attention"] * 2},
    "hunyuan_v1_dense": {"head_dim": 16},
    "hunyuan_v1_moe": {"head_dim": 16},
    "lfm2": {"layer_types": ["conv", "full_attention"] * 2},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 2},
    "longcat_flash": {
        "num_layers": 2,
        "moe_topk": 2,
        "zero_expert_num": 2,
        "expert_ffn_hidden_size": 32,
        "ffn_hidden_size": 64,
    },
    "mamba2": {"num_heads": 8, "head_dim": 16},
    "ministral": {"head_dim": 16},
    "moshi": {"audio_vocab_size": VOCAB},
    "nemotron": {"num_key_value_heads": 2},
    "qwen4_exp_text": {"ngram_vocab_size_base": 97, "split_ngram_parts": 1, **_INDEXER},
    "reformer": {"is_decoder": True, "axial_pos_embds": False},
    "xlm": {"n_words": VOCAB, "emb_dim": 64},
    "zamba": {"layers_block_type": _HYBRID},
    "zamba2": {"layers_block_type": _HYBRID},
}
"""What a family's config needs beside small sizes."""


def tiny(family: str) -> PreTrainedModel:
    """Make a float32 model with random weights, always the same ones, large enough that a wrong mask shows."""
    torch.manual_seed(7)
    model = AutoModelForCausalLM.from_config(tiny_config(CONFIG_MAPPING[family], SPECIAL.get(family, {})))
    for parameter in model.parameters():
        if parameter.is_floating_point():
            parameter.data.add_(torch.randn_like(parameter) * 0.1)
    ready: PreTrainedModel = model.float().eval()
    return ready


def tiny_config(kind: type[PreTrainedConfig], special: dict[str, Any] | None = None) -> PreTrainedConfig:
    """Make a config of this class with small sizes, also in its parts."""
    chosen: dict[str, Any] = {}
    for one in fields(kind):
        default = None if one.default is MISSING else one.default
        if (part := kind.sub_configs.get(one.name)) is not None and hasattr(part, "sub_configs"):
            if part.__name__ != "AutoConfig":
                chosen[one.name] = tiny_config(part, SPECIAL.get(part.model_type)).to_dict()
            continue
        if isinstance(default, bool) or not isinstance(default, int):
            continue
        if one.name.endswith("_token_id") or one.name.endswith("_token_index"):
            chosen[one.name] = default if default < VOCAB else VOCAB - 1
            continue
        for pattern, size in _SIZES:
            if re.fullmatch(pattern, one.name) and default > 0:
                chosen[one.name] = min(default, size)
    sizes = {one.name: one.default for one in fields(kind)}
    if "num_key_value_heads" in chosen and sizes["num_key_value_heads"] == sizes.get("num_attention_heads"):
        chosen["num_key_value_heads"] = chosen["num_attention_heads"]
    return kind(**{**chosen, **(special or {})})
