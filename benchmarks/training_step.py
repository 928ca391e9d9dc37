"""A training step: our frozen-prefix objective beside the usual one over the whole sequence.

`python benchmarks/training_step.py` measures time, and the bytes that autograd keeps for the backward pass (weights not
counted; our context cache is). The bars: at least 2 times faster, at most 0.25 of the bytes.
"""

from functools import partial

import torch
from measure import alternate, ratio, save
from torch.autograd.graph import saved_tensors_hooks
from transformers import LlamaConfig, LlamaForCausalLM

from spring_rag.encoding import Encoded
from spring_rag.training import objective

BATCH, CONTEXT, TOKENS, QUESTION, ANSWER = 4, 700, 50, 20, 10
SIZES = {
    "45M": {"hidden_size": 512, "intermediate_size": 1376, "num_hidden_layers": 8, "num_attention_heads": 8},
    "170M": {
        "hidden_size": 1024,
        "intermediate_size": 2816,
        "num_hidden_layers": 10,
        "num_attention_heads": 16,
    },
}
VOCAB = 16_384


class Step:
    """One batch and both ways to its gradient."""

    def __init__(self, size: dict[str, int], dtype: torch.dtype, device: str) -> None:
        torch.manual_seed(0)
        self.model = LlamaForCausalLM(LlamaConfig(vocab_size=VOCAB, **size)).to(device, dtype).eval()
        self.model.requires_grad_(False)
        ids = torch.randint(5, VOCAB, (BATCH, CONTEXT + QUESTION + ANSWER))
        prompt = CONTEXT + QUESTION
        self.examples = [
            (Encoded(tuple(row[:prompt].tolist()), CONTEXT), row[prompt:].tolist()) for row in ids
        ]
        self.ids = ids.to(device)
        self.matrix = torch.randn(TOKENS, size["hidden_size"], device=device).mul_(0.02).requires_grad_()

    def frozen_prefix(self) -> torch.Tensor:
        return objective(self.model, self.examples, self.matrix, TOKENS)

    def whole_sequence(self) -> torch.Tensor:
        table = self.model.get_input_embeddings()(self.ids)
        virtual = self.matrix.to(table.dtype).expand(BATCH, -1, -1)
        labels = self.ids.clone()
        labels[:, : CONTEXT + QUESTION] = -100
        labels = torch.cat([labels.new_full((BATCH, TOKENS), -100), labels], dim=1)
        embeds = torch.cat([table[:, :CONTEXT], virtual, table[:, CONTEXT:]], dim=1)
        return self.model(inputs_embeds=embeds, labels=labels, use_cache=False).loss

    def gradient(self, way: str) -> torch.Tensor:
        self.matrix.grad = None
        getattr(self, way)().backward()
        assert self.matrix.grad is not None
        return self.matrix.grad.clone()

    def saved_bytes(self, way: str) -> int:
        """Bytes of what the graph keeps, each storage once, the model's own weights left out."""
        weights = {parameter.untyped_storage().data_ptr() for parameter in self.model.parameters()}
        kept: dict[int, int] = {}

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in weights:
                kept[storage.data_ptr()] = storage.nbytes()
            return tensor

        with saved_tensors_hooks(pack, lambda tensor: tensor):
            loss = getattr(self, way)()
        loss.backward()
        return sum(kept.values())


def _cache_bytes(step: Step) -> int:
    config = step.model.config
    return 2 * config.num_hidden_layers * BATCH * CONTEXT * config.hidden_size * step.model.dtype.itemsize


def main() -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    results = {}
    for name, size in SIZES.items():
        for dtype in (torch.float32, torch.bfloat16):
            step = Step(size, dtype, device)
            ours, usual = step.gradient("frozen_prefix"), step.gradient("whole_sequence")
            difference = ((ours - usual).norm() / usual.norm()).item()
            ways = ("frozen_prefix", "whole_sequence")
            seconds = alternate({way: partial(step.gradient, way) for way in ways}, rounds=2)
            saved = {way: step.saved_bytes(way) for way in seconds}
            results[f"{name} {str(dtype).removeprefix('torch.')}"] = {
                "parameters": sum(p.numel() for p in step.model.parameters()),
                "device": device,
                "relative_difference_of_gradients": difference,
                "seconds": seconds,
                "speed_up": ratio(seconds["whole_sequence"], seconds["frozen_prefix"]),
                "saved_bytes": saved,
                "context_cache_bytes": _cache_bytes(step),
                # The graph keeps the grown keys and values, context included; the cache itself is the same again at most.
                "saved_share": (saved["frozen_prefix"] + _cache_bytes(step)) / saved["whole_sequence"],
                "saved_share_without_cache": saved["frozen_prefix"] / saved["whole_sequence"],
            }
    what = f"batch {BATCH}, context {CONTEXT}, k {TOKENS}, question {QUESTION}, answer {ANSWER}, full attention heads"
    save("training_step", {"what": what, "bars": {"speed_up": 2.0, "saved_share": 0.25}, "results": results})


if __name__ == "__main__":
    main()
