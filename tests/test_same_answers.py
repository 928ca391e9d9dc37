"""Test that the same prompt gets the same answer everywhere (invariant 5): the toy is asked in each way that this package has.

All ways read one Chroma database, made like that of `spring-rag index`, and decode greedily in float32. This package searches it by
words and the frameworks' stores search it by vectors, so each way is compared with the plain API on the passages that its own search finds.
"""

import json

import pytest
import toy_parts
from langchain_chroma import Chroma
from langchain_core.output_parsers import StrOutputParser
from langchain_core.runnables import RunnablePassthrough
from langchain_parts import WordEmbeddings
from llama_index.core import VectorStoreIndex
from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.prompts import PromptTemplate
from llama_index.vector_stores.chroma import ChromaVectorStore
from llama_index_parts import OfflineEmbedding
from typer.testing import CliRunner

from chroma_spring_rag import ChromaQA, connect_folder, index_files, open_or_create_collection
from langchain_spring_rag import ChatSpring, format_passages, rag_prompt
from langchain_spring_rag import SpringLLM as LangChainLLM
from llama_index.llms.spring_rag import NumberedPassages, render_text, with_virtual_tokens
from llama_index.llms.spring_rag import SpringLLM as LlamaIndexLLM
from spring_rag import RagPrompt, RagTemplate
from spring_rag.cli import app

TOP_K = 3
ASKED = [each.question for each in toy_parts.ASKED]
COLLECTION = "documents"
CHAT = RagTemplate(chat=True)
LLAMA_INDEX = RagTemplate(passage="[{number}] {passage}\n\n", context_end="")
"""How LlamaIndex joins the passages that NumberedPassages numbers."""


@pytest.fixture(scope="module")
def db(tmp_path_factory):
    """A folder with the documents that answer the toy's first questions, indexed."""
    folder = tmp_path_factory.mktemp("db")
    sources = [toy_parts.DOCUMENTS / each.source for each in toy_parts.QUESTIONS[:40] if each.source]
    index_files(open_or_create_collection(connect_folder(folder, create=True), COLLECTION), sources)
    return folder


@pytest.fixture(scope="module")
def client(db):
    return connect_folder(db)


@pytest.fixture(scope="module")
def collection(client):
    return open_or_create_collection(client, COLLECTION)


@pytest.fixture(scope="module")
def passages(toy_model, collection):
    """What is retrieved for each question."""
    qa = ChromaQA(toy_model, collection, top_k=TOP_K)
    return {question: [each.text for each in qa.retrieve(question)] for question in ASKED}


@pytest.fixture(scope="module")
def passages_by_vectors(collection):
    """What a framework's store retrieves for each question."""
    found = collection.query(query_texts=ASKED, n_results=TOP_K)["documents"]
    return dict(zip(ASKED, found, strict=True))


@pytest.fixture(scope="module", params=[0, None], ids=["k=0", "all"])
def k(request):
    return request.param


def answers_to(model, passages, k):
    """By the plain API, each question for itself."""

    def ask(template: RagTemplate) -> list[str]:
        return [
            model.answer(
                question, found, num_tokens=k, template=template, max_new_tokens=toy_parts.MAX_TOKENS
            )
            for question, found in passages.items()
        ]

    found = {template: ask(template) for template in (RagTemplate(), CHAT, LLAMA_INDEX)}
    assert all(len(set(each)) == len(ASKED) for each in found.values()), "the questions make no difference"
    return found


@pytest.fixture(scope="module")
def answers(toy_model, passages, k):
    return answers_to(toy_model, passages, k)


@pytest.fixture(scope="module")
def answers_by_vectors(toy_model, passages_by_vectors, k):
    return answers_to(toy_model, passages_by_vectors, k)


def test_virtual_tokens_make_a_difference(toy_model, passages):
    prompt = RagPrompt(ASKED[0], passages[ASKED[0]])
    plain, short = toy_model.generate([prompt] * 2, num_tokens=[0, None], max_new_tokens=toy_parts.MAX_TOKENS)
    assert plain.text != short.text


