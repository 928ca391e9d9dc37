"""A tiny random Llama and its tokenizer, written as llama.cpp writes them."""

from pathlib import Path

import torch
from gguf import GGMLQuantizationType, GGUFWriter, LlamaFileType, TokenType, quants
from transformers import LlamaConfig, LlamaForCausalLM

CHAT_TEMPLATE = "{% for message in messages %}<s>{{ message['content'] }}</s>{% endfor %}"
FILE_TYPES = {
    "F32": LlamaFileType.ALL_F32,
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


def write_gguf(path: Path, model: LlamaForCausalLM, tokenizer, kind: str = "F32", pre: str = "gpt-2") -> Path:
    """Write a model whose matrices are all stored as `kind`."""
    config = model.config
    writer = GGUFWriter(path, "llama")
    writer.add_name("tiny")
    writer.add_file_type(FILE_TYPES[kind])
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
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


def _tensors(model: LlamaForCausalLM):
    config = model.config
    names = {
        "input_layernorm": "attn_norm",
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "post_attention_layernorm": "ffn_norm",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
    }
    weights = model.state_dict()
    yield "token_embd.weight", weights["model.embed_tokens.weight"]
    yield "output_norm.weight", weights["model.norm.weight"]
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    for layer in range(config.num_hidden_layers):
        for ours, theirs in names.items():
            weight = weights[f"model.layers.{layer}.{ours}.weight"]
            if theirs in heads:  # llama.cpp interleaves the halves that transformers rotates
                halves = weight.reshape(heads[theirs], 2, -1, weight.shape[1])
                weight = halves.swapaxes(1, 2).reshape(weight.shape).contiguous()
            yield f"blk.{layer}.{theirs}.weight", weight
