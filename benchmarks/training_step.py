"""Measure a training step with our frozen-prefix objective, compared with the usual one over the whole sequence.

`python benchmarks/training_step.py` measures time, counted operations, and the bytes kept for the backward
pass (without weights, but with our context's keys and values), in two settings:

- *long*: four rows of 700 context tokens. The bars: at least 2 times faster, at most 0.25 of the bytes.
- *authors*: one to five short passages a row, compared with the loop that SPRING's authors published, which pads every row to 800
  tokens. The bar: at least 2.5 times faster.

It also measures what the sandwich's further ks cost, compared with a step of one k. `--shapes 7B --dtypes bfloat16` is for a GPU with about 40 GB free;
it wasn't run yet. A processor without bfloat16 instructions takes minutes for a step in bfloat16.
"""

import argparse
import gc
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from measure import alternate, ratio, save
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaConfig, LlamaForCausalLM

from spring_rag.encoding import Encoded
from spring_rag.splice import InputEmbedding
from spring_rag.training import objectives

BATCH, CONTEXT, TOKENS, QUESTION, ANSWER = 4, 700, 50, 20, 10
PASSAGE, PADDED = 100, 800
SHAPES: dict[str, dict[str, Any]] = {
    "45M": {"hidden_size": 512, "intermediate_size": 1376, "num_hidden_layers": 8, "num_attention_heads": 8},
    "170M": {
        "hidden_size": 1024,
        "intermediate_size": 2816,
        "num_hidden_layers": 10,
        "num_attention_heads": 16,
    },
    "7B": {
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
    },
}
VOCAB = 16_384
# 1 to 5 passages, as many of each number as there are rows for.
SHORT = [PASSAGE * count for count in (1, 2, 4, 5)]


def _living() -> list[torch.UntypedStorage]:
    gc.collect()
    # By its type: lazy modules warn when they are asked for their class.
    found = [each for each in gc.get_objects() if issubclass(type(each), torch.Tensor)]
    return [each.untyped_storage() for each in found if each.device.type != "meta"]


