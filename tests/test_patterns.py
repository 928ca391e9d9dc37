"""Test whether virtual tokens reach the backbone in the patterns of public RAG apps. `docs/patterns.md` has the resulting table.

A pattern is a function that runs an app. The usage of its last answer, warnings and errors show what became of the slot.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import llama_index.core
import llama_index_parts
import pytest
from langchain.agents import create_agent
from langchain.agents.middleware import dynamic_prompt
from langchain_chroma import Chroma
from langchain_classic.chains import (
    ConversationalRetrievalChain,
    RetrievalQA,
    create_history_aware_retriever,
    create_retrieval_chain,
)
from langchain_classic.chains.combine_documents import create_stuff_documents_chain
from langchain_classic.memory import ConversationBufferMemory
from langchain_classic.retrievers import MultiQueryRetriever
from langchain_core.chat_history import InMemoryChatMessageHistory
from langchain_core.documents import Document
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage
from langchain_core.prompts import (
    ChatPromptTemplate,
    FewShotChatMessagePromptTemplate,
    HumanMessagePromptTemplate,
    MessagesPlaceholder,
    PromptTemplate,
)
from langchain_core.runnables import RunnablePassthrough
from langchain_core.runnables.history import RunnableWithMessageHistory
from langchain_parts import WordEmbeddings, make_spring_model, spring_model
from llama_index.core import VectorStoreIndex
from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.chat_engine import SimpleChatEngine
from llama_index.core.indices.query.query_transform import HyDEQueryTransform
from llama_index.core.indices.query.query_transform.base import StepDecomposeQueryTransform
from llama_index.core.memory import ChatMemoryBuffer
from llama_index.core.objects import ObjectIndex
from llama_index.core.prompts import PromptTemplate as LlamaPromptTemplate
from llama_index.core.prompts.default_prompts import DEFAULT_TEXT_QA_PROMPT
from llama_index.core.query_engine import (
    CitationQueryEngine,
    MultiStepQueryEngine,
    RetrieverQueryEngine,
    RouterQueryEngine,
    SubQuestionQueryEngine,
    ToolRetrieverRouterQueryEngine,
    TransformQueryEngine,
)
from llama_index.core.response_synthesizers import TreeSummarize, get_response_synthesizer
from llama_index.core.retrievers import QueryFusionRetriever
from llama_index_parts import First, OneQuestion, tools

from langchain_spring_rag import (
    ChatSpring,
    SpringLLM,
    format_passages,
    rag_prompt,
    spliced,
    with_virtual_tokens,
)
from llama_index.llms.spring_rag import SpringLLM as LlamaLLM
from llama_index.llms.spring_rag import render_text, upgrade_engine
from llama_index.llms.spring_rag import with_virtual_tokens as with_llama_tokens
from spring_rag import RagPrompt
from spring_rag.errors import PromptError
from spring_rag.prompt import SLOT_MARKER

__all__ = ["make_spring_model", "spring_model"]  # fixtures

TABLE = Path(__file__).parent.parent / "docs" / "patterns.md"
FACTS, QUESTION = llama_index_parts.FACTS, llama_index_parts.QUESTION
VALUES = {"context": FACTS[0], "question": QUESTION}
TEXT = with_virtual_tokens(PromptTemplate.from_template("{context}\n\nQuestion: {question}\nAnswer:"))
CHAT = with_virtual_tokens(
    ChatPromptTemplate.from_messages([("system", "Answer from this.\n{context}"), ("human", "{question}")])
)
WITH_HISTORY = ChatPromptTemplate.from_messages(
    [("system", "Answer from this.\n{context}"), MessagesPlaceholder("chat_history"), ("human", "{input}")]
)
HISTORY = [HumanMessage("Hello."), AIMessage("Hello!")]

CARRIES, WARNS, REFUSED = "carries the slot", "no slot, and a warning", "refused with the reason"
CARRIES_WARNED = "carries the slot, with a warning"


@dataclass(frozen=True)
class App:
    """What the patterns of LangChain are made of."""

    chat: ChatSpring
    llm: SpringLLM
    retriever: object


@dataclass(frozen=True)
class LlamaApp:
    """What those of LlamaIndex are made of."""

    llm: LlamaLLM
    index: VectorStoreIndex

    def engine(self, **settings):
        return self.index.as_query_engine(llm=self.llm, similarity_top_k=1, **settings)

    def ask(self, engine):
        upgrade_engine(engine)
        return engine.query(QUESTION)

    def talk(self, mode, **settings):
        engine = self.index.as_chat_engine(chat_mode=mode, llm=self.llm, similarity_top_k=1, **settings)
        upgrade_engine(engine)
        engine.chat("Hello.")
        return engine.chat(QUESTION)


def with_memory(app):
    histories = {}
    chain = RunnableWithMessageHistory(
        RunnablePassthrough.assign(context=lambda _: FACTS[0])
        | with_virtual_tokens(WITH_HISTORY, question="input")
        | app.chat,
        lambda name: histories.setdefault(name, InMemoryChatMessageHistory()),
        input_messages_key="input",
        history_messages_key="chat_history",
    )
    for question in ("Hello.", QUESTION):
        chain.invoke({"input": question}, {"configurable": {"session_id": "a"}})


def with_rendered_history(app):
    messages = [HumanMessage(TEXT.format(**VALUES))]
    messages.append(app.chat.invoke(messages))
    app.chat.invoke([*messages, HumanMessage(TEXT.format(context=FACTS[1], question="Where?"))])


def history_aware(app):
    rephrase = ChatPromptTemplate.from_messages([MessagesPlaceholder("chat_history"), ("human", "{input}")])
    combine = create_stuff_documents_chain(app.chat, with_virtual_tokens(WITH_HISTORY, question="input"))
    chain = create_retrieval_chain(create_history_aware_retriever(app.chat, app.retriever, rephrase), combine)
    chain.invoke({"input": QUESTION, "chat_history": HISTORY})


def multi_query(app):
    retriever = MultiQueryRetriever.from_llm(app.retriever, app.llm)
    chain = (
        {"context": retriever | format_passages, "question": RunnablePassthrough()} | rag_prompt() | app.llm
    )
    chain.invoke(QUESTION)


def conversational(app):
    chain = ConversationalRetrievalChain.from_llm(
        app.llm,
        app.retriever,
        memory=ConversationBufferMemory(memory_key="chat_history", return_messages=True),
        combine_docs_chain_kwargs={"prompt": TEXT},
    )
    for question in ("Hello.", QUESTION):
        chain.invoke({"question": question})


def retrieval_qa(app):
    chain = RetrievalQA.from_chain_type(app.llm, retriever=app.retriever, chain_type_kwargs={"prompt": TEXT})
    chain.invoke({"query": QUESTION})


def middleware(app):
    @dynamic_prompt
    def with_context(request):
        return SystemMessage(spliced(FACTS[0]))

    agent = create_agent(app.chat, tools=[], middleware=[with_context])
    agent.invoke({"messages": [HumanMessage(QUESTION)]})


def tool_agent(app):
    def look_up(question: str) -> str:
        """Look a question up."""
        return question

    create_agent(app.chat, tools=[look_up]).invoke({"messages": [HumanMessage(QUESTION)]})


def few_shot_chat_alone(app):
    example = ChatPromptTemplate.from_messages([("human", "{q}"), ("ai", "{a}")])
    with_virtual_tokens(FewShotChatMessagePromptTemplate(examples=[], example_prompt=example))


def question_first(app):
    prompt = with_virtual_tokens(PromptTemplate.from_template("{question}\n{context}\nAnswer:"))
    (prompt | app.llm).invoke(VALUES)


LANGCHAIN: dict[str, tuple[str, Callable[[App], object]]] = {
    "`prompt | ChatSpring`": (CARRIES, lambda app: (CHAT | app.chat).invoke(VALUES)),
    "`prompt | SpringLLM`": (CARRIES, lambda app: (CHAT | app.llm).invoke(VALUES)),
    "`ChatPromptTemplate.format(…)` → `ChatSpring`": (
        CARRIES,
        lambda app: app.chat.invoke(CHAT.format(**VALUES)),
    ),
    "`ChatPromptTemplate.format(…)` → `SpringLLM`": (
        CARRIES,
        lambda app: app.llm.invoke(CHAT.format(**VALUES)),
    ),
    "`prompt.invoke(…).to_string()` → `ChatSpring`": (
        CARRIES,
        lambda app: app.chat.invoke(CHAT.invoke(VALUES).to_string()),
    ),
    "`PromptTemplate.format(…)` → `SpringLLM`": (CARRIES, lambda app: app.llm.invoke(TEXT.format(**VALUES))),
    "`PromptTemplate.format(…)` in a `HumanMessage`": (
        CARRIES,
        lambda app: app.chat.invoke([SystemMessage("Be brief."), HumanMessage(TEXT.format(**VALUES))]),
    ),
    '`PromptTemplate.format(…)` as `("human", text)`': (
        CARRIES,
        lambda app: app.chat.invoke([("system", "Be brief."), ("human", TEXT.format(**VALUES))]),
    ),
    '`PromptTemplate.format(…)` as `{"role": "user", "content": text}`': (
        CARRIES,
        lambda app: app.chat.invoke([{"role": "user", "content": TEXT.format(**VALUES)}]),
    ),
    "`PromptTemplate.format(…)` in messages → `SpringLLM`": (
        CARRIES,
        lambda app: app.llm.invoke([HumanMessage(TEXT.format(**VALUES))]),
    ),
    "`HumanMessagePromptTemplate(prompt=with_virtual_tokens(…))`": (
        CARRIES,
        lambda app: (
            ChatPromptTemplate.from_messages([HumanMessagePromptTemplate(prompt=TEXT)]) | app.chat
        ).invoke(VALUES),
    ),
    "`SystemMessage(spliced(context))` → `SpringLLM`": (
        CARRIES,
        lambda app: app.llm.invoke([SystemMessage(spliced(FACTS[0])), HumanMessage(QUESTION)]),
    ),
    "rendered prompts in the history": (CARRIES, with_rendered_history),
    "`RunnableWithMessageHistory`": (CARRIES, with_memory),
    "history-aware retriever": (CARRIES, history_aware),
    "`MultiQueryRetriever`": (CARRIES, multi_query),
    "`RetrievalQA`": (CARRIES, retrieval_qa),
    "`ConversationalRetrievalChain` with `ConversationBufferMemory`": (CARRIES, conversational),
    "agent with a dynamic prompt": (CARRIES, middleware),
    "question before the context": (CARRIES_WARNED, question_first),
    "`with_virtual_tokens(prompt).template.format(…)`": (
        WARNS,
        lambda app: app.llm.invoke(TEXT.template.format(**VALUES)),
    ),
    "`SLOT_MARKER` in a message made by hand": (
        WARNS,
        lambda app: app.chat.invoke([HumanMessage(f"{FACTS[0]}{SLOT_MARKER}{QUESTION}")]),
    ),
    "two slots for one question": (
        REFUSED,
        lambda app: app.llm.invoke(TEXT.format(**VALUES) + TEXT.format(**VALUES)),
    ),
    "`FewShotChatMessagePromptTemplate` alone": (REFUSED, few_shot_chat_alone),
    "agent with tools, on a chat template without tools": (REFUSED, tool_agent),
}

IN_TEXT = with_llama_tokens(DEFAULT_TEXT_QA_PROMPT)
LLAMA_VALUES = {"context_str": FACTS[0], "query_str": QUESTION}


def several_steps(app):
    engine = MultiStepQueryEngine(
        app.engine(),
        StepDecomposeQueryTransform(llm=app.llm),
        get_response_synthesizer(llm=app.llm),
        num_steps=1,
    )
    app.ask(engine)


def fused(app):
    retriever = QueryFusionRetriever([app.index.as_retriever()], llm=app.llm, num_queries=2, use_async=False)
    app.ask(RetrieverQueryEngine.from_args(retriever, llm=app.llm))


def retrieved_tools(app):
    objects = ObjectIndex.from_objects(
        tools(app.engine()), index_cls=VectorStoreIndex, embed_model=llama_index_parts.OfflineEmbedding()
    )
    engine = ToolRetrieverRouterQueryEngine(
        objects.as_retriever(), llm=app.llm, summarizer=TreeSummarize(llm=app.llm)
    )
    if "retriever" in (report := upgrade_engine(engine)).left:
        raise PromptError(report.left["retriever"])


LLAMA_INDEX: dict[str, tuple[str, Callable[[LlamaApp], object]]] = {
    "query engine": (CARRIES, lambda app: app.ask(app.engine())),
    "`CitationQueryEngine`": (
        CARRIES,
        lambda app: app.ask(CitationQueryEngine.from_args(app.index, llm=app.llm, similarity_top_k=1)),
    ),
    "`RouterQueryEngine`": (
        CARRIES,
        lambda app: app.ask(RouterQueryEngine(First(), tools(app.engine(), app.engine()), app.llm)),
    ),
    "`SubQuestionQueryEngine`": (
        CARRIES,
        lambda app: app.ask(
            SubQuestionQueryEngine.from_defaults(
                tools(app.engine()), app.llm, OneQuestion(), verbose=False, use_async=False
            )
        ),
    ),
    "`MultiStepQueryEngine`": (CARRIES, several_steps),
    "HyDE, `TransformQueryEngine`": (
        CARRIES,
        lambda app: app.ask(TransformQueryEngine(app.engine(), HyDEQueryTransform(llm=app.llm))),
    ),
    "`QueryFusionRetriever`": (CARRIES, fused),
    "context chat engine with a system prompt and memory": (
        CARRIES,
        lambda app: app.talk("context", system_prompt="Be brief.", memory=ChatMemoryBuffer.from_defaults()),
    ),
    "condense_plus_context chat engine with a system prompt": (
        CARRIES,
        lambda app: app.talk("condense_plus_context", system_prompt="Be brief."),
    ),
    "condense_question chat engine": (CARRIES, lambda app: app.talk("condense_question")),
    "`template.format(…)` → `complete`": (
        CARRIES,
        lambda app: app.llm.complete(IN_TEXT.format(**LLAMA_VALUES)),
    ),
    "`template.format(…)` in a `ChatMessage`": (
        CARRIES,
        lambda app: app.llm.chat([ChatMessage("Be brief."), ChatMessage(IN_TEXT.format(**LLAMA_VALUES))]),
    ),
    "`render_text(RagPrompt(…))` → `complete`": (
        CARRIES,
        lambda app: app.llm.complete(render_text(RagPrompt(QUESTION, FACTS))),
    ),
    "question before the context": (
        CARRIES_WARNED,
        lambda app: app.ask(
            app.engine(text_qa_template=LlamaPromptTemplate("{query_str}\n{context_str}\nAnswer:"))
        ),
    ),
    "`SLOT_MARKER` in a text made by hand": (WARNS, lambda app: app.llm.complete(f"a{SLOT_MARKER}b")),
    "chat engine without a context": (
        REFUSED,
        lambda app: upgrade_engine(SimpleChatEngine.from_defaults(llm=app.llm)),
    ),
    "tools that are retrieved while answering (named by `upgrade_engine`)": (REFUSED, retrieved_tools),
}


@pytest.fixture
def usages(monkeypatch):
    """`usages(model)`: a list that gets the usage of every answer of the model's backbone."""

    def listen(model):
        found = []
        generate = model.backend.generate

        def heard(requests, settings):
            answers = generate(requests, settings)
            found.extend(answer.usage for answer in answers)
            return answers

        monkeypatch.setattr(model.backend, "generate", heard)
        return found

    return listen


