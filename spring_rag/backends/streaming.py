"""An answer in pieces, from a model of this process that writes it in a thread of its own."""

import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from queue import SimpleQueue

from transformers import PreTrainedTokenizerBase

from spring_rag.backends.base import Generation
from spring_rag.backends.decoding import TextStreamer
from spring_rag.errors import BackendError

_POLL_SECONDS = 0.05


def pieces(
    run: Callable[[TextStreamer, threading.Event], Generation],
    tokenizer: PreTrainedTokenizerBase,
    stop: Sequence[str],
    turn: threading.Lock,
) -> Generator[str | Generation, None, None]:
    """What a `Stream` takes. Closing it stops the model; the thread never waits for whoever reads.

    Args:
        run: writes the answer, hands its ids to the streamer as they come, and ends once the event is set.
        tokenizer: the backbone's.
        stop: strings that end the answer.
        turn: held while `run` uses the model.
    """
    items: SimpleQueue[str | Generation | BaseException] = SimpleQueue()
    cancelled = threading.Event()
    streamer = TextStreamer(tokenizer, stop, items.put)

    def work() -> None:
        try:
            with _held(turn, cancelled):
                items.put(run(streamer, cancelled))
        except BaseException as error:  # belongs to the thread that reads
            items.put(error)

    worker = threading.Thread(target=work, name="spring-rag-stream", daemon=True)
    worker.start()
    try:
        while isinstance(item := items.get(), str):
            yield item
        if isinstance(item, BaseException):
            raise item
        if rest := streamer.rest(item.text):
            yield rest
        yield item
    finally:
        cancelled.set()
        if worker is not threading.current_thread():  # where a forgotten stream may be collected
            worker.join()


@contextmanager
def _held(turn: threading.Lock, cancelled: threading.Event) -> Iterator[None]:
    """The model to oneself, or an error if the wait for it is given up."""
    while not turn.acquire(timeout=_POLL_SECONDS):
        if cancelled.is_set():
            msg = "the stream was closed before it began"
            raise BackendError(msg)
    try:
        yield
    finally:
        turn.release()
