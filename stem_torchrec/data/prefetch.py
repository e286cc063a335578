"""Run an iterator ahead in a background thread."""

from collections.abc import Generator
from contextlib import closing
from queue import SimpleQueue
from threading import Event, Semaphore, Thread
from typing import Any, TypeVar

Item = TypeVar("Item")
_END = object()


class _Failure:
    def __init__(self, error: BaseException) -> None:
        self.error = error


def prefetched(source: Generator[Item, None, None], depth: int) -> Generator[Item, None, None]:
    """Yield ``source``'s items while a thread prepares up to ``depth`` ahead; 0 uses no thread.

    The thread starts with the first item asked for. It has ended, and ``source`` is closed, once
    the generator is exhausted, closed or has raised.

    Raises:
        Exception: whatever ``source`` raised, as it was, after the items before it.
    """
    if depth == 0:
        with closing(source):
            yield from source
        return
    ready: SimpleQueue[Any] = SimpleQueue()
    free = Semaphore(depth)
    stop = Event()
    thread = Thread(
        target=_fill, args=(source, ready, free, stop), name="stem_torchrec-prefetch", daemon=True
    )
    thread.start()
    try:
        while (item := ready.get()) is not _END:
            if isinstance(item, _Failure):
                raise item.error
            free.release()
            yield item
    finally:
        stop.set()
        free.release()
        thread.join()


def _fill(
    source: Generator[Item, None, None], ready: "SimpleQueue[Any]", free: Semaphore, stop: Event
) -> None:
    try:
        with closing(source):
            while free.acquire() and not stop.is_set():
                try:
                    item = next(source)
                except StopIteration:
                    break
                ready.put(item)
    except BaseException as error:  # an error that stayed here would leave the consumer waiting
        ready.put(_Failure(error))
    else:
        ready.put(_END)
