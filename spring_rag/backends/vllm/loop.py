"""One event loop in a thread, for all that waits on servers: many requests in flight cost no thread each."""

import asyncio
import os
import threading
from collections.abc import AsyncGenerator, Callable, Coroutine
from concurrent.futures import Future
from contextlib import aclosing
from typing import Any, Generic, TypeVar

T = TypeVar("T")

_starting = threading.Lock()
_running: dict[int, asyncio.AbstractEventLoop] = {}
_tasks: set[asyncio.Task[None]] = set()


def background() -> asyncio.AbstractEventLoop:
    """This process's loop; a child that was forked gets its own."""
    with _starting:
        loop = _running.get(os.getpid())
        if loop is None:
            _running.clear()
            loop = asyncio.new_event_loop()
            threading.Thread(target=loop.run_forever, name="spring-rag-vllm", daemon=True).start()
            _running[os.getpid()] = loop
        return loop


def submit(work: Coroutine[Any, Any, T]) -> Future[T]:
    """Start some work in the loop. Cancelling the future cancels it."""
    return asyncio.run_coroutine_threadsafe(work, background())


def run(work: Coroutine[Any, Any, T]) -> T:
    """Do some work in the loop and wait for it; an interrupt of the wait cancels it."""
    future = submit(work)
    try:
        return future.result()
    finally:
        future.cancel()


class Forwarding(Generic[T]):
    """An asynchronous generator that runs in the loop and hands its items to another thread.

    Args:
        items: the generator.
        put: takes each item, and the exception that ends them if one does; is called in the loop.
        is_last: whether an item is the last. From there on nothing is cancelled any more: a connection that is disturbed while
            it goes back to its pool would stay there, broken.
    """

    def __init__(
        self,
        items: AsyncGenerator[T, None],
        put: Callable[[T | BaseException], None],
        is_last: Callable[[T], bool],
    ) -> None:
        self._items, self._put, self._is_last = items, put, is_last
        self._ended = False
        self._loop = background()
        self._loop.call_soon_threadsafe(self._start)

    def stop(self) -> None:
        """Drop what hasn't come yet, and the work on it. Doesn't wait."""
        self._loop.call_soon_threadsafe(self._stop)

    def _start(self) -> None:
        self._task = self._loop.create_task(self._forward())
        _tasks.add(self._task)  # the loop itself would forget it
        self._task.add_done_callback(_tasks.discard)

    def _stop(self) -> None:
        if not self._ended:
            self._task.cancel()

    async def _forward(self) -> None:
        try:
            async with aclosing(self._items) as items:
                async for item in items:
                    self._ended = self._is_last(item)
                    self._put(item)
        except Exception as error:  # belongs to whoever reads
            self._put(error)
