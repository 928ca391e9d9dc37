"""Attach 50 virtual tokens in our small bank, or in a new table of vocab + 50 rows, as in the authors' README: `python benchmarks/attach.py`

Measures time and extra resident memory, each in a separate process.
"""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from measure import save
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from spring_rag.splice import InputEmbedding, TokenBank
from spring_rag.tokens import VirtualTokens

TOKENS, HIDDEN = 50, 4096
VOCABULARIES = {"32k": 32_000, "256k": 256_000}


def _backbone(vocab: int) -> LlamaForCausalLM:
    """Make a bf16 model with a table of real size and almost nothing after it, since only the table matters here."""
    config = LlamaConfig(
        vocab_size=8,
        hidden_size=HIDDEN,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=32,
        num_key_value_heads=1,
    )
    made = LlamaForCausalLM(config)
    model: Any = made
    model.to(torch.bfloat16).eval()
    # A billion random numbers would take minutes to draw; a thousand rows of them, repeated, serve as well.
    rows = torch.randn(1000, HIDDEN, dtype=torch.bfloat16)
    model.set_input_embeddings(nn.Embedding.from_pretrained(rows.repeat(vocab // len(rows), 1)))
    return made


def _ours(model: LlamaForCausalLM, matrix: torch.Tensor) -> object:
    bank = TokenBank(InputEmbedding(model))
    bank.add("default", VirtualTokens(matrix))
    return bank


def _new_table(model: LlamaForCausalLM, matrix: torch.Tensor) -> object:
    """Take the steps of the authors' README, in the backbone's dtype (theirs makes the table float32)."""
    layer: Any = model.get_input_embeddings()
    old = layer.weight
    table = torch.zeros(len(old) + len(matrix), old.shape[1], dtype=old.dtype)
    table[: len(old)] = old.detach()
    table[len(old) :] = matrix
    layer.weight = nn.Parameter(table)
    return layer


WAYS: dict[str, Callable[[LlamaForCausalLM, torch.Tensor], object]] = {"bank": _ours, "new_table": _new_table}


def _resident(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    raise KeyError(field)


def measure_one(way: str, vocab: int) -> None:
    model, matrix = _backbone(vocab), torch.randn(TOKENS, HIDDEN)
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here on
    before = _resident("VmRSS")
    start = time.perf_counter()
    kept = WAYS[way](model, matrix)
    seconds = time.perf_counter() - start
    extra = _resident("VmHWM") - before
    assert kept is not None  # what was made stays alive until it is measured
    print(json.dumps({"seconds": seconds, "extra_peak_bytes": extra}))


def main() -> None:
    results = {}
    for name, vocab in VOCABULARIES.items():
        found = {}
        for way in WAYS:
            runs = [
                json.loads(subprocess.check_output([sys.executable, __file__, way, str(vocab)]))
                for _ in range(3)
            ]
            found[way] = {key: [run[key] for run in runs] for key in ("seconds", "extra_peak_bytes")}
        found["time_ratio"] = min(found["new_table"]["seconds"]) / min(found["bank"]["seconds"])
        found["memory_ratio"] = min(found["new_table"]["extra_peak_bytes"]) / max(
            1, min(found["bank"]["extra_peak_bytes"])
        )
        results[f"{name} x {HIDDEN}"] = found
    save(
        "attach",
        {
            "what": "attaching 50 virtual tokens to a bf16 table; ratios are new_table / bank",
            "results": results,
        },
    )


if __name__ == "__main__":
    if len(sys.argv) > 1:
        measure_one(sys.argv[1], int(sys.argv[2]))
    else:
        main()
