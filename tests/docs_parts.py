"""Find the documentation's snippets, and run them in a small app around the tests' toy."""

from __future__ import annotations

import ast
import asyncio
import inspect
import json
import re
import shlex
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markdown_it import MarkdownIt
from skill_parts import skill_tokens
from toy_parts import ANSWERABLE, BACKBONE, QUESTIONS, TEXTS, TOKENS, text_of
from typer.testing import CliRunner

from chroma_spring_rag import connect_folder, index_files, open_or_create_collection
from spring_rag.cli import app
from spring_rag.data.examples import RagExample, write_examples
from spring_rag.tokens import VirtualTokens

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]

STAND_INS = {
    "mistralai/Mistral-7B-Instruct-v0.1": BACKBONE.as_posix(),
    "mistral-7b-instruct": "toy-tokens",
    "my-tokens": "toy-tokens",
    "path/or/hub-id": BACKBONE.as_posix(),
    "path/to/tokens": "toy-tokens",
    "some-model.Q4_K_M.gguf": BACKBONE.as_posix(),
    "spring_rag/demo/documents": "docs",
}
"""What documentation names, and what the tests have in its place; `furnish` makes it."""

PARSED_ONLY = {
    "demo": "asks the default backbone for minutes; tests/test_demo.py runs it",
    "playground": "serves a page until it is stopped; tests/test_playground.py opens it",
    "data make": "the toy can't write questions; tests/test_data.py has a backbone that can",
}
"""Commands whose options are read here, but which don't run."""

APPS = {
    "langchain.md": """
from langchain_chroma import Chroma
from langchain_core.prompts import PromptTemplate
from langchain_core.runnables import RunnablePassthrough
from langchain_parts import WordEmbeddings
from toy_parts import TEXTS

retriever = Chroma.from_texts(TEXTS[:8], WordEmbeddings(), collection_name="docs-langchain").as_retriever()
join = lambda documents: "\\n\\n".join(document.page_content for document in documents)
prompt = PromptTemplate.from_template("{context}\\n\\nQuestion: {question}\\nAnswer:")
""",
    "llama_index.md": """
from llama_index.core import Document, Settings, VectorStoreIndex
from llama_index_parts import OfflineEmbedding
from toy_parts import TEXTS

Settings.embed_model = OfflineEmbedding()
index = VectorStoreIndex.from_documents([Document(text=text) for text in TEXTS[:8]])
""",
    "chroma.md": """
import chromadb
from langchain_chroma import Chroma
from langchain_parts import WordEmbeddings
from llama_index.core import Document, VectorStoreIndex
from llama_index_parts import OfflineEmbedding
from toy_parts import TEXTS

embeddings = WordEmbeddings()
app_client = chromadb.PersistentClient("app")
vector_store = Chroma.from_texts(TEXTS[:8], embeddings, collection_name="langchain", client=app_client)
index = VectorStoreIndex.from_documents([Document(text=text) for text in TEXTS[:8]], embed_model=OfflineEmbedding())
""",
    "serving.md": """
from langchain_core.prompts import PromptTemplate

prompt = PromptTemplate.from_template("{context}\\n\\nQuestion: {question}\\nAnswer:")
""",
}
"""What an app has already before a page changes it. The README changes those of LangChain and LlamaIndex."""
APPS["README.md"] = f"""{APPS["langchain.md"]}{APPS["llama_index.md"]}
import chromadb

collection = chromadb.PersistentClient("index").get_collection("documents")
question = "Who built the bridge?"
"""


@dataclass(frozen=True, slots=True)
class Snippet:
    """A fenced block: its language, its text, and the line of the page that it begins at."""

    language: str
    text: str
    line: int


def snippets(page: Path) -> list[Snippet]:
    """The fenced blocks of a page in their order."""
    tokens = MarkdownIt().parse(page.read_text(encoding="utf-8"))
    return [
        Snippet(token.info.strip(), token.content, token.map[0] + 1)
        for token in tokens
        if token.type == "fence" and token.map
    ]


def with_stand_ins(text: str, more: dict[str, str]) -> str:
    """The text with what the tests have in place of what documentation names."""
    names = STAND_INS | more
    pattern = "|".join(map(re.escape, sorted(names, key=len, reverse=True)))
    return re.sub(pattern, lambda match: names[match[0]], text)


