"""Work ahead of a loop in threads: the next item is made while the loop works on the last one."""

from __future__ import annotations

import collections
import queue
import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

POLL_SECONDS = 0.1  # how soon the thread notices that the loop has ended
END = object()
Item = TypeVar("Item")


def ahead(items: Iterator[Item], depth: int, name: str = "ahead") -> Generator[Item, None, None]:
    """The same items, up to `depth` of them made ahead.

    Closing the iterator early ends its thread; an error comes through.
    """
    ready: queue.Queue = queue.Queue(depth)
    stopped = threading.Event()

    def put(item: object) -> bool:
        """Hand over an item; False if the loop has ended."""
        while not stopped.is_set():
            try:
                ready.put(item, timeout=POLL_SECONDS)
                return True
            except queue.Full:
                continue
        return False

    def fill() -> None:
        """Hand over all items, then END, or the error that came instead."""
        try:
            for item in items:
                if not put(item):
                    return
            put(END)
        # whatever it is belongs to the loop, which would wait for ever otherwise
        except BaseException as error:
            put(_Raised(error))

    thread = threading.Thread(target=fill, name=name, daemon=True)
    thread.start()
    try:
        while (item := ready.get()) is not END:
            if isinstance(item, _Raised):
                raise item.error
            yield item
    finally:
        stopped.set()
        thread.join()


def in_threads(
    jobs: Iterable[Callable[[], Item]], threads: int, *, more: int = 1
) -> Generator[Item, None, None]:
    """The results of jobs, in their order.

    `threads` of them are at work at once, and no more than `more` wait or are finished beyond
    these: what is held in memory does not grow with the number of jobs. With more of them the
    threads go on for longer while the caller is busy. Closing the iterator early waits for the jobs
    at work; an error comes through in its place.
    """
    waiting: collections.deque[Future[Item]] = collections.deque()
    pool = ThreadPoolExecutor(threads)
    try:
        for job in jobs:
            waiting.append(pool.submit(job))
            if len(waiting) >= threads + more:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def lookahead(
    items: Iterable[Item], weight: Callable[[Item], int], most: int
) -> Generator[Item, None, None]:
    """The same items, taken early, so that what was begun for them goes on meanwhile.

    As many are taken as weigh more than `most` together. An item that weighs nothing was not begun
    by taking it: it is handed on at once.
    """
    waiting: collections.deque[tuple[Item, int]] = collections.deque()
    held = 0
    for item in items:
        waiting.append((item, weight(item)))
        held += waiting[-1][1]
        while waiting and (held > most or not waiting[-1][1]):
            first, weighs = waiting.popleft()
            held -= weighs
            yield first
    for first, _ in waiting:
        yield first


class _Raised:
    """An error of the thread, on its way to the loop."""

    def __init__(self, error: BaseException) -> None:
        self.error = error
