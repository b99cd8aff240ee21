"""--gpus 0,1: one process for each GPU, started by the command itself."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence

from common.project import ROOT
from weaver.fit.options import AUTO_NAME, TrainOptions

POLL_SECONDS = 0.2
# a rank notices within a minute that another one is gone, and says so; then it is stopped
GRACE_SECONDS = 90.0
STOP_SECONDS = 10.0


def needs_ranks(options: TrainOptions, environment: Mapping[str, str]) -> int:
    """How many ranks this command is to start; 0 where it is a rank itself, or needs no other."""
    numbers = options.gpus.split(",")
    is_rank = "WORLD_SIZE" in environment or "LOCAL_RANK" in environment
    if len(numbers) < 2 or is_rank or not options.trains:
        return 0
    import torch

    # without CUDA the one process says that it takes the CPU
    return len(numbers) if torch.cuda.is_available() else 0


def run_ranks(count: int, arguments: Sequence[str], name: str) -> int:
    """Run `python -m weaver.train ARGUMENTS` as so many ranks; returns the exit code.

    name: what stands for {auto}. The first failure ends the others: they are told after
    GRACE_SECONDS, and killed STOP_SECONDS later. Signals that stop this process stop the ranks.
    """
    port = _free_port()
    known = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
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
                # the ranks find this package wherever the command was started
                "PYTHONPATH": os.pathsep.join([str(ROOT), *known]),
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
    """Wait for all ranks; returns the exit code of the first that failed, else 0."""
    failure = 0
    deadline = float("inf")
    told = False
    while any(process.poll() is None for process in ranks):
        time.sleep(POLL_SECONDS)
        codes = [process.poll() for process in ranks]
        if not failure:
            failure = next((code for code in codes if code), 0)
            if failure:
                deadline = time.monotonic() + GRACE_SECONDS
        if time.monotonic() > deadline and not told:
            told = True
            deadline = time.monotonic() + STOP_SECONDS
            for process in ranks:
                process.terminate()
        elif time.monotonic() > deadline:
            for process in ranks:
                process.kill()
    failure = failure or next((process.returncode for process in ranks if process.returncode), 0)
    # a signal's number is negative; the shell's convention is 128 + number
    return 128 - failure if failure < 0 else failure


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
