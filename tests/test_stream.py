"""Test an answer that is being written."""

import gc

import pytest

from spring_rag.backends.base import Generation, Usage
from spring_rag.errors import BackendError
from spring_rag.stream import Stream


def _stream(*pieces, ended=None):
    generation = Generation("".join(pieces), "stop", Usage(1, 2, 3, 4), (5, 6))

    def items():
        try:
            yield from pieces
            yield generation
        finally:
            if ended is not None:
                ended.append(True)

    return Stream(items()), generation


def test_is_read_and_then_asked():
    ended = []
    stream, generation = _stream("a", "b", ended=ended)
    assert list(stream) == ["a", "b"]
    assert ended
    assert stream.generation is generation
    assert list(stream) == []


def test_asked_early_it_reads_the_rest():
    stream, generation = _stream("a", "b")
    assert next(stream) == "a"
    assert stream.generation is generation
    assert list(stream) == []


@pytest.mark.parametrize("strip", [False, True])
def test_closing_ends_it_and_there_is_no_whole_answer(strip):
    ended = []
    stream, _ = _stream("a", "b", ended=ended)
    if strip:
        stream = stream.stripped()
    next(stream)
    stream.close()
    assert ended
    assert list(stream) == []
    with pytest.raises(BackendError, match="before the answer was whole"):
        _ = stream.generation


def test_dropping_it_closes_it():
    ended = []
    stream = _stream("a", "b", ended=ended)[0].stripped()
    next(stream)
    del stream
    gc.collect()
    assert ended


def test_errors_reach_the_reader():
    def items():
        yield "a"
        msg = "no more"
        raise BackendError(msg)

    stream = Stream(items()).stripped()
    assert next(stream) == "a"
    with pytest.raises(BackendError, match="no more"):
        _ = stream.generation


@pytest.mark.parametrize(
    "pieces", [[], [" "], [" a", " ", "\n", "b ", " "], ["a b"], ["", " ", "a", "", " \n", "b\n"]]
)
def test_stripped_pieces_make_the_stripped_text(pieces):
    plain, generation = _stream(*pieces)
    stream = plain.stripped()
    found = list(stream)
    assert "".join(found) == "".join(pieces).strip()
    assert all(found)
    assert stream.generation is generation
