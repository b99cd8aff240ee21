"""Compute the next items of a loop in threads, while the loop works on the current one."""

from __future__ import annotations

import collections
import queue
import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

POLL_SECONDS = 0.1  # time after which the thread notices that the loop has ended
END = object()
Item = TypeVar("Item")


def ahead(items: Iterator[Item], depth: int, name: str = "ahead") -> Generator[Item, None, None]:
    """Yield the same items, of which a thread computes up to `depth` in advance.

    Closing the iterator early ends the thread. An error in `items` is raised by the iterator.
    """
    ready: queue.Queue = queue.Queue(depth)
    stop_event = threading.Event()

    def put(item: object) -> bool:
        """Put an item into the queue; returns False if the loop has ended."""
        while not stop_event.is_set():
            try:
                ready.put(item, timeout=POLL_SECONDS)
                return True
            except queue.Full:
                continue
        return False

    def fill() -> None:
        """Put all items into the queue, then END, or the error that ended them."""
        try:
            for item in items:
                if not put(item):
                    return
            put(END)
        # the loop must get any error, because it would otherwise wait for ever
        except BaseException as error:
            put(_Failure(error))

    thread = threading.Thread(target=fill, name=name, daemon=True)
    thread.start()
    try:
        while (item := ready.get()) is not END:
            if isinstance(item, _Failure):
                raise item.error
            yield item
    finally:
        stop_event.set()
        thread.join()


def in_threads(
    jobs: Iterable[Callable[[], Item]], threads: int, *, more: int = 1
) -> Generator[Item, None, None]:
    """Run jobs in threads; yields their results in the order of the jobs.

    threads: number of jobs at work at once. more: number of jobs that may be waiting or finished in
    addition; a larger one keeps the threads busy for longer while the caller works. Memory does not
    grow with the number of jobs. Closing the iterator early waits for the jobs at work. A job's
    error is raised in place of its result.
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
    """Yield the same items, but take them early from `items`.

    Taking an item starts its transfer, which then proceeds in the background. Items are taken until
    their weights together exceed `most`. An item of weight 0 needs no transfer and is yielded at
    once, after those before it.
    """
    waiting: collections.deque[tuple[Item, int]] = collections.deque()
    total_weight = 0
    for item in items:
        waiting.append((item, weight(item)))
        total_weight += waiting[-1][1]
        while waiting and (total_weight > most or not waiting[-1][1]):
            first, weighs = waiting.popleft()
            total_weight -= weighs
            yield first
    for first, _ in waiting:
        yield first


class _Failure:
    """An error of the thread, in the queue."""

    def __init__(self, error: BaseException) -> None:
        self.error = error
