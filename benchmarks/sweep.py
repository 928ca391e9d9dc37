"""Time a sweep over six numbers of virtual tokens, compared with one of them: `python benchmarks/sweep.py`

The sweep answers every question with k = 0, 1, 5, 10, 25 and 50; all rows of a question share their context. No row ends early.
The bar is a ratio of at most 1.6.
"""

import sys
from pathlib import Path
from typing import Any

import torch
from measure import alternate, ratio, save
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

sys.path.append(str(Path(__file__).parents[1] / "tests"))
from toy_parts import BACKBONE

from spring_rag.backends.base import GenerationSettings, Request
from spring_rag.backends.local import LocalBackend
from spring_rag.encoding import Encoded
from spring_rag.tokens import VirtualTokens

KS = (0, 1, 5, 10, 25, 50)
QUESTIONS, QUESTION, TOKENS = 4, 20, 50
CONTEXT = 700
ANSWERS = (4, 16)
SIZE: dict[str, Any] = {
    "hidden_size": 512,
    "intermediate_size": 1376,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
}


def measure_one(backend: LocalBackend, answer: int, rounds: int) -> dict[str, object]:
    ids = torch.randint(10, 3000, (QUESTIONS, CONTEXT + QUESTION)).tolist()
    settings = GenerationSettings(max_new_tokens=answer)

    def requests(k: int) -> list[Request]:
        return [Request(Encoded(tuple(row), CONTEXT), None, k) for row in ids]

    def run(ks: tuple[int, ...]) -> None:
        answers = backend.generate([one for k in ks for one in requests(k)], settings)
        assert all(one.usage.generated == answer for one in answers)

    seconds = alternate({"six": lambda: run(KS), "one": lambda: run(KS[-1:])}, rounds)
    return {"seconds": seconds, "ratio": ratio(seconds["six"], seconds["one"])}


def main() -> None:
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    tokenizer = AutoTokenizer.from_pretrained(BACKBONE)
    tokenizer.eos_token = None
    model: Any = LlamaForCausalLM(LlamaConfig(vocab_size=16_384, **SIZE)).eval()
    model.to(device)
    model.generation_config.eos_token_id = None
    backend = LocalBackend(model, tokenizer)
    backend.add_tokens("default", VirtualTokens(torch.randn(TOKENS, backend.hidden_size) * 0.02))
    results = {f"answers of {answer} tokens": measure_one(backend, answer, rounds=7) for answer in ANSWERS}
    parameters = sum(p.numel() for p in model.parameters())
    what = f"{QUESTIONS} questions with k = {', '.join(map(str, KS))} in one batch, beside k = {KS[-1]} alone; contexts of {CONTEXT} tokens, questions of {QUESTION}"
    save("sweep", {"what": what, "bar": 1.6, "parameters": parameters, "device": device, "results": results})


if __name__ == "__main__":
    main()
