"""The program that `test_distributed.py` starts twice with torchrun: training with the backbone whole, sharded, and interrupted."""

import os
import signal
import sys
from pathlib import Path

import torch
from distributed_parts import GradientLog, backbone, recipe
from torch.distributed.tensor import DTensor
from transformers import AutoTokenizer, TrainerCallback

from spring_rag.data.examples import load_examples
from spring_rag.training import shard_backbone, train_tokens


class InterruptFirst(TrainerCallback):
    """A Ctrl-C in the first process only, twice at once, as torchrun makes of one."""

    def on_step_begin(self, args, state, control, **kwargs) -> None:
        if state.global_step == 1 and torch.distributed.get_rank() == 0:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)


def main(folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder / "backbone")
    examples = load_examples(folder / "train.jsonl").examples
    for name in ("sharded", "whole"):
        model = backbone(folder)
        if name == "sharded":
            # First, so that it has to start the process group itself.
            shard_backbone(model)
            weight = model.model.layers[0].mlp.up_proj.weight
            assert isinstance(weight, DTensor)
            assert weight.to_local().numel() * 2 == weight.numel()
        log = GradientLog()
        tokens = train_tokens(
            model,
            tokenizer,
            examples,
            recipe(batch_size=2, accumulation=2),
            folder / name,
            examples[:5],
            save_steps=2,
            callbacks=[log],
        )
        rank = torch.distributed.get_rank()
        torch.save((log.gradients, tokens.matrix), folder / f"{name}-{rank}.pt")

    model, output = backbone(folder), folder / "interrupted"
    try:
        train_tokens(
            model,
            tokenizer,
            examples,
            recipe(batch_size=2, accumulation=2),
            output,
            callbacks=[InterruptFirst()],
        )
    except KeyboardInterrupt as interrupt:
        (folder / f"interrupted-{torch.distributed.get_rank()}.txt").write_text(str(interrupt))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
