"""Test places in llama.cpp's cache: what is kept, what goes first, and which request has to wait."""

import pytest

from spring_rag.errors import BackendError


class Cache:
    """Notes what is asked of it. What is saved of a sequence is what was restored to it, or else new."""

    def __init__(self):
        self.removed, self.saved, self.restored = [], [], []

    def remove(self, sequence):
        self.removed.append(sequence)

    def save(self, sequence):
        self.saved.append(sequence)
        return f"what sequence {sequence} held"

    def restore(self, sequence, saved):
        self.restored.append((sequence, saved))


@pytest.fixture
def make_room():
    from spring_rag.backends.llama_cpp.room import Room

    def make(cells):
        cache = Cache()
        return Room(cells, cache), cache

    return make


def read(room, ids, own=5):
    """An answer from its beginning to its end; gives its context's sequence."""
    place = room.take(ids, own)
    assert place is not None
    place.context.computed = True
    room.leave(place)
    return place.context.sequence


def context(number, length=10):
    return tuple(range(number, number + length))


class TestKeeping:
    def test_a_context_is_found_again(self, make_room):
        room, _ = make_room(100)
        assert read(room, context(0)) == read(room, context(0))
        assert room.contexts == (context(0),)

    def test_the_least_recently_used_goes_first(self, make_room):
        room, cache = make_room(25)
        read(room, context(0))
        read(room, context(1))
        read(room, context(0))
        read(room, context(2), own=6)
        assert room.contexts == (context(0), context(2))
        read(room, context(0))
        assert len(cache.restored) == 2
        read(room, context(1))
        assert len(cache.restored) == 2

    def test_no_more_are_kept_than_there_are_sequences(self, make_room):
        from spring_rag.backends.llama_cpp.room import KEPT_CONTEXTS

        room, _ = make_room(10**6)
        for number in range(KEPT_CONTEXTS + 3):
            read(room, context(number))
        assert room.contexts == tuple(context(number) for number in range(3, KEPT_CONTEXTS + 3))

    def test_nothing_is_forgotten_for_one_that_has_to_wait_all_the_same(self, make_room):
        room, _ = make_room(40)
        read(room, context(0))
        place = room.take(context(1), 15)
        assert room.take(context(2), 10) is None
        assert room.contexts == (context(0), context(1))
        room.leave(place)

    def test_one_that_was_never_computed_isn_t_kept(self, make_room):
        room, cache = make_room(40)
        place = room.take(context(0), 5)
        sequence = place.context.sequence
        room.leave(place)
        assert room.contexts == ()
        assert cache.removed == [place.sequence, sequence]


class TestPuttingAside:
    def test_what_an_answer_doesn_t_go_on_from_leaves_the_cache(self, make_room):
        room, cache = make_room(100)
        first = read(room, context(0))
        place = room.take(context(1), 5)
        assert cache.saved == [first]
        assert first in cache.removed
        assert room.contexts == (context(0), context(1))
        room.leave(place)

    def test_a_second_question_moves_nothing(self, make_room):
        room, cache = make_room(100)
        first = read(room, context(0))
        assert read(room, context(0)) == first
        assert not cache.saved
        assert first not in cache.removed

    def test_it_is_taken_back_as_it_was_and_saved_once(self, make_room):
        room, cache = make_room(100)
        first, second = read(room, context(0)), read(room, context(1))
        again = read(room, context(0))
        assert cache.restored == [(again, f"what sequence {first} held")]
        read(room, context(1))
        assert cache.saved == [first, second]

    def test_those_in_use_stay(self, make_room):
        room, cache = make_room(100)
        places = [room.take(context(number), 5) for number in range(3)]
        assert not cache.saved
        for place in places:
            room.leave(place)

    def test_one_that_can_t_be_taken_back_is_forgotten(self, make_room, monkeypatch):
        room, cache = make_room(100)
        read(room, context(0))
        read(room, context(1))

        def failing(sequence, saved):
            msg = "no"
            raise BackendError(msg)

        monkeypatch.setattr(cache, "restore", failing)
        with pytest.raises(BackendError):
            room.take(context(0), 5)
        assert room.contexts == (context(1),)
        assert not room.take(context(0), 5).context.computed


class TestTaking:
    def test_a_shared_context_counts_once(self, make_room):
        room, _ = make_room(30)
        first, second = room.take(context(0), 10), room.take(context(0), 10)
        assert first.context is second.context
        assert first.sequence != second.sequence
        assert room.take(context(0), 1) is None
        room.leave(first)
        assert room.take(context(0), 1) is not None

    def test_a_context_in_use_stays(self, make_room):
        room, _ = make_room(30)
        room.take(context(0), 10)
        assert room.take(context(1), 1) is None

    def test_without_a_context(self, make_room):
        room, _ = make_room(30)
        place = room.take((), 30)
        assert place.context is None
        room.leave(place)
        assert room.contexts == ()

    def test_as_many_at_once_as_there_are_sequences(self, make_room):
        from spring_rag.backends.llama_cpp.room import SIDE_BY_SIDE

        room, _ = make_room(10**6)
        places = [room.take(context(number), 1) for number in range(SIDE_BY_SIDE + 1)]
        assert places.pop() is None
        sequences = [place.sequence for place in places] + [place.context.sequence for place in places]
        assert len(set(sequences)) == 2 * SIDE_BY_SIDE
