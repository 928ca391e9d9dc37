"""Test the documentation: every snippet runs, every link leads somewhere, and every explained message is one of ours."""

import ast
import json
import re
import runpy
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import llama_index.core
import pytest
import toy_parts
from chromadb.api.shared_system_client import SharedSystemClient
from docs_parts import (
    APPS,
    PAGES,
    ROOT,
    after,
    commands,
    furnish,
    run_command,
    run_python,
    snippets,
    with_stand_ins,
)
from fake_vllm import fake_vllm
from llama_index.core import Settings
from typer.testing import CliRunner

from spring_rag.cli import app
from spring_rag.data.examples import load_lines
from spring_rag.demo import paths

SCRIPTS = ROOT / "docs" / "scripts"
LLAMA_CPP = "llama-cpp.md"
"""The page whose snippets need llama-cpp-python."""
LANGUAGES = {"python", "sh", "diff", "json", "text"}


@pytest.fixture
def at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with what snippets read, and the toy as default backbone. What is kept for all of a process stays as it was."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("spring_rag.demo.default.default_backbone", lambda: str(toy_parts.BACKBONE))
    monkeypatch.setattr(paths, "TOKENS", toy_parts.TOKENS)
    monkeypatch.setattr(paths, "SKILLS", toy_parts.SKILLS)
    monkeypatch.setattr(llama_index.core, "global_tokenizer", llama_index.core.global_tokenizer)
    for name in ("_llm", "_embed_model", "_tokenizer", "_callback_manager", "_node_parser"):
        monkeypatch.setattr(Settings, name, getattr(Settings, name))
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    # Chroma keeps its databases open by the path that they were opened with.
    SharedSystemClient.clear_system_cache()
    furnish(tmp_path)
    yield tmp_path
    SharedSystemClient.clear_system_cache()


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "page", [page for page in PAGES if snippets(page) and page.name != LLAMA_CPP], ids=lambda page: page.stem
)
def test_snippets_run(page: Path, at_home: Path) -> None:
    run_page(page)


@pytest.mark.llama_cpp
def test_snippets_on_llama_cpp_run(at_home: Path) -> None:
    toy_parts.write_as_gguf(at_home / "model.gguf")
    run_page(ROOT / "docs" / LLAMA_CPP)


def run_page(page: Path) -> None:
    namespace: dict[str, Any] = {"__name__": "__main__"}
    run_python(APPS.get(page.name, ""), page.name, namespace)
    with fake_vllm() as server:
        for snippet in snippets(page):
            where = f"{page.name}, line {snippet.line}"
            assert snippet.language in LANGUAGES, where
            text = with_stand_ins(snippet.text, {"http://localhost:8000/v1": server.url})
            if snippet.language == "sh":
                for words in commands(text):
                    run_command(words)
            elif snippet.language == "python":
                run_python(text, where, namespace)
            elif snippet.language == "diff":
                run_python(after(text), where, namespace)
            elif snippet.language == "json":
                assert not load_lines(text.splitlines()).bad, where


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_into_the_repository_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)", page.read_text(encoding="utf-8")):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), target


def test_the_architecture_names_files_that_exist() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    for name in re.findall(r"`((?:spring_rag|integrations|tests)/[^`]*)`", page):
        assert (ROOT / name).exists(), name


def test_every_explained_message_is_one_of_ours() -> None:
    texts = _texts()
    page = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    explained = re.findall(r"^### `(.+)`$", page, re.MULTILINE)
    assert len(explained) > 30
    for message in explained:
        pieces = [piece.strip() for piece in message.split("…")]
        assert any(_stand_in_order(pieces, text) for text in texts), message


def _stand_in_order(pieces: list[str], text: str) -> bool:
    end = 0
    for piece in pieces:
        begin = text.find(piece, end)
        if begin < 0:
            return False
        end = begin + len(piece)
    return True


def _texts() -> list[str]:
    """Every text of the package and its integrations; where an f-string has a value, nothing."""
    texts = []
    for folder in ("spring_rag", "integrations"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.JoinedStr):
                    texts.append("".join(_piece(each) for each in node.values))
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    texts.append(node.value)
    return texts


def _piece(part: ast.expr) -> str:
    return str(part.value) if isinstance(part, ast.Constant) else ""


def test_a_stale_page_is_noticed(tmp_path: Path) -> None:
    script = tmp_path / "docs" / "scripts" / "commands.py"
    script.parent.mkdir(parents=True)
    script.write_bytes((SCRIPTS / "commands.py").read_bytes())
    (tmp_path / "docs" / "commands.md").write_text("# Commands\n")
    done = subprocess.run([sys.executable, script, "--check"], capture_output=True, text=True)
    assert done.returncode == 1
    assert "make docs-update" in done.stderr


def test_the_readmes_figures_are_those_of_the_committed_result() -> None:
    found = json.loads((ROOT / "benchmarks" / "results" / "demo.json").read_text(encoding="utf-8"))["results"]
    rows = {str(row["k"]): row for row in found["results"]} | {
        "0, with worked examples in words": found["instructed"]
    }
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for label, row in rows.items():
        shares = [f"{row[score]:.1%}".replace("%", " %") for score in ("exact_match", "f1")]
        assert f"| {label} | {' | '.join(shares)} | {row['answer_tokens']:.1f} |" in readme


@pytest.mark.parametrize("program", sorted((ROOT / "examples").glob("*.py")), ids=lambda path: path.stem)
def test_examples_run(
    program: Path, at_home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", [str(program)])
    runpy.run_path(str(program), run_name="__main__")
    assert capsys.readouterr().out.strip()


@pytest.mark.default_backbone
def test_the_readmes_answer_is_that_of_the_default_backbone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = [snippet.text for snippet in snippets(ROOT / "README.md")]
    shown = next(number for number, text in enumerate(blocks) if "chunks added" in text)
    index, ask, _ = commands(blocks[shown - 1].replace("spring_rag/demo/documents", str(paths.DOCUMENTS)))
    said = [CliRunner().invoke(app, words[1:], catch_exceptions=False).stdout for words in (index, ask)]
    assert blocks[shown].startswith("".join(said))
