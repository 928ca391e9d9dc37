"""Test the integration in LangChain's own RAG apps, on Chroma."""

from typing import TypedDict

import pytest
from langchain.agents import create_agent
from langchain.agents.middleware import ModelRequest, dynamic_prompt
from langchain_chroma import Chroma
from langchain_classic.chains import (
    RetrievalQA,
    create_history_aware_retriever,
    create_retrieval_chain,
)
from langchain_classic.chains.combine_documents import create_stuff_documents_chain
from langchain_core.documents import Document
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate, MessagesPlaceholder, PromptTemplate
from langchain_core.runnables import RunnablePassthrough
from langchain_parts import WordEmbeddings, make_spring_model, spring_model
from langgraph.graph import START, StateGraph

from langchain_spring_rag import (
    PASSAGE_PROMPT,
    ChatSpring,
    NumberingRetriever,
    SpringLLM,
    format_passages,
    number_passages,
    rag_prompt,
    spliced,
    with_virtual_tokens,
)
from spring_rag.backends.base import Generation

__all__ = ["make_spring_model", "spring_model"]  # fixtures

PASSAGES = [
    "The lighthouse at Grey Point was built by Hale and Sons.",
    "The bridge over the Ouse was opened in 1903.",
    "Captain Brandt sailed the schooner Aurora to Riga.",
]
QUESTION = "Who built the lighthouse at Grey Point?"
MAX_TOKENS = 8
SYSTEM = "Answer the question from this context.\n\n{context}"
QA = ChatPromptTemplate.from_messages([("system", SYSTEM), ("human", "{input}")])
QA_WITH_HISTORY = ChatPromptTemplate.from_messages(
    [("system", SYSTEM), MessagesPlaceholder("chat_history"), ("human", "{input}")]
)


@pytest.fixture(scope="module")
def store():
    documents = [Document(text, metadata={"source": f"{i}.txt"}) for i, text in enumerate(PASSAGES)]
    return Chroma.from_documents(documents, WordEmbeddings(), collection_name="langchain-chains")


@pytest.fixture(scope="module")
def retriever(store):
    return store.as_retriever(search_kwargs={"k": 2})


@pytest.fixture
def answers(spring_model, monkeypatch):
    """Every answer that the backbone gives."""
    seen: list[Generation] = []
    generate = spring_model.backend.generate

    def listen(requests, settings):
        found = generate(requests, settings)
        seen.extend(found)
        return found

    monkeypatch.setattr(spring_model.backend, "generate", listen)
    return seen


@pytest.fixture
def llm(spring_model):
    return SpringLLM(model=spring_model, max_tokens=MAX_TOKENS)


@pytest.fixture
def chat(spring_model):
    return ChatSpring(model=spring_model, max_tokens=MAX_TOKENS)


@pytest.fixture(scope="module")
def right(spring_model, retriever):
    """What the plain API answers from the same passages."""
    passages = [each.page_content for each in retriever.invoke(QUESTION)]
    assert passages[0] == PASSAGES[0]
    return spring_model.answer(QUESTION, passages, max_new_tokens=MAX_TOKENS)


def test_lcel(llm, retriever, right):
    chain = {"context": retriever | format_passages, "question": RunnablePassthrough()} | rag_prompt() | llm
    assert chain.invoke(QUESTION) == right
    assert "".join(chain.stream(QUESTION)) == right
    assert chain.batch([QUESTION] * 3) == [right] * 3


def test_lcel_with_the_prompt_of_a_tutorial(chat, retriever, answers):
    template = PromptTemplate.from_template(
        "Use the following pieces of context to answer the question at the end.\n\n{context}\n\n"
        "Question: {question}\n\nHelpful Answer:"
    )
    chain = (
        {
            "context": retriever | (lambda found: "\n\n".join(each.page_content for each in found)),
            "question": RunnablePassthrough(),
        }
        | with_virtual_tokens(template)
        | chat
        | StrOutputParser()
    )
    assert chain.invoke(QUESTION) == answers[0].text.strip()
    assert answers[0].usage.virtual == 6


def test_stuffed_documents(llm, retriever, right):
    prompt = rag_prompt()
    combine = create_stuff_documents_chain(llm, prompt, document_prompt=PASSAGE_PROMPT, document_separator="")
    found = number_passages(retriever.invoke(QUESTION))
    assert combine.invoke({"context": found, "question": QUESTION}) == right


