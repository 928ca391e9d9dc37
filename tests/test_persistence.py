"""Test reading and writing artifacts: folders, single files, PEFT adapters, and what is refused."""

import contextlib
import json
import os
import pickle
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokens_parts import HIDDEN, N, backbone, refused, rows, tiny_llama, tokens
from torch import nn
from transformers import LlamaForCausalLM

from spring_rag.backbone import BackboneRecord
from spring_rag.encoding import Encoded
from spring_rag.errors import TokensError
from spring_rag.prompt import RagTemplate
from spring_rag.splice import InputEmbedding, TokenBank, splice_batch
from spring_rag.tokens import VirtualTokens

__all__ = ["backbone", "tokens"]  # fixtures


class TestFolder:
    def test_round_trip(self, tokens: VirtualTokens, tmp_path: Path) -> None:
        tokens.save_pretrained(tmp_path / "deep" / "artifact")
        again = VirtualTokens.from_pretrained(tmp_path / "deep" / "artifact")
        assert torch.equal(again.matrix, tokens.matrix)
        assert again.backbone == tokens.backbone
        assert again.template == tokens.template
        assert again.training == tokens.training

    def test_round_trip_without_anything_known(self, tmp_path: Path) -> None:
        VirtualTokens(rows()).save_pretrained(tmp_path)
        again = VirtualTokens.from_pretrained(tmp_path)
        assert (again.backbone, again.template, again.training) == (None, None, None)

    def test_files_are_as_documented(self, tokens: VirtualTokens, tmp_path: Path) -> None:
        tokens[:4].save_pretrained(tmp_path)
        assert sorted(p.name for p in tmp_path.iterdir()) == [
            "README.md",
            "config.json",
            "virtual_tokens.safetensors",
        ]
        tensors = safetensors.torch.load_file(tmp_path / "virtual_tokens.safetensors")
        assert list(tensors) == ["virtual_tokens"]
        assert tensors["virtual_tokens"].dtype == torch.float32
        assert torch.equal(tensors["virtual_tokens"], tokens.matrix[:4])
        config = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
        assert (config["schema_version"], config["num_tokens"], config["hidden_size"]) == (1, 4, HIDDEN)
        assert config["backbone"]["model_id"] == "acme/tiny"
        assert (tmp_path / "config.json").stat().st_size < 6000

    def test_model_card(self, tokens: VirtualTokens, tmp_path: Path) -> None:
        from huggingface_hub import ModelCard

        tokens.save_pretrained(tmp_path)
        card = ModelCard.load(tmp_path / "README.md")
        assert card.data.base_model == "acme/tiny"
        assert card.data.library_name == "spring-rag"
        assert tokens.digest in card.text
        assert "Answer briefly" in card.text

    def test_card_of_a_local_backbone_names_no_base_model(self, tmp_path: Path) -> None:
        from huggingface_hub import ModelCard

        local = BackboneRecord("/models/evil\nbase_model: x", HIDDEN)
        VirtualTokens(rows(), backbone=local).save_pretrained(tmp_path)
        assert ModelCard.load(tmp_path / "README.md").data.base_model is None

    def test_other_files_in_the_folder_stay(self, tokens: VirtualTokens, tmp_path: Path) -> None:
        (tmp_path / "notes.txt").write_text("mine")
        tokens.save_pretrained(tmp_path)
        tokens[:2].save_pretrained(tmp_path)
        assert (tmp_path / "notes.txt").read_text() == "mine"
        assert len(VirtualTokens.from_pretrained(tmp_path)) == 2

    @pytest.mark.parametrize("name", ["config.json", "README.md"])
    def test_files_of_something_else_are_not_replaced(
        self, name: str, tokens: VirtualTokens, tmp_path: Path
    ) -> None:
        (tmp_path / name).write_text('{"model_type": "llama"}')
        with pytest.raises(TokensError, match=f"holds {name} of something else"):
            tokens.save_pretrained(tmp_path)
        assert [file.name for file in tmp_path.iterdir()] == [name]
        assert (tmp_path / name).read_text() == '{"model_type": "llama"}'

    @pytest.mark.parametrize("step", range(9))
    def test_interrupted_save_leaves_a_whole_artifact(
        self, tokens: VirtualTokens, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
    ) -> None:
        """Stop at each write or rename in turn: what loads then is the old artifact or the new."""
        old = VirtualTokens(rows(seed=1), training={"which": "old"})
        old.save_pretrained(tmp_path)
        calls = 0

        def stopping(function: Callable[..., Any]) -> Callable[..., Any]:
            def wrapped(*args: Any, **kwargs: Any) -> Any:
                nonlocal calls
                if calls == step:
                    raise KeyboardInterrupt
                calls += 1
                return function(*args, **kwargs)

            return wrapped

        with monkeypatch.context() as patched:
            patched.setattr(os, "fsync", stopping(os.fsync))
            patched.setattr(os, "replace", stopping(os.replace))
            try:
                tokens.save_pretrained(tmp_path)
                finished = True
            except KeyboardInterrupt:
                finished = False
        assert finished == (step >= 6)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            found = VirtualTokens.from_pretrained(tmp_path)
        expected = old if step <= 3 else tokens
        assert found.digest == expected.digest
        assert found.training == expected.training
        assert found.backbone == expected.backbone
        assert not list(tmp_path.glob(".saving-*"))

    @pytest.mark.parametrize(
        ("change", "words"),
        [
            ({"schema_version": 2}, ["schema version 2", "upgrade"]),
            ({"schema_version": None}, ["schema version None"]),
            ({"schema_version": "1"}, ["schema version '1'"]),
            ({"hidden_size": 64}, ["don't belong together"]),
            ({"num_tokens": 5}, ["don't belong together"]),
            ({"backbone": 5}, ["malformed"]),
            ({"backbone": {"model_id": 1, "hidden_size": HIDDEN}}, ["malformed"]),
            ({"backbone": {"model_id": "acme/x", "hidden_size": 64}}, ["acme/x", "64"]),
            (
                {"backbone": {"model_id": "x", "hidden_size": HIDDEN, "fingerprint": {"rows": [1]}}},
                ["fingerprint"],
            ),
            (
                {"backbone": {"hidden_size": 32, "fingerprint": {"rows": [], "columns": [], "values": ""}}},
                ["fingerprint"],
            ),
            ({"template": "x"}, ["template", "malformed"]),
            ({"template": {"no_such_field": 1}}, ["malformed"]),
            ({"training": [1]}, ["training"]),
        ],
    )
    def test_refuses_a_bad_config(
        self, tokens: VirtualTokens, tmp_path: Path, change: dict[str, Any], words: list[str]
    ) -> None:
        tokens.save_pretrained(tmp_path)
        path = tmp_path / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | change))
        refused(tmp_path, *[w for w in words if w != "template"])

    @pytest.mark.parametrize("text", [b"", b"{", b"[1]", b"\xff\xfe", b"[" * 100_000, b"1" * 5000])
    def test_refuses_a_config_that_is_not_one(
        self, tokens: VirtualTokens, tmp_path: Path, text: bytes
    ) -> None:
        tokens.save_pretrained(tmp_path)
        (tmp_path / "config.json").write_bytes(text)
        refused(tmp_path, "config.json", "JSON")

    def test_refuses_missing_parts(self, tokens: VirtualTokens, tmp_path: Path) -> None:
        refused(tmp_path, "holds no virtual tokens", "virtual_tokens.safetensors")
        tokens.save_pretrained(tmp_path)
        (tmp_path / "config.json").unlink()
        refused(tmp_path, "no config.json")
        tokens.save_pretrained(tmp_path)
        (tmp_path / "virtual_tokens.safetensors").unlink()
        refused(tmp_path, "holds no virtual tokens")

    def test_refuses_a_missing_tensor(self, tokens: VirtualTokens, tmp_path: Path) -> None:
        tokens.save_pretrained(tmp_path)
        safetensors.torch.save_file({"weight": rows()}, tmp_path / "virtual_tokens.safetensors")
        refused(tmp_path, "'virtual_tokens'", "'weight'")

    def test_refuses_another_matrix_under_this_config(self, tokens: VirtualTokens, tmp_path: Path) -> None:
        tokens.save_pretrained(tmp_path)
        safetensors.torch.save_file({"virtual_tokens": rows(seed=9)}, tmp_path / "virtual_tokens.safetensors")
        refused(tmp_path, "don't belong together")


