"""Test the `spring-rag` command as its users run it."""

import json
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable
from importlib import metadata
from subprocess import CompletedProcess

import pytest
from chroma_server import chroma_server
from cli_parts import Done
from cli_parts import run as run_here
from transformers.utils import logging

import spring_rag
from spring_rag import VirtualTokens
from spring_rag.backbone import BackboneRecord
from spring_rag.cli.chroma_options import DEFAULT_COLLECTION, DEFAULT_PORT, DEFAULT_TIMEOUT
from spring_rag.cli.console import clean
from spring_rag.errors import MissingExtraError
from spring_rag.extras import extra

MODULE = [sys.executable, "-c", "from spring_rag.cli import main; main()"]
HEAVY = ("torch", "transformers", "chromadb", "sklearn", "langchain_core", "llama_index", "numpy", "rich")


def run(*arguments: object, **environment: str) -> CompletedProcess[str]:
    return subprocess.run(
        [*MODULE, *map(str, arguments)],
        capture_output=True,
        text=True,
        env=os.environ | {"HF_HUB_OFFLINE": "1"} | environment,
        timeout=120,
    )


def fails(*arguments: object, run: Callable[..., CompletedProcess[str] | Done] = run_here) -> str:
    """Run a command that must fail with one line on stderr and nothing on stdout; returns the line."""
    done = run(*arguments)
    assert done.returncode == 1, done.stderr
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1, done.stderr
    assert done.stderr.startswith("error: ")
    return done.stderr


@pytest.fixture(autouse=True)
def no_progress(monkeypatch):
    monkeypatch.setenv("SPRING_RAG_PROGRESS_SECONDS", "600")
    logging.disable_progress_bar()
    yield
    logging.enable_progress_bar()


@pytest.fixture(scope="module")
def saved(tmp_path_factory, llama, tokenizer, make_tokens):
    """A folder with `backbone`, `tokens` that record it, and `bare.pt` that doesn't."""
    folder = tmp_path_factory.mktemp("saved")
    llama.save_pretrained(folder / "backbone")
    tokenizer.save_pretrained(folder / "backbone")
    record = BackboneRecord.of(llama, str(folder / "backbone"))
    tokens = make_tokens(5, backbone=record, training={"steps": 7})
    tokens.save_pretrained(folder / "tokens")
    tokens.save_pt(folder / "bare.pt")
    return folder


@pytest.fixture(scope="module")
def indexed(tmp_path_factory):
    """A folder with `documents` and a database `db` of them."""
    folder = tmp_path_factory.mktemp("indexed")
    documents = folder / "documents"
    documents.mkdir()
    (documents / "bridge.txt").write_text("The bridge of Morven was built by Ada Quill in 1811.", "utf-8")
    (documents / "ship.md").write_text("# Petrel\n\nThe ship Petrel was lost off Cape Dunn.", "utf-8")
    done = run("index", documents, "--db", folder / "db")
    assert done.returncode == 0, done.stderr
    return folder