def test_retrieval_chain(chat, retriever, answers):
    combine = create_stuff_documents_chain(chat, with_virtual_tokens(QA, question="input"))
    result = create_retrieval_chain(retriever, combine).invoke({"input": QUESTION})
    assert result["answer"] == answers[0].text.strip()
    assert result["context"][0].metadata["source"] == "0.txt"
    (one,) = answers
    assert one.usage.virtual == 6
    assert one.usage.context > one.usage.suffix


def test_history_aware_chain(chat, retriever, answers):
    rephrase = ChatPromptTemplate.from_messages(
        [MessagesPlaceholder("chat_history"), ("human", "{input}"), ("human", "Rephrase the question.")]
    )
    chain = create_retrieval_chain(
        create_history_aware_retriever(chat, retriever, rephrase),
        create_stuff_documents_chain(chat, with_virtual_tokens(QA_WITH_HISTORY, question="input")),
    )
    history = [HumanMessage(QUESTION), AIMessage("Hale and Sons.")]
    result = chain.invoke({"input": "When?", "chat_history": history})
    assert [each.usage.virtual for each in answers] == [0, 6]
    assert result["answer"] == answers[1].text.strip()


@pytest.mark.filterwarnings("ignore::langchain_core._api.LangChainDeprecationWarning")
def test_retrieval_qa(llm, retriever, right):
    chain = RetrievalQA.from_chain_type(
        llm,
        retriever=NumberingRetriever(retriever=retriever),
        chain_type_kwargs={
            "prompt": rag_prompt(),
            "document_prompt": PASSAGE_PROMPT,
            "document_separator": "",
        },
    )
    assert chain.invoke({"query": QUESTION})["result"] == right


async def test_numbering_retriever(retriever):
    numbering = NumberingRetriever(retriever=retriever)
    found = numbering.invoke(QUESTION)
    assert found[0].metadata["passage"] == f"[1] {PASSAGES[0]}\n"
    assert await numbering.ainvoke(QUESTION) == found


def test_agent_with_retrieval_middleware(chat, store, answers):
    @dynamic_prompt
    def with_context(request: ModelRequest) -> SystemMessage:
        found = store.similarity_search(request.messages[-1].text, k=2)
        return SystemMessage(spliced("Answer from these passages.\n" + format_passages(found)))

    agent = create_agent(chat, tools=[], middleware=[with_context])
    state = agent.invoke({"messages": [HumanMessage(QUESTION)]})
    answer = state["messages"][-1]
    assert answer.text == answers[0].text.strip()
    assert answer.usage_metadata["input_token_details"]["virtual"] == 6
    state = agent.invoke({"messages": [*state["messages"], HumanMessage("And when?")]})
    assert [each.usage.virtual for each in answers] == [6, 6]


async def test_graph(chat, store, answers):
    class State(TypedDict, total=False):
        question: str
        context: list[Document]
        answer: str

    prompt = with_virtual_tokens(
        ChatPromptTemplate.from_messages([("system", SYSTEM), ("human", "{question}")])
    )

    def retrieve(state: State) -> State:
        return {"context": store.similarity_search(state["question"], k=2)}

    def generate(state: State) -> State:
        messages = prompt.invoke(
            {"question": state["question"], "context": format_passages(state["context"])}
        )
        return {"answer": chat.invoke(messages).text}

    builder = StateGraph(State).add_sequence([retrieve, generate])
    graph = builder.add_edge(START, "retrieve").compile()
    state = graph.invoke({"question": QUESTION})
    assert state["answer"] == answers[0].text.strip()
    assert answers[0].usage.virtual == 6
    assert (await graph.ainvoke({"question": QUESTION}))["answer"] == state["answer"]
    pieces = [piece.text for piece, _ in graph.stream({"question": QUESTION}, stream_mode="messages")]
    assert "".join(pieces) == state["answer"]


def test_a_question_before_the_context(chat, retriever, answers):
    template = "Question: {question}\nContext: {context}\nAnswer:"
    with pytest.warns(UserWarning, match="question stands before the context"):
        prompt = with_virtual_tokens(ChatPromptTemplate.from_template(template))
    context = format_passages(retriever.invoke(QUESTION))
    (prompt | chat).invoke({"question": QUESTION, "context": context})
    assert answers[0].usage.virtual == 6
