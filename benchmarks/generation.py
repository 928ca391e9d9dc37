"""Time generation with 50 virtual tokens, compared with plain `generate` on prompts 50 tokens longer: `python benchmarks/generation.py`

Both write the same number of tokens. The bar is a ratio of at most 1.05.
"""

import sys
from pathlib import Path
from typing import Any

import torch
from measure import alternate, ratio, save
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

sys.path.append(str(Path(__file__).parents[1] / "tests"))
from toy_parts import BACKBONE

from spring_rag.backends.base import GenerationSettings, Request
from spring_rag.backends.local import LocalBackend
from spring_rag.encoding import Encoded
from spring_rag.tokens import VirtualTokens

ROWS, PROMPT, TOKENS, NEW = 8, 400, 50, 64


def _larger() -> Any:
    config = LlamaConfig(
        vocab_size=8192, hidden_size=768, intermediate_size=2048, num_hidden_layers=8, num_attention_heads=12
    )
    return LlamaForCausalLM(config)


def measure_one(model: Any, rounds: int) -> dict[str, object]:
    model.generation_config.eos_token_id = None  # every row writes all its tokens
    tokenizer = AutoTokenizer.from_pretrained(BACKBONE)
    tokenizer.eos_token = None
    backend = LocalBackend(model, tokenizer)
    backend.add_tokens("default", VirtualTokens(torch.randn(TOKENS, backend.hidden_size) * 0.02))
    ids = torch.randint(10, 3000, (ROWS, PROMPT + TOKENS), device=model.device)
    requests = [Request(Encoded(tuple(row[:PROMPT].tolist()), PROMPT - 40), None, TOKENS) for row in ids]
    settings = GenerationSettings(max_new_tokens=NEW)
    mask = torch.ones_like(ids)

    def plain() -> None:
        out = model.generate(
            ids, attention_mask=mask, max_new_tokens=NEW, min_new_tokens=NEW, do_sample=False, pad_token_id=0
        )
        assert out.shape[1] == PROMPT + TOKENS + NEW

    def ours() -> None:
        assert all(answer.usage.generated == NEW for answer in backend.generate(requests, settings))

    seconds = alternate({"virtual_tokens": ours, "plain": plain}, rounds)
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "device": str(model.device),
        "dtype": str(model.dtype),
        "seconds": seconds,
        "ratio": ratio(seconds["virtual_tokens"], seconds["plain"]),
    }


def main() -> None:
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    toy: Any = AutoModelForCausalLM.from_pretrained(BACKBONE, dtype=torch.float32)
    results = {
        "toy": measure_one(toy.to(device), rounds=11),
        "8 layers of 768": measure_one(_larger().to(device).eval(), rounds=11),
    }
    what = f"{ROWS} prompts of {PROMPT} tokens with {TOKENS} virtual tokens, beside prompts of {PROMPT + TOKENS}; {NEW} new tokens"
    save("generation", {"what": what, "bar": 1.05, "results": results})


if __name__ == "__main__":
    main()
