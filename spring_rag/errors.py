"""Every error that spring-rag raises on purpose.

All derive from `SpringError`, so one `except` clause catches them; each also derives from the built-in
that fits, so code that knows nothing of this package still behaves.
"""


class SpringError(Exception):
    """Base of all errors of this package. Its text is meant to be shown to a user as it is."""


class TokensError(SpringError, ValueError):
    """Virtual tokens that can't be read, or whose values or shape are not usable."""


class BackboneMismatchError(TokensError):
    """Virtual tokens that were trained on another backbone than the one they are attached to."""


class UnsupportedBackboneError(SpringError, ValueError):
    """A model whose input embeddings can't be spliced."""


class PromptError(SpringError, ValueError):
    """An invalid prompt: two slots, an empty message list, a control string where none may stand."""


class PromptTooLongError(PromptError):
    """A prompt that doesn't fit the backbone's context window."""


class ToolsError(PromptError, NotImplementedError):
    """Tools for a backbone whose chat template has none."""


class DataError(SpringError, ValueError):
    """Training or evaluation data that doesn't have the expected form."""


class TrainingError(SpringError, ValueError):
    """A recipe or a call that training can't follow."""


class BackendError(SpringError, RuntimeError):
    """A backend that can't answer: a server that refuses, a model that can't be loaded."""


class MissingExtraError(SpringError, ImportError):
    """An optional dependency that isn't installed; the text names the extra that brings it."""


def counted(number: int, what: str) -> str:
    """Count in words, as messages do: `1 file`, `2 files`."""
    return f"{number} {what}{'' if number == 1 else 's'}"
