"""--gpus 0,1: start one process for each GPU."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence

from common.machine import free_port
from common.project import ROOT
from weaver.fit.options import AUTO_NAME, TrainOptions

POLL_SECONDS = 0.2
# a rank reports within a minute that another one is lost; one that has not ended then is stopped
GRACE_SECONDS = 90.0
STOP_SECONDS = 10.0


def needs_ranks(options: TrainOptions, environment: Mapping[str, str]) -> int:
    """Return the number of ranks that this command must start.

    0 if it is a rank itself, or needs only one.
    """
    numbers = options.gpus.split(",")
    is_rank = "WORLD_SIZE" in environment or "LOCAL_RANK" in environment
    if len(numbers) < 2 or is_rank or not options.trains:
        return 0
    import torch

    # without CUDA one process trains on the CPU, and says so
    return len(numbers) if torch.cuda.is_available() else 0


def run_ranks(count: int, arguments: Sequence[str], name: str) -> int:
    """Run `python -m weaver.train ARGUMENTS` in `count` ranks; returns the exit code.

    name: the value of {auto}. After the first failure the other ranks have GRACE_SECONDS to end
    by themselves. Then they get SIGTERM, and are killed STOP_SECONDS later. SIGTERM and SIGINT are
    passed on to the ranks.
    """
    port = free_port()
    import_path = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    ranks: list[subprocess.Popen] = []
    before = {}
    try:
        for rank in range(count):
            environment = {
                **os.environ,
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": str(count),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
                AUTO_NAME: name,
                # so that the ranks can import this package from any working directory
                "PYTHONPATH": os.pathsep.join([str(ROOT), *import_path]),
            }
            command = [sys.executable, "-m", "weaver.train", *arguments]
            ranks.append(subprocess.Popen(command, env=environment))

        def pass_on(number: int, _frame: object) -> None:
            for process in ranks:
                with contextlib.suppress(ProcessLookupError):
                    process.send_signal(number)

        for number in (signal.SIGTERM, signal.SIGINT):
            before[number] = signal.signal(number, pass_on)
        return _wait(ranks)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for process in ranks:
            if process.poll() is None:
                process.kill()
                process.wait()


def _wait(ranks: list[subprocess.Popen]) -> int:
    """Wait for all ranks to end; returns the exit code of the first that failed, else 0."""
    failure = 0
    deadline = float("inf")
    is_terminating = False
    while any(process.poll() is None for process in ranks):
        time.sleep(POLL_SECONDS)
        codes = [process.poll() for process in ranks]
        if not failure:
            failure = next((code for code in codes if code), 0)
            if failure:
                deadline = time.monotonic() + GRACE_SECONDS
        if time.monotonic() > deadline and not is_terminating:
            is_terminating = True
            deadline = time.monotonic() + STOP_SECONDS
            for process in ranks:
                process.terminate()
        elif time.monotonic() > deadline:
            for process in ranks:
                process.kill()
    failure = failure or next((process.returncode for process in ranks if process.returncode), 0)
    # a signal's number is negative; the shell's convention is 128 + number
    return 128 - failure if failure < 0 else failure
