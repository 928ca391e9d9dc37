"""Test the eight backbones that SPRING's authors name, each with its true configuration scaled down and random weights.

Six have published tables; Phi-3 and Qwen 1.5 are named without one. The real tokenizers of Llama 2 and Mistral are used if
`SPRING_RAG_DATA` has them. Phi-3's is Llama 2's with a few more control tokens. Qwen's isn't available, so a small one replaces it.
"""

import copy
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from spring_rag import SpringModel, VirtualTokens
from spring_rag.data.examples import RagExample
from spring_rag.errors import BackboneMismatchError
from spring_rag.persistence.published import PUBLISHED
from spring_rag.training import TrainingRecipe, train_tokens

_LLAMA = {"vocab_size": 32000, "rms_norm_eps": 1e-5, "max_position_embeddings": 4096, "rope_theta": 10000.0}
_MISTRAL = {
    "vocab_size": 32000,
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 32768,
    "rope_theta": 10000.0,
    "sliding_window": 4096,
}
# Numbers of heads, and of those for keys and values, in the true proportion; widths and layers are a 64th or so.
_SMALL = {"num_hidden_layers": 2, "initializer_range": 0.1, "tie_word_embeddings": False}
_7B = {
    **_SMALL,
    "hidden_size": 64,
    "intermediate_size": 172,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
}
_13B = {
    **_SMALL,
    "hidden_size": 80,
    "intermediate_size": 216,
    "num_attention_heads": 10,
    "num_key_value_heads": 10,
}
_IDS = {"bos_token_id": 1, "eos_token_id": 2}

BACKBONES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "meta-llama/Llama-2-7b-hf": ("llama", "llama-2", {**_LLAMA, **_7B, **_IDS}),
    "meta-llama/Llama-2-7b-chat-hf": ("llama", "llama-2", {**_LLAMA, **_7B, **_IDS}),
    "meta-llama/Llama-2-13b-hf": ("llama", "llama-2", {**_LLAMA, **_13B, **_IDS}),
    "meta-llama/Llama-2-13b-chat-hf": ("llama", "llama-2", {**_LLAMA, **_13B, **_IDS}),
    "mistralai/Mistral-7B-v0.1": (
        "mistral",
        "mistral-7b-v0.1",
        {**_MISTRAL, **_7B, **_IDS, "num_key_value_heads": 2},
    ),
    "mistralai/Mistral-7B-Instruct-v0.1": (
        "mistral",
        "mistral-7b-v0.1",
        {**_MISTRAL, **_7B, **_IDS, "num_key_value_heads": 2},
    ),
    "microsoft/Phi-3-mini-4k-instruct": (
        "phi3",
        "llama-2",
        {
            **_7B,
            "vocab_size": 32064,
            "rms_norm_eps": 1e-5,
            "max_position_embeddings": 4096,
            "original_max_position_embeddings": 4096,
            "sliding_window": 2047,
            "bos_token_id": 1,
            "eos_token_id": 32000,
            "pad_token_id": 32000,
        },
    ),
    "Qwen/Qwen1.5-1.8B-Chat": (
        "qwen2",
        "",
        {
            **_7B,
            "vocab_size": 400,  # 151936 in truth: with a small tokenizer the others are dead weight
            "rms_norm_eps": 1e-6,
            "max_position_embeddings": 32768,
            "rope_theta": 1e6,
            "use_sliding_window": False,
            "max_window_layers": 21,
            "sliding_window": 32768,
        },
    ),
}
PHI_TOKENS = ["<|endoftext|>", "<|assistant|>", "<|placeholder1|>", "<|system|>", "<|end|>", "<|user|>"]
TEMPLATE = "{% for m in messages %}{{ '[INST] ' + m['content'] + ' [/INST]' }}{% endfor %}"
EXAMPLES = [
    RagExample(
        f"When was ship {n} built?", (str(1800 + n),), (f"Ship {n} was built in {1800 + n}.", "It sank.")
    )
    for n in range(12)
]


def tokenizer_of(name: str, folder: str, small: PreTrainedTokenizerFast) -> PreTrainedTokenizerBase:
    if not folder:
        return small
    data = os.environ.get("SPRING_RAG_DATA")
    if not data:
        pytest.skip("SPRING_RAG_DATA isn't set: no real tokenizers")
    tokenizer = AutoTokenizer.from_pretrained(Path(data) / "tokenizers" / folder)
    assert isinstance(tokenizer, PreTrainedTokenizerBase)
    if "Phi-3" in name:
        tokenizer.add_special_tokens({"additional_special_tokens": PHI_TOKENS, "eos_token": PHI_TOKENS[0]})
        assert tokenizer.convert_tokens_to_ids("<|endoftext|>") == 32000
    if "chat" in name.lower() or "instruct" in name.lower():
        tokenizer.chat_template = TEMPLATE
    return tokenizer


def backbone_of(name: str) -> PreTrainedModel:
    kind, _, settings = BACKBONES[name]
    with torch.random.fork_rng():
        torch.manual_seed(sum(map(ord, name)))
        return AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **settings)).eval()


@pytest.mark.parametrize("name", BACKBONES)
def test_trains_saves_loads_and_answers(
    name: str, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    backbone = backbone_of(name)
    backbone.save_pretrained(tmp_path / "backbone")
    tokenizer_of(name, BACKBONES[name][1], tokenizer).save_pretrained(tmp_path / "backbone")
    # As transformers reads it: beside a Qwen model, a tokenizer becomes Qwen's class.
    words = AutoTokenizer.from_pretrained(tmp_path / "backbone")
    chat = bool(words.chat_template)
    before = {key: value.clone() for key, value in backbone.state_dict().items()}
    recipe = TrainingRecipe(
        num_tokens=4, max_steps=4, batch_size=4, learning_rate=0.1, max_length=300, chat=float(chat)
    )
    trained = train_tokens(backbone, words, EXAMPLES, recipe, tmp_path / "tokens")
    assert all(torch.equal(value, before[key]) for key, value in backbone.state_dict().items())

    loaded = SpringModel.from_pretrained(tmp_path / "backbone", tokens=tmp_path / "tokens", device="cpu")
    assert loaded.template().chat == chat
    here = SpringModel(copy.deepcopy(backbone), words, tokens=trained)
    for k in (0, 1, 4):
        asked = ("When was ship 3 built?", EXAMPLES[3].passages)
        assert here.answer(*asked, num_tokens=k, max_new_tokens=8) == loaded.answer(
            *asked, num_tokens=k, max_new_tokens=8
        )
    other = next(one for one in BACKBONES if BACKBONES[one][0] != BACKBONES[name][0])
    with pytest.raises(BackboneMismatchError):
        SpringModel(backbone_of(other), words, tokens=VirtualTokens.from_pretrained(tmp_path / "tokens"))


def test_every_published_table_has_its_backbone_here() -> None:
    assert {table.backbone for table in PUBLISHED.values()} <= set(BACKBONES)
    assert len(BACKBONES) == 8
