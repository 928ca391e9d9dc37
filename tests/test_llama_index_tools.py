"""Test tools in LlamaIndex: calls, results, schemas, and agents that retrieve from Chroma and answer with virtual tokens."""

from __future__ import annotations

import json

import pytest
from agent_parts import FACTS, LOOK, QUESTION, ask_function_agent
from llama_index.core import PromptTemplate
from llama_index.core.agent.workflow import FunctionAgent, ReActAgent
from llama_index.core.base.llms.types import ChatMessage, ToolCallBlock
from llama_index.core.tools import FunctionTool, QueryEngineTool
from llama_index_parts import chroma_index
from pydantic import BaseModel
from tool_parts import scripted  # noqa: F401 - a fixture
from tool_templates import call

from llama_index.llms.spring_rag import SpringLLM, upgrade_engine
from spring_rag.errors import ToolsError


class Person(BaseModel):
    """A person."""

    name: str
    age: int


def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


ADD = FunctionTool.from_defaults(add)
CALL = call("add", '{"a": 1, "b": 2}')


def chat(model, **settings):
    return SpringLLM(model=model, **{"max_tokens": 200, **settings})


@pytest.fixture
def index():
    return chroma_index(FACTS)


def test_calls_and_results(scripted):  # noqa: F811
    llm = chat(scripted(f"Adding.\n{CALL}", "It is 3."))
    assert llm.metadata.is_function_calling_model
    response = llm.chat_with_tools([ADD], user_msg="1 + 2?")
    assert response.message.content == "Adding."
    (made,) = llm.get_tool_calls_from_response(response)
    assert (made.tool_name, made.tool_kwargs) == ("add", {"a": 1, "b": 2})
    result = ChatMessage(role="tool", content="3", additional_kwargs={"tool_call_id": made.tool_id})
    history = [ChatMessage("1 + 2?"), response.message, result]
    answer = llm.chat_with_tools([ADD], chat_history=history)
    assert answer.message.content == "It is 3."
    assert llm.get_tool_calls_from_response(answer, error_on_no_tool_call=False) == []
    with pytest.raises(ValueError, match="called no tool"):
        llm.get_tool_calls_from_response(answer)
    prompt = llm.model.prompts[-1]
    assert [message.role for message in prompt.messages] == ["user", "assistant", "tool"]
    assert (prompt.messages[2].tool_call_id, prompt.messages[2].name) == (made.tool_id, "add")


def test_one_call_where_several_are_not_wanted(scripted):  # noqa: F811
    llm = chat(scripted(*[f"{CALL}\n{CALL}"] * 2))
    for several, count in ((False, 1), (True, 2)):
        response = llm.chat_with_tools([ADD], "1 + 2?", allow_parallel_tool_calls=several)
        assert len(llm.get_tool_calls_from_response(response)) == count


def test_streamed_calls(scripted):  # noqa: F811
    llm = chat(scripted(f"Adding now.\n{CALL}"))
    responses = list(llm.stream_chat_with_tools([ADD], "1 + 2?"))
    assert "".join(response.delta or "" for response in responses) == "Adding now."
    assert [len(llm.get_tool_calls_from_response(each, False)) for each in responses] == [0] * (
        len(responses) - 1
    ) + [1]


def test_predict_and_call(scripted):  # noqa: F811
    llm = chat(scripted(' {"a": 1, "b": 2}}\n</tool_call>'))
    assert llm.predict_and_call([ADD], "1 + 2?", tool_required=True).response == "3"
    assert llm.model.prompts[-1].tool_choice == "any"


def test_structured_predict(scripted):  # noqa: F811
    llm = chat(scripted(*[' {"name": "Ada", "age": 36}}\n</tool_call>'] * 2))
    template = PromptTemplate("Who is {who}?")
    assert llm.structured_predict(Person, template, who="Ada") == Person(name="Ada", age=36)
    assert llm.as_structured_llm(Person).complete("Who is Ada?").raw == Person(name="Ada", age=36)
    assert llm.model.prompts[-1].tools[0]["function"]["name"] == "Person"


def test_templates_without_tools_refuse(scripted):  # noqa: F811
    llm = chat(scripted(template="{% for message in messages %}<s>{{ message.content }}{% endfor %}"))
    assert not llm.metadata.is_function_calling_model
    with pytest.raises(ToolsError, match="no place for them"):
        llm.chat_with_tools([ADD], "1 + 2?")
    called = ChatMessage(
        role="assistant", blocks=[ToolCallBlock(tool_name="add", tool_kwargs={}, tool_call_id="1")]
    )
    with pytest.raises(ToolsError, match="no place for them"):
        llm.chat([ChatMessage("a"), called])


@pytest.mark.parametrize("streaming", [True, False])
async def test_a_function_agent_answers_from_what_its_tool_found(scripted, streaming):  # noqa: F811
    """The tool's result is the prompt with the slot, so the last step has virtual tokens, and the first has none."""
    model = scripted(LOOK, None)
    answer = await ask_function_agent(chat(model), streaming=streaming)
    first, last = model.prompts
    assert (first.has_slot, last.has_slot) == (False, True)
    assert FACTS[0] in last.messages[-1].text
    assert answer.tool_calls[0].tool_name == "search"
    (expected,) = model.generate(last, max_new_tokens=200)
    assert expected.usage.virtual == 6
    assert answer.response.content == expected.text.strip()


async def test_a_function_agent_with_an_upgraded_engine(scripted, index):  # noqa: F811
    model = scripted(call("facts", json.dumps({"input": QUESTION})), None, "Hale.")
    llm = chat(model)
    engine = index.as_query_engine(llm=llm, similarity_top_k=1)
    upgrade_engine(engine)
    tool = QueryEngineTool.from_defaults(engine, name="facts", description="Answers questions.")
    answer = await FunctionAgent(llm=llm, tools=[tool]).run(QUESTION)
    assert answer.response.content == "Hale."
    assert [prompt.has_slot for prompt in model.prompts] == [False, True, False]


async def test_a_react_agent_needs_no_template_with_tools(scripted, index):  # noqa: F811
    def search(query: str) -> str:
        """Search the documents."""
        return index.as_retriever(similarity_top_k=1).retrieve(query)[0].text

    model = scripted(
        f'Thought: I need to look.\nAction: search\nAction Input: {{"query": "{QUESTION}"}}',
        "Thought: I can answer.\nAnswer: Hale and Sons",
        template="{% for message in messages %}<s>{{ message.content }}{% endfor %}",
    )
    answer = await ReActAgent(llm=chat(model), tools=[FunctionTool.from_defaults(search)]).run(QUESTION)
    assert answer.response.content == "Hale and Sons"
    assert FACTS[0] in model.prompts[-1].text
