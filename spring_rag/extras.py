"""Import optional dependencies, with one clear message if one isn't installed."""

from collections.abc import Iterator
from contextlib import contextmanager

from spring_rag.errors import MissingExtraError

_OWN_PACKAGES = {"spring_rag", "chroma_spring_rag", "langchain_spring_rag"}


@contextmanager
def extra(name: str) -> Iterator[None]:
    """Turn a failed import inside the block into an error that names the extra to install.

    Args:
        name: the distribution's extra, as in `pip install 'spring-rag[name]'`.

    Raises:
        MissingExtraError: an import in the block found no such package.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        # If a module of our own is missing, that is a bug or a broken installation, which no extra mends.
        if not missing or missing in _OWN_PACKAGES:
            raise
        msg = f"this needs the package {missing!r}, which isn't installed: pip install 'spring-rag[{name}]'"
        raise MissingExtraError(msg) from error
