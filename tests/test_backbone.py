"""Test a backbone's record, and which tables match it."""

import json
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from tokens_parts import HIDDEN, VOCAB, backbone, rows, table_of, tiny_llama, tokens
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaForCausalLM,
)

from spring_rag.backbone import BackboneRecord, Fingerprint
from spring_rag.errors import BackboneMismatchError
from spring_rag.tokens import VirtualTokens

__all__ = ["backbone", "tokens"]  # fixtures


@pytest.fixture
def no_warning() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


class TestBackbone:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
    @pytest.mark.parametrize("loaded", [torch.float32, torch.bfloat16, torch.float16])
    @pytest.mark.usefixtures("no_warning")
    def test_same_backbone_in_another_dtype(self, dtype: torch.dtype, loaded: torch.dtype) -> None:
        record = BackboneRecord.of(tiny_llama(dtype=dtype), "acme/tiny")
        record = BackboneRecord.from_dict(json.loads(json.dumps(record.to_dict())))
        VirtualTokens(rows(), backbone=record).check(table_of(tiny_llama(dtype=loaded)), "/some/copy")

    def test_other_backbone_of_the_same_size_is_named(self, tokens: VirtualTokens) -> None:
        with pytest.raises(BackboneMismatchError) as caught:
            tokens.check(table_of(tiny_llama(seed=1)), "acme/other")
        assert "'acme/tiny'" in str(caught.value)
        assert "'acme/other'" in str(caught.value)
        assert "embedding tables differ" in str(caught.value)

    def test_same_name_does_not_help_another_table(self, tokens: VirtualTokens) -> None:
        with pytest.raises(BackboneMismatchError):
            tokens.check(table_of(tiny_llama(seed=1)), "acme/tiny")

    def test_other_architecture_of_the_same_size(self, tokens: VirtualTokens) -> None:
        torch.manual_seed(0)
        other = GPT2LMHeadModel(GPT2Config(vocab_size=VOCAB, n_embd=HIDDEN, n_layer=1, n_head=2))
        with pytest.raises(BackboneMismatchError, match="embedding tables differ"):
            tokens.check(table_of(other), "acme/gpt2")

    @pytest.mark.parametrize("noise", [0.02, 0.1])
    def test_a_fine_tuned_table_is_another(
        self, backbone: LlamaForCausalLM, tokens: VirtualTokens, noise: float
    ) -> None:
        table = table_of(backbone).detach()
        tuned = table * (1 + noise * torch.randn(table.shape, generator=torch.Generator().manual_seed(3)))
        with pytest.raises(BackboneMismatchError):
            tokens.check(tuned, "acme/tiny-chat")

    def test_shuffled_rows_are_another_table(self, backbone: LlamaForCausalLM, tokens: VirtualTokens) -> None:
        with pytest.raises(BackboneMismatchError):
            tokens.check(table_of(backbone).detach().roll(1, dims=0), "acme/tiny")

    @pytest.mark.usefixtures("no_warning")
    def test_grown_table_is_the_same_backbone(self, tokens: VirtualTokens) -> None:
        grown = tiny_llama()
        grown.resize_token_embeddings(VOCAB + 8)
        tokens.check(table_of(grown), "acme/tiny-with-tokens")

    def test_shrunken_table_is_another(self, backbone: LlamaForCausalLM, tokens: VirtualTokens) -> None:
        with pytest.raises(BackboneMismatchError):
            tokens.check(table_of(backbone)[: VOCAB // 2], "acme/tiny")

    def test_hidden_size(self, tokens: VirtualTokens) -> None:
        with pytest.raises(BackboneMismatchError, match=r"'acme/tiny'.*'acme/wide'.*32 and 64"):
            tokens.check(table_of(tiny_llama(hidden=64)), "acme/wide")
        with pytest.raises(BackboneMismatchError, match=r"32.*'acme/wide'.*64"):
            VirtualTokens(rows()).check(table_of(tiny_llama(hidden=64)), "acme/wide")

    def test_bare_table_attaches_with_one_warning(self, backbone: LlamaForCausalLM) -> None:
        with pytest.warns(UserWarning, match=r"'acme/tiny'.*32.*fits") as caught:
            VirtualTokens(rows()).check(table_of(backbone), "acme/tiny")
        assert len(caught) == 1

    @pytest.mark.usefixtures("no_warning")
    @pytest.mark.parametrize(
        "name",
        [
            "acme/Tiny-7B",
            "mirror/tiny-7b",
            "/models/Tiny-7B/",
            "/cache/models--acme--Tiny-7B/snapshots/0123abcd",
        ],
    )
    def test_names_that_agree_without_a_fingerprint(self, backbone: LlamaForCausalLM, name: str) -> None:
        VirtualTokens(rows(), backbone=BackboneRecord("acme/Tiny-7B", HIDDEN)).check(table_of(backbone), name)

    @pytest.mark.parametrize("name", ["acme/Tiny-7B-AWQ", "/models/download", None, "served-name"])
    def test_names_that_prove_nothing(self, backbone: LlamaForCausalLM, name: str | None) -> None:
        tokens = VirtualTokens(rows(), backbone=BackboneRecord("acme/Tiny-7B", HIDDEN))
        with pytest.warns(UserWarning, match=r"can't verify.*acme/Tiny-7B") as caught:
            tokens.check(table_of(backbone), name)
        assert len(caught) == 1

    @pytest.mark.parametrize("name", ["acme/Tiny-7B-v2x", "other/Huge-7B", "/c/models--o--Huge/snapshots/01"])
    def test_names_that_differ(self, backbone: LlamaForCausalLM, name: str) -> None:
        tokens = VirtualTokens(rows(), backbone=BackboneRecord("acme/Tiny-7B-v1", HIDDEN))
        with pytest.raises(BackboneMismatchError, match=f"'acme/Tiny-7B-v1'.*'{name}'"):
            tokens.check(table_of(backbone), name)

    def test_offloaded_table_has_no_fingerprint(self, tokens: VirtualTokens) -> None:
        with torch.device("meta"):
            offloaded = tiny_llama()
        assert BackboneRecord.of(offloaded, "acme/tiny") == BackboneRecord("acme/tiny", HIDDEN)
        tokens.check(table_of(offloaded), "acme/tiny")
        with pytest.raises(BackboneMismatchError, match="names differ"):
            tokens.check(table_of(offloaded), "acme/other")
        with pytest.warns(UserWarning, match="can't verify"):
            tokens.check(table_of(offloaded), "/models/copy")

    def test_record_takes_the_models_own_name(self, tmp_path: Path) -> None:
        assert BackboneRecord.of(tiny_llama()).model_id is None
        tiny_llama().save_pretrained(tmp_path)
        loaded = LlamaForCausalLM.from_pretrained(tmp_path)
        assert BackboneRecord.of(loaded).model_id == str(tmp_path)
        assert BackboneRecord.of(loaded).fingerprint == BackboneRecord.of(tiny_llama()).fingerprint

    def test_recording_leaves_the_model_alone(self, backbone: LlamaForCausalLM) -> None:
        before = {name: tensor.clone() for name, tensor in backbone.state_dict().items()}
        BackboneRecord.of(backbone)
        assert all(torch.equal(before[name], tensor) for name, tensor in backbone.state_dict().items())
        assert all(p.grad is None and p.requires_grad for p in backbone.parameters())

    @pytest.mark.parametrize(("vocab", "hidden"), [(1, 1), (3, 5), (16, 32), (50_000, 64)])
    def test_fingerprint_of_any_size(self, vocab: int, hidden: int) -> None:
        table = torch.randn(vocab, hidden)
        fingerprint = Fingerprint.of(table)
        again = Fingerprint.from_dict(json.loads(json.dumps(fingerprint.to_dict())))
        assert again == fingerprint
        assert again.matches(table)
        assert not again.matches(table + 0.5)
        assert not again.matches(torch.full_like(table, float("nan")))
