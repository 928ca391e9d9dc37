"""Compute how large models and requests are on servers: `python benchmarks/vllm_sizing.py`

Nothing is run: parameters are counted on a model without values, and a request is packed as the client packs it. docs/serving.md shows the
table that this prints.
"""

import json
import sys

import torch
from measure import save
from transformers import LlamaConfig, MistralConfig
from transformers.models.auto.modeling_auto import AutoModelForCausalLM

from spring_rag.backends.vllm.calls import pack

GIB = 2**30
CARD = 80 * 10**9
"""Bytes of one 80-GB card."""
USABLE = 0.9
"""vLLM's --gpu-memory-utilization."""
WORKING = 2 * GIB
"""Of each card for activations and CUDA graphs; vLLM measures its own when it starts."""

FEWEST = 8
"""Requests that must fit at once; below that, batches are too small to pay for the cards."""

CONTEXT, TOKENS, SUFFIX, ANSWER = 2000, 50, 40, 64

SHAPES: dict[str, LlamaConfig | MistralConfig] = {
    "Mistral-7B": MistralConfig(),
    "Llama-2-7B": LlamaConfig(max_position_embeddings=4096),
    "Llama-2-13B": LlamaConfig(
        hidden_size=5120, intermediate_size=13824, num_hidden_layers=40, num_attention_heads=40
    ),
    "Llama-2-70B": LlamaConfig(
        hidden_size=8192,
        intermediate_size=28672,
        num_hidden_layers=80,
        num_attention_heads=64,
        num_key_value_heads=8,
    ),
}


def size(config: LlamaConfig | MistralConfig) -> dict[str, float | int]:
    with torch.device("meta"):
        parameters = AutoModelForCausalLM.from_config(config).num_parameters()
    weights = 2 * parameters
    assert config.num_key_value_heads is not None
    head = config.hidden_size // config.num_attention_heads
    per_token = 2 * 2 * config.num_hidden_layers * config.num_key_value_heads * head
    request = CONTEXT + TOKENS + SUFFIX + ANSWER
    cards = 1
    while _requests(weights, per_token, request, cards) < FEWEST:
        cards *= 2
    row: dict[str, float | int] = {
        "parameters": parameters,
        "weights_gib": round(weights / GIB, 1),
        "kv_kib_per_token": per_token / 1024,
        "kv_mib_per_request": round(request * per_token / 2**20),
        "cards": cards,
        "requests_at_once": _requests(weights, per_token, request, cards),
    }
    for dtype in (torch.float32, torch.bfloat16):
        name = str(dtype).removeprefix("torch.")
        light = len(pack(torch.zeros(TOKENS + SUFFIX, config.hidden_size, dtype=dtype)))
        exact = len(pack(torch.zeros(CONTEXT + TOKENS + SUFFIX, config.hidden_size, dtype=dtype)))
        row[f"light_kib_{name}"] = round(light / 1024)
        row[f"exact_kib_{name}"] = round(exact / 1024)
    return row


def _requests(weights: int, per_token: int, request: int, cards: int) -> int:
    free = USABLE * CARD * cards - weights - WORKING * cards
    return max(int(free // (request * per_token)), 0)


def main() -> None:
    rows = {name: size(config) for name, config in SHAPES.items()}
    what = f"16-bit weights and cache; requests of {CONTEXT} context, {TOKENS} virtual and {SUFFIX} further tokens, {ANSWER} for the answer"
    save("vllm_sizing", {"what": what, "card_bytes": CARD, "usable": USABLE, "results": rows})
    columns = list(next(iter(rows.values())))
    print("\n| model | " + " | ".join(columns) + " |", file=sys.stderr)
    for name, row in rows.items():
        print(
            f"| {name} | " + " | ".join(json.dumps(row[column]) for column in columns) + " |", file=sys.stderr
        )


if __name__ == "__main__":
    main()
