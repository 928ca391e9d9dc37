"""Optional dependencies: one clear message where one isn't installed."""

from collections.abc import Iterator
from contextlib import contextmanager

from spring_rag.errors import MissingExtraError

_OWN_PACKAGES = {"spring_rag", "chroma_spring_rag", "langchain_spring_rag"}


@contextmanager
def extra(name: str) -> Iterator[None]:
    """Import an optional dependency inside this block; where it is missing, the error says which extra brings it.

    Args:
        name: the extra of the distribution, as in `pip install 'spring-rag[name]'`.

    Raises:
        MissingExtraError: an import in the block found no such package.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        # A module of our own that can't be found is a bug or a broken installation, which no extra mends.
        if not missing or missing in _OWN_PACKAGES:
            raise
        msg = f"this needs the package {missing!r}, which isn't installed: pip install 'spring-rag[{name}]'"
        raise MissingExtraError(msg) from error
