"""Trained virtual tokens between a RAG app's context and its question: the same frozen model answers better.

The names below load on first use, so that importing the package costs neither torch nor transformers.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from spring_rag.asking import RagAnswer
    from spring_rag.backends.base import Generation, GenerationSettings, Usage
    from spring_rag.errors import SpringError
    from spring_rag.model import SpringModel
    from spring_rag.prompt import Message, Prompt, RagPrompt, RagTemplate, Slot, Text
    from spring_rag.tokens import VirtualTokens

    __version__: str

_HOMES = {
    "Generation": "spring_rag.backends.base",
    "GenerationSettings": "spring_rag.backends.base",
    "Message": "spring_rag.prompt",
    "Prompt": "spring_rag.prompt",
    "RagAnswer": "spring_rag.asking",
    "RagPrompt": "spring_rag.prompt",
    "RagTemplate": "spring_rag.prompt",
    "Slot": "spring_rag.prompt",
    "SpringError": "spring_rag.errors",
    "SpringModel": "spring_rag.model",
    "Text": "spring_rag.prompt",
    "Usage": "spring_rag.backends.base",
    "VirtualTokens": "spring_rag.tokens",
}

__all__ = [
    "__version__",
    "Generation",
    "GenerationSettings",
    "Message",
    "Prompt",
    "RagAnswer",
    "RagPrompt",
    "RagTemplate",
    "Slot",
    "SpringError",
    "SpringModel",
    "Text",
    "Usage",
    "VirtualTokens",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":  # read from the distribution's metadata, which takes a moment
        return import_module("importlib.metadata").version("spring-rag")
    if name not in _HOMES:
        msg = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(msg)
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
