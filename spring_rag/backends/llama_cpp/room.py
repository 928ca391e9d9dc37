"""Which sequence has which part of llama.cpp's cache. Imports neither torch nor llama.cpp."""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

SIDE_BY_SIDE = 16
"""Most answers that are written at once."""

KEPT_CONTEXTS = 16
"""Most contexts that are kept; no less than `SIDE_BY_SIDE`, so that an answer in progress never waits for another's context."""

SEQUENCES = SIDE_BY_SIDE + KEPT_CONTEXTS


@dataclass(eq=False, slots=True)
class Context:
    """A context that is in the cache, or about to be.

    Attributes:
        ids: its tokens.
        sequence: number of the sequence that holds it.
        users: answers in progress that go on from it.
        computed: whether all of it is there.
    """

    ids: tuple[int, ...]
    sequence: int
    users: int = 0
    computed: bool = False


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
    """Gives out places, and keeps contexts until theirs are needed: the least recently used goes first.

    Args:
        cells: tokens that the cache holds.
        forget: empties a sequence.
    """

    def __init__(self, cells: int, forget: Callable[[int], None]) -> None:
        self._cells = cells
        self._forget = forget
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
        known = self._contexts.get(ids)
        needed = own + (len(ids) if known is None else 0)
        idle = [one for one in self._contexts.values() if not one.users and one is not known]
        free = self._cells - self._own - sum(map(len, self._contexts))
        if not self._sequences or free + sum(len(one.ids) for one in idle) < needed:
            return None
        while free < needed or (ids and known is None and not self._for_contexts):
            oldest = idle.pop(0)
            self._drop(oldest)
            free += len(oldest.ids)
        context = known
        if ids and context is None:
            context = self._contexts[ids] = Context(ids, self._for_contexts.pop())
        if context is not None:
            context.users += 1
            self._contexts.move_to_end(ids)
        self._own += own
        return Place(self._sequences.pop(), own, context)

    def leave(self, place: Place) -> None:
        """Give a place back. Its context stays, unless it was never computed to its end."""
        self._forget(place.sequence)
        self._sequences.append(place.sequence)
        self._own -= place.own
        context = place.context
        if context is not None:
            context.users -= 1
            if not context.users and not context.computed:
                self._drop(context)

    def _drop(self, context: Context) -> None:
        self._forget(context.sequence)
        self._for_contexts.append(context.sequence)
        del self._contexts[context.ids]
