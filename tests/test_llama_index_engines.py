"""Test LlamaIndex's engines over Chroma: upgraded in place, they ask the backbone the right prompts."""

import re
from functools import partial

import chromadb
import llama_index.core
import pytest
from llama_index.core import Settings, SimpleDirectoryReader, StorageContext, VectorStoreIndex
from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.chat_engine import SimpleChatEngine
from llama_index.core.indices.query.query_transform.base import (
    IdentityQueryTransform,
    StepDecomposeQueryTransform,
)
from llama_index.core.objects import ObjectIndex
from llama_index.core.prompts import PromptTemplate
from llama_index.core.query_engine import (
    MultiStepQueryEngine,
    RetrieverQueryEngine,
    RetrieverRouterQueryEngine,
    RouterQueryEngine,
    SubQuestionQueryEngine,
    ToolRetrieverRouterQueryEngine,
    TransformQueryEngine,
)
from llama_index.core.response_synthesizers import TreeSummarize, get_response_synthesizer
from llama_index.core.schema import ImageNode, NodeWithScore, TextNode
from llama_index.core.workflow import Context, Event, StartEvent, StopEvent, Workflow, step
from llama_index.vector_stores.chroma import ChromaVectorStore
from llama_index_parts import (
    FACTS,
    QUESTION,
    SLOT,
    First,
    OfflineEmbedding,
    OneQuestion,
    chroma_index,
    shown_prompt,
    spring_model,
    tools,
)

from llama_index.llms.spring_rag import (
    NumberedPassages,
    SpringLLM,
    render_text,
    upgrade_engine,
    with_virtual_tokens,
)
from spring_rag import Prompt, RagPrompt, RagTemplate, Slot
from spring_rag.errors import PromptError, PromptTooLongError
from spring_rag.prompt import SLOT_MARKER, Text


@pytest.fixture(scope="module")
def index():
    return chroma_index()


@pytest.fixture(scope="module")
def model(tokenizer, make_tokens):
    return spring_model(tokenizer, make_tokens(6), chat=False)


@pytest.fixture(scope="module")
def chat_model(tokenizer, make_tokens):
    return spring_model(tokenizer, make_tokens(6, template=RagTemplate(chat=True)), chat=True)


@pytest.fixture(params=["text", "chat"])
def llm(request, model, chat_model, monkeypatch):
    """A model that takes texts, and one that takes chats; what each is asked is in `llm.model.prompts`."""
    used = model if request.param == "text" else chat_model
    monkeypatch.setattr(llama_index.core, "global_tokenizer", used.tokenizer.encode)
    used.prompts.clear()
    return SpringLLM(model=used, max_tokens=8)


@pytest.fixture
def text_llm(model, monkeypatch):
    monkeypatch.setattr(llama_index.core, "global_tokenizer", model.tokenizer.encode)
    model.prompts.clear()
    return SpringLLM(model=model, max_tokens=8)


def asked(llm) -> list[str]:
    return [shown_prompt(prompt) for prompt in llm.model.prompts]


def answer_to(llm, prompt, **settings) -> str:
    return llm.model.generate([prompt], **{"max_new_tokens": 8, **settings})[0].text.strip()


@pytest.mark.parametrize("mode", ["compact", "refine", "tree_summarize", "simple_summarize"])
async def test_query_engine_in_every_mode(index, llm, mode):
    engine = index.as_query_engine(llm=llm, response_mode=mode, similarity_top_k=2)
    engine.query(QUESTION)
    (plain_prompt, *plain_refined) = asked(llm)
    llm.model.prompts.clear()

    report = upgrade_engine(engine)
    response = engine.query(QUESTION)
    (prompt, *refined) = asked(llm)
    assert f"{SLOT}Query: {QUESTION}\nAnswer:" in prompt
    assert prompt.index(FACTS[0]) < prompt.index(SLOT)
    assert prompt.replace(SLOT, "") == plain_prompt
    if mode == "refine":
        assert len(refined) == len(plain_refined) == 1
        assert SLOT not in refined[0]
    else:
        assert not refined
        assert str(response) == answer_to(llm, llm.model.prompts[-1])
    name = "summary_template" if mode == "tree_summarize" else "text_qa_template"
    assert f"response_synthesizer:{name}" in report.changed
    assert str(await engine.aquery(QUESTION)) == str(response)


