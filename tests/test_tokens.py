"""Test VirtualTokens: which matrices are allowed, and slicing."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tokens_parts import HIDDEN, N, backbone, rows, tokens
from torch import nn

from spring_rag.backbone import BackboneRecord
from spring_rag.errors import TokensError
from spring_rag.tokens import VirtualTokens

__all__ = ["backbone", "tokens"]  # fixtures


class TestMatrix:
    def test_is_a_private_float32_copy(self) -> None:
        source = rows().to(torch.bfloat16)
        tokens = VirtualTokens(source)
        source.zero_()
        assert tokens.matrix.dtype == torch.float32
        assert torch.equal(tokens.matrix, rows().to(torch.bfloat16).float())
        assert (len(tokens), tokens.hidden_size) == (N, HIDDEN)

    def test_parameter_leaves_no_graph(self) -> None:
        tokens = VirtualTokens(nn.Parameter(rows()))
        assert not tokens.matrix.requires_grad
        assert type(tokens.matrix) is torch.Tensor

    @pytest.mark.parametrize(
        ("matrix", "word"),
        [
            (torch.zeros(4), "two dimensions"),
            (torch.zeros(2, 3, 4), "two dimensions"),
            (torch.zeros(0, 4), "empty"),
            (torch.zeros(4, 0), "empty"),
            (torch.ones(2, 3, dtype=torch.int64), "float"),
            (torch.ones(2, 3, dtype=torch.complex64), "float"),
            (torch.ones(2, 3).to_sparse(), "dense"),
            (torch.empty(2, 3, device="meta"), "without values"),
            (torch.tensor([[0.0, 1.0], [float("nan"), 1.0]]), "row 1"),
            (torch.tensor([[0.0, float("inf")]]), "finite"),
            (torch.tensor([[1e300]], dtype=torch.float64), "finite"),
            ([[1.0]], "list"),
        ],
    )
    def test_refuses(self, matrix: Any, word: str) -> None:
        with pytest.raises(TokensError, match=word):
            VirtualTokens(matrix)

    def test_refuses_a_width_that_is_not_the_backbones(self) -> None:
        with pytest.raises(TokensError, match=r"acme/x.*4096.*32"):
            VirtualTokens(rows(), backbone=BackboneRecord("acme/x", 4096))

    @pytest.mark.parametrize("training", [{"loss": float("nan")}, {"path": Path("x")}, {"x": {1, 2}}])
    def test_refuses_training_that_is_not_json(self, training: dict[str, Any]) -> None:
        with pytest.raises(TokensError, match="training"):
            VirtualTokens(rows(), training=training)

    def test_training_is_a_copy(self) -> None:
        training = {"ks": (1, 2)}
        tokens = VirtualTokens(rows(), training=training)
        training["ks"] = (9, 9)
        assert tokens.training == {"ks": [1, 2]}

    def test_digest_changes_with_value_and_shape(self) -> None:
        changed = rows()
        changed[-1, -1] += 1e-3
        matrices = [rows(), changed, rows().reshape(N // 2, HIDDEN * 2), rows()[:-1]]
        digests = [VirtualTokens(m).digest for m in matrices]
        assert len(set(digests)) == len(digests)
        assert all(len(d) == 16 for d in digests)
        assert digests[0] == VirtualTokens(rows().double()).digest


class TestSlicing:
    @pytest.mark.parametrize("k", range(N + 1))
    def test_prefix_keeps_rows_and_records(self, tokens: VirtualTokens, k: int) -> None:
        prefix = tokens[:k]
        assert len(prefix) == k
        assert prefix.hidden_size == HIDDEN
        assert torch.equal(prefix.matrix, tokens.matrix[:k])
        assert prefix.backbone == tokens.backbone
        assert prefix.template == tokens.template
        assert prefix.training == tokens.training

    def test_prefix_of_prefix(self, tokens: VirtualTokens) -> None:
        assert tokens[:4][:2].digest == tokens[0:2].digest == tokens[:2:1].digest
        assert tokens[:].digest == tokens.digest

    @pytest.mark.parametrize(
        "index",
        [0, -1, slice(1, 3), slice(-2, None), slice(None, -1), slice(None, N + 1), slice(None, None, 2), [0]],
    )
    def test_anything_else_is_refused(self, tokens: VirtualTokens, index: Any) -> None:
        with pytest.raises(TokensError, match=r"first|prefix"):
            tokens[index]

    def test_empty_prefix_is_not_saved(self, tokens: VirtualTokens, tmp_path: Path) -> None:
        with pytest.raises(TokensError, match="no virtual tokens to save"):
            tokens[:0].save_pretrained(tmp_path / "a")
        with pytest.raises(TokensError, match="no virtual tokens to save"):
            tokens[:0].save_pt(tmp_path / "a.pt")
