"""Every error that spring-rag raises on purpose.

All derive from `SpringError`, so that one `except` clause catches them. Each also derives from the built-in error
that fits, so that code without knowledge of this package can handle it.
"""


class SpringError(Exception):
    """Base of all errors of this package. Its text can be shown to a user unchanged."""


class TokensError(SpringError, ValueError):
    """Virtual tokens that can't be read, or whose values or shape can't be used."""


class BackboneMismatchError(TokensError):
    """Virtual tokens that were trained on another backbone than the one they are attached to."""


class UnsupportedBackboneError(SpringError, ValueError):
    """A model whose input embeddings can't be spliced."""


class PromptError(SpringError, ValueError):
    """A malformed prompt: two slots, no messages, a control string where none is allowed."""


class PromptTooLongError(PromptError):
    """A prompt that doesn't fit the backbone's context window."""


class ToolsError(PromptError, NotImplementedError):
    """Tools for a backbone whose chat template doesn't support them."""


class DataError(SpringError, ValueError):
    """Training or evaluation data that doesn't have the expected form."""


class TrainingError(SpringError, ValueError):
    """A recipe, or a call to train, that can't be carried out."""


class BackendError(SpringError, RuntimeError):
    """A backend that can't answer: a server that refuses, a model that can't be loaded."""


class MissingExtraError(SpringError, ImportError):
    """An optional dependency that isn't installed; the text names the extra that brings it."""


def counted(number: int, what: str) -> str:
    """Return a number with its noun, as messages count: `1 file`, `2 files`."""
    return f"{number} {what}{'' if number == 1 else 's'}"
