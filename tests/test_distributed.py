"""Compare two processes (gloo) with one that has the double batch; test backbones that are sharded, or partly on the disk."""

import json
import subprocess
import sys
from pathlib import Path
from random import Random

import pytest
import torch
from distributed_parts import GradientLog, backbone, recipe
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from spring_rag.backends.local import LocalBackend
from spring_rag.data.examples import load_examples
from spring_rag.encoding import Encoded
from spring_rag.errors import TrainingError
from spring_rag.tokens import VirtualTokens
from spring_rag.training import objective, shard_backbone, train_tokens

# Of different lengths: a mean over processes of their means would not be the mean over all target ids.
ANSWERS = ["Rome", "Oslo, in the far north of the continent", "Lima or Bern", "the old harbour of Kyiv", "no"]


@pytest.fixture(scope="module")
def folder(
    tmp_path_factory: pytest.TempPathFactory, llama: PreTrainedModel, tokenizer: PreTrainedTokenizerFast
) -> Path:
    """Backbone, data, and what two processes made of them."""
    folder = tmp_path_factory.mktemp("distributed")
    llama.save_pretrained(folder / "backbone")
    tokenizer.save_pretrained(folder / "backbone")
    rng = Random(0)
    with (folder / "train.jsonl").open("w") as file:
        # The third step of an epoch is short.
        for number in range(21):
            answer = rng.choice(ANSWERS)
            passages = [f"Number {number} is {answer}."] + [
                f"Number {rng.randrange(9)} is far."
            ] * rng.randrange(4)
            record = {"question": f"Where is {number}?", "target": answer, "ret_passages": passages}
            file.write(json.dumps(record) + "\n")
    worker = Path(__file__).with_name("distributed_worker.py")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run([*launcher, str(worker), str(folder)], capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.fixture(scope="module")
def alone(folder: Path, tokenizer: PreTrainedTokenizerFast) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Gradients and tokens of one process that takes each step's eight examples at once."""
    log, examples = GradientLog(), load_examples(folder / "train.jsonl").examples
    tokens = train_tokens(
        backbone(folder),
        tokenizer,
        examples,
        recipe(batch_size=8, accumulation=1),
        folder / "alone",
        examples[:5],
        save_steps=2,
        callbacks=[log],
    )
    return log.gradients, tokens.matrix


def test_an_interrupt_of_one_process_stops_both_after_the_same_step(folder: Path) -> None:
    for rank in (0, 1):
        assert "stopped after step 2 of 4" in (folder / f"interrupted-{rank}.txt").read_text()
    assert [each.name for each in (folder / "interrupted" / "checkpoints").glob("checkpoint-*")] == [
        "checkpoint-2"
    ]


@pytest.mark.parametrize("name", ["whole", "sharded"])
def test_two_processes_take_the_steps_of_one_with_the_double_batch(
    name: str, folder: Path, alone: tuple[list[torch.Tensor], torch.Tensor]
) -> None:
    expected, matrix = alone
    for rank in (0, 1):
        gradients, found = torch.load(folder / f"{name}-{rank}.pt", weights_only=True)
        assert len(gradients) == len(expected) == 4
        assert (gradients[0] - expected[0]).norm() <= 1e-5 * expected[0].norm()
        # Later steps start from rows that Adam moved by the signs of tiny differences, too.
        assert all((a - b).norm() <= 1e-2 * b.norm() for a, b in zip(gradients, expected, strict=True))
        assert torch.allclose(found, matrix, atol=1e-3)
    assert torch.equal(
        VirtualTokens.from_pretrained(folder / name).matrix,
        torch.load(folder / f"{name}-0.pt", weights_only=True)[1],
    )


def test_accumulation_takes_the_same_steps_too(
    folder: Path, tokenizer: PreTrainedTokenizerFast, alone: tuple[list[torch.Tensor], torch.Tensor]
) -> None:
    log, examples = GradientLog(), load_examples(folder / "train.jsonl").examples
    train_tokens(
        backbone(folder),
        tokenizer,
        examples,
        recipe(batch_size=2, accumulation=4),
        folder / "parts",
        callbacks=[log],
    )
    expected = alone[0][0]
    assert (log.gradients[0] - expected).norm() <= 1e-5 * expected.norm()


def test_sharding_needs_several_processes(llama: PreTrainedModel) -> None:
    with pytest.raises(TrainingError, match="torchrun"):
        shard_backbone(llama)


def test_backbone_spread_by_a_device_map(folder: Path, tmp_path: Path) -> None:
    """As much as a machine without GPUs can show of it: one layer lies on the disk."""
    places = dict.fromkeys(("model.embed_tokens", "model.layers.0", "model.norm", "model.rotary_emb"), "cpu")
    spread = LocalBackend.from_pretrained(
        folder / "backbone",
        device_map={**places, "model.layers.1": "disk", "lm_head": "cpu"},
        offload_folder=tmp_path,
    ).hf_model
    assert next(spread.model.layers[1].parameters()).is_meta
    examples = [(Encoded(tuple(range(5, 25)), 14), (7, 8, 2)), (Encoded(tuple(range(3, 19)), 9), (9, 2))]
    matrix = torch.randn(4, 32, generator=torch.Generator().manual_seed(0)).requires_grad_()
    (found,) = torch.autograd.grad(objective(spread, examples, matrix, 4), matrix)
    (expected,) = torch.autograd.grad(objective(backbone(folder), examples, matrix, 4), matrix)
    assert (found - expected).norm() <= 1e-5 * expected.norm()
