"""Test the imports between rooms: they form no circle, and none goes up."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "spring_rag"
NAMES = {
    path: ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__")
    for path in PACKAGE.rglob("*.py")
}
FRAMEWORKS = {
    "chroma_spring_rag",
    "chromadb",
    "gradio",
    "langchain_core",
    "langchain_spring_rag",
    "llama_index",
}


def imports(body: list[ast.stmt]) -> set[str]:
    """Return the package's modules that are imported while a module is loaded: not within functions, nor for types alone."""
    found: set[str] = set()
    for statement in body:
        if isinstance(statement, ast.ImportFrom) and statement.module:
            names = {f"{statement.module}.{alias.name}" for alias in statement.names}
            found |= {name if name in NAMES.values() else statement.module for name in names}
        elif isinstance(statement, ast.If) and "TYPE_CHECKING" not in ast.dump(statement.test):
            found |= imports(statement.body + statement.orelse)
        elif isinstance(statement, ast.With | ast.Try):
            found |= imports(statement.body)
    return {name for name in found if name in NAMES.values()}


LOADED = {name: imports(ast.parse(path.read_text("utf-8")).body) - {name} for path, name in NAMES.items()}


def test_no_circle() -> None:
    assert set(TopologicalSorter(LOADED).static_order()) == set(NAMES.values())


@pytest.mark.parametrize(
    ("room", "above"),
    [
        (
            "persistence",
            ["tokens", "splice", "model", "backends", "data", "training", "evaluation", "demo", "cli"],
        ),
        ("data", ["splice", "model", "backends", "training", "evaluation", "demo", "cli"]),
        ("prompt", ["encoding", "tokens", "splice", "backends", "skills", "model"]),
        ("encoding", ["splice", "backends", "skills", "model"]),
        ("tokens", ["splice", "backends", "skills", "model"]),
        (
            "splice",
            ["backends", "skills", "asking", "model", "training", "evaluation", "bridge", "demo", "cli"],
        ),
        (
            "backends",
            ["skills", "asking", "model", "data", "training", "evaluation", "bridge", "demo", "cli"],
        ),
        ("skills", ["asking", "model", "training", "evaluation", "bridge", "demo", "cli", "playground"]),
        ("asking", ["model", "training", "evaluation", "bridge", "demo", "cli", "playground"]),
        ("model", ["training", "evaluation", "bridge", "demo", "cli", "playground"]),
        ("bridge", ["training", "evaluation", "demo", "cli", "playground"]),
        ("training", ["bridge", "demo", "cli", "playground"]),
        ("evaluation", ["training", "bridge", "demo", "cli", "playground"]),
    ],
)
def test_no_import_goes_up(room: str, above: list[str]) -> None:
    for name, loaded in LOADED.items():
        if name.split(".")[1:2] == [room]:
            assert not {each for each in loaded if each.split(".")[1:2] and each.split(".")[1] in above}, name


def packages(path: Path) -> set[str]:
    """Return the packages that a module imports, also within functions and for types."""
    nodes = list(ast.walk(ast.parse(path.read_text("utf-8"))))
    names = [node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module]
    names += [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    return {name.split(".")[0] for name in names}


def test_only_the_command_the_demo_and_the_page_import_a_framework() -> None:
    rooms = {name.split(".")[1] for path, name in NAMES.items() if packages(path) & FRAMEWORKS}
    assert rooms == {"cli", "demo", "playground"}
