"""Processes that make blocks, and the blocks in order.

Each worker is a process of its own with a pipe to this one. A worker ends when its pipe closes, and
at once when this process ends, also by SIGKILL. Workers ignore Ctrl-C: this process gets
it too, and ends them.
"""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Generator
from multiprocessing.connection import Connection
from typing import Any, TypeVar

from common.errors import JecError

# blocks a worker may be ahead of the oldest one still missing, so that a slow block does not fill
# the memory
AHEAD = 4
# imports, Pythia's initialisation and the pile-up library take 3 s on a free core
START_SECONDS = 120.0
SECONDS_PER_EVENT = 2.0  # about 10 ms on a free core

Order = TypeVar("Order")
Result = TypeVar("Result")


def blocks(
    maker: Callable[[Order], Callable[[int], Result]],
    recipe: Order,
    *,
    workers: int,
    events_per_block: int,
) -> Generator[Result, None, None]:
    """Yield the results for block 0, 1, 2, ... without end, made by `workers` processes.

    `maker(recipe)` is called once in each process and returns the function that makes block
    `number`; both must be importable by name. Close the generator to end the processes. Raises
    JecError if a worker fails, dies, or does not answer in time.
    """
    pool = [_Worker(maker, recipe) for _ in range(workers)]
    try:
        yield from _in_order(pool, START_SECONDS + SECONDS_PER_EVENT * events_per_block)
    finally:
        for worker in pool:
            worker.stop()


def _in_order(pool: list[_Worker], patience: float) -> Generator[Any, None, None]:
    """Return the blocks in order.

    `patience` is the time (s) within which some worker has to answer.
    """
    results: dict[int, Any] = {}
    oldest = 0  # the oldest block still missing
    following = 0  # the next block to make
    idle = list(pool)
    while True:
        while idle and following < oldest + AHEAD * len(pool):
            idle.pop().send(following)
            following += 1
        busy = [worker for worker in pool if worker not in idle]
        pipes = [worker.pipe for worker in busy]
        ready = multiprocessing.connection.wait(pipes, timeout=patience)
        if not ready:
            raise JecError(
                f"no block of events was finished within {patience:.0f} s; is the machine out of"
                " memory or overloaded?"
            )
        for worker in busy:
            if worker.pipe in ready:
                number, result = worker.receive()
                results[number] = result
                idle.append(worker)
        while oldest in results:
            yield results.pop(oldest)
            oldest += 1


class _Worker:
    """One process and this side of its pipe."""

    def __init__(self, maker: Callable[[Any], Callable[[int], Any]], recipe: Any) -> None:
        # a fork would inherit locks of this process's threads
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_work, args=(theirs, maker, recipe), daemon=True)
        self.process.start()
        theirs.close()

    def send(self, number: int) -> None:
        try:
            self.pipe.send(number)
        except OSError:
            raise self._death() from None

    def receive(self) -> tuple[int, Any]:
        """Return the number of the next finished block, and its result.

        Raises:
            JecError: the block failed, or the process died.
        """
        try:
            number, result, failure = self.pipe.recv()
        except (EOFError, OSError):
            raise self._death() from None
        if failure is None:
            return number, result
        if isinstance(failure, JecError):
            raise failure
        print(failure, file=sys.stderr)
        raise JecError(f"block {number} of events failed: {failure.strip().splitlines()[-1]}")

    def stop(self) -> None:
        self.pipe.close()
        self.process.kill()
        self.process.join(timeout=10)

    def _death(self) -> JecError:
        self.process.join(timeout=5)
        code = self.process.exitcode
        how = (
            f"was killed by {signal.Signals(-code).name}"
            if code is not None and code < 0
            else f"ended with exit code {code}"
        )
        hint = "; is there enough memory? Try fewer --workers" if code == -signal.SIGKILL else ""
        return JecError(f"a generator process {how}{hint}")


def _work(pipe: Connection, maker: Callable[[Any], Callable[[int], Any]], recipe: Any) -> None:
    """Run in a worker: make each requested block until the pipe closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.dup2(2, 1)  # messages of Pythia and FastJet are not this program's output
    threading.Thread(target=_end_with_parent, daemon=True).start()
    number = None
    try:
        make = maker(recipe)
        while True:
            number = pipe.recv()
            pipe.send((number, make(number), None))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return
    except JecError as error:
        pipe.send((number, None, error))
    except Exception:  # the parent gets the traceback and raises JecError
        pipe.send((number, None, traceback.format_exc()))


def _end_with_parent() -> None:
    """End this process once its parent is gone: a killed parent cannot end its workers."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return  # this is the main process
    multiprocessing.connection.wait([parent.sentinel])
    os._exit(1)
