"""Test tools in LangChain: calls, results, schemas, and agents that retrieve from Chroma and answer with virtual tokens."""

from __future__ import annotations

from typing import Literal

import pytest
from agent_parts import FACTS, LOOK, QUESTION, ask_langgraph
from langchain_chroma import Chroma
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.tools import tool
from langchain_parts import CHAT_TEMPLATE, WordEmbeddings
from langgraph.graph import END, START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode, tools_condition
from pydantic import BaseModel, Field
from tool_parts import scripted  # noqa: F401 - a fixture
from tool_templates import call

from langchain_spring_rag import ChatSpring, with_virtual_tokens
from spring_rag.errors import ToolsError


@tool
def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


class Grade(BaseModel):
    """Whether a passage is relevant."""

    score: Literal["yes", "no"] = Field(description="'yes' if it is")


@pytest.fixture
def store():
    store = Chroma("facts", WordEmbeddings())
    store.reset_collection()
    store.add_texts(FACTS)
    return store


@pytest.fixture
def search(store):
    @tool
    def search(query: str) -> str:
        """Search the documents."""
        return "\n".join(document.page_content for document in store.similarity_search(query, k=1))

    return search


def chat(model, **settings):
    return ChatSpring(model=model, **{"max_tokens": 200, **settings})


def test_calls_and_results(scripted):  # noqa: F811
    llm = chat(scripted("Adding.\n" + call("add", '{"a": 1, "b": 2}'), "It is 3."))
    with_tools = llm.bind_tools([add])
    first = with_tools.invoke("1 + 2?")
    assert first.content == "Adding."
    ((made),) = first.tool_calls
    assert (made["name"], made["args"], made["type"]) == ("add", {"a": 1, "b": 2}, "tool_call")
    assert first.usage_metadata["input_token_details"]["virtual"] == 0
    result = add.invoke(made)
    assert isinstance(result, ToolMessage)
    assert with_tools.invoke([HumanMessage("1 + 2?"), first, result]).content == "It is 3."
    prompt = llm.spring_model.prompts[-1]
    assert [message.role for message in prompt.messages] == ["user", "assistant", "tool"]
    assert prompt.messages[2].tool_call_id == prompt.messages[1].tool_calls[0].id == made["id"]
    assert prompt.tools[0]["function"]["description"] == "Add two numbers."


def test_streamed_calls(scripted):  # noqa: F811
    llm = chat(scripted(*["Adding now.\n" + call("add", '{"a": 1, "b": 2}')] * 2)).bind_tools([add])
    chunks = list(llm.stream("1 + 2?"))
    whole = chunks[0]
    for chunk in chunks[1:]:
        whole += chunk
    assert "".join(chunk.text for chunk in chunks) == "Adding now."
    assert len([chunk for chunk in chunks if chunk.text]) > 1
    answer = llm.invoke("1 + 2?")
    assert whole.tool_calls == answer.tool_calls != []


async def test_async_calls(scripted):  # noqa: F811
    llm = chat(scripted(*[call("add", '{"a": 1, "b": 2}')] * 2)).bind_tools([add])
    answer = await llm.ainvoke("1 + 2?")
    chunks = [chunk async for chunk in llm.astream("1 + 2?")]
    assert answer.tool_calls == [made for chunk in chunks for made in chunk.tool_calls] != []


@pytest.mark.parametrize(
    ("choice", "expected"),
    [("any", "any"), ("required", "any"), (True, "any"), ("add", "add"), ("auto", None), (None, None),
     ({"type": "function", "function": {"name": "add"}}, "add")],
)  # fmt: skip
def test_tool_choice(scripted, choice, expected):  # noqa: F811
    llm = chat(scripted(' {"a": 1, "b": 2}}\n</tool_call>' if expected else "No."))
    answer = llm.bind_tools([add], tool_choice=choice).invoke("1 + 2?")
    assert llm.spring_model.prompts[-1].tool_choice == expected
    assert [made["args"] for made in answer.tool_calls] == ([{"a": 1, "b": 2}] if expected else [])


def test_no_choice_and_what_is_none(scripted):  # noqa: F811
    llm = chat(scripted("No.", "No."))
    assert llm.bind_tools([add], tool_choice="none").invoke("Hi").content == "No."
    assert llm.bind_tools([]).invoke("Hi").content == "No."
    assert [prompt.tools for prompt in llm.spring_model.prompts] == [(), ()]
    with pytest.raises(ValueError, match="expected one of the prompt's tools"):
        llm.bind_tools([add], tool_choice="multiply").invoke("Hi")