class TestLightness:
    @pytest.mark.parametrize(
        "arguments",
        [
            ["--help"],
            ["ask", "--help"],
            ["index", "--help"],
            ["tokens", "--help"],
            ["train", "--help"],
            ["data", "make", "--help"],
            ["collections", "list", "--help"],
        ],
    )
    def test_help_loads_nothing_heavy(self, arguments):
        code = (
            "import sys\n"
            "from spring_rag.cli import app\n"
            f"try: app({arguments!r})\n"
            "except SystemExit as done: assert not done.code\n"
            f"print([name for name in {HEAVY!r} if name in sys.modules])"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert "Usage:" in done.stdout
        assert done.stdout.splitlines()[-1] == "[]"

    def test_importing_the_package_loads_nothing_heavy(self):
        modules = "spring_rag, spring_rag.prompt, spring_rag.errors, spring_rag.cli, spring_rag.demo.paths"
        code = f"import sys, {modules}; print([name for name in {HEAVY!r} if name in sys.modules])"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert done.stdout.strip() == "[]"

    def test_the_defaults_in_the_help_are_the_librarys(self):
        from chroma_spring_rag import indexing, qa, store

        assert (DEFAULT_COLLECTION, DEFAULT_PORT, DEFAULT_TIMEOUT) == (
            store.DEFAULT_COLLECTION,
            store.DEFAULT_PORT,
            store.DEFAULT_TIMEOUT,
        )
        help_texts = run("index", "--help", COLUMNS="200").stdout + run("ask", "--help", COLUMNS="200").stdout
        for default in (
            indexing.DEFAULT_CHUNK_SIZE,
            indexing.DEFAULT_CHUNK_OVERLAP,
            qa.DEFAULT_TOP_K,
            qa.DEFAULT_MAX_NEW_TOKENS,
        ):
            assert f"[default: {default};" in help_texts


class TestVersion:
    def test_it_is_that_of_the_distribution(self):
        version = metadata.version("spring-rag")
        assert spring_rag.__version__ == version
        assert run("--version").stdout == f"spring-rag {version}\n"


class TestEndings:
    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ([], "Usage:"),
            (["nope"], "No such command 'nope'"),
            (["ask"], "Missing argument"),
            (["ask", "why?"], "either --db DIR or --host HOST"),
            (["ask", "why?", "--db", "x", "--host", "y"], "either --db DIR or --host HOST"),
            (["ask", "  ", "--db", "x"], "the question is empty"),
            (["ask", "why?", "--db", "x", "--json", "--stream"], "exclude each other"),
            (["ask", "why?", "--db", "x", "--where", "{source: 1}"], "isn't JSON"),
            (["ask", "why?", "--db", "x", "--where", "[1]"], "isn't a JSON object"),
            (["ask", "why?", "--db", "x", "-k", "-1"], "Invalid value for '-k'"),
            (
                ["index", "x", "--db", "y", "--chunk-size", "5", "--chunk-overlap", "5"],
                "less than --chunk-size",
            ),
            (["tokens", "export", "x", "y.bin"], "must end in .pt"),
        ],
    )
    def test_wrong_usage_is_2(self, arguments, message):
        done = run(*arguments)
        assert done.returncode == 2
        assert message in " ".join((done.stderr + done.stdout).split())
        assert "Traceback" not in done.stderr

    def test_an_unexpected_error_is_one_line_that_says_how_to_see_more(self):
        code = (
            "import spring_rag.cli as cli\n"
            "@cli.app.command()\n"
            "def boom() -> None: raise KeyError('a\\nb')\n"
            "cli.main()"
        )
        for debug in ("", "1"):
            done = subprocess.run(
                [sys.executable, "-c", code, "boom"],
                capture_output=True,
                text=True,
                env=os.environ | {"SPRING_RAG_DEBUG": debug},
            )
            assert done.returncode == 1
            last = done.stderr.splitlines()[-1]
            assert last.startswith("error: unexpected KeyError")
            assert "SPRING_RAG_DEBUG=1" in last
            assert ("Traceback" in done.stderr) == bool(debug)

    def test_interruption_is_130_and_quiet(self):
        code = (
            "import signal, time, spring_rag.cli as cli\n"
            # A shell starts what runs in the background with the signal ignored, and children inherit that.
            "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
            "@cli.app.command()\n"
            "def wait() -> None: print('ready', flush=True); time.sleep(60)\n"
            "cli.main()"
        )
        process = subprocess.Popen(
            [sys.executable, "-c", code, "wait"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=30)
        assert process.returncode == 130
        assert errors == b""

    @pytest.mark.skipif(os.name == "nt", reason="needs a POSIX shell")
    def test_closed_streams_are_no_reason_to_fail(self):
        command = shlex.join([*MODULE, "--version"])
        done = subprocess.run(f"{command} >&-", shell=True, capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, "")
        command = shlex.join([*MODULE, "ask", "Why?", "--db", "/nowhere/db"])
        done = subprocess.run(f"{command} 2>&-", shell=True, capture_output=True, text=True)
        assert (done.returncode, done.stdout) == (1, "")

    @pytest.mark.skipif(os.name == "nt", reason="needs a POSIX pipe")
    @pytest.mark.parametrize("lines", [1, 100_000])
    def test_a_reader_that_leaves_hears_nothing(self, lines):
        code = (
            "import time, spring_rag.cli as cli\n"
            "@cli.app.command()\n"
            f"def talk() -> None: time.sleep(.5); [print('line', i) for i in range({lines})]\n"
            "cli.main()"
        )
        process = subprocess.Popen(
            [sys.executable, "-c", code, "talk"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        errors = process.stderr.read()
        assert process.wait(timeout=30) == 1
        assert errors == b""

    def test_a_missing_extra_is_named(self, tmp_path):
        code = (
            "import sys; sys.modules['chromadb'] = None\n"  # what Python keeps for a package that isn't there
            "from spring_rag.cli import main; main()"
        )
        done = subprocess.run(
            [sys.executable, "-c", code, "index", ".", "--db", str(tmp_path / "db")],
            capture_output=True,
            text=True,
        )
        assert done.returncode == 1
        assert done.stderr == (
            "error: this needs the package 'chromadb', which isn't installed: pip install 'spring-rag[chroma]'\n"
        )

    def test_a_missing_module_of_our_own_is_not_called_an_extra(self):
        with pytest.raises(ModuleNotFoundError) as caught, extra("chroma"):
            import spring_rag.no_such_module  # noqa: F401
        assert not isinstance(caught.value, MissingExtraError)


class TestIndex:
    def test_twice_changes_nothing(self, tmp_path):
        (tmp_path / "a.txt").write_text("A fox.", "utf-8")
        first = run("index", tmp_path / "a.txt", "--db", tmp_path / "db", "--json")
        second = run_here("index", tmp_path / "a.txt", "--db", tmp_path / "db", "--json")
        report = {"collection": "documents", "files": 1, "added": 1, "unchanged": 0, "removed": 0, "total": 1}
        report |= {"gone": 0, "bad": {}, "skipped": {}}
        assert json.loads(first.stdout) == report
        assert json.loads(second.stdout) == report | {"added": 0, "unchanged": 1}
        in_words = run_here("index", tmp_path / "a.txt", "--db", tmp_path / "db").stdout
        assert in_words == (
            "1 file: 0 chunks added, 1 unchanged, 0 removed; the collection 'documents' holds 1\n"
        )

    def test_unreadable_files(self, tmp_path):
        (tmp_path / "bad.txt").write_bytes(b"\xff\xfe")
        line = fails("index", tmp_path / "bad.txt", "--db", tmp_path / "db")
        assert "bad.txt isn't UTF-8 text" in line
        assert "doesn't exist" in fails("index", tmp_path / "no.txt", "--db", tmp_path / "db")
        assert not (tmp_path / "db").exists()

    def test_an_unknown_embedding_function(self, tmp_path):
        (tmp_path / "a.txt").write_text("A fox.", "utf-8")
        line = fails("index", tmp_path / "a.txt", "--db", tmp_path / "db", "--embedding", "nope")
        assert "no embedding function 'nope'" in line


class TestAsk:
    def test_json_is_one_object_and_nothing_else(self, saved, indexed):
        question = "Who built the bridge of Morven?"
        arguments = [
            "ask",
            question,
            "--db",
            indexed / "db",
            "--tokens",
            saved / "tokens",
            "--max-new-tokens",
            8,
        ]
        done = run(*arguments, "--json", "-k", 3)
        assert done.returncode == 0, done.stderr
        answer = json.loads(done.stdout)
        assert done.stdout.count("\n") == 1
        assert answer["question"] == question
        assert answer["num_tokens"] == answer["usage"]["virtual"] == 3
        assert [set(passage) for passage in answer["passages"]] == [{"text", "source", "score", "chunk"}] * 2
        assert answer["passages"][0]["source"].endswith("bridge.txt")

    def test_the_same_answer_as_the_plain_api_also_streamed(self, saved, indexed):
        from spring_rag import SpringModel

        question = "Who built the bridge of Morven?"
        arguments = [
            "ask",
            question,
            "--db",
            indexed / "db",
            "--tokens",
            saved / "tokens",
            "--max-new-tokens",
            8,
        ]
        answer = json.loads(run_here(*arguments, "--json").stdout)
        model = SpringModel.from_pretrained(saved / "backbone", tokens=saved / "tokens", device="cpu")
        passages = [passage["text"] for passage in answer["passages"]]
        assert answer["answer"] == model.answer(question, passages, max_new_tokens=8)
        # A random backbone writes control characters, too, which a terminal must not get.
        shown = clean(answer["answer"])
        assert run_here(*arguments).stdout == shown + "\n"
        streamed = run(*arguments, "--stream", "--show-passages").stdout
        assert streamed.startswith(shown + "\n\n[1] ")
        assert "    The bridge of Morven was built by Ada Quill in 1811.\n" in streamed

    def test_a_model_without_tokens_says_so(self, saved, indexed):
        done = run_here(
            "ask",
            "Why?",
            "--db",
            indexed / "db",
            "--model",
            saved / "backbone",
            "--max-new-tokens",
            2,
            "--json",
        )
        assert json.loads(done.stdout)["num_tokens"] == 0
        assert "the plain backbone answers" in done.stderr

    def test_tokens_without_record(self, saved, indexed):
        question = [
            "ask",
            "Why?",
            "--db",
            indexed / "db",
            "--tokens",
            saved / "bare.pt",
            "--max-new-tokens",
            2,
        ]
        assert "name it with --model" in fails(*question)
        done = run(*question, "--model", saved / "backbone", "--json")
        assert json.loads(done.stdout)["num_tokens"] == 5
        assert done.stderr.startswith("warning: these virtual tokens don't record their backbone")
        assert done.stderr.count("\n") == 1

    def test_more_tokens_than_there_are(self, saved, indexed):
        arguments = ["ask", "Why?", "--db", indexed / "db", "--tokens", saved / "tokens", "-k", 6]
        assert "num_tokens is 6" in fails(*arguments)

    def test_where(self, saved, indexed):
        source = str(indexed / "documents" / "ship.md")
        base = ["ask", "bridge", "--db", indexed / "db", "--tokens", saved / "tokens", "--max-new-tokens", 2]
        done = run_here(*base, "--json", "--where", json.dumps({"source": source}))
        assert [passage["source"] for passage in json.loads(done.stdout)["passages"]] == [source]
        assert "no passage" in fails(*base, "--where", '{"source": "elsewhere"}', run=run)
        assert "$like" in fails(*base, "--where", '{"source": {"$like": "a"}}')

    def test_what_is_not_there(self, saved, indexed, tmp_path):
        tokens = ["--tokens", saved / "tokens"]
        assert "doesn't exist; make one with" in fails("ask", "Why?", "--db", tmp_path / "none", *tokens)
        assert "no collection 'other'; the database has 'documents'" in fails(
            "ask", "Why?", "--db", indexed / "db", "--collection", "other", *tokens
        )
        assert "127.0.0.1:9 failed" in fails("ask", "Why?", "--host", "127.0.0.1", "--port", 9, *tokens)
        assert "no-tokens" in fails("ask", "Why?", "--db", indexed / "db", "--tokens", tmp_path / "no-tokens")

    def test_on_a_server(self, saved, indexed, tmp_path):
        with chroma_server(tmp_path / "data") as (_, port):
            server = ["--host", "127.0.0.1", "--port", port]
            assert (
                json.loads(run_here("index", indexed / "documents", *server, "--json").stdout)["added"] == 2
            )
            arguments = [
                "Who built the bridge?",
                "--tokens",
                saved / "tokens",
                "--max-new-tokens",
                4,
                "--json",
            ]
            on_server = run_here("ask", *server, *arguments)
            assert on_server.returncode == 0, on_server.stderr
            embedded = run_here("ask", "--db", indexed / "db", *arguments)
            assert json.loads(on_server.stdout)["answer"] == json.loads(embedded.stdout)["answer"]


class TestTokens:
    def test_show(self, saved):
        done = run("tokens", "show", saved / "tokens", "--json")
        facts = json.loads(done.stdout)
        tokens = VirtualTokens.from_pretrained(saved / "tokens")
        assert facts["num_tokens"] == 5
        assert facts["hidden_size"] == 32
        assert facts["backbone"] == str(saved / "backbone")
        assert facts["digest"] == tokens.digest
        assert facts["training"] == {"steps": 7}
        assert facts["template"]["passage"] == "[{number}] {passage}\n"
        in_words = run_here("tokens", "show", saved / "bare.pt").stdout
        assert "num_tokens: 5\n" in in_words
        assert "backbone: not recorded\n" in in_words

    def test_export(self, saved, tmp_path):
        done = run_here("tokens", "export", saved / "tokens", tmp_path / "out.pt")
        assert done.returncode == 0, done.stderr
        exported = VirtualTokens.from_pretrained(tmp_path / "out.pt")
        assert exported.digest == VirtualTokens.from_pretrained(saved / "tokens").digest

    def test_unreadable(self, tmp_path):
        (tmp_path / "bad.pt").write_bytes(b"no tensor")
        assert "bad.pt" in fails("tokens", "show", tmp_path / "bad.pt", run=run)