def test_chroma_qa(toy_model, collection, answers, k):
    qa = ChromaQA(toy_model, collection, top_k=TOP_K)
    found = qa.ask_many(ASKED, k, max_new_tokens=toy_parts.MAX_TOKENS)
    assert [each.text for each in found] == answers[RagTemplate()]
    streamed = ["".join(qa.stream(each, k, max_new_tokens=toy_parts.MAX_TOKENS)) for each in ASKED]
    assert streamed == answers[RagTemplate()]


def test_the_command_line(db, answers, k):
    for question, right in zip(ASKED, answers[RagTemplate()], strict=True):
        options = [
            "--db",
            str(db),
            "--top-k",
            str(TOP_K),
            "--max-new-tokens",
            str(toy_parts.MAX_TOKENS),
            "--json",
        ]
        if k is not None:
            options += ["-k", str(k)]
        result = CliRunner().invoke(
            app, ["ask", question, *toy_parts.NAMED, *options], catch_exceptions=False
        )
        assert json.loads(result.stdout)["answer"] == right


@pytest.mark.parametrize("template", [RagTemplate(), CHAT], ids=["text", "chat"])
async def test_langchain(toy_model, client, answers_by_vectors, k, template):
    store = Chroma(COLLECTION, WordEmbeddings(), client=client, create_collection_if_not_exists=False)
    cls = ChatSpring if template.chat else LangChainLLM
    chain = (
        {
            "context": store.as_retriever(search_kwargs={"k": TOP_K}) | format_passages,
            "question": RunnablePassthrough(),
        }
        | rag_prompt(template)
        | cls(model=toy_model, max_tokens=toy_parts.MAX_TOKENS, num_tokens=k)
        | StrOutputParser()
    )
    right = answers_by_vectors[template]
    assert chain.batch(ASKED) == right
    assert await chain.abatch(ASKED) == right
    assert chain.invoke(ASKED[0]) == right[0]
    assert "".join(chain.stream(ASKED[1])) == right[1]
    assert "".join([piece async for piece in chain.astream(ASKED[2])]) == right[2]


async def test_llama_index(toy_model, passages, answers, k):
    llm = LlamaIndexLLM(model=toy_model, max_tokens=toy_parts.MAX_TOKENS, num_tokens=k)
    prompts = [render_text(RagPrompt(question, found)) for question, found in passages.items()]
    right = answers[RagTemplate()]
    assert [llm.complete(prompt, formatted=True).text for prompt in prompts] == right
    assert (await llm.acomplete(prompts[0], formatted=True)).text == right[0]
    assert "".join(each.delta for each in llm.stream_complete(prompts[1], formatted=True)) == right[1]
    chatting = LlamaIndexLLM(
        model=toy_model, max_tokens=toy_parts.MAX_TOKENS, num_tokens=k, is_chat_model=True
    )
    assert [chatting.complete(prompt).text for prompt in prompts] == answers[CHAT]


class TextOnly(BaseNodePostprocessor):
    """LlamaIndex shows a passage's metadata to the model, too, which the other ways don't."""

    def _postprocess_nodes(self, nodes, query_bundle=None):
        for each in nodes:
            each.node.excluded_llm_metadata_keys = list(each.node.metadata)
        return nodes


def test_a_query_engine_of_llama_index(toy_model, collection, answers_by_vectors, k):
    index = VectorStoreIndex.from_vector_store(
        ChromaVectorStore(chroma_collection=collection), embed_model=OfflineEmbedding()
    )
    engine = index.as_query_engine(
        llm=LlamaIndexLLM(model=toy_model, max_tokens=toy_parts.MAX_TOKENS, num_tokens=k),
        text_qa_template=with_virtual_tokens(
            PromptTemplate("{context_str}\n\nQuestion: {query_str}\nAnswer:")
        ),
        node_postprocessors=[TextOnly(), NumberedPassages()],
        similarity_top_k=TOP_K,
    )
    assert [str(engine.query(question)) for question in ASKED] == answers_by_vectors[LLAMA_INDEX]
