"""A tiny backbone with virtual tokens that record it, and a check of how loading is refused."""

from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from spring_rag.backbone import BackboneRecord
from spring_rag.errors import TokensError
from spring_rag.prompt import RagTemplate
from spring_rag.tokens import VirtualTokens

N, HIDDEN, VOCAB = 6, 32, 160


def tiny_llama(
    seed: int = 0, hidden: int = HIDDEN, vocab: int = VOCAB, dtype: torch.dtype = torch.float32
) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocab,
        hidden_size=hidden,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
    )
    model = LlamaForCausalLM(config)
    nn.Module.to(model, dtype)
    return model


def rows(n: int = N, hidden: int = HIDDEN, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, hidden, generator=torch.Generator().manual_seed(seed))


def table_of(model: PreTrainedModel) -> torch.Tensor:
    table = model.get_input_embeddings().weight
    assert isinstance(table, torch.Tensor)
    return table


def recorded(backbone: LlamaForCausalLM) -> VirtualTokens:
    return VirtualTokens(
        rows(),
        backbone=BackboneRecord.of(backbone, "acme/tiny"),
        template=RagTemplate(instruction="Answer briefly.\n"),
        training={"steps": 3, "loss": [2.5, 1.0], "note": "``` ünïcode | `"},
    )


@pytest.fixture(scope="module")
def backbone() -> LlamaForCausalLM:
    return tiny_llama()


@pytest.fixture
def tokens(backbone: LlamaForCausalLM) -> VirtualTokens:
    return recorded(backbone)


def refused(src: Path | str, *words: str) -> None:
    """Loading fails with one TokensError that says each of `words` and stays readable."""
    with pytest.raises(TokensError) as caught:
        VirtualTokens.from_pretrained(src)
    text = str(caught.value)
    assert all(word in text for word in words), text
    assert "weights_only=False" not in text
