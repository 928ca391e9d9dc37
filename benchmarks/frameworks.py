"""Time 64 questions through LangChain and LlamaIndex, compared with one `model.generate` on the same prompts: `python benchmarks/frameworks.py`

Passages are retrieved beforehand, so that only the way to the backbone and back is measured. Bars: `llm.batch` may take 1.15 times as
long, `chain.batch(max_concurrency=64)` and `abatch` 1.3 times. A chat model has no batch in LangChain: its prompts come one by one
from 64 threads or tasks, and are gathered in front of the backbone, like those of LlamaIndex.
"""

import asyncio
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from langchain_core.documents import Document
from measure import alternate, ratio, save

sys.path.append(str(Path(__file__).parents[1] / "tests"))
from toy_parts import BACKBONE, TOKENS, retrieved
from toy_parts import QUESTIONS as TOY_QUESTIONS

from langchain_spring_rag import ChatSpring, SpringLLM, format_passages, rag_prompt
from llama_index.llms.spring_rag import SpringLLM as LlamaIndexLLM
from llama_index.llms.spring_rag import render_text
from spring_rag import RagPrompt, RagTemplate, SpringModel
from spring_rag.data.examples import RagExample

QUESTIONS, NEW, ROUNDS = 64, 32, 5
BARS = {
    "LangChain: llm.batch": 1.15,
    "LangChain: chain.batch": 1.3,
    "LangChain: chain.abatch": 1.3,
    "LangChain chat: chain.batch": 1.3,
    "LangChain chat: chain.abatch": 1.3,
}
AT_ONCE: Any = {"max_concurrency": QUESTIONS}

Answers = list[str]


def measure(runs: dict[str, Callable[[], Answers]]) -> dict[str, Any]:
    """Return seconds, and ratios to the first of these runs, which must all give the same answers."""
    baseline, *others = runs
    answers = runs[baseline]()
    for name in others:
        assert runs[name]() == answers, name
    seconds = alternate(runs, ROUNDS)
    return {
        "seconds": seconds,
        "ratios": {name: round(ratio(seconds[name], seconds[baseline]), 3) for name in others},
    }


def texts(model: SpringModel, examples: list[RagExample]) -> dict[str, Callable[[], Answers]]:
    prompts = [RagPrompt(each.question, each.passages) for each in examples]
    values = [_values(each) for each in examples]
    llm = SpringLLM(model=model, max_tokens=NEW)
    other = LlamaIndexLLM(model=model, max_tokens=NEW)
    chain = rag_prompt() | llm
    ready: list[Any] = [rag_prompt().invoke(each) for each in values]
    rendered = [render_text(prompt) for prompt in prompts]

    async def together() -> Answers:
        found = await asyncio.gather(*(other.acomplete(text, formatted=True) for text in rendered))
        return [each.text for each in found]

    def from_threads() -> Answers:
        with ThreadPoolExecutor(QUESTIONS) as pool:
            return list(pool.map(lambda text: other.complete(text, formatted=True).text, rendered))

    return {
        "model.generate": lambda: [each.text.strip() for each in model.generate(prompts, max_new_tokens=NEW)],
        "LangChain: llm.batch": lambda: llm.batch(ready),
        "LangChain: chain.batch": lambda: chain.batch(values, AT_ONCE),
        "LangChain: chain.abatch": lambda: asyncio.run(chain.abatch(values, AT_ONCE)),
        "LlamaIndex: acomplete": lambda: asyncio.run(together()),
        "LlamaIndex: complete in 64 threads": from_threads,
        "LangChain: one by one": lambda: [chain.invoke(each) for each in values],
    }


def chats(model: SpringModel, examples: list[RagExample]) -> dict[str, Callable[[], Answers]]:
    layout = RagTemplate(chat=True)
    prompts = [RagPrompt(each.question, each.passages, layout) for each in examples]
    values = [_values(each) for each in examples]
    chain = rag_prompt(layout) | ChatSpring(model=model, max_tokens=NEW) | (lambda message: message.text)
    return {
        "model.generate": lambda: [each.text.strip() for each in model.generate(prompts, max_new_tokens=NEW)],
        "LangChain chat: chain.batch": lambda: chain.batch(values, AT_ONCE),
        "LangChain chat: chain.abatch": lambda: asyncio.run(chain.abatch(values, AT_ONCE)),
        "LangChain chat: one by one": lambda: [chain.invoke(each) for each in values],
    }


def _values(example: RagExample) -> dict[str, str]:
    documents = [Document(passage) for passage in example.passages]
    return {"context": format_passages(documents), "question": example.question}


def main() -> None:
    torch.set_num_threads(2)
    model = SpringModel.from_pretrained(BACKBONE, tokens=TOKENS)
    examples = retrieved(TOY_QUESTIONS[:QUESTIONS], top_k=5)
    results = {"texts": measure(texts(model, examples)), "chats": measure(chats(model, examples))}
    what = f"{QUESTIONS} questions of the tests' toy, 5 passages each, all its virtual tokens, at most {NEW} new tokens; float32"
    save("frameworks", {"what": what, "bars": BARS, "results": results})


if __name__ == "__main__":
    main()
