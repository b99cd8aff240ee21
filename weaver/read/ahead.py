"""Work ahead of a loop in threads: what comes next is made while the loop still has the last in
hand.
"""

from __future__ import annotations

import collections
import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

POLL_SECONDS = 0.1  # how soon the thread notices that nobody wants its items any more
END = object()
Item = TypeVar("Item")


def ahead(items: Iterator[Item], depth: int, name: str = "ahead") -> Iterator[Item]:
    """The same items, up to `depth` of them made ahead.

    Closing the iterator early ends its thread; an error comes through.
    """
    ready: queue.Queue = queue.Queue(depth)
    stopped = threading.Event()
    thread = threading.Thread(target=_fill, args=(items, ready, stopped), name=name, daemon=True)
    thread.start()
    try:
        while (item := ready.get()) is not END:
            if isinstance(item, _Raised):
                raise item.error
            yield item
    finally:
        stopped.set()
        thread.join()


def in_threads(jobs: Iterable[Callable[[], Item]], threads: int) -> Iterator[Item]:
    """The results of jobs, in their order, that many at work at once and no more than one finished
    beyond these.

    Closing the iterator early waits for the jobs at work; an error comes through in its place.
    """
    waiting: collections.deque[Future[Item]] = collections.deque()
    pool = ThreadPoolExecutor(threads)
    try:
        for job in jobs:
            waiting.append(pool.submit(job))
            if len(waiting) > threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


class _Raised:
    def __init__(self, error: BaseException) -> None:
        self.error = error


def _fill(items: Iterator, ready: queue.Queue, stopped: threading.Event) -> None:
    try:
        for item in items:
            if not _put(ready, item, stopped):
                return
        _put(ready, END, stopped)
    # whatever it is belongs to the loop, which would wait for ever otherwise
    except BaseException as error:
        _put(ready, _Raised(error), stopped)


def _put(ready: queue.Queue, item: object, stopped: threading.Event) -> bool:
    """Hand over an item; False if the loop has gone."""
    while not stopped.is_set():
        try:
            ready.put(item, timeout=POLL_SECONDS)
            return True
        except queue.Full:
            continue
    return False
