"""Test LlamaIndex's own RAG examples on Chroma, with another LLM and the engine upgraded: each app answers better.

Each is written as in LlamaIndex's documentation of today, around the toy and its documents.
"""

from functools import partial

import chromadb
import llama_index.core
import pytest
from llama_index.core import (
    Document,
    PromptTemplate,
    StorageContext,
    VectorStoreIndex,
    get_response_synthesizer,
)
from llama_index.core.schema import NodeWithScore
from llama_index.core.workflow import Context, Event, StartEvent, StopEvent, Workflow, step
from llama_index.vector_stores.chroma import ChromaVectorStore
from llama_index_parts import OfflineEmbedding
from toy_parts import ASKED, MAX_TOKENS, TEXTS, share_right

from llama_index.llms.spring_rag import SpringLLM, upgrade_engine


@pytest.fixture(scope="module")
def index():
    """The Chroma quickstart: documents in, index out."""
    collection = chromadb.EphemeralClient().create_collection("tutorials-llama-index")
    vector_store = ChromaVectorStore(chroma_collection=collection)
    return VectorStoreIndex.from_documents(
        [Document(text=text) for text in TEXTS],
        storage_context=StorageContext.from_defaults(vector_store=vector_store),
        embed_model=OfflineEmbedding(),
    )


@pytest.fixture
def llm(toy_model, monkeypatch):
    encode = partial(toy_model.tokenizer.encode, add_special_tokens=False)
    monkeypatch.setattr(llama_index.core, "global_tokenizer", encode)
    return SpringLLM(model=toy_model, max_tokens=MAX_TOKENS, is_chat_model=True)


@pytest.mark.parametrize("mode", ["compact", "refine", "tree_summarize", "simple_summarize"])
def test_query_engines_answer_better(index, llm, mode):
    # With a second node, refine's last word is its refine step, which stays as it is: the plain backbone's.
    engine = index.as_query_engine(llm=llm, response_mode=mode, similarity_top_k=1 if mode == "refine" else 2)

    def ask(question: str) -> str:
        return str(engine.query(question))

    before = share_right(ask)
    upgrade_engine(engine)
    after = share_right(ask)
    assert after > before
    assert after >= 0.6


def test_a_prompt_with_the_question_first_answers_better(index, llm):
    """As of `rlm/rag-prompt`, which users bring to LlamaIndex too."""
    template = PromptTemplate(
        "Answer from the context.\nQuestion: {query_str}\nContext: {context_str}\nAnswer:"
    )
    engine = index.as_query_engine(llm=llm, text_qa_template=template)

    def ask(question: str) -> str:
        return str(engine.query(question))

    before = share_right(ask)
    upgrade_engine(engine, repeat_question=True)
    after = share_right(ask)
    assert after > before
    assert after >= 0.6


@pytest.mark.parametrize("mode", ["context", "condense_plus_context"])
def test_chat_engines_answer_better(index, llm, mode):
    engine = index.as_chat_engine(chat_mode=mode, llm=llm, similarity_top_k=2)

    def ask(question: str) -> str:
        engine.reset()
        return str(engine.chat(question))

    before = share_right(ask)
    upgrade_engine(engine)
    after = share_right(ask)
    assert after > before
    assert after >= 0.6


class Retrieved(Event):
    nodes: list[NodeWithScore]


class RagWorkflow(Workflow):
    """LlamaIndex's RAG workflow, less its ingestion and its reranking by an LLM."""

    def __init__(self, index, synthesizer):
        super().__init__()
        self.retriever, self.synthesizer = index.as_retriever(similarity_top_k=2), synthesizer

    @step
    async def retrieve(self, ctx: Context, event: StartEvent) -> Retrieved:
        await ctx.store.set("query", event.query)
        return Retrieved(nodes=await self.retriever.aretrieve(event.query))

    @step
    async def synthesize(self, ctx: Context, event: Retrieved) -> StopEvent:
        query = await ctx.store.get("query")
        return StopEvent(result=await self.synthesizer.asynthesize(query, nodes=event.nodes))


async def test_a_workflow_answers_better(index, llm):
    synthesizer = get_response_synthesizer(llm=llm)
    workflow = RagWorkflow(index, synthesizer)

    async def score() -> float:
        answers = {each.question: str(await workflow.run(query=each.question)) for each in ASKED}
        return share_right(answers.__getitem__)

    before = await score()
    upgrade_engine(synthesizer)
    after = await score()
    assert after > before
    assert after >= 0.6
