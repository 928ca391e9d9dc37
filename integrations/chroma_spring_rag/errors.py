"""Errors of Chroma collections and of files to index."""

from collections.abc import Iterator
from contextlib import contextmanager

import httpx
from chromadb.errors import ChromaError, InvalidArgumentError, InvalidDimensionException

from spring_rag.errors import SpringError

DATABASE_FILE = "chroma.sqlite3"
"""File that marks a folder as a Chroma database."""


class CollectionError(SpringError, ValueError):
    """A Chroma database or collection that can't be opened, written or searched."""


class DocumentError(SpringError, ValueError):
    """Files that can't be indexed."""


@contextmanager
def chroma_errors(doing: str) -> Iterator[None]:
    """Turn any error of Chroma in this block into one `CollectionError`.

    Chroma reports bad arguments as plain ValueError or TypeError, and a lost server as an error of httpx. So the block
    should hold nothing but the call.

    Args:
        doing: the call's purpose, such as "searching the collection 'documents'".
    """
    try:
        yield
    except CollectionError:
        raise
    except (InvalidDimensionException, InvalidArgumentError) as error:
        if "dimension" not in str(error):
            raise _failed(doing, error) from error
        msg = (
            f"{doing} failed: {error}. The embedding function isn't the one that the collection was made with; "
            "name the right one (--embedding)"
        )
        raise CollectionError(msg) from error
    except httpx.TransportError as error:
        msg = f"{doing} failed: the Chroma server doesn't answer ({error}); is it running?"
        raise CollectionError(msg) from error
    except (
        ChromaError,
        httpx.HTTPError,
        httpx.InvalidURL,
        ValueError,
        TypeError,
        LookupError,
        AttributeError,
    ) as error:
        raise _failed(doing, error) from error
    except BaseException as error:
        # A panic in Chroma's Rust, for example over a damaged database, is no Exception.
        if type(error).__name__ != "PanicException":
            raise
        raise _failed(doing, error) from error


def _failed(doing: str, error: BaseException) -> CollectionError:
    return CollectionError(f"{doing} failed: {error}")
