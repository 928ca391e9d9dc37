"""Test ChromaQA with retrievers of LangChain and LlamaIndex, and with passages that don't fit."""

import subprocess
import sys

import pytest
from cli_parts import run
from langchain_core.documents import Document
from langchain_core.runnables import RunnableLambda
from llama_index.core.retrievers import BaseRetriever
from llama_index.core.schema import NodeWithScore, TextNode

from chroma_spring_rag import (
    ChromaQA,
    CollectionError,
    connect_folder,
    index_files,
    open_or_create_collection,
)
from spring_rag import RagPrompt, SpringModel, VirtualTokens
from spring_rag.errors import TokensError

TEXTS = ["The bridge of Morven was built by Ada Quill.", "The ship Petrel was lost off Cape Dunn."]


class Nodes(BaseRetriever):
    """A retriever of LlamaIndex."""

    def _retrieve(self, query_bundle):
        return [
            NodeWithScore(
                node=TextNode(text=text, id_=f"node-{i}", metadata={"file_path": f"{i}.txt"}), score=1 - i
            )
            for i, text in enumerate(TEXTS)
        ]


def documents(question: str) -> list[Document]:
    assert question
    return [Document(TEXTS[0], metadata={"source": "0.txt"}), Document(TEXTS[1], id="1.txt")]


@pytest.fixture(scope="module")
def model(llama, tokenizer, make_tokens) -> SpringModel:
    with pytest.warns(UserWarning, match="don't record their backbone"):
        return SpringModel(llama, tokenizer, tokens=make_tokens(5))


@pytest.mark.parametrize(
    ("retriever", "scores"), [(RunnableLambda(documents), [None, None]), (Nodes(), [1.0, 0.0])]
)
def test_answers_from_what_a_retriever_finds(model, retriever, scores) -> None:
    qa = ChromaQA(model, retriever=retriever)
    answer = qa.ask("Who built the bridge?", max_new_tokens=8)
    assert answer.text == model.answer("Who built the bridge?", TEXTS, max_new_tokens=8)
    assert [(each.source, each.score) for each in answer.passages] == list(
        zip(["0.txt", "1.txt"], scores, strict=True)
    )
    assert (
        qa.ask_many(["Who built the bridge?"], top_k=1, max_new_tokens=2)[0].passages == answer.passages[:1]
    )
    assert "".join(qa.stream("Who built the bridge?", max_new_tokens=8)) == answer.text
    with pytest.raises(CollectionError, match="takes no filter"):
        qa.ask("Who?", where={"source": "0.txt"})


def test_one_place_to_retrieve_from(model) -> None:
    for arguments in (
        {},
        {"collection": object(), "retriever": Nodes()},
        {"retriever": Nodes(), "embedding": "default"},
    ):
        with pytest.raises(CollectionError, match="either a collection"):
            ChromaQA(model, **arguments)
    with pytest.raises(TypeError, match="a int is no retriever"):
        ChromaQA(model, retriever=3).ask("Who?")  # type: ignore[arg-type]
    with pytest.raises(CollectionError, match="no passage of the retriever"):
        ChromaQA(model, retriever=RunnableLambda(lambda _: [])).ask("Who?")


def test_needs_neither_framework_of_retrievers() -> None:
    code = (
        "import sys\n"
        "for name in ('langchain', 'langchain_chroma', 'llama_index', 'llama_index.core'): sys.modules[name] = None\n"
        "import chroma_spring_rag"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.filterwarnings("ignore:these virtual tokens don't record their backbone")
def test_passages_that_are_left_out_are_no_sources(llama, tokenizer, make_tokens) -> None:
    model = SpringModel(llama, tokenizer, tokens=make_tokens(5))
    many = [f"Passage number {i} is about the harbour of Morven." for i in range(12)]
    found = [Document(text, id=str(i)) for i, text in enumerate(many)]
    qa = ChromaQA(model, top_k=20, retriever=RunnableLambda(lambda _: found))
    answer = qa.ask("Who?", max_new_tokens=4)
    stream = qa.stream("Who?", max_new_tokens=4)
    read = model.fitted(RagPrompt("Who?", many), max_new_tokens=4)
    assert 0 < len(answer.passages) < 12
    assert [each.text for each in answer.passages] == list(read.passages)
    assert [each.text for each in answer.dropped] == list(read.dropped) == many[len(answer.passages) :]
    assert (stream.passages, stream.dropped) == (answer.passages, answer.dropped)
    assert "".join(stream) == answer.text
    # A skill with more virtual tokens leaves less room, for the answer's passages too.
    both = SpringModel.from_backend(model.backend)
    both.add_skill(VirtualTokens(make_tokens(60).matrix, task="answerable"))
    fewer = ChromaQA(both, top_k=20, retriever=RunnableLambda(lambda _: found)).ask("Who?", max_new_tokens=4)
    assert 0 < len(fewer.passages) < len(answer.passages)
    assert [each.text for each in (*fewer.passages, *fewer.dropped)] == many
    with pytest.raises(TokensError, match="num_tokens has 1 values for 2 prompts"):
        qa.ask_many(["Who?", "When?"], num_tokens=[1])


def test_ask_lists_what_was_read_and_says_what_was_left_out(llama, tokenizer, tmp_path) -> None:
    llama.save_pretrained(tmp_path / "backbone")
    tokenizer.save_pretrained(tmp_path / "backbone")
    for i in range(9):
        (tmp_path / f"{i}.txt").write_text(f"Passage number {i} is about the harbour of Morven.", "utf-8")
    collection = open_or_create_collection(connect_folder(tmp_path / "db", create=True), "documents")
    index_files(collection, list(tmp_path.glob("*.txt")))
    arguments = ["ask", "harbour", "--db", tmp_path / "db", "--model", tmp_path / "backbone", "--top-k", 9]
    for more in ([], ["--stream"]):
        done = run(*arguments, "--show-passages", "--max-new-tokens", 4, *more)
        assert done.returncode == 0, done.stderr
        shown = done.stdout.count(".txt (score")
        assert 0 < shown < 9
        assert f"{9 - shown} passages of 9 left out" in done.stderr
