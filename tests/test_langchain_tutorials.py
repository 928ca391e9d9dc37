"""Test LangChain's own RAG tutorials on Chroma, with another LLM and the prompt wrapped: each app answers better.

Each is written as in LangChain's documentation of today, around the toy and its documents. `wrap` is what a user adds.
"""

from collections.abc import Callable
from typing import TypedDict

import pytest
from langchain.agents import create_agent
from langchain.agents.middleware import ModelRequest, dynamic_prompt
from langchain_chroma import Chroma
from langchain_classic.chains import RetrievalQA, create_history_aware_retriever, create_retrieval_chain
from langchain_classic.chains.combine_documents import create_stuff_documents_chain
from langchain_classic.chains.question_answering.stuff_prompt import CHAT_PROMPT, PROMPT
from langchain_core.documents import Document
from langchain_core.messages import HumanMessage, SystemMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate, MessagesPlaceholder, PromptTemplate
from langchain_core.runnables import RunnablePassthrough
from langchain_parts import WordEmbeddings
from langchain_text_splitters import RecursiveCharacterTextSplitter
from langgraph.graph import START, StateGraph
from toy_parts import ASKED, MAX_TOKENS, TEXTS, share_right

from langchain_spring_rag import ChatSpring, SpringLLM, spliced, with_virtual_tokens

Ask = Callable[[str], str]
INSTRUCTION = (
    "You are an assistant for answering questions. Use the retrieved context. Use three sentences at most."
)
CONTEXT_FIRST = ChatPromptTemplate.from_messages(
    [("system", INSTRUCTION + "\n\n{context}"), ("human", "{input}")]
)


def as_it_was(prompt, **_):
    """The app before virtual tokens."""
    return prompt


@pytest.fixture(scope="module")
def store():
    """Loaded, split and stored as the tutorials do it."""
    documents = [Document(text) for text in TEXTS]
    splits = RecursiveCharacterTextSplitter(chunk_size=1000, chunk_overlap=200).split_documents(documents)
    vector_store = Chroma(collection_name="tutorials", embedding_function=WordEmbeddings())
    vector_store.add_documents(splits)
    return vector_store


@pytest.fixture(scope="module")
def chat(toy_model):
    return ChatSpring(model=toy_model, max_tokens=MAX_TOKENS)


@pytest.fixture(scope="module")
def llm(toy_model):
    return SpringLLM(model=toy_model, max_tokens=MAX_TOKENS)


def joined(documents: list[Document]) -> str:
    return "\n\n".join(document.page_content for document in documents)


def lcel(model, store, wrap) -> Ask:
    prompt = PromptTemplate.from_template(
        "Use the passages below to answer the question.\n\n{context}\n\nQuestion: {question}\n\nHelpful answer:"
    )
    retriever = store.as_retriever(search_kwargs={"k": 2})
    chain = (
        {"context": retriever | joined, "question": RunnablePassthrough()}
        | wrap(prompt)
        | model
        | StrOutputParser()
    )
    return chain.invoke


def retrieval_chain(model, store, wrap) -> Ask:
    combine = create_stuff_documents_chain(model, wrap(CONTEXT_FIRST, question="input"))
    chain = create_retrieval_chain(store.as_retriever(search_kwargs={"k": 2}), combine)
    return lambda question: chain.invoke({"input": question})["answer"]


def history_aware(model, store, wrap) -> Ask:
    rephrase = ChatPromptTemplate.from_messages(
        [("system", "Rephrase the last question."), MessagesPlaceholder("chat_history"), ("human", "{input}")]
    )
    answer = ChatPromptTemplate.from_messages(
        [("system", INSTRUCTION + "\n\n{context}"), MessagesPlaceholder("chat_history"), ("human", "{input}")]
    )
    retriever = store.as_retriever(search_kwargs={"k": 2})
    chain = create_retrieval_chain(
        create_history_aware_retriever(model, retriever, rephrase),
        create_stuff_documents_chain(model, wrap(answer, question="input")),
    )
    return lambda question: chain.invoke({"input": question, "chat_history": []})["answer"]


