"""Test one backbone, the toy as a GGUF, on the command line, in LangChain and in LlamaIndex."""

import html
import json
import pickle
import socket

import pytest
import toy_parts
from cli_parts import fails, run
from gradio_client import Client
from langchain_core.prompts import PromptTemplate
from llama_index.core.llms import ChatMessage

from chroma_spring_rag import connect_folder, index_files, open_or_create_collection
from langchain_spring_rag import SpringLLM, with_virtual_tokens
from llama_index.llms.spring_rag import SpringLLM as LlamaIndexLLM
from spring_rag import RagPrompt, SpringModel
from spring_rag.playground import page
from spring_rag.playground.page import launch

QUESTION = toy_parts.ASKED[0]


@pytest.fixture(scope="module")
def expected(toy_gguf):
    """What transformers answers with the same file."""
    return SpringModel.from_pretrained(toy_gguf, tokens=toy_parts.TOKENS, device="cpu")


def test_both_engines_read_a_file_alike(toy_gguf, expected):
    ours = SpringModel.from_pretrained(toy_gguf, tokens=toy_parts.TOKENS, engine="llama.cpp")
    prompts = [
        RagPrompt(each.question, [toy_parts.text_of(each), toy_parts.TEXTS[5]]) for each in toy_parts.ASKED
    ]
    for k in (0, None):
        found = ours.generate(prompts, num_tokens=k, max_new_tokens=toy_parts.MAX_TOKENS)
        assert found == expected.generate(prompts, num_tokens=k, max_new_tokens=toy_parts.MAX_TOKENS)
    assert QUESTION.answer in ours.answer(QUESTION.question, [toy_parts.text_of(QUESTION)])


def test_ask_and_eval(toy_gguf, expected, tmp_path):
    (tmp_path / "documents").mkdir()
    (tmp_path / "documents" / "one.txt").write_text(toy_parts.text_of(QUESTION), "utf-8")
    index_files(
        open_or_create_collection(connect_folder(tmp_path / "db", create=True), "documents"),
        [tmp_path / "documents"],
    )
    named = ["--model", toy_gguf, "--tokens", toy_parts.TOKENS, "--json"]
    told = [*named, "--engine", "llama.cpp"]
    done = run("ask", QUESTION.question, "--db", tmp_path / "db", *told)
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    passages = [each["text"] for each in answer["passages"]]
    assert answer["answer"] == expected.answer(QUESTION.question, passages)
    data = tmp_path / "data.jsonl"
    data.write_text(
        "".join(
            json.dumps(
                {
                    "question": each.question,
                    "target": [each.answer],
                    "ret_passages": [toy_parts.text_of(each)],
                }
            )
            + "\n"
            for each in toy_parts.ANSWERABLE[:6]
        ),
        "utf-8",
    )
    found = [run("eval", "--data", data, "--k", "0,10", *options) for options in (told, named)]
    assert found[0].returncode == 0, found[0].stderr
    results = [json.loads(each.stdout)["results"] for each in found]
    assert [[(each["k"], each["exact_match"], each["f1"]) for each in some] for some in results] == [
        [(each["k"], each["exact_match"], each["f1"]) for each in results[1]]
    ] * 2


def test_engine_goes_without_what_only_transformers_has(toy_gguf, tmp_path):
    options = ["--model", toy_gguf, "--engine", "llama.cpp", "--db", tmp_path]
    (tmp_path / "documents").mkdir()
    open_or_create_collection(connect_folder(tmp_path, create=True), "documents")
    said = fails("ask", "who?", *options, "--quantize", "4bit", code=2)
    assert "--engine llama.cpp goes without --base-url, --quantize and --device-map" in " ".join(said.split())


def test_playground(toy_gguf, expected, tmp_path, monkeypatch):
    """The command with its real page, which is asked over HTTP before it would wait for visitors."""
    (tmp_path / "one.txt").write_text(toy_parts.text_of(QUESTION), "utf-8")
    client = connect_folder(tmp_path / "db", create=True)
    index_files(open_or_create_collection(client, "documents"), [tmp_path / "one.txt"])
    shown = []

    def launch_and_ask(built, host, port):
        address = launch(built, host, port, block=False)
        try:
            asked = Client(address, verbose=False).submit(
                QUESTION.question, ["plain", "k = 1"], 3, toy_parts.MAX_TOKENS, api_name="/ask"
            )
            asked.result(timeout=60)
            shown.append(asked.outputs()[-1][0])
        finally:
            built.close()

    monkeypatch.setattr(page, "launch", launch_and_ask)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    named = ["--db", tmp_path / "db", "--model", toy_gguf, "--tokens", toy_parts.TOKENS]
    done = run("playground", *named, "--engine", "llama.cpp", "--k", "1", "--page-port", port)
    assert done.returncode == 0, done.stderr
    text = html.unescape(str(shown[0]))
    for k in (0, 1):
        assert (
            expected.answer(
                QUESTION.question,
                [toy_parts.text_of(QUESTION)],
                num_tokens=k,
                max_new_tokens=toy_parts.MAX_TOKENS,
            )
            in text
        )


def test_langchain(toy_gguf, expected):
    template = "{context}\n\nQuestion: {question}\nAnswer:"
    llm = SpringLLM(model=toy_gguf, virtual_tokens=str(toy_parts.TOKENS), engine="llama.cpp")
    chain = with_virtual_tokens(PromptTemplate.from_template(template)) | llm
    asked = {"context": toy_parts.text_of(QUESTION), "question": QUESTION.question}
    there = with_virtual_tokens(PromptTemplate.from_template(template)) | SpringLLM(model=expected)
    assert chain.invoke(asked) == there.invoke(asked)
    assert "".join(chain.stream(asked)) == there.invoke(asked)
    assert pickle.loads(pickle.dumps(llm)).spring_model is llm.spring_model


def test_llama_index(toy_gguf, expected):
    llm = LlamaIndexLLM.from_pretrained(toy_gguf, tokens=str(toy_parts.TOKENS), engine="llama.cpp")
    there = LlamaIndexLLM(model=expected)
    message = [ChatMessage(role="user", content="Where is it?")]
    assert llm.complete("The lighthouse of").text == there.complete("The lighthouse of").text
    assert llm.chat(message).message.content == there.chat(message).message.content
