"""Waiting for a backbone in asynchronous code. Imports neither torch nor transformers."""

import asyncio
import contextvars
from collections.abc import AsyncGenerator, Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

T = TypeVar("T")

# They wait, nothing more. asyncio's own pool has a handful, too few for a batch to be gathered from.
_WAITING = ThreadPoolExecutor(max_workers=64, thread_name_prefix="spring-rag-wait")


async def in_thread(function: Callable[..., T], *args: Any, **kwargs: Any) -> T:
    """Call a function that waits for the backbone in another thread; it sees the caller's context variables."""
    call = partial(contextvars.copy_context().run, function, *args, **kwargs)
    return await asyncio.get_running_loop().run_in_executor(_WAITING, call)


async def iterate_in_thread(items: Generator[T, None, Any]) -> AsyncGenerator[T, None]:
    """Iterate in another thread over a generator that waits for the backbone. Leaving early, cancelled or not, closes it, which stops the backbone."""
    thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="spring-rag-read")
    loop = asyncio.get_running_loop()
    end: Any = object()
    try:
        while (item := await loop.run_in_executor(thread, next, items, end)) is not end:
            yield item
    finally:
        # Closed once a step that still runs is over, since a generator can't be closed while it executes.
        thread.submit(items.close)
        thread.shutdown(wait=False)
