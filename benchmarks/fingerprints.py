"""Measure `Fingerprint.likeness` with quantised, fine-tuned and other embedding tables: `python benchmarks/fingerprints.py BACKBONE [ANOTHER]`

ANOTHER is a second model, only for comparison.
"""

import sys
from collections.abc import Callable
from functools import partial

import torch
from gguf import GGMLQuantizationType, quants
from measure import save

from spring_rag.backbone import QUANTIZED_LIKENESS, Fingerprint
from spring_rag.backends.vllm.checkpoint import load_checkpoint

GGUF_TYPES = ("BF16", "F16", "Q8_0", "Q5_1", "Q5_0", "Q4_1", "Q4_0")
BITS = (4, 3, 2)
"""Of plain rounding between the least and the greatest of 16 numbers, as K-quants store them; theirs is a little better."""
FINE_TUNED = (0.001, 0.01, 0.1)
"""Length of what is added to a row, as a share of the row's."""


def _rounded(rows: torch.Tensor, bits: int) -> torch.Tensor:
    blocks = rows.reshape(len(rows), -1, 16)
    low, high = blocks.amin(-1, keepdim=True), blocks.amax(-1, keepdim=True)
    step = (high - low) / (2**bits - 1)
    rounded: torch.Tensor = ((blocks - low) / step).round() * step + low
    return rounded.reshape(rows.shape)


def _stored(rows: torch.Tensor, kind: str) -> torch.Tensor:
    as_type = GGMLQuantizationType[kind]
    return torch.from_numpy(quants.dequantize(quants.quantize(rows.numpy(), as_type), as_type).copy())


def _noisy(rows: torch.Tensor, share: float) -> torch.Tensor:
    noise = torch.randn(rows.shape)
    size: torch.Tensor = rows.norm(dim=1, keepdim=True) / noise.norm(dim=1, keepdim=True)
    return rows + share * noise * size


def main(backbone: str, another: str | None) -> None:
    torch.manual_seed(0)
    table = load_checkpoint(backbone)[2].float()
    fingerprint = Fingerprint.of(table)
    rows = list(fingerprint.rows)

    def like(change: Callable[[torch.Tensor], torch.Tensor]) -> dict[str, float | bool]:
        """Return the likeness of a table whose recorded rows are changed; other rows don't matter."""
        changed = table.clone()
        changed[rows] = change(table[rows])
        return found(changed)

    def found(other: torch.Tensor) -> dict[str, float | bool]:
        return {"likeness": round(fingerprint.likeness(other), 4), "same": fingerprint.matches(other)}

    vocab, hidden = table.shape
    shifts = [fingerprint.likeness(table.roll(shift, 0)) for shift in range(1, 21)]
    others = {
        "random": found(torch.randn_like(table)),
        "rows shuffled": found(table[torch.randperm(vocab)]),
        "rows shifted, the most alike of 20": {"likeness": round(max(shifts), 4), "same": False},
        "columns shuffled": found(table[:, torch.randperm(hidden)]),
        "rotated": found(table @ torch.linalg.qr(torch.randn(hidden, hidden))[0]),
    }
    if another:
        others["another model's, cut to this size"] = found(load_checkpoint(another)[2][:vocab, :hidden])
    result = {
        "table": [vocab, hidden],
        "threshold": QUANTIZED_LIKENESS,
        "quantised": {kind: like(partial(_stored, kind=kind)) for kind in GGUF_TYPES},
        "rounded in blocks of 16": {f"{bits} bits": like(partial(_rounded, bits=bits)) for bits in BITS},
        "fine-tuned": {f"{share:g}": like(partial(_noisy, share=share)) for share in FINE_TUNED},
        "others": others,
    }
    save("fingerprints", result)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else None)