def outcome(run, found) -> str:
    """What becomes of the slot, in the words of the table."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            run()
        except (PromptError, NotImplementedError):
            return REFUSED
    ours = [each for each in caught if "virtual tokens" in str(each.message)]
    if found[-1].virtual:
        return CARRIES_WARNED if ours else CARRIES
    return WARNS if ours else "no slot, and not a word"


@pytest.fixture(scope="module")
def retriever():
    documents = [Document(text, metadata={"source": f"{i}.txt"}) for i, text in enumerate(FACTS)]
    store = Chroma.from_documents(documents, WordEmbeddings(), collection_name="patterns")
    return store.as_retriever(search_kwargs={"k": 1})


@pytest.mark.parametrize("name", LANGCHAIN)
def test_langchain(name, spring_model, retriever, usages):
    found = usages(spring_model)
    app = App(
        ChatSpring(model=spring_model, max_tokens=4), SpringLLM(model=spring_model, max_tokens=4), retriever
    )
    expected, run = LANGCHAIN[name]
    assert outcome(lambda: run(app), found) == expected


@pytest.fixture(scope="module")
def index():
    return llama_index_parts.chroma_index()


@pytest.fixture(scope="module", params=["text", "chat"])
def llama_model(request, tokenizer, make_tokens):
    return llama_index_parts.spring_model(tokenizer, make_tokens(6), chat=request.param == "chat")


@pytest.mark.parametrize("name", LLAMA_INDEX)
def test_llama_index(name, llama_model, index, usages, monkeypatch):
    monkeypatch.setattr(llama_index.core, "global_tokenizer", llama_model.tokenizer.encode)
    found = usages(llama_model)
    app = LlamaApp(
        LlamaLLM(model=llama_model, max_tokens=4, is_chat_model=bool(llama_model.tokenizer.chat_template)),
        index,
    )
    expected, run = LLAMA_INDEX[name]
    assert outcome(lambda: run(app), found) == expected


def test_the_table_says_what_was_found():
    rows = [line for line in TABLE.read_text("utf-8").splitlines() if line.startswith("| ")]
    found = {("LangChain", name): result for name, (result, _) in LANGCHAIN.items()}
    found |= {("LlamaIndex", name): result for name, (result, _) in LLAMA_INDEX.items()}
    expected = [f"| {framework} | {name} | {result} |" for (framework, name), result in found.items()]
    assert [row for row in rows if row.startswith(("| LangChain", "| LlamaIndex"))] == expected
