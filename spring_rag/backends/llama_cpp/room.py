"""Which sequence has which part of llama.cpp's cache, and what is put aside. Imports neither torch nor llama.cpp."""

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any, Protocol

from spring_rag.errors import BackendError

SIDE_BY_SIDE = 16
"""Most answers that are written at once."""

KEPT_CONTEXTS = 16
"""Most contexts that are kept; no less than `SIDE_BY_SIDE`, so that an answer in progress never waits for another's context."""

SEQUENCES = 2 * SIDE_BY_SIDE
"""One for each answer, and one for its context."""


class Cache(Protocol):
    """What the room asks of llama.cpp's cache."""

    def remove(self, sequence: int) -> None:
        """Empty a sequence."""

    def save(self, sequence: int) -> Any:
        """All that a sequence holds."""

    def restore(self, sequence: int, saved: Any) -> None:
        """Fill an empty sequence with what was saved of another."""


@dataclass(eq=False, slots=True)
class Context:
    """A context that is kept, or about to be.

    Attributes:
        ids: its tokens.
        sequence: number of the sequence that holds it; None where it is put aside.
        users: answers in progress that go on from it.
        computed: whether all of it is there.
        saved: what was put aside; it stays when the context is taken back, to be put aside again for nothing.
    """

    ids: tuple[int, ...]
    sequence: int | None = None
    users: int = 0
    computed: bool = False
    saved: Any = None


@dataclass(frozen=True, slots=True)
class Place:
    """Where an answer is written.

    Attributes:
        sequence: its number.
        own: cells that it may fill, beside those of its context.
        context: that it goes on from; None where it begins with nothing.
    """

    sequence: int
    own: int
    context: Context | None


class Room:
    """Gives out places, and keeps contexts until there are too many: the least recently used goes first.

    While an answer is written, the cache holds what it goes on from and nothing else: for each token llama.cpp walks over all
    cells up to the last one in use, whoever they belong to. Other contexts are put aside, outside of the cache.

    Args:
        cells: tokens that the cache holds; and most tokens of all contexts that are kept.
        cache: that they are in.
    """

    def __init__(self, cells: int, cache: Cache) -> None:
        self._cells = cells
        self._cache = cache
        self._sequences = list(range(SIDE_BY_SIDE))
        self._for_contexts = list(range(SIDE_BY_SIDE, SEQUENCES))
        self._contexts: OrderedDict[tuple[int, ...], Context] = OrderedDict()
        self._own = 0

    @property
    def contexts(self) -> tuple[tuple[int, ...], ...]:
        """Those that are kept, the least recently used first."""
        return tuple(self._contexts)

    def take(self, ids: tuple[int, ...], own: int) -> Place | None:
        """A place for an answer; None while others have to end first.

        Args:
            ids: of its context; may be empty.
            own: most tokens that follow the context.
        """
        in_use = {one.ids for one in self._contexts.values() if one.users}
        needed = self._own + own + sum(map(len, in_use | {ids}))
        if not self._sequences or needed > self._cells:
            return None
        for one in self._contexts.values():
            if one.sequence is not None and not one.users and one.ids != ids:
                self._put_aside(one)
        context = self._use(ids) if ids else None
        self._own += own
        return Place(self._sequences.pop(), own, context)

    def leave(self, place: Place) -> None:
        """Give a place back. Its context stays, unless it was never computed to its end."""
        self._cache.remove(place.sequence)
        self._sequences.append(place.sequence)
        self._own -= place.own
        context = place.context
        if context is not None:
            context.users -= 1
            if not context.users and not context.computed:
                self._drop(context)

    def _use(self, ids: tuple[int, ...]) -> Context:
        """A context in the cache, computed if it was kept."""
        context = self._contexts.setdefault(ids, Context(ids))
        if context.sequence is None:
            context.sequence = self._for_contexts.pop()
            if context.saved is not None:
                try:
                    self._cache.restore(context.sequence, context.saved)
                except BackendError:
                    self._drop(context)
                    raise
        self._contexts.move_to_end(ids)
        context.users += 1
        idle = [one for one in self._contexts.values() if not one.users]
        while len(self._contexts) > KEPT_CONTEXTS or sum(map(len, self._contexts)) > self._cells:
            self._drop(idle.pop(0))
        return context

    def _put_aside(self, context: Context) -> None:
        assert context.sequence is not None
        if context.saved is None:
            context.saved = self._cache.save(context.sequence)
        self._release(context.sequence)
        context.sequence = None

    def _drop(self, context: Context) -> None:
        if context.sequence is not None:
            self._release(context.sequence)
        del self._contexts[context.ids]

    def _release(self, sequence: int) -> None:
        self._cache.remove(sequence)
        self._for_contexts.append(sequence)
