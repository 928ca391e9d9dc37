"""Test reading the embedding table of a checkpoint without its model."""

import json

import pytest
import torch
from safetensors.torch import save_file
from transformers import LlamaConfig

from spring_rag.backends.vllm.checkpoint import CheckpointEmbedding, load_checkpoint
from spring_rag.errors import BackendError, UnsupportedBackboneError
from spring_rag.splice import InputEmbedding

FAMILIES = [
    "llama",
    "gemma2",
    "gemma3",
    "granite",
    "qwen3",
    "gpt2",
    "gpt_neox",
    "opt",
    "falcon-rotary",
    "phi3",
]


@pytest.fixture
def save(tmp_path, tokenizer):
    def save(model, **arguments):
        model.save_pretrained(tmp_path, **arguments)
        tokenizer.save_pretrained(tmp_path)
        return tmp_path

    return save


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_gives_what_the_loaded_layer_gives(save, build_model, family, tied):
    model = build_model(family, tied=tied)
    _, config, table = load_checkpoint(save(model))
    found, layer = CheckpointEmbedding(table, config), InputEmbedding(model)
    ids, rows = torch.tensor([0, 1, 7, 319]), torch.randn(3, 32)
    assert torch.equal(found.embed(ids), layer.embed(ids))
    assert torch.equal(found.virtual(rows), layer.virtual(rows))
    assert found.vocab_size == layer.vocab_size


def test_reads_16_bits_exactly(save, build_model):
    model = build_model("gemma2", dtype=torch.bfloat16)
    _, config, table = load_checkpoint(save(model))
    assert table.dtype == torch.bfloat16
    ids, rows = torch.arange(20), torch.randn(3, 32)
    found, layer = CheckpointEmbedding(table, config, torch.bfloat16), InputEmbedding(model)
    assert torch.equal(found.embed(ids), layer.embed(ids))
    assert torch.equal(found.virtual(rows), layer.virtual(rows))


def test_sharded(save, llama):
    folder = save(llama, max_shard_size="20KB")
    assert (folder / "model.safetensors.index.json").exists()
    assert len(list(folder.glob("model-*.safetensors"))) > 1
    table = load_checkpoint(folder)[2]
    assert torch.equal(table, llama.get_input_embeddings().weight)


def test_other_shards_arent_needed(save, llama):
    folder = save(llama, max_shard_size="20KB")
    shards = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    for shard in set(shards.values()) - {shards["model.embed_tokens.weight"]}:
        (folder / shard).unlink()
    assert load_checkpoint(folder)[2].shape == (352, 32)


def test_the_shard_itself_is_missing(save, llama):
    folder = save(llama, max_shard_size="20KB")
    for shard in folder.glob("model-*.safetensors"):
        shard.unlink()
    with pytest.raises(BackendError, match="has no the shard|has no .*shard"):
        load_checkpoint(folder)


def test_no_safetensors(save, llama):
    folder = save(llama)
    (folder / "model.safetensors").unlink()
    with pytest.raises(BackendError, match=r"has no model.safetensors .*save_pretrained"):
        load_checkpoint(folder)


def test_damaged(save, llama):
    folder = save(llama)
    (folder / "model.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0nonsense")
    with pytest.raises(BackendError, match=r"model.safetensors is damaged"):
        load_checkpoint(folder)


def test_no_such_folder():
    with pytest.raises(BackendError, match="there is no folder or file './nowhere'"):
        load_checkpoint("./nowhere")


def test_no_table_among_the_tensors(save, llama):
    folder = save(llama)
    save_file({"lm_head.weight": torch.zeros(3, 32)}, folder / "model.safetensors")
    with pytest.raises(BackendError, match="can't tell which tensor .* found none"):
        load_checkpoint(folder)


def test_packed_table():
    with pytest.raises(UnsupportedBackboneError, match="torch.int8"):
        CheckpointEmbedding(torch.zeros(9, 32, dtype=torch.int8), LlamaConfig(hidden_size=32))


def test_layers_that_read_ids():
    config = LlamaConfig(hidden_size=32)
    config.hidden_size_per_layer_input = 8
    with pytest.raises(UnsupportedBackboneError, match="every layer of it reads the token ids"):
        CheckpointEmbedding(torch.zeros(9, 32), config)