def test_structured_output(scripted):  # noqa: F811
    llm = chat(scripted(*[' {"score": "yes"}}\n</tool_call>'] * 2, ' {"score": "perhaps"}}\n</tool_call>'))
    assert llm.with_structured_output(Grade).invoke("Relevant?") == Grade(score="yes")
    schema = {
        "title": "grade",
        "description": "x",
        "type": "object",
        "properties": {"score": {"type": "string"}},
    }
    assert llm.with_structured_output(schema, method="json_schema").invoke("Relevant?") == {"score": "yes"}
    raw = llm.with_structured_output(Grade, include_raw=True).invoke("Relevant?")
    assert raw["parsed"] is None
    assert "perhaps" in str(raw["parsing_error"])


def test_templates_without_tools_refuse(scripted):  # noqa: F811
    llm = chat(scripted(template=CHAT_TEMPLATE))
    with pytest.raises(ToolsError, match="no place for them"):
        llm.bind_tools([add])
    with pytest.raises(NotImplementedError, match="JsonOutputParser"):
        llm.with_structured_output(Grade)
    with pytest.raises(ToolsError, match="no place for them"):
        llm.invoke([HumanMessage("a"), AIMessage("", tool_calls=[{"name": "f", "args": {}, "id": "1"}])])


def test_an_agent_answers_from_what_its_tool_found(scripted):  # noqa: F811
    """The tool's result is the prompt with the slot, so the last step has virtual tokens, and the first has none."""
    model = scripted(LOOK, None)
    _, called, result, answer = ask_langgraph(chat(model))
    assert FACTS[0] in result.content
    virtual = [message.usage_metadata["input_token_details"]["virtual"] for message in (called, answer)]
    assert virtual == [0, 6]
    # The same prompt through the plain API gives the same answer.
    prompt = model.prompts[-1]
    assert prompt.has_slot
    assert prompt.tools
    assert model.generate(prompt, max_new_tokens=200)[0].text.strip() == answer.content


def test_agentic_rag_as_a_graph(scripted, search):  # noqa: F811
    """The graph of LangGraph's tutorial: call the retriever, grade what it found, answer."""
    model = scripted(LOOK, ' {"score": "yes"}}\n</tool_call>', None)
    llm = chat(model)
    prompt = with_virtual_tokens(
        ChatPromptTemplate.from_messages(
            [("human", "Answer from the context.\n\n{context}\n\nQuestion: {question}\nAnswer:")]
        )
    )

    def respond(state: MessagesState):
        return {"messages": [llm.bind_tools([search]).invoke(state["messages"])]}

    def grade(state: MessagesState) -> Literal["answer", "respond"]:
        found = llm.with_structured_output(Grade).invoke(
            [HumanMessage(f"Relevant? {state['messages'][-1].content}")]
        )
        return "answer" if found.score == "yes" else "respond"

    def answer(state: MessagesState):
        values = {"question": state["messages"][0].content, "context": state["messages"][-1].content}
        return {"messages": [(prompt | llm).invoke(values)]}

    graph = StateGraph(MessagesState)
    graph.add_node(respond)
    graph.add_node("retrieve", ToolNode([search]))
    graph.add_node(answer)
    graph.add_edge(START, "respond")
    graph.add_conditional_edges("respond", tools_condition, {"tools": "retrieve", END: END})
    graph.add_conditional_edges("retrieve", grade)
    graph.add_edge("answer", END)
    messages = graph.compile().invoke({"messages": [HumanMessage(QUESTION)]})["messages"]
    assert messages[2].content == FACTS[0]
    used = [
        message.usage_metadata["input_token_details"]["virtual"]
        for message in messages
        if isinstance(message, AIMessage)
    ]
    assert used == [0, 6]
    asked = [(len(each.tools), each.tool_choice, each.has_slot) for each in model.prompts]
    assert asked == [(1, None, False), (1, "any", False), (0, None, True)]


def test_caches_tell_tools_apart(scripted):  # noqa: F811
    llm = chat(scripted())
    keys = {
        llm._get_llm_string(),
        llm._get_llm_string(tools=[add]),
        llm._get_llm_string(tools=[add], tool_choice="any"),
    }
    assert len(keys) == 3


def test_system_messages_stand_before_tools(scripted):  # noqa: F811
    llm = chat(scripted("Yes."))
    llm.bind_tools([add]).invoke([SystemMessage("Be brief."), HumanMessage("Hi")])
    assert [message.role for message in llm.spring_model.prompts[-1].messages] == ["system", "user"]
