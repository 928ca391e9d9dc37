"""Test `spring-rag ask` on one's own files: how the backbone is asked, where it comes from, and what its code may do."""

import copy
import json
import shutil
from pathlib import Path

import pytest
from cli_parts import fails, run
from hostile_server import answering

from chroma_spring_rag import ChromaQA, connect_folder, index_files, open_or_create_collection
from spring_rag import RagPrompt, RagTemplate, SpringModel
from spring_rag.backbone import BackboneRecord
from spring_rag.encoding import encode

CHAT = "{{ bos_token }}{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"
QUESTION = "Who built the bridge of Morven?"


@pytest.fixture(scope="module")
def folder(tmp_path_factory, llama, tokenizer, make_tokens) -> Path:
    """A folder with `backbone`, whose tokenizer has a chat template, `tokens` that record it, and a database `db`."""
    folder = tmp_path_factory.mktemp("ask")
    chatting = copy.deepcopy(tokenizer)
    chatting.chat_template = CHAT
    llama.save_pretrained(folder / "backbone")
    chatting.save_pretrained(folder / "backbone")
    record = BackboneRecord.of(llama, str(folder / "backbone"))
    make_tokens(5, backbone=record, template=RagTemplate()).save_pretrained(folder / "tokens")
    (folder / "documents").mkdir()
    (folder / "documents" / "bridge.txt").write_text("The bridge was \x1b[2J\x9b31mbuilt by Ada.", "utf-8")
    collection = open_or_create_collection(connect_folder(folder / "db", create=True), "documents")
    index_files(collection, [folder / "documents"])
    return folder


def ask(folder: Path, *more: object) -> dict[str, object]:
    done = run("ask", QUESTION, "--db", folder / "db", "--max-new-tokens", 2, "--json", *more)
    assert done.returncode == 0, done.stderr
    answer: dict[str, object] = json.loads(done.stdout)
    return answer


def length(answer: dict[str, object]) -> int:
    usage = answer["usage"]
    assert isinstance(usage, dict)
    return usage["context"] + usage["suffix"]


def expected(model: SpringModel, answer: dict[str, object], template: RagTemplate) -> int:
    passages = answer["passages"]
    assert isinstance(passages, list)
    return len(
        encode(RagPrompt(QUESTION, [each["text"] for each in passages], template), model.tokenizer).ids
    )


