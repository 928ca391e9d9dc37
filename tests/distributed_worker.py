"""What `test_distributed.py` starts twice with torchrun: training in two processes, the backbone sharded and whole."""

import sys
from pathlib import Path

import torch
from distributed_parts import GradientLog, backbone, recipe
from torch.distributed.tensor import DTensor
from transformers import AutoTokenizer

from spring_rag.examples import load_examples
from spring_rag.training import shard_backbone, train_tokens


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


if __name__ == "__main__":
    main(Path(sys.argv[1]))
