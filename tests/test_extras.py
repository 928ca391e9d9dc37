"""Test that each integration is optional: without its framework, importing it says what to install."""

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

WITHOUT = """
import sys

class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name == {package!r} or name.startswith({package!r} + "."):
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Hidden())
import spring_rag
try:
    import {module}
except spring_rag.errors.MissingExtraError as error:
    print(error)
"""


@pytest.mark.parametrize(
    ("module", "package", "extra"),
    [
        ("langchain_spring_rag", "langchain_core", "langchain"),
        ("llama_index.llms.spring_rag", "llama_index.core", "llama-index"),
        ("chroma_spring_rag", "chromadb", "chroma"),
    ],
)
def test_without_its_framework_an_integration_names_its_extra(module, package, extra):
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT.format(module=module, package=package)],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    top = package.partition(".")[0]
    assert (
        done.stdout
        == f"this needs the package {top!r}, which isn't installed: pip install 'spring-rag[{extra}]'\n"
    )


def test_an_extra_brings_all_that_it_needs():
    """transformers loads with bitsandbytes, and unpacks a GGUF, through accelerate."""
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text("utf-8"))["project"]
    for name in ("quantize", "gguf", "train"):
        packages = project["optional-dependencies"][name]
        assert any(package.startswith("accelerate>=") for package in packages), name
