"""Write tiny random models and their tokenizer as llama.cpp does."""

from pathlib import Path

import torch
from gguf import GGMLQuantizationType, GGUFWriter, LlamaFileType, TokenType, quants
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

CHAT_TEMPLATE = "{% for message in messages %}<s>{{ message['content'] }}</s>{% endfor %}"
FILE_TYPES = {
    "F32": LlamaFileType.ALL_F32,
    "F16": LlamaFileType.MOSTLY_F16,
    "Q8_0": LlamaFileType.MOSTLY_Q8_0,
    "Q4_0": LlamaFileType.MOSTLY_Q4_0,
    "Q4_1": LlamaFileType.MOSTLY_Q4_1,
}
_CONFIG = {
    "vocab_size": 352,
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "tie_word_embeddings": True,
    "initializer_range": 0.2,
}


def tiny_llama(seed: int = 0) -> LlamaForCausalLM:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return LlamaForCausalLM(LlamaConfig(**_CONFIG)).eval()


def write_gguf(path: Path, model: PreTrainedModel, tokenizer, kind: str = "F32", pre: str = "gpt-2") -> Path:
    """Write a model whose matrices are all stored as `kind`. Families: Llama, Qwen 3, Phi-3, Gemma 2 and 3."""
    config = model.config
    family = config.model_type.removesuffix("_text")
    writer = GGUFWriter(path, family)
    writer.add_name("tiny")
    writer.add_file_type(FILE_TYPES[kind])
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_rope_dimension_count(head_dim)
    ropes = config.rope_parameters
    writer.add_rope_freq_base(ropes.get("full_attention", ropes)["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    if family == "phi3":
        writer.add_rope_scaling_orig_ctx_len(config.original_max_position_embeddings)
    if family.startswith("gemma"):
        writer.add_sliding_window(config.sliding_window)
        writer.add_rope_freq_base_swa(ropes.get("sliding_attention", ropes)["rope_theta"])
    if family == "gemma2":
        writer.add_attn_logit_softcapping(config.attn_logit_softcapping)
        writer.add_final_logit_softcapping(config.final_logit_softcapping)
    _add_tokenizer(writer, tokenizer, config.vocab_size, pre)
    for name, weight in _tensors(model):
        matrix = weight.detach().numpy()
        if kind == "F32" or matrix.ndim == 1:
            writer.add_tensor(name, matrix)
        else:
            stored = GGMLQuantizationType[kind]
            writer.add_tensor(name, quants.quantize(matrix, stored), raw_dtype=stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add_tokenizer(writer: GGUFWriter, tokenizer, vocab_size: int, pre: str) -> None:
    ids = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    tokens = [token for token, _ in ids]
    control = set(tokenizer.all_special_tokens)
    kinds = [TokenType.CONTROL if token in control else TokenType.NORMAL for token in tokens]
    unused = vocab_size - len(tokens)
    merges = tokenizer.backend_tokenizer.model.__getstate__()
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list([*tokens, *(f"[PAD{index}]" for index in range(unused))])
    writer.add_token_types([*kinds, *[TokenType.UNUSED] * unused])
    writer.add_token_merges(_merges(merges))
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_add_bos_token(False)
    writer.add_chat_template(CHAT_TEMPLATE)


def _merges(state: bytes) -> list[str]:
    import json

    return [pair if isinstance(pair, str) else " ".join(pair) for pair in json.loads(state)["merges"]]


_NAMES = {
    "embed_tokens": "token_embd",
    "norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.qkv_proj": "attn_qkv",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.gate_up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_GEMMA_NAMES = {
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}


def _tensors(model: PreTrainedModel):
    config = model.config
    gemma = config.model_type.startswith("gemma")
    names = {**_NAMES, **_GEMMA_NAMES} if gemma else _NAMES
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    for name, weight in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        part = name.removeprefix("model.").removesuffix(".weight")
        block = ""
        if part.startswith("layers."):
            _, layer, part = part.split(".", 2)
            block = f"blk.{layer}."
        theirs = names[part]
        if gemma and theirs.endswith("norm"):
            weight = weight + 1  # Gemma multiplies by one more than what it stores
        if config.model_type == "llama" and theirs in heads:
            # llama.cpp interleaves the halves that transformers rotates
            halves = weight.reshape(heads[theirs], 2, -1, weight.shape[1])
            weight = halves.swapaxes(1, 2).reshape(weight.shape).contiguous()
        yield f"{block}{theirs}.weight", weight
