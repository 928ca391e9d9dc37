"""Measure the throughput of virtual tokens on vLLM, and the cost of a second question on one context: `python benchmarks/vllm_throughput.py`

Throughput is measured for questions in the light form through our client; for the same requests, made beforehand, through the openai library alone, which
shows their cost on the server; and for plain prompts of equal length in tokens through that library. They take turns on one server, and all
write the same number of tokens. The bar is 0.95 of the plain prompts' throughput. Client and server share the machine.

Time to first token: a context of 800 tokens that the server hasn't seen, then another question on it, streamed one at a time.

Needs the environment that `make test-vllm` sets up; the Llama-2 tokenizer comes from SPRING_RAG_DATA. Its Llama has 8 layers of 512, so that the
server has something to compute.
"""

import asyncio
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import openai
import torch
from measure import alternate, ratio, save
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

sys.path += [str(Path(__file__).parents[1] / folder) for folder in ("tests", "tests/vllm")]
from servers import RunningServer, vllm_server
from tiny import LLAMA_2
from toy_parts import BACKBONE
from toy_parts import TOKENS as TOY_TOKENS

from spring_rag import RagPrompt, SpringModel, VirtualTokens
from spring_rag.backends.base import GenerationSettings, Request
from spring_rag.backends.vllm import VLLMBackend
from spring_rag.backends.vllm import backend as client
from spring_rag.backends.vllm.calls import server_settings
from spring_rag.encoding import encode

PROMPTS, TOKENS, NEW, CONCURRENCY, ROUNDS = 48, 50, 24, 32, 5
WORDS = [
    "The",
    "old",
    "bridge",
    "of",
    "Morven",
    "was",
    "built",
    "by",
    "Ada",
    "Quill",
    "and",
    "opened",
    "in",
    "the",
    "year",
    "1811",
    "near",
    "the",
    "mill",
]


def text(seed: int, words: int) -> str:
    picks = torch.randint(len(WORDS), (words,), generator=torch.Generator().manual_seed(seed))
    return " ".join(WORDS[i] for i in picks.tolist())


def longer(model: SpringModel, prompt: RagPrompt) -> str:
    """Return a prompt's text with words in front, as long in tokens as the prompt with virtual tokens."""
    wanted = len(encode(prompt, model.tokenizer).ids) + TOKENS
    body, front = prompt.to_prompt().text, ""
    while len(encode(front + body, model.tokenizer).ids) < wanted:
        front += WORDS[len(front) % len(WORDS)] + " "
    return front + body


async def send(url: str, create: Callable[[openai.AsyncOpenAI], Any], requests: list[dict[str, Any]]) -> None:
    """Send requests by the openai library alone, with as many in flight as our client has."""
    settings = endless(GenerationSettings(max_new_tokens=NEW), [])
    slots = asyncio.Semaphore(CONCURRENCY)
    async with openai.AsyncOpenAI(base_url=url, api_key="none") as openai_client:

        async def one(request: dict[str, Any]) -> None:
            async with slots:
                reply = await create(openai_client)(**request, **settings)
                assert reply.usage is not None
                assert reply.usage.completion_tokens == NEW

        await asyncio.gather(*map(one, requests))


def endless(settings: GenerationSettings, _: Sequence[int]) -> dict[str, Any]:
    """Return settings with which no answer ends early."""
    told = server_settings(settings, [])
    return told | {"extra_body": told["extra_body"] | {"ignore_eos": True}}