class TestSize:
    def test_a_description_of_megabytes_is_neither_read_nor_written(self, tmp_path: Path) -> None:
        tokens = VirtualTokens(rows(), template=RagTemplate())
        tokens.save_pretrained(tmp_path)
        config = json.loads((tmp_path / "config.json").read_text())
        config["template"]["opening"] = "x" * 20_000_000
        (tmp_path / "config.json").write_text(json.dumps(config))
        with pytest.raises(TokensError, match="config.json describes virtual tokens in more than"):
            VirtualTokens.from_pretrained(tmp_path)
        header = {"spring_rag": json.dumps(config)}
        safetensors.torch.save_file(
            {"virtual_tokens": rows()}, tmp_path / "alone.safetensors", metadata=header
        )
        with pytest.raises(TokensError, match="alone.safetensors describes virtual tokens in more than"):
            VirtualTokens.from_pretrained(tmp_path / "alone.safetensors")
        large = VirtualTokens(rows(), template=RagTemplate(opening="x" * 2_000_000))
        with pytest.raises(TokensError, match="more than"):
            large.save_pretrained(tmp_path / "large")
        assert not (tmp_path / "large").exists()


class TestLoneFiles:
    def test_safetensors_of_anyone(self, tmp_path: Path) -> None:
        safetensors.torch.save_file({"prompt": rows().half()}, tmp_path / "x.safetensors")
        tokens = VirtualTokens.from_pretrained(str(tmp_path / "x.safetensors"))
        assert torch.equal(tokens.matrix, rows().half().float())
        assert tokens.backbone is None

    def test_our_safetensors_knows_its_backbone(self, tokens: VirtualTokens, tmp_path: Path) -> None:
        tokens.save_pretrained(tmp_path)
        lone = (tmp_path / "virtual_tokens.safetensors").rename(tmp_path / "lone.safetensors")
        assert VirtualTokens.from_pretrained(lone).backbone == tokens.backbone

    def test_safetensors_with_several_tensors(self, tmp_path: Path) -> None:
        safetensors.torch.save_file({"a": rows(), "b": rows()}, tmp_path / "x.safetensors")
        refused(tmp_path / "x.safetensors", "exactly one tensor", "'a', 'b'")

    @pytest.mark.parametrize(
        "wrap", [lambda t: t, nn.Parameter, lambda t: t.half(), lambda t: t.t().contiguous().t()]
    )
    def test_the_authors_pt(self, tmp_path: Path, wrap: Callable[[torch.Tensor], torch.Tensor]) -> None:
        torch.save(wrap(rows()), tmp_path / "x.pt")
        tokens = VirtualTokens.from_pretrained(tmp_path / "x.pt")
        assert torch.allclose(tokens.matrix, rows(), atol=1e-2)
        assert tokens.backbone is None

    def test_pt_in_the_old_format(self, tmp_path: Path) -> None:
        torch.save(rows(), tmp_path / "x.pt", _use_new_zipfile_serialization=False)
        assert torch.equal(VirtualTokens.from_pretrained(tmp_path / "x.pt").matrix, rows())

    @pytest.mark.parametrize("wrap", [lambda t: t, nn.Parameter])
    def test_pt_from_a_cuda_device(
        self, tmp_path: Path, wrap: Callable[[torch.Tensor], torch.Tensor]
    ) -> None:
        torch.save(wrap(rows()), tmp_path / "cpu.pt")
        located = b"X\x03\x00\x00\x00cpu", b"X\x06\x00\x00\x00cuda:0"
        with (
            zipfile.ZipFile(tmp_path / "cpu.pt") as source,
            zipfile.ZipFile(tmp_path / "x.pt", "w") as target,
        ):
            for record in source.infolist():
                content = source.read(record)
                if record.filename.endswith("data.pkl"):
                    assert located[0] in content
                    content = content.replace(*located)
                target.writestr(record.filename, content)
        tokens = VirtualTokens.from_pretrained(tmp_path / "x.pt")
        assert torch.equal(tokens.matrix, rows())
        assert tokens.matrix.device.type == "cpu"

    def test_save_pt_is_the_authors_format(self, tokens: VirtualTokens, tmp_path: Path) -> None:
        tokens[:2].save_pt(tmp_path / "x.pt")
        plain = torch.load(tmp_path / "x.pt", weights_only=True)
        assert type(plain) is torch.Tensor
        assert torch.equal(plain, tokens.matrix[:2])
        assert plain.untyped_storage().nbytes() == 2 * HIDDEN * 4
        assert VirtualTokens.from_pretrained(tmp_path / "x.pt").digest == tokens[:2].digest

    @pytest.mark.parametrize(
        ("content", "words"),
        [
            ({"weight": torch.zeros(2, 3)}, ["dict"]),
            ([torch.zeros(2, 3)], ["list"]),
            (torch.zeros(3), ["two dimensions"]),
            (torch.zeros(0, 3), ["empty"]),
            (torch.ones(2, 3, dtype=torch.int32), ["int32"]),
            (torch.full((2, 3), float("nan")), ["NaN"]),
            (torch.zeros(2, 3).to_sparse(), ["dense"]),
            (torch.zeros(1).expand(10**6, 10**6), ["doesn't hold that many"]),
        ],
    )
    def test_refuses_other_contents(self, tmp_path: Path, content: object, words: list[str]) -> None:
        torch.save(content, tmp_path / "x.pt")
        refused(tmp_path / "x.pt", *words)

    @pytest.mark.parametrize("protocol", [2, 5])
    @pytest.mark.parametrize("by_torch", [True, False])
    def test_never_runs_pickled_code(self, tmp_path: Path, by_torch: bool, protocol: int) -> None:
        class Hostile:
            def __reduce__(self) -> tuple[Any, ...]:
                return os.mkdir, (str(tmp_path / "owned"),)

        path = tmp_path / "x.pt"
        if by_torch:
            torch.save(Hostile(), path, pickle_protocol=protocol)
        else:
            path.write_bytes(pickle.dumps(Hostile(), protocol=protocol))
        refused(path, "could run code")
        assert not (tmp_path / "owned").exists()

    def test_refuses_a_zip_bomb(self, tmp_path: Path) -> None:
        torch.save(torch.zeros(64, 4096), tmp_path / "a.pt")
        with (
            zipfile.ZipFile(tmp_path / "a.pt") as source,
            zipfile.ZipFile(tmp_path / "x.pt", "w", zipfile.ZIP_DEFLATED) as target,
        ):
            for record in source.infolist():
                target.writestr(record.filename, source.read(record))
        refused(tmp_path / "x.pt", "more than its own size")

    @pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
    @pytest.mark.parametrize("share", [0.0, 0.02, 0.3, 0.6, 0.95, 0.999])
    def test_refuses_truncated_files(self, tmp_path: Path, suffix: str, share: float) -> None:
        path = tmp_path / f"x{suffix}"
        if suffix == ".pt":
            torch.save(rows(), path)
        else:
            safetensors.torch.save_file({"virtual_tokens": rows()}, path)
        content = path.read_bytes()
        path.write_bytes(content[: int(len(content) * share)])
        refused(path, str(path))

    @settings(max_examples=60, deadline=None)
    @given(content=st.binary(max_size=300), suffix=st.sampled_from([".pt", ".safetensors"]))
    def test_refuses_arbitrary_bytes(
        self, tmp_path_factory: pytest.TempPathFactory, content: bytes, suffix: str
    ) -> None:
        path = tmp_path_factory.getbasetemp() / f"arbitrary{suffix}"
        path.write_bytes(content)
        refused(path, str(path))

    @settings(max_examples=60, deadline=None)
    @given(
        where=st.floats(0, 1, exclude_max=True),
        byte=st.integers(0, 255),
        suffix=st.sampled_from([".pt", ".safetensors"]),
    )
    @example(where=0.984375, byte=1, suffix=".pt")  # an archive "on several disks": is_zipfile itself raises
    def test_one_changed_byte_loads_or_is_refused(
        self, tmp_path_factory: pytest.TempPathFactory, where: float, byte: int, suffix: str
    ) -> None:
        path = tmp_path_factory.getbasetemp() / f"changed{suffix}"
        tokens = VirtualTokens(rows(1, 4))
        if suffix == ".pt":
            tokens.save_pt(path)
        else:
            safetensors.torch.save_file({"virtual_tokens": tokens.matrix}, path)
        content = bytearray(path.read_bytes())
        content[int(where * len(content))] = byte
        path.write_bytes(content)
        with contextlib.suppress(TokensError):  # any other exception fails the test
            VirtualTokens.from_pretrained(path)

    @pytest.mark.parametrize(
        "src",
        [
            "no/such/folder/at/all",
            "./nothing",
            "~nobody/x",
            "missing.pt",
            "a/missing.safetensors",
            "mistral-8b",
        ],
    )
    def test_refuses_what_is_not_there(self, src: str) -> None:
        refused(src, src, "mistral-7b-instruct")

    def test_refuses_an_unknown_suffix(self, tmp_path: Path) -> None:
        (tmp_path / "x.ckpt").write_bytes(b"x")
        refused(tmp_path / "x.ckpt", ".safetensors", ".pt")