@pytest.mark.parametrize(
    ("options", "template"),
    [
        (["--model", "backbone"], RagTemplate(chat=True)),
        (["--model", "backbone", "--no-chat"], RagTemplate()),
        (["--tokens", "tokens"], RagTemplate()),
        (["--tokens", "tokens", "--chat"], RagTemplate(chat=True)),
        (["--model", "backbone", "--system", "Be brief."], RagTemplate(chat=True, system="Be brief.")),
        (["--tokens", "tokens", "--instruction", "In a word:"], RagTemplate(instruction="In a word:\n")),
    ],
)
def test_the_backbone_is_asked_as_it_was_taught(
    folder: Path, options: list[str], template: RagTemplate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    model = SpringModel.from_pretrained("backbone")
    answer = ask(folder, *options)
    lengths = {each: expected(model, answer, each) for each in (template, RagTemplate(system="x", chat=True))}
    assert length(answer) == lengths[template]
    assert len(set(lengths.values())) == 2


def test_chroma_qa_asks_an_instruct_model_in_a_chat(folder: Path) -> None:
    model = SpringModel.from_pretrained(folder / "backbone")
    collection = open_or_create_collection(connect_folder(folder / "db"), "documents")
    text = RagTemplate()
    for template, used in ((None, RagTemplate(chat=True)), (text, text)):
        answer = ChromaQA(model, collection, template=template).ask(QUESTION, max_new_tokens=2)
        prompt = RagPrompt(QUESTION, [each.text for each in answer.passages], used)
        assert answer.usage.context + answer.usage.suffix == len(encode(prompt, model.tokenizer).ids)


def test_how_the_answer_is_written(folder: Path) -> None:
    whole = ask(folder, "--tokens", folder / "tokens", "--max-new-tokens", 12)["answer"]
    assert isinstance(whole, str)
    stop = whole[3:5]
    assert ask(folder, "--tokens", folder / "tokens", "--max-new-tokens", 12, "--stop", stop)["answer"] == (
        whole[: whole.index(stop)].strip()
    )
    drawn = {ask(folder, "--tokens", folder / "tokens", "--temperature", 50)["answer"] for _ in range(3)}
    assert len(drawn) > 1
    assert "add --chat" in fails(
        "ask", "Why?", "--db", folder / "db", "--tokens", folder / "tokens", "--system", "Be brief.", code=2
    )


def test_passages_reach_the_terminal_clean(folder: Path) -> None:
    done = run("ask", QUESTION, "--db", folder / "db", "--tokens", folder / "tokens", "--show-passages")
    assert "built by Ada." in done.stdout
    assert not {"\x1b", "\x9b"} & set(done.stdout)


def test_what_loads_is_said_in_a_terminal(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    done = run("ask", QUESTION, "--db", folder / "db", "--model", folder / "backbone", "--max-new-tokens", 1)
    assert "loading" in done.stderr
    assert "loading" not in done.stdout


def test_a_backbone_is_recorded_for_every_folder(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    model = SpringModel.from_pretrained("backbone")
    assert model.backend.model_id == str((folder / "backbone").resolve())
    model.backend.hf_model.config.name_or_path = "backbone"  # type: ignore[attr-defined]
    record = BackboneRecord.of(model.backend.hf_model)  # type: ignore[attr-defined]
    assert record.model_id == str((folder / "backbone").resolve())
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("name", ["bb", "/nowhere/bb", "./bb"])
def test_a_folder_that_is_gone_is_not_looked_for_on_the_hub(
    name: str, folder: Path, llama, make_tokens, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("the network was asked"))
    make_tokens(5, backbone=BackboneRecord.of(llama, name)).save_pretrained(tmp_path / "tokens")
    said = fails("ask", "Why?", "--db", folder / "db", "--tokens", tmp_path / "tokens")
    assert f"{name!r}, which isn't here; say with --model" in said


def test_code_that_a_backbone_brings_is_run_on_demand_only(folder: Path, tmp_path: Path) -> None:
    backbone = tmp_path / "backbone"
    shutil.copytree(folder / "backbone", backbone)
    config = json.loads((backbone / "config.json").read_text())
    config |= {
        "model_type": "own",
        "auto_map": {"AutoConfig": "own.Own", "AutoModelForCausalLM": "own.OwnForCausalLM"},
    }
    (backbone / "config.json").write_text(json.dumps(config))
    ran = tmp_path / "ran"
    (backbone / "own.py").write_text(
        f"open({str(ran)!r}, 'w').close()\n"
        "from transformers import LlamaConfig, LlamaForCausalLM\n"
        "class Own(LlamaConfig):\n    model_type = 'own'\n"
        "class OwnForCausalLM(LlamaForCausalLM):\n    config_class = Own\n"
    )
    arguments = ["ask", "Why?", "--db", folder / "db", "--model", backbone, "--max-new-tokens", 1]
    # Asked "run the custom code? [y/N]", this would say yes.
    said = fails(*arguments)
    assert "trust" in said
    assert not ran.exists()
    done = run(*arguments, "--trust-remote-code")
    assert done.returncode == 0, done.stderr
    assert ran.exists()


@pytest.mark.parametrize("option", ["--top-k", "--max-new-tokens", "-k"])
def test_numbers_beyond_everything(option: str, folder: Path) -> None:
    said = fails("ask", "Why?", "--db", folder / "db", "--tokens", folder / "tokens", option, 10**21, code=2)
    assert f"Invalid value for '{option}'" in said


def test_as_many_passages_as_there_are(folder: Path) -> None:
    passages = ask(folder, "--tokens", folder / "tokens", "--top-k", 10**9)["passages"]
    assert isinstance(passages, list)
    assert len(passages) == 1


@pytest.mark.parametrize("body", [b"<html>hello</html>", b"{", b"{}", b"[]", b"null", b'{"data": [{}]}'])
def test_a_server_that_is_not_vllm(body: bytes, folder: Path) -> None:
    head = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Type: %s\r\nContent-Length: %d\r\n\r\n"
    kind = b"text/html" if body.startswith(b"<") else b"application/json"
    with answering([head % (kind, len(body)) + body]) as port:
        url = f"http://127.0.0.1:{port}/v1"
        said = fails("ask", "Why?", "--db", folder / "db", "--model", folder / "backbone", "--base-url", url)
    assert url in said.splitlines()[-1]


def test_a_silent_vllm_server_gets_the_time_limit(folder: Path) -> None:
    with answering([], pause=0.1) as port:
        url = f"http://127.0.0.1:{port}/v1"
        named = ["--model", folder / "backbone", "--base-url", url, "--timeout", 0.5]
        said = fails("ask", "Why?", "--db", folder / "db", *named)
    assert f"{url} took longer than the timeout of 0.5 s" in said


@pytest.mark.parametrize("option", ["--temperature", "--timeout"])
@pytest.mark.parametrize("number", ["nan", "inf", "1e300"])
def test_numbers_that_are_none(option: str, number: str, folder: Path) -> None:
    said = fails("ask", "Why?", "--db", folder / "db", "--tokens", folder / "tokens", option, number, code=2)
    assert f"Invalid value for '{option}'" in said or f"Invalid value for {option}" in said


@pytest.mark.parametrize("option", ["--system", "--instruction", "--stop", "--collection", "--where"])
def test_text_that_is_none(option: str, folder: Path) -> None:
    arguments = ["ask", "Why?", "--db", folder / "db", "--tokens", folder / "tokens", option, "a\udcff"]
    assert "isn't text in UTF-8" in fails(*arguments, code=2)


def test_an_empty_stop_string_is_wrong_usage(folder: Path) -> None:
    arguments = ["ask", "Why?", "--db", folder / "db", "--tokens", folder / "tokens", "--stop", ""]
    assert "the text is empty" in fails(*arguments, code=2)