def furnish(folder: Path) -> None:
    """Put in place what commands and programs read: documents, a collection of them, questions with passages, tokens."""
    documents = folder / "docs"
    documents.mkdir()
    for number, text in enumerate(TEXTS[:8]):
        (documents / f"{number}.txt").write_text(text, encoding="utf-8")
    collection = open_or_create_collection(connect_folder(folder / "index", create=True), "documents")
    index_files(collection, [documents])
    examples = [
        RagExample(each.question, (each.answer,), (text_of(each), TEXTS[number]))
        for number, each in enumerate(ANSWERABLE[:16])
    ]
    write_examples(folder / "train.jsonl", examples)
    write_examples(folder / "test.jsonl", examples[:8])
    for name in ("nq", "popqa"):
        (folder / name).mkdir()
        write_examples(folder / name / "test.jsonl", examples[:4])
    lines = [
        json.dumps({"question": each.question, "golden_answers": [each.answer]}) for each in QUESTIONS[:8]
    ]
    (folder / "qa.jsonl").write_text("\n".join(lines), encoding="utf-8")
    for name in ("toy-tokens", "tokens", "others"):
        VirtualTokens.from_pretrained(TOKENS).save_pretrained(folder / name)
    for task in ("answerable", "cite", "check"):
        skill_tokens(task, VirtualTokens.from_pretrained(TOKENS)).save_pretrained(folder / f"{task}-tokens")
    # The toy's tokens record its folder as it is called from the repository's.
    config = folder / "toy-tokens" / "config.json"
    record = json.loads(config.read_text(encoding="utf-8"))
    record["backbone"]["model_id"] = BACKBONE.as_posix()
    config.write_text(json.dumps(record), encoding="utf-8")


def after(diff: str) -> str:
    """The program that a diff leaves behind."""
    return "\n".join(line[1:] for line in diff.splitlines() if not line.startswith("-"))


def run_python(text: str, name: str, namespace: dict[str, Any]) -> None:
    """Run a program, as a notebook does: it may wait at its top level."""
    code = compile(text, name, "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    if code.co_flags & inspect.CO_COROUTINE:
        asyncio.run(eval(code, namespace))
    else:
        exec(code, namespace)


def commands(text: str) -> Iterator[list[str]]:
    """The words of each command of a shell snippet."""
    for line in text.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        if words:
            yield words


def run_command(words: list[str]) -> None:
    """Run a `spring-rag` command, and hold any other against what the repository has."""
    program, *arguments = words
    if program == "spring-rag":
        _spring_rag(arguments)
    elif program in ("torchrun", "accelerate"):
        parse(arguments[arguments.index("spring_rag") + 1 :])
    else:
        _OTHERS[program](arguments)


def _spring_rag(arguments: list[str]) -> None:
    if any(" ".join(arguments).startswith(name) for name in PARSED_ONLY):
        parse(arguments)
        return
    if arguments[0] == "serve":
        arguments = [*arguments, "--print"]  # there is no vLLM in this environment
    if arguments[0] == "train" and "--dry-run" not in arguments:
        arguments = [*arguments, "--max-steps", "2"]
    done = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert done.exit_code == 0, f"spring-rag {shlex.join(arguments)}\n{done.output}"


def parse(arguments: list[str]) -> None:
    """Let the command line read its options without doing anything."""
    import typer

    command = typer.main.get_command(app)
    context = command.make_context("spring-rag", list(arguments))
    while hasattr(command, "commands"):
        name, command, rest = command.resolve_command(context, [*context._protected_args, *context.args])
        context = command.make_context(name, list(rest), parent=context)


def _make(arguments: list[str]) -> None:
    targets = re.findall(r"^([a-z-]+):.*##", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert set(arguments) <= set(targets), f"make {arguments}: the Makefile has {targets}"


def _pip(arguments: list[str]) -> None:
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert arguments[0] == "install"
    for each in arguments[1:]:
        found = re.fullmatch(r"(?:\.|spring-rag)\[(.*)\]", each)
        for extra in found[1].split(",") if found else ():
            assert extra in project["optional-dependencies"], each


def _file(arguments: list[str]) -> None:
    assert (ROOT / arguments[0]).is_file(), arguments


_OTHERS: dict[str, Callable[[list[str]], None]] = {
    "make": _make,
    "pip": _pip,
    "python": _file,
    ".ci/run": lambda arguments: _file([".ci/run", *arguments]),
    "pre-commit": lambda arguments: _file([".pre-commit-config.yaml", *arguments]),
}
