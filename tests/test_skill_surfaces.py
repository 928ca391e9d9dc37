"""Test the results of skills in Chroma's answers, LangChain's chains and LlamaIndex's engines."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cli_parts import fails
from langchain_core.documents import Document
from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.schema import NodeWithScore, QueryBundle, TextNode
from skill_parts import skill_tokens
from test_asking import PASSAGES, QUESTION
from thinking_parts import tokenizer_of, writing
from toy_parts import BACKBONE, DOCUMENTS, MAX_TOKENS, TOKENS

from chroma_spring_rag import ChromaQA, connect_folder, index_files, open_or_create_collection
from langchain_spring_rag import ChatSpring, SpringLLM, with_skills
from llama_index.llms.spring_rag import SkillQueryEngine
from llama_index.llms.spring_rag import SpringLLM as LlamaSpringLLM
from spring_rag import RagAnswer, RagPrompt, RagTemplate, SpringModel, VirtualTokens
from spring_rag.encoding import encode


@pytest.fixture(scope="module")
def model() -> SpringModel:
    answering = VirtualTokens.from_pretrained(TOKENS)
    model = SpringModel.from_pretrained(BACKBONE, tokens=answering, device="cpu")
    model.add_skill(skill_tokens("cite", answering))
    model.add_skill(skill_tokens("answerable", answering, calibration=(0.0, 1.0)))
    return model


@pytest.fixture(scope="module")
def expected(model: SpringModel) -> RagAnswer:
    return model.ask(QUESTION, PASSAGES, max_new_tokens=MAX_TOKENS)


def test_chroma(model: SpringModel, tmp_path: Path) -> None:
    collection = open_or_create_collection(connect_folder(tmp_path, create=True), "toy")
    index_files(collection, sorted(DOCUMENTS.iterdir())[:5])
    qa = ChromaQA(model, collection, top_k=3)
    answer = qa.ask(QUESTION, max_new_tokens=MAX_TOKENS, min_answerable=0.5)
    told = model.ask(QUESTION, [one.text for one in answer.passages], max_new_tokens=MAX_TOKENS)
    assert (answer.text, answer.citations) == (told.text, told.citations)
    assert answer.answerable == pytest.approx(told.answerable)
    assert answer.logprob == pytest.approx(told.logprob, abs=1e-4)
    assert [one.place for one in answer.cited] == [
        f"{answer.passages[number - 1].source}:0" for number in told.citations
    ]
    assert qa.ask(QUESTION, max_new_tokens=MAX_TOKENS, min_answerable=0.9).withheld


class TestLangChain:
    async def test_a_chain_ends_in_a_dict(self, model: SpringModel, expected: RagAnswer) -> None:
        documents = [Document(text, metadata={"source": str(at)}) for at, text in enumerate(PASSAGES)]
        chain = with_skills(SpringLLM(model=model, max_tokens=MAX_TOKENS))
        for found in (
            chain.invoke({"context": documents, "question": QUESTION}),
            await chain.ainvoke({"context": documents, "question": QUESTION}),
        ):
            assert found["answer"] == found["message"].content == expected.text
            assert found["citations"] == expected.citations
            assert found["sources"] == [documents[number - 1] for number in expected.citations]
            metadata = found["message"].response_metadata
            assert metadata["answerable"] == pytest.approx(expected.answerable)
            assert (metadata["citations"], metadata["withheld"]) == (expected.citations, False)
            assert metadata["logprob"] == found["logprob"] == pytest.approx(expected.logprob, abs=1e-4)

    def test_an_answer_can_be_withheld(self, model: SpringModel) -> None:
        chain = with_skills(
            SpringLLM(model=model, max_tokens=MAX_TOKENS), min_answerable=0.9, context="texts"
        )
        found = chain.invoke({"texts": PASSAGES, "question": QUESTION})
        assert (found["answer"], found["sources"], found["withheld"]) == ("", [], True)


class Fixed(BaseRetriever):
    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        return [NodeWithScore(node=TextNode(text=text, id_=f"n{at}")) for at, text in enumerate(PASSAGES, 1)]


class TestLlamaIndex:
    async def test_an_engine_cites_its_nodes(self, model: SpringModel, expected: RagAnswer) -> None:
        engine = SkillQueryEngine(Fixed(), LlamaSpringLLM(model=model, max_tokens=MAX_TOKENS))
        for response in (engine.query(QUESTION), await engine.aquery(QUESTION)):
            assert str(response) == expected.text
            assert response.metadata is not None
            assert response.metadata["citations"] == expected.citations
            assert response.metadata["cited_nodes"] == [f"n{number}" for number in expected.citations]
            assert response.metadata["answerable"] == pytest.approx(expected.answerable)
            assert len(response.source_nodes) == len(PASSAGES)

    def test_an_answer_can_be_withheld(self, model: SpringModel) -> None:
        llm = LlamaSpringLLM(model=model, max_tokens=MAX_TOKENS)
        response = SkillQueryEngine(Fixed(), llm, min_answerable=0.9).query(QUESTION)
        assert str(response) == "The documents don't say."
        assert response.metadata is not None
        assert response.metadata["withheld"]


class TestThinking:
    """What a framework's model is told of thinking and of the chat template holds for answers with skills, too."""

    @pytest.fixture
    def thinker(self) -> SpringModel:
        tokenizer = tokenizer_of("qwen-3")
        asked = RagPrompt("Where?", ["Arlo lives in Oslo."], RagTemplate(chat=True, thinking=True))
        written = "<think>\nhm\n</think>\n\nOslo<|im_end|>"
        return SpringModel(writing(tokenizer, written, len(encode(asked, tokenizer).ids)), tokenizer)

    @pytest.mark.parametrize(
        "said", [{"thinking": True}, {"chat_template_kwargs": {"enable_thinking": True}}]
    )
    def test_a_chain(self, thinker: SpringModel, said: dict) -> None:
        given = {"context": ["Arlo lives in Oslo."], "question": "Where?"}
        message = with_skills(ChatSpring(model=thinker, **said)).invoke(given)["message"]
        assert message.text == "Oslo"
        assert [block["type"] for block in message.content_blocks] == ["reasoning", "text"]
        assert message.content_blocks[0]["reasoning"] == "hm"
        plain = with_skills(ChatSpring(model=thinker)).invoke(given)["message"]
        assert plain.usage_metadata["input_tokens"] != message.usage_metadata["input_tokens"]

    @pytest.mark.parametrize(
        "said", [{"thinking": True}, {"chat_template_kwargs": {"enable_thinking": True}}]
    )
    def test_an_engine(self, thinker: SpringModel, said: dict) -> None:
        class Found(BaseRetriever):
            def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
                return [NodeWithScore(node=TextNode(text="Arlo lives in Oslo."))]

        assert str(SkillQueryEngine(Found(), LlamaSpringLLM(model=thinker, **said)).query("Where?")) == "Oslo"


def test_a_report_that_cannot_be_written_is_told_before_anything_is_asked(tmp_path):
    data, report = tmp_path / "data.jsonl", tmp_path / "report"
    data.write_text(json.dumps({"question": "who?", "target": ["Ann"], "ret_passages": ["Ann."]}), "utf-8")
    report.write_text("in the way", "utf-8")
    named = ("eval", "--task", "answerable", "--data", data, "--tokens", tmp_path / "none")
    assert str(report) in fails(*named, "--report", report)
    assert report.read_text("utf-8") == "in the way"