class Step:
    """One batch and the ways to its gradient."""

    def __init__(self, model: LlamaForCausalLM, contexts: Sequence[int], padded_to: int | None) -> None:
        self.model, self.padded_to = model, padded_to
        self.embedding = InputEmbedding(model)
        device = self.embedding.device
        draw = torch.Generator().manual_seed(0)
        self.examples = []
        for context in contexts:
            ids = torch.randint(5, VOCAB, (context + QUESTION + ANSWER,), generator=draw).tolist()
            self.examples.append(
                (Encoded(tuple(ids[: context + QUESTION]), context), tuple(ids[context + QUESTION :]))
            )
        matrix = torch.randn(TOKENS, model.config.hidden_size, generator=draw).mul_(0.02)
        self.matrix = matrix.to(device).requires_grad_()

    def frozen_prefix(self, ks: Sequence[int] = (TOKENS,)) -> torch.Tensor:
        return objectives(self.model, self.examples, self.matrix, ks, embedding=self.embedding).sum()

    def whole_sequence(self) -> torch.Tensor:
        rows, labels = [], []
        lengths = [len(encoded.ids) + TOKENS + len(target) for encoded, target in self.examples]
        width = self.padded_to or max(lengths)
        for (encoded, target), length in zip(self.examples, lengths, strict=True):
            table = self.embedding.embed(torch.tensor([*encoded.ids, *target]))
            slot = len(encoded.context_ids)
            virtual = self.embedding.virtual(self.matrix)
            padding = table.new_zeros(width - length, table.shape[1])
            rows.append(torch.cat([table[:slot], virtual, table[slot:], padding]))
            masked = [-100] * (length - len(target))
            labels.append([*masked, *target, *[-100] * (width - length)])
        mask = torch.tensor([[1] * length + [0] * (width - length) for length in lengths])
        inputs = {} if min(lengths) == width else {"attention_mask": mask.to(self.matrix.device)}
        loss: torch.Tensor = self.model(
            inputs_embeds=torch.stack(rows),
            labels=torch.tensor(labels, device=self.matrix.device),
            use_cache=False,
            **inputs,
        ).loss
        return loss

    def context(self) -> None:
        """Compute the context alone, in the way of `frozen_prefix`."""
        longest = max(len(encoded.context_ids) for encoded, _ in self.examples)
        ids = torch.zeros(len(self.examples), longest, dtype=torch.long)
        with torch.no_grad():
            self.model(inputs_embeds=self.embedding.embed(ids), use_cache=True, logits_to_keep=1)

    def gradient(self, way: str, *arguments: Sequence[int]) -> torch.Tensor:
        self.matrix.grad = None
        getattr(self, way)(*arguments).backward()
        assert self.matrix.grad is not None
        return self.matrix.grad.clone()

    def operations(self, way: str) -> int:
        with FlopCounterMode(display=False) as counter:
            self.gradient(way)
        return int(counter.get_total_flops())

    def kept_bytes(self, way: str) -> int:
        """Return the bytes in memory when the backward pass begins: those that the graph keeps, and others such as a context cache.

        Each storage counts once; the model's weights and what was there before are left out.
        """
        before = {storage.data_ptr() for storage in _living()}
        kept: dict[int, int] = {}

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in before:
                kept[storage.data_ptr()] = storage.nbytes()
            return tensor

        with saved_tensors_hooks(pack, lambda tensor: tensor):
            loss = getattr(self, way)()
        kept.update({each.data_ptr(): each.nbytes() for each in _living() if each.data_ptr() not in before})
        loss.backward()
        return sum(kept.values())

    def compare(self, rounds: int) -> dict[str, object]:
        ways = ("frozen_prefix", "whole_sequence")
        ours, usual = (self.gradient(way) for way in ways)
        seconds = alternate({way: partial(self.gradient, way) for way in ways}, rounds=rounds)
        kept = {way: self.kept_bytes(way) for way in ways}
        counted = {way: self.operations(way) for way in ways}
        return {
            "relative_difference_of_gradients": ((ours - usual).norm() / usual.norm()).item(),
            "seconds": seconds,
            "speed_up": ratio(seconds["whole_sequence"], seconds["frozen_prefix"]),
            "counted_operations": counted,
            "counted_speed_up": counted["whole_sequence"] / counted["frozen_prefix"],
            "kept_bytes": kept,
            "kept_share": kept["frozen_prefix"] / kept["whole_sequence"],
        }

    def sandwich(self, rounds: int) -> dict[str, object]:
        """Time a step of one k, a step of three, and a suffix by itself, which is a step without its context."""
        seconds = alternate(
            {
                "context": self.context,
                "one_k": partial(self.gradient, "frozen_prefix", (TOKENS,)),
                "three_ks": partial(self.gradient, "frozen_prefix", (TOKENS, TOKENS, TOKENS)),
            },
            rounds=rounds,
        )
        context, one, three = (sorted(times)[len(times) // 2] for times in seconds.values())
        return {
            "seconds": seconds,
            "further_k_over_suffix": (three - one) / 2 / (one - context),
            "three_ks_over_three_steps": three / (3 * one),
        }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shapes", default="45M,170M", help=f"of {', '.join(SHAPES)}")
    parser.add_argument("--dtypes", default="float32", help="of float32, bfloat16")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    shapes = args.shapes.split(",")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    results = {}
    for name in shapes:
        for dtype_name in args.dtypes.split(","):
            dtype = getattr(torch, dtype_name)
            torch.manual_seed(0)
            config = LlamaConfig(vocab_size=VOCAB, **SHAPES[name])
            with torch.device(device):
                model = LlamaForCausalLM._from_config(config, dtype=dtype).eval().requires_grad_(False)
            long = Step(model, [CONTEXT] * BATCH, None)
            results[f"{name} {dtype_name}"] = {
                "parameters": sum(p.numel() for p in model.parameters()),
                "device": device,
                "long": long.compare(args.rounds),
                "authors": Step(model, SHORT, PADDED).compare(args.rounds),
                "sandwich": long.sandwich(args.rounds),
            }
    what = (
        f"batch {BATCH}, k {TOKENS}, question {QUESTION}, answer {ANSWER}, full attention heads; long: context {CONTEXT}; "
        f"authors: contexts {SHORT}, theirs padded to {PADDED}"
    )
    bars = {"long speed_up": 2.0, "long kept_share": 0.25, "authors speed_up": 2.5}
    suffix = "" if set(shapes) == {"45M", "170M"} else f"-{'-'.join(shapes)}"
    save(f"training_step{suffix}", {"what": what, "bars": bars, "results": results})


if __name__ == "__main__":
    main()