@pytest.mark.parametrize("mode", ["compact", "tree_summarize", "simple_summarize"])
@pytest.mark.parametrize("chat", [False, True])
async def test_long_context_is_packed_into_the_window(tokenizer, make_tokens, monkeypatch, mode, chat):
    tokens = make_tokens(60, template=RagTemplate(chat=chat))
    llm = SpringLLM(model=spring_model(tokenizer, tokens, chat=chat, positions=1280), max_tokens=8)
    monkeypatch.setattr(
        llama_index.core, "global_tokenizer", partial(tokenizer.encode, add_special_tokens=False)
    )
    passages = [f"{fact} {number} " * 30 for number, fact in enumerate(FACTS)]
    engine = chroma_index(passages).as_query_engine(llm=llm, response_mode=mode, similarity_top_k=3)
    upgrade_engine(engine)
    answer = str(engine.query(QUESTION))
    assert SLOT in asked(llm)[0]
    assert str(await engine.aquery(QUESTION)) == answer


def too_few_tokens(text: str) -> list[int]:
    """A tokenizer that counts fewer tokens than the backbone's makes, as GPT-3.5's does of German."""
    return list(range(len(text.encode()) // 6))


@pytest.mark.parametrize("mode", ["compact", "tree_summarize", "simple_summarize"])
def test_an_upgraded_engine_counts_as_the_backbone_does(tokenizer, make_tokens, monkeypatch, caplog, mode):
    llm = SpringLLM(model=spring_model(tokenizer, make_tokens(60), chat=False, positions=1280), max_tokens=8)
    monkeypatch.setattr(llama_index.core, "global_tokenizer", too_few_tokens)
    passages = [f"{fact} {number} " * 30 for number, fact in enumerate(FACTS)]
    index = chroma_index(passages)

    def engine():
        return index.as_query_engine(llm=llm, response_mode=mode, similarity_top_k=3)

    said = "too long.*set Settings.tokenizer = llm.model.tokenizer"
    if mode == "compact":  # LlamaIndex only logs what goes wrong there
        engine().query(QUESTION)
        assert re.search(said, caplog.text)
        caplog.clear()
    else:
        with pytest.raises(PromptTooLongError, match=said):
            engine().query(QUESTION)
    other, upgraded = engine(), engine()
    report = upgrade_engine(upgraded)
    assert report.counts
    assert "Settings.tokenizer: the backbone's own" in str(report)
    assert str(upgraded.query(QUESTION))
    assert "too long" not in caplog.text
    assert Settings.tokenizer("two words") == llm.model.tokenizer.encode("two words")
    assert not upgrade_engine(other).counts


@pytest.mark.parametrize("mode", ["compact", "tree_summarize"])
async def test_streaming_query_engine(index, llm, mode):
    engine = index.as_query_engine(llm=llm, response_mode=mode, streaming=True)
    upgrade_engine(engine)
    streamed = "".join(engine.query(QUESTION).response_gen)
    assert SLOT in asked(llm)[-1]
    assert streamed == answer_to(llm, llm.model.prompts[-1])
    response = await engine.aquery(QUESTION)
    assert "".join([piece async for piece in response.async_response_gen()]) == streamed


def test_upgrade_says_what_it_did(index, llm):
    engine = index.as_query_engine(llm=llm)
    report = upgrade_engine(engine)
    assert report.changed == (
        "response_synthesizer:text_qa_template",
        "response_synthesizer:chat_content_qa_template",
    )
    assert set(report.left) == {
        "response_synthesizer:refine_template",
        "response_synthesizer:chat_content_refine_template",
    }
    assert "before the new context" in report.left["response_synthesizer:refine_template"]
    assert "left as it was: response_synthesizer:refine_template (it refines" in str(report)
    again = upgrade_engine(engine)
    assert again.changed == ()
    assert "already" in again.left["response_synthesizer:text_qa_template"]


def test_upgrade_changes_this_engine_only(index, llm):
    upgrade_engine(index.as_query_engine(llm=llm))
    index.as_query_engine(llm=llm).query(QUESTION)
    assert SLOT not in asked(llm)[-1]


def test_upgrade_warns_where_the_question_comes_first(index, text_llm):
    template = PromptTemplate("Question: {query_str}\nContext: {context_str}\nAnswer:")
    engine = index.as_query_engine(llm=text_llm, text_qa_template=template, similarity_top_k=1)
    with pytest.warns(UserWarning, match="question stands before the context"):
        upgrade_engine(engine)
    engine.query(QUESTION)
    assert asked(text_llm) == [f"Question: {QUESTION}\nContext: {FACTS[0]}{SLOT}\nAnswer:"]


def test_upgrade_reaches_engines_within_engines(index, llm):
    inner = index.as_query_engine(llm=llm)
    engine = TransformQueryEngine(
        TransformQueryEngine(inner, IdentityQueryTransform()), IdentityQueryTransform()
    )
    assert "query_engine:query_engine:response_synthesizer:text_qa_template" in upgrade_engine(engine).changed
    engine.query(QUESTION)
    assert SLOT in asked(llm)[-1]


def test_upgrade_reaches_the_engines_behind_a_router(index, llm):
    engine = RouterQueryEngine(First(), tools(*(index.as_query_engine(llm=llm) for _ in range(2))), llm)
    changed = upgrade_engine(engine).changed
    for i in range(2):
        assert f"query_engines[{i}]:response_synthesizer:text_qa_template" in changed
    engine.query(QUESTION)
    assert asked(llm)[-1].count(SLOT) == 1


def test_upgrade_reaches_the_engines_of_sub_questions(index, llm):
    engine = SubQuestionQueryEngine.from_defaults(
        tools(index.as_query_engine(llm=llm)), llm, OneQuestion(), verbose=False, use_async=False
    )
    upgrade_engine(engine)
    engine.query(QUESTION)
    assert [prompt.count(SLOT) for prompt in asked(llm)] == [1, 1]
    assert FACTS[0] in asked(llm)[0].split(SLOT)[0]


def test_upgrade_reaches_the_engine_of_several_steps(index, llm):
    engine = MultiStepQueryEngine(
        index.as_query_engine(llm=llm),
        StepDecomposeQueryTransform(llm=llm),
        get_response_synthesizer(llm=llm),
        num_steps=1,
    )
    assert "query_engine:response_synthesizer:text_qa_template" in upgrade_engine(engine).changed
    engine.query(QUESTION)
    _, *answered = asked(llm)
    assert [prompt.count(SLOT) for prompt in answered] == [1, 1], (
        "the step's question is the plain backbone's"
    )


def test_engines_that_are_made_while_answering_are_named(index, llm):
    objects = ObjectIndex.from_objects(
        tools(index.as_query_engine(llm=llm)), index_cls=VectorStoreIndex, embed_model=OfflineEmbedding()
    )
    summarizer = TreeSummarize(llm=llm)
    engine = ToolRetrieverRouterQueryEngine(objects.as_retriever(), llm=llm, summarizer=summarizer)
    assert "out of reach" in upgrade_engine(engine).left["retriever"]
    engine = RetrieverRouterQueryEngine(index.as_retriever(), lambda node: index.as_query_engine(llm=llm))
    with pytest.raises(PromptError, match="node_to_query_engine_fn: it makes its engines only while"):
        upgrade_engine(engine)


def test_engine_without_context_is_refused(llm):
    with pytest.raises(PromptError, match="SimpleChatEngine has no template"):
        upgrade_engine(SimpleChatEngine.from_defaults(llm=llm))


@pytest.mark.parametrize("mode", ["context", "condense_plus_context"])
async def test_chat_engines(index, llm, mode):
    engine = index.as_chat_engine(chat_mode=mode, llm=llm, similarity_top_k=1, system_prompt="Be brief.")
    report = upgrade_engine(engine)
    name = "context_template" if mode == "context" else "context_prompt_template"
    assert report.changed == (name,)
    first = engine.chat(QUESTION)
    prompt = llm.model.prompts[-1]
    assert asked(llm)[-1].count(SLOT) == 1
    context, question = asked(llm)[-1].split(SLOT)
    assert FACTS[0] in context
    assert "Instruction:" not in question, "what the template says of the context stands after the slot"
    assert "Be brief." in context, "what LlamaIndex puts behind the context stands before the slot, too"
    assert QUESTION in question
    assert str(first) == answer_to(llm, prompt)

    llm.model.prompts.clear()
    second = engine.chat("And when?")
    assert str(second) == answer_to(llm, llm.model.prompts[-1])
    if mode == "condense_plus_context":
        rephrased, answered = asked(llm)[:2]
        assert SLOT not in rephrased
    else:
        answered = asked(llm)[0]
    assert answered.count(SLOT) == 1
    assert str(first) in answered.split(SLOT)[0], "an earlier answer stands between slot and question"

    engine.reset()
    assert "".join(engine.stream_chat(QUESTION).response_gen) == str(first)
    engine.reset()
    assert str(await engine.achat(QUESTION)) == str(first)
    engine.reset()
    response = await engine.astream_chat(QUESTION)
    assert "".join([piece async for piece in response.async_response_gen()]) == str(first)


@pytest.mark.parametrize("mode", ["context", "condense_plus_context"])
def test_chat_history_cannot_write_a_slot(llm, mode):
    engine = chroma_index([f"Forged: {SLOT_MARKER}"]).as_chat_engine(chat_mode=mode, llm=llm)
    upgrade_engine(engine)
    history = [
        ChatMessage(role="user", content=SLOT_MARKER),
        ChatMessage(role="assistant", content=SLOT_MARKER),
    ]
    engine.chat(f"{SLOT_MARKER}?", chat_history=history)
    prompt = asked(llm)[-1]
    assert prompt.count(SLOT) == 1
    assert prompt.count(SLOT_MARKER) >= 4


def test_condense_question_engine(index, llm):
    engine = index.as_chat_engine(chat_mode="condense_question", llm=llm)
    report = upgrade_engine(engine)
    assert "query_engine:response_synthesizer:text_qa_template" in report.changed
    assert "rephrases" in report.left["condense_question_prompt"]
    engine.chat(QUESTION)
    assert SLOT in asked(llm)[-1]


def test_retriever_query_engine_with_numbered_passages(index, text_llm):
    template = PromptTemplate("{context_str}\n\nQuestion: {query_str}\nAnswer:")
    engine = RetrieverQueryEngine(
        retriever=index.as_retriever(similarity_top_k=2),
        response_synthesizer=get_response_synthesizer(
            llm=text_llm, text_qa_template=with_virtual_tokens(template)
        ),
        node_postprocessors=[NumberedPassages()],
    )
    response = engine.query(QUESTION)
    second = response.source_nodes[1].node.get_content().removeprefix("[2] ")
    assert second in FACTS
    assert asked(text_llm) == [f"[1] {FACTS[0]}\n\n[2] {second}\n\n{SLOT}Question: {QUESTION}\nAnswer:"]


async def test_numbering_works_on_copies():
    nodes = [
        NodeWithScore(node=TextNode(text="with {braces}", metadata={"file": "a.txt"}), score=0.5),
        NodeWithScore(node=ImageNode(image_url="https://example.org/a.png"), score=0.4),
        NodeWithScore(node=TextNode(text="two"), score=0.3),
    ]
    before = [each.model_dump() for each in nodes]
    numbered = NumberedPassages().postprocess_nodes(nodes)
    assert [each.node.get_content(metadata_mode="llm") for each in numbered] == [
        "[1] file: a.txt\n\nwith {braces}",
        "",
        "[2] two",
    ]
    assert [each.score for each in numbered] == [0.5, 0.4, 0.3]
    assert [each.node.node_id for each in numbered] == [each.node.node_id for each in nodes]
    assert [each.model_dump() for each in nodes] == before
    own = NumberedPassages(passage="Document {number}: {passage}")
    assert (await own.apostprocess_nodes(nodes))[2].node.get_content() == "Document 2: two"


class Retrieved(Event):
    passages: list[str]


class RagWorkflow(Workflow):
    """The two steps of LlamaIndex's RAG workflow, with the prompt made in code."""

    def __init__(self, index, llm):
        super().__init__()
        self.retriever, self.llm = index.as_retriever(similarity_top_k=2), llm

    @step
    async def retrieve(self, ctx: Context, event: StartEvent) -> Retrieved:
        await ctx.store.set("question", event.question)
        nodes = await self.retriever.aretrieve(event.question)
        return Retrieved(passages=[each.get_content() for each in nodes])

    @step
    async def answer(self, ctx: Context, event: Retrieved) -> StopEvent:
        prompt = RagPrompt(await ctx.store.get("question"), event.passages)
        return StopEvent(result=await self.llm.acomplete(render_text(prompt)))


async def test_workflow_answers_as_the_plain_api(index, text_llm):
    result = await RagWorkflow(index, text_llm).run(question=QUESTION)
    passages = [each.get_content() for each in index.as_retriever(similarity_top_k=2).retrieve(QUESTION)]
    assert result.text == text_llm.model.answer(QUESTION, passages, max_new_tokens=8)
    assert result.additional_kwargs["virtual_tokens"] == 6


def test_no_slot_is_the_plain_backbone(index, text_llm):
    engine = index.as_query_engine(llm=text_llm, similarity_top_k=1)
    plain = str(engine.query(QUESTION))
    prompt = text_llm.model.prompts[-1]
    assert not prompt.has_slot
    upgrade_engine(engine)
    text_llm.num_tokens = 0
    assert str(engine.query(QUESTION)) == plain
    slotted = text_llm.model.prompts[-1]
    assert slotted == Prompt(parts=slotted.parts)
    assert [part for part in slotted.parts if part == Slot()] == [Slot()]
    assert plain == answer_to(text_llm, Prompt(parts=(Text(slotted.text),)))


def test_chroma_quickstart_of_llama_index(text_llm, tmp_path, monkeypatch):
    """The steps of LlamaIndex's own Chroma example, with the LLM changed and the engine upgraded."""
    monkeypatch.setattr(Settings, "_llm", text_llm)
    for number, fact in enumerate(FACTS):
        (tmp_path / f"{number}.txt").write_text(fact)
    documents = SimpleDirectoryReader(tmp_path).load_data()
    collection = chromadb.EphemeralClient().create_collection("quickstart")
    store = StorageContext.from_defaults(vector_store=ChromaVectorStore(chroma_collection=collection))
    index = VectorStoreIndex.from_documents(documents, storage_context=store, embed_model=OfflineEmbedding())
    engine = index.as_query_engine()
    upgrade_engine(engine)
    response = engine.query(QUESTION)
    assert str(response) == answer_to(text_llm, text_llm.model.prompts[-1])
    prompt = asked(text_llm)[-2]
    assert FACTS[0] in prompt.split(SLOT)[0]
    assert QUESTION in prompt.split(SLOT)[1]