def retrieval_qa(model, store, wrap) -> Ask:
    """With the prompts that RetrievalQA has by itself."""
    prompt = CHAT_PROMPT if isinstance(model, ChatSpring) else PROMPT
    chain = RetrievalQA.from_chain_type(
        model,
        retriever=store.as_retriever(search_kwargs={"k": 2}),
        chain_type_kwargs={"prompt": wrap(prompt)},
    )
    return lambda question: chain.invoke({"query": question})["result"]


def graph(model, store, wrap) -> Ask:
    class State(TypedDict, total=False):
        question: str
        context: list[Document]
        answer: str

    prompt = wrap(CONTEXT_FIRST, question="input")

    def retrieve(state: State) -> State:
        return {"context": store.similarity_search(state["question"], k=2)}

    def generate(state: State) -> State:
        messages = prompt.invoke({"input": state["question"], "context": joined(state["context"])})
        return {"answer": model.invoke(messages).content}

    builder = StateGraph(State).add_sequence([retrieve, generate])
    builder.add_edge(START, "retrieve")
    app = builder.compile()
    return lambda question: app.invoke({"question": question})["answer"]


def two_steps(model, store, wrap) -> Ask:
    """A prompt made in code: there is no template to wrap, `spliced` is what a user writes around the context."""

    @dynamic_prompt
    def prompt_with_context(request: ModelRequest) -> str | SystemMessage:
        found = store.similarity_search(request.state["messages"][-1].text, k=2)
        text = f"{INSTRUCTION}\n\n{joined(found)}"
        return text if wrap is as_it_was else SystemMessage(spliced(text))

    agent = create_agent(model, tools=[], middleware=[prompt_with_context])
    return lambda question: agent.invoke({"messages": [HumanMessage(question)]})["messages"][-1].text


CHAT_TUTORIALS = [lcel, retrieval_chain, history_aware, retrieval_qa, graph, two_steps]


@pytest.mark.filterwarnings("ignore::langchain_core._api.LangChainDeprecationWarning")
@pytest.mark.parametrize("tutorial", CHAT_TUTORIALS)
def test_chat_tutorials_answer_better(tutorial, chat, store):
    before = share_right(tutorial(chat, store, as_it_was))
    after = share_right(tutorial(chat, store, with_virtual_tokens))
    assert after > before
    assert after >= 0.6


@pytest.mark.filterwarnings("ignore::langchain_core._api.LangChainDeprecationWarning")
@pytest.mark.parametrize("tutorial", [lcel, retrieval_qa])
def test_text_tutorials_answer_better(tutorial, llm, store):
    before = share_right(tutorial(llm, store, as_it_was))
    after = share_right(tutorial(llm, store, with_virtual_tokens))
    assert after > before
    assert after >= 0.6


def test_a_prompt_with_the_question_first(chat, store):
    """The layout of the well-known `rlm/rag-prompt`. It runs, with a warning that says what makes it answer better: ask again.

    The toy's backbone itself reads a question before its context badly, with and without virtual tokens.
    """
    prompt = ChatPromptTemplate.from_messages(
        [("human", INSTRUCTION + "\nQuestion: {question} \nContext: {context} \nAnswer:")]
    )

    def ask_with(used: ChatPromptTemplate) -> Ask:
        chain = {"context": store.as_retriever() | joined, "question": RunnablePassthrough()} | used | chat
        return lambda question: chain.invoke(question).text

    with pytest.warns(UserWarning, match=r"question stands before the context.* repeat_question=True"):
        wrapped = with_virtual_tokens(prompt)
    assert ask_with(wrapped)(ASKED[0].question)
    before = share_right(ask_with(prompt))
    after = share_right(ask_with(with_virtual_tokens(prompt, repeat_question=True)))
    assert after > before
    assert after >= 0.6
