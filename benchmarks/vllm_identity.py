"""Compare answers of a vLLM server and of this process, token by token: `python benchmarks/vllm_identity.py`

The questions of the tests' toy are asked in light and exact form, with k = 0, 1, 10 and 50 and two token sets side by side, with the prefix cache on and all
requests in flight together. A tiny random Llama with the real Llama-2 tokenizer is asked too, if SPRING_RAG_DATA has that tokenizer.
"""

import itertools
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from measure import save

sys.path += [str(Path(__file__).parents[1] / folder) for folder in ("tests", "tests/vllm")]
from servers import RunningServer, vllm_server
from tiny import LLAMA_2, save_tiny_llama, shuffled
from toy_parts import BACKBONE, QUESTIONS, TOKENS, retrieved

from spring_rag import RagPrompt, SpringModel, VirtualTokens
from spring_rag.backends.vllm import VLLMBackend

KS = (0, 1, 10, 50)
SETS = (None, "other")
FORMS = ("light", "exact")


def compare(
    backbone: Path,
    tokens: VirtualTokens,
    prompts: list[RagPrompt],
    server: RunningServer,
    max_new_tokens: int,
) -> dict[str, Any]:
    local = SpringModel.from_pretrained(backbone, tokens=tokens)
    local.add_tokens("other", shuffled(tokens))
    # Neighbours share the context and differ in set and k.
    asked = list(itertools.product(prompts, KS, SETS))
    arguments: dict[str, Any] = {
        "num_tokens": [k for _, k, _ in asked],
        "tokens": [name for _, _, name in asked],
        "max_new_tokens": max_new_tokens,
    }
    expected = local.generate([prompt for prompt, _, _ in asked], **arguments)
    rows = {}
    for form in FORMS:
        backend = VLLMBackend.from_pretrained(backbone, server.url, form=form)
        remote = SpringModel.from_backend(backend, tokens=tokens)
        remote.add_tokens("other", shuffled(tokens))
        hits, queries = (server.metric(f"vllm:prefix_cache_{what}_total") for what in ("hits", "queries"))
        start = time.perf_counter()
        found = remote.generate([prompt for prompt, _, _ in asked], **arguments)
        seconds = time.perf_counter() - start
        rate = (server.metric("vllm:prefix_cache_hits_total") - hits) / (
            server.metric("vllm:prefix_cache_queries_total") - queries
        )
        different = [
            {"k": k, "set": name, "local": mine.text, "vllm": theirs.text}
            for (_, k, name), mine, theirs in zip(asked, expected, found, strict=True)
            if (mine.token_ids, mine.text, mine.usage) != (theirs.token_ids, theirs.text, theirs.usage)
        ]
        forms = {theirs.form for theirs in found}
        rows[form] = {
            "answers": len(found),
            "different": len(different),
            "first_differences": different[:3],
            "distinct_answers": len({each.token_ids for each in found}),
            "forms": sorted(map(str, forms)),
            "prefix_cache_hit_rate": round(rate, 3),
            "seconds": round(seconds, 1),
        }
    return rows


def keep(prompts: list[RagPrompt], results: dict[str, Any]) -> None:
    what = f"{len(prompts)} questions × k = {', '.join(map(str, KS))} × 2 token sets, float32, all in flight together"
    save("vllm_identity", {"what": what, "vllm": "0.32.0, CPU build", "results": results})


def main() -> None:
    count = int(os.environ.get("QUESTIONS", "0")) or None
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        examples = retrieved(QUESTIONS[:count], top_k=5)
        prompts = [RagPrompt(each.question, each.passages) for each in examples]
        with vllm_server(BACKBONE, folder / "toy.log") as server:
            toy = VirtualTokens.from_pretrained(TOKENS)
            results["toy"] = compare(BACKBONE, toy, prompts, server, 48)
        keep(prompts, results)
        if LLAMA_2 is not None:
            tiny, tokens = save_tiny_llama(folder / "llama-2", LLAMA_2)
            with vllm_server(tiny, folder / "llama.log") as server:
                results["tiny Llama, Llama-2 tokenizer"] = compare(tiny, tokens, prompts, server, 16)
            keep(prompts, results)
    assert not any(row["different"] for rows in results.values() for row in rows.values())


if __name__ == "__main__":
    main()
