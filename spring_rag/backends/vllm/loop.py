"""One event loop in a thread, for all that waits on servers: many requests in flight cost no thread each."""

import asyncio
import os
import threading
from collections.abc import Coroutine
from concurrent.futures import Future
from typing import Any, TypeVar

T = TypeVar("T")

_starting = threading.Lock()
_running: dict[int, asyncio.AbstractEventLoop] = {}


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
