"""An answer that is being written. Imports neither torch nor transformers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from spring_rag.errors import BackendError

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

    from spring_rag.backends.base import Generation


class Thought(str):
    """A piece of a backbone's thoughts, which come before its answer."""

    __slots__ = ()


class Stream:
    """An answer in pieces of text: iterate over it, then ask it for the whole answer.

    Iteration leaves out thoughts; `with_thoughts` yields them too.

    The backbone stops when the stream is closed or dropped.

    Args:
        items: pieces of text, none of them empty, and the whole answer as the last item.

    Example:
        >>> stream = model.stream(prompt)  # doctest: +SKIP
        >>> for piece in stream:  # doctest: +SKIP
        ...     print(piece, end="", flush=True)
        >>> stream.generation.usage.generated  # doctest: +SKIP
        12
    """

    def __init__(self, items: Generator[str | Generation, None, None]) -> None:
        self._items = items
        self._generation: Generation | None = None

    def __iter__(self) -> Stream:
        return self

    def __next__(self) -> str:
        while isinstance(piece := self._next(), Thought):
            pass
        return piece

    def with_thoughts(self) -> Iterator[str]:
        """Yield all pieces in order, those of thoughts as `Thought`."""
        while True:
            try:
                piece = self._next()
            except StopIteration:
                return
            yield piece

    def _next(self) -> str:
        item = next(self._items)
        if isinstance(item, str):
            return item
        self._generation = item
        self._items.close()
        raise StopIteration

    @property
    def generation(self) -> Generation:
        """The whole answer; what is left of the stream is read first.

        Raises:
            BackendError: the stream was closed, or failed, before the answer was whole.
        """
        for _ in self:
            pass
        if self._generation is None:
            msg = "the stream ended before the answer was whole; read it to its end before closing it"
            raise BackendError(msg)
        return self._generation

    def close(self) -> None:
        """Stop the backbone if the answer isn't whole yet."""
        self._items.close()

    def stripped(self) -> Stream:
        """Return a stream of this answer without white space at its ends. White space is held back until more text follows.

        The new stream's `generation` is not stripped.
        """
        return Stream(self._stripped())

    def _stripped(self) -> Generator[str | Generation, None, None]:
        held: str | None = None
        try:
            for piece in self.with_thoughts():
                if isinstance(piece, Thought):
                    yield piece
                    continue
                text = piece.lstrip() if held is None else held + piece
                body = text.rstrip()
                if body:
                    held = text[len(body) :]
                    yield body
                elif held is not None:
                    held = text
            yield self.generation
        finally:
            self.close()