class TestPeftAdapter:
    @pytest.fixture
    def adapter(self, backbone: LlamaForCausalLM, tmp_path: Path) -> tuple[Path, torch.Tensor]:
        from peft import PromptTuningConfig, TaskType, get_peft_model

        model = get_peft_model(
            tiny_llama(), PromptTuningConfig(task_type=TaskType.CAUSAL_LM, num_virtual_tokens=N)
        )
        model.save_pretrained(str(tmp_path))
        path = (
            tmp_path / "adapter_config.json"
        )  # edited afterwards: PEFT looks names up on the Hub while saving
        path.write_text(json.dumps(json.loads(path.read_text()) | {"base_model_name_or_path": "acme/tiny"}))
        return tmp_path, model.get_prompt_embedding_to_save("default")

    def test_is_read(self, adapter: tuple[Path, torch.Tensor]) -> None:
        folder, expected = adapter
        tokens = VirtualTokens.from_pretrained(folder)
        assert torch.equal(tokens.matrix, expected)
        assert tokens.backbone == BackboneRecord("acme/tiny", HIDDEN)

    def test_is_read_from_bin(self, adapter: tuple[Path, torch.Tensor]) -> None:
        folder, expected = adapter
        (folder / "adapter_model.safetensors").unlink()
        torch.save({"prompt_embeddings": expected}, folder / "adapter_model.bin")
        assert torch.equal(VirtualTokens.from_pretrained(folder).matrix, expected)

    @pytest.mark.parametrize("family", ["llama", "gemma2", "gemma3"])
    def test_answers_as_peft_does(
        self, family: str, build_model: Any, tokenizer: Any, tmp_path: Path
    ) -> None:
        """PEFT's rows come first, so the prompt has no context; they stand behind the scaling of Gemma's embeddings."""
        from peft import PromptTuningConfig, TaskType, get_peft_model

        model = build_model(family)
        config = PromptTuningConfig(task_type=TaskType.CAUSAL_LM, num_virtual_tokens=N)
        wrapped = get_peft_model(build_model(family), config).eval()
        with torch.no_grad():
            wrapped.prompt_encoder["default"].embedding.weight.mul_(2).add_(0.3)
        wrapped.save_pretrained(str(tmp_path))
        ids = torch.tensor([[5, 9, 7, 11]])
        with torch.no_grad():
            expected = wrapped(ids).logits[0, -1]

        tokens = VirtualTokens.from_pretrained(tmp_path)
        tokens.save_pretrained(tmp_path / "ours")
        for one in (tokens, VirtualTokens.from_pretrained(tmp_path / "ours")):
            embedding = InputEmbedding(model)
            bank = TokenBank(embedding)
            bank.add("default", one)
            batch = splice_batch(embedding, [Encoded((5, 9, 7, 11), 0)], [bank.rows("default")])
            with torch.no_grad():
                found = model(inputs_embeds=batch.inputs_embeds).logits[0, -1]
            assert torch.allclose(found, expected, atol=1e-4), (found - expected).abs().max()

    def test_export_warns_that_the_rows_are_scaled(
        self, adapter: tuple[Path, torch.Tensor], tmp_path: Path
    ) -> None:
        tokens = VirtualTokens.from_pretrained(adapter[0])
        with pytest.warns(UserWarning, match="Gemma"):
            tokens.save_pt(tmp_path / "x.pt")
        assert torch.equal(VirtualTokens.from_pretrained(tmp_path / "x.pt").matrix, tokens.matrix)

    def test_refuses_another_method(self, adapter: tuple[Path, torch.Tensor]) -> None:
        path = adapter[0] / "adapter_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"peft_type": "LORA"}))
        refused(adapter[0], "'LORA'", "PROMPT_TUNING")

    def test_refuses_a_wrong_count_or_missing_weights(self, adapter: tuple[Path, torch.Tensor]) -> None:
        path = adapter[0] / "adapter_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"num_virtual_tokens": N + 1}))
        refused(adapter[0], str(N + 1), f"{N} rows")
        (adapter[0] / "adapter_model.safetensors").unlink()
        refused(adapter[0], "without its weights")
