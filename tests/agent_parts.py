"""Agents of both frameworks that retrieve from Chroma by a tool and answer with virtual tokens, and a backbone whose weights make it do so."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from langchain.agents import create_agent
from langchain_chroma import Chroma
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage
from langchain_core.tools import tool
from langchain_parts import WordEmbeddings
from llama_index.core.agent.workflow import AgentOutput, FunctionAgent
from llama_index.core.tools import FunctionTool
from llama_index_parts import chroma_index
from thinking_parts import writing_at
from tool_parts import Scripted
from tool_templates import call
from transformers import PreTrainedTokenizerFast

from langchain_spring_rag import ChatSpring
from llama_index.llms.spring_rag import SpringLLM, render_text
from spring_rag import SpringModel
from spring_rag.encoding import encode
from spring_rag.prompt import Prompt, RagPrompt
from spring_rag.tokens import VirtualTokens

FACTS = ["Hale and Sons built the lighthouse.", "The harbour was dug in 1802."]
QUESTION = "Who built the lighthouse?"
LOOK = call("search", json.dumps({"query": QUESTION}))
ANSWER = "Hale and Sons"

VIRTUAL = 6
"""How many virtual tokens the answers have."""

_POSITIONS = 1024


def ask_langgraph(llm: ChatSpring) -> list[BaseMessage]:
    """All messages of an agent whose tool gives the prompt with the slot."""
    store = Chroma("facts", WordEmbeddings())
    store.reset_collection()
    store.add_texts(FACTS)

    @tool
    def search(query: str) -> str:
        """Search the documents."""
        found = store.similarity_search(query, k=1)
        return render_text(RagPrompt(QUESTION, [document.page_content for document in found]))

    agent = create_agent(llm, tools=[search], system_prompt="Be brief.")
    messages: list[BaseMessage] = agent.invoke({"messages": [HumanMessage(QUESTION)]})["messages"]
    return messages


async def ask_function_agent(llm: SpringLLM, *, streaming: bool = True) -> AgentOutput:
    """What LlamaIndex's agent says, whose tool does the same."""
    index = chroma_index(FACTS)

    def search(query: str) -> str:
        """Search the documents."""
        found = index.as_retriever(similarity_top_k=1).retrieve(query)
        return render_text(RagPrompt(QUESTION, [each.text for each in found]))

    tools = [FunctionTool.from_defaults(search)]
    # So long that no step of the other agent ends where one of this does.
    agent = FunctionAgent(llm=llm, tools=tools, system_prompt="Be brief. " * 30, streaming=streaming)
    answer: AgentOutput = await agent.run(QUESTION)
    return answer


async def save_agents_backbone(folder: Path, rehearsing: Scripted) -> VirtualTokens:
    """Save a backbone that both agents can be asked with, and give virtual tokens for it; a model that is told what to write shows its prompts."""
    rehearsing.lines[:] = [LOOK, ANSWER] * 2
    ask_langgraph(ChatSpring(model=rehearsing, max_tokens=200))
    await ask_function_agent(SpringLLM(model=rehearsing, max_tokens=200))
    script = list(zip(rehearsing.prompts, [LOOK, ANSWER] * 2, strict=True))
    return _save_scripted(folder, rehearsing.tokenizer, script)


async def check_agents(model: SpringModel) -> None:
    """Make sure that both agents call the tool, and then answer with virtual tokens."""
    _, called, result, answer = ask_langgraph(ChatSpring(model=model, max_tokens=200))
    assert isinstance(called, AIMessage)
    assert isinstance(answer, AIMessage)
    assert [made["args"] for made in called.tool_calls] == [{"query": QUESTION}]
    assert FACTS[0] in result.text
    assert answer.text == ANSWER
    used = [each.usage_metadata["input_token_details"]["virtual"] for each in (called, answer)]  # type: ignore[index,typeddict-item]
    assert used == [0, VIRTUAL]
    found = await ask_function_agent(SpringLLM(model=model, max_tokens=200))
    (looked,) = found.tool_calls
    assert (looked.tool_name, looked.tool_kwargs) == ("search", {"query": QUESTION})
    assert FACTS[0] in str(looked.tool_output)  # type: ignore[attr-defined] # a result has one
    assert found.response.content == ANSWER
    assert found.raw["usage"]["virtual_tokens"] == VIRTUAL


def _save_scripted(
    folder: Path, tokenizer: PreTrainedTokenizerFast, script: Sequence[tuple[Prompt, str]]
) -> VirtualTokens:
    """Save a GPT-2 that answers each of these prompts as the script says.

    What comes next depends on the position alone. So an answer is right only where its prompt has the length that it should have.
    """
    written: dict[int, int] = {}
    for prompt, text in script:
        ids = [*tokenizer(text, add_special_tokens=False).input_ids, tokenizer.eos_token_id]
        length = len(encode(prompt, tokenizer).ids) + (VIRTUAL if prompt.has_slot else 0)
        for place, index in enumerate(ids, length - 1):
            assert written.setdefault(place, index) == index, "two answers are written at the same positions"
    assert max(written) < _POSITIONS
    # vLLM's attention takes heads of certain sizes only.
    model = writing_at(
        written, tokenizer, tokenizer.eos_token_id, positions=_POSITIONS, heads=_POSITIONS // 64
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    rows = torch.randn(VIRTUAL, _POSITIONS, generator=torch.Generator().manual_seed(0)) * 1e-3
    return VirtualTokens(rows)