def measure_one(backbone: Path, tokens: VirtualTokens, server: RunningServer) -> dict[str, Any]:
    model = SpringModel.from_pretrained(backbone, base_url=server.url, concurrency=CONCURRENCY)
    model.add_tokens("default", tokens)
    backend = model.backend
    assert isinstance(backend, VLLMBackend)
    name = str(backend._servers.all[0].model)
    # No context comes twice: nothing is in the server's cache but what a run puts there itself.
    rounds = [
        [
            RagPrompt(text(10**6 * r + i, 8) + "?", [text(10**6 * r + 100 + 5 * i + j, 40) for j in range(4)])
            for i in range(PROMPTS)
        ]
        for r in range(3 * (ROUNDS + 1))
    ]
    ours_next = iter(rounds[0::3])
    prepared_next = iter([[prepared(model, name, each) for each in prompts] for prompts in rounds[1::3]])
    plain_next = iter(
        [[{"model": name, "prompt": longer(model, each)} for each in prompts] for prompts in rounds[2::3]]
    )

    def ours() -> None:
        answers = model.generate(next(ours_next), num_tokens=TOKENS, max_new_tokens=NEW)
        assert {(each.form, each.usage.generated) for each in answers} == {("light", NEW)}

    def made_before() -> None:
        asyncio.run(send(server.url, lambda it: it.chat.completions.create, next(prepared_next)))

    def plain() -> None:
        asyncio.run(send(server.url, lambda it: it.completions.create, next(plain_next)))

    with patch.object(client, "server_settings", endless):
        seconds = alternate({"virtual_tokens": ours, "made_before": made_before, "plain": plain}, ROUNDS)
    return {
        "prompt_tokens": statistics.median(len(encode(p, model.tokenizer).ids) + TOKENS for p in rounds[0]),
        "hidden_size": tokens.hidden_size,
        "seconds": seconds,
        "throughput_ratio": ratio(seconds["plain"], seconds["virtual_tokens"]),
        "throughput_beside_made_before": ratio(seconds["made_before"], seconds["virtual_tokens"]),
        "first_token": first_tokens(model, server),
    }


def prepared(model: SpringModel, name: str, prompt: RagPrompt) -> dict[str, Any]:
    """Return the request that our client would send."""
    assert isinstance(model.backend, VLLMBackend)
    request = Request(encode(prompt, model.tokenizer), None, TOKENS, prompt.to_prompt())
    return {"model": name, "messages": model.backend.messages(request)}


def save_llama(folder: Path, tokenizer_folder: Path) -> tuple[Path, VirtualTokens]:
    """Save a Llama with random weights, large enough to give the server work, and 50 random virtual tokens."""
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=32_000,
        hidden_size=512,
        intermediate_size=1376,
        num_hidden_layers=8,
        num_attention_heads=8,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    model = LlamaForCausalLM(config)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder, VirtualTokens(torch.randn(TOKENS, config.hidden_size) * config.initializer_range)


def first_tokens(model: SpringModel, server: RunningServer, contexts: int = 12) -> dict[str, Any]:
    first: list[float] = []
    second: list[float] = []
    hits, queries = 0.0, 0.0
    for number in range(contexts):
        passages = [text(1000 + 10 * number + j, 60) for j in range(8)]
        for times, question in ((first, text(number, 8)), (second, text(500 + number, 8))):
            before = [server.metric(f"vllm:prefix_cache_{what}_total") for what in ("hits", "queries")]
            start = time.perf_counter()
            stream = model.stream(RagPrompt(question, passages), num_tokens=TOKENS, max_new_tokens=4)
            next(stream)
            times.append(time.perf_counter() - start)
            list(stream)
            if times is second:
                hits += server.metric("vllm:prefix_cache_hits_total") - before[0]
                queries += server.metric("vllm:prefix_cache_queries_total") - before[1]
    return {
        "prompt_tokens": len(encode(RagPrompt(question, passages), model.tokenizer).ids) + TOKENS,
        "first_question_seconds": first,
        "second_question_seconds": second,
        "ratio": ratio(second, first),
        "second_questions_cache_hit_rate": round(hits / queries, 3),
    }


def main() -> None:
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        with vllm_server(BACKBONE, folder / "toy.log") as server:
            results["toy"] = measure_one(BACKBONE, VirtualTokens.from_pretrained(TOY_TOKENS), server)
        if LLAMA_2 is not None:
            llama, tokens = save_llama(folder / "llama-2", LLAMA_2)
            with vllm_server(llama, folder / "llama.log", length=2048) as server:
                results["8 layers of 512, Llama-2 tokenizer"] = measure_one(llama, tokens, server)
    what = (
        f"{PROMPTS} prompts, {CONCURRENCY} in flight, {TOKENS} virtual tokens, {NEW} new tokens each, float32"
    )
    save("vllm_throughput", {"what": what, "bar": 0.95, "vllm": "0.32.0, CPU build", "results": results})


if __name__ == "__main__":
    main()
