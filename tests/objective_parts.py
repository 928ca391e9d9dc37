"""Tiny models and random examples for training, and the plain loss over the whole sequence to compare with."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from spring_rag.encoding import Encoded
from spring_rag.splice import InputEmbedding
from spring_rag.training import Example, objective
from spring_rag.training.choice import proven_way
from spring_rag.training.frozen import frozen
from spring_rag.training.ways import Way

_SMALL = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
}
_WINDOWED = {"sliding_window": 12, "layer_types": ["sliding_attention", "full_attention"]}

FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "mistral": ("mistral", {"sliding_window": None}),
    "mistral-window": ("mistral", {"sliding_window": 10}),
    "mistral-wide-window": ("mistral", {"sliding_window": 100}),
    "qwen2": ("qwen2", {}),
    "qwen2-window": ("qwen2", {"use_sliding_window": True, "sliding_window": 9, "max_window_layers": 1}),
    "qwen3": ("qwen3", {"head_dim": 8}),
    "phi3": ("phi3", {"sliding_window": None}),
    "phi3-window": ("phi3", {"sliding_window": 11}),
    "gemma2": ("gemma2", {**_WINDOWED, "head_dim": 8, "query_pre_attn_scalar": 8}),
    "gemma3": ("gemma3_text", {**_WINDOWED, "head_dim": 8, "query_pre_attn_scalar": 8}),
    "gpt2": (
        "gpt2",
        {"n_positions": 128, "n_embd": 32, "n_layer": 2, "n_head": 4, "attn_pdrop": 0.3, "embd_pdrop": 0.3},
    ),
    "gpt-neox": ("gpt_neox", {"rotary_pct": 0.5}),
    "opt": ("opt", {"ffn_dim": 48, "word_embed_proj_dim": 16, "dropout": 0.3}),
    "falcon-alibi": (
        "falcon",
        {"alibi": True, "new_decoder_architecture": False, "multi_query": False, "bias": True},
    ),
    "falcon-rotary": ("falcon", {"alibi": False, "new_decoder_architecture": True, "num_kv_heads": 2}),
    "granite": ("granite", {"embedding_multiplier": 3.0, "logits_scaling": 2.0, "residual_multiplier": 0.5}),
    "bloom": ("bloom", {"n_layer": 2, "n_head": 4}),
    "mpt": ("mpt", {"d_model": 32, "n_layers": 2, "n_heads": 4, "max_seq_len": 128}),
}


def family(name: str, **overrides: Any) -> PreTrainedModel:
    """A tiny random model, in training mode and with trainable weights, as a careless caller has it."""
    model_type, settings = FAMILIES[name]
    torch.manual_seed(7)
    model = AutoModelForCausalLM.from_config(
        AutoConfig.for_model(model_type, **{**_SMALL, **settings, **overrides})
    )
    for parameter in model.parameters():
        # Default initialisation is so small that every attention is uniform, and then a wrong mask would go unseen.
        parameter.data.add_(torch.randn_like(parameter) * 0.15)
    return model.train()


def examples_of(
    shapes: Sequence[tuple[int, int, int]], seed: int = 0
) -> list[tuple[Encoded, tuple[int, ...]]]:
    """Random ids; a shape is (context, rest of the prompt, target)."""
    draw = torch.Generator().manual_seed(seed)

    def ids(count: int) -> tuple[int, ...]:
        return tuple(torch.randint(2, 96, (count,), generator=draw).tolist())

    return [(Encoded(ids(context + rest), context), ids(target)) for context, rest, target in shapes]


def plain_loss(model: PreTrainedModel, examples: Any, matrix: Tensor, ks: Sequence[int]) -> Tensor:
    """Context, rows, suffix and target in one sequence per example, nothing cached, nothing padded."""
    embedding = InputEmbedding(model)
    losses = []
    for (encoded, target), k in zip(examples, ks, strict=True):
        before, after = (
            torch.tensor(encoded.context_ids, dtype=torch.long),
            torch.tensor((*encoded.suffix_ids, *target[:-1]), dtype=torch.long),
        )
        inputs = torch.cat([embedding.embed(before), embedding.virtual(matrix[:k]), embedding.embed(after)])
        logits = model(inputs_embeds=inputs[None], use_cache=False).logits[0, -len(target) :]
        losses.append(functional.cross_entropy(logits, torch.tensor(target), reduction="none"))
    return torch.cat(losses).mean()


MIXED = [(23, 5, 3), (9, 8, 1), (31, 2, 4)]
EQUAL = [(17, 5, 3), (17, 8, 1)]
EMPTY = [(0, 5, 3), (14, 6, 2)]
ALL_EMPTY = [(0, 5, 3), (0, 2, 2)]
SLOT_AT_END = [(12, 0, 2), (7, 3, 2)]
# Phi-3's long variants, which rotate all positions otherwise as soon as one is beyond 64.
LONG_ROPE = {
    "original_max_position_embeddings": 64, "rope_parameters": {
        "rope_type": "longrope", "rope_theta": 1e4, "original_max_position_embeddings": 64, "short_factor": [1.0] * 4,
        "long_factor": [4.0] * 4,
    },
}  # fmt: skip
LONG = [(101, 5, 3), (41, 8, 2), (62, 1, 4)]


def model_of(model_type: str, **settings: Any) -> PreTrainedModel:
    """A tiny random model of a type, large enough that a wrong mask shows."""
    torch.manual_seed(7)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **{**_SMALL, **settings}))
    for parameter in model.parameters():
        parameter.data.add_(torch.randn_like(parameter) * 0.15)
    return model.eval()


def way_of(model: PreTrainedModel, shapes: Sequence[tuple[int, int, int]], k: int = 4) -> Way:
    """How a model is trained on examples of these shapes."""
    with frozen(model):
        return proven_way(model, InputEmbedding(model), examples_of(shapes), [[k] * len(shapes)])


def assert_right(
    model: PreTrainedModel,
    examples: Sequence[Example],
    ks: Sequence[int],
    matrix: Tensor | None = None,
    tolerance: float = 1e-4,
) -> Tensor:
    """Loss and gradient are those of the whole sequence; gives the gradient."""
    if matrix is None:
        with InputEmbedding(model).table() as table:
            matrix = (table[8:14].detach().clone() + 0.1).requires_grad_()
    loss = objective(model, examples, matrix, ks)
    (gradient,) = torch.autograd.grad(loss, matrix)
    expected = plain_loss(model.eval(), examples, matrix, ks)
    (expected_gradient,) = torch.autograd.grad(expected, matrix)
    assert torch.allclose(loss, expected, rtol=tolerance)
    assert expected_gradient.norm() > 1e-4
    assert (gradient - expected_gradient).norm() <= tolerance * expected_gradient.norm()
    return gradient
