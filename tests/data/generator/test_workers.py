"""The worker processes, with work that needs no Pythia: block n of POWERS is 2**n, block n of SLEEP
takes n seconds.
"""

from __future__ import annotations

import functools
import itertools
import multiprocessing
import operator
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from common.errors import JecError
from common.pids import is_alive
from data.generator import workers

POWERS = functools.partial(functools.partial, pow), 2
FAILING = functools.partial(functools.partial, pow), "two"
SLEEP = functools.partial(functools.partial, operator.call), time.sleep

ROOT = Path(__file__).parents[3]


def children() -> list:
    return [child for child in multiprocessing.active_children() if child.is_alive()]


@pytest.mark.parametrize("count", [1, 3])
def test_blocks_come_in_order_from_any_number_of_processes(count):
    source = workers.blocks(*POWERS, workers=count, events_per_block=1)
    assert list(itertools.islice(source, 40)) == [2**n for n in range(40)]
    assert len(children()) == count
    source.close()
    assert children() == []


def test_an_error_in_a_block_ends_all_processes(capsys):
    with pytest.raises(JecError, match=r"block \d+ of events failed: TypeError"):
        next(workers.blocks(*FAILING, workers=2, events_per_block=1))
    assert "Traceback" in capsys.readouterr().err
    assert children() == []


def test_a_killed_process_is_reported():
    source = workers.blocks(*SLEEP, workers=1, events_per_block=1)
    next(source)
    os.kill(children()[0].pid, signal.SIGKILL)
    with pytest.raises(JecError, match=r"SIGKILL.*--workers"):
        list(itertools.islice(source, 5))
    assert children() == []


def test_a_process_that_does_not_answer_is_an_error_after_the_timeout(monkeypatch):
    monkeypatch.setattr(workers, "START_SECONDS", 1.5)
    monkeypatch.setattr(workers, "SECONDS_PER_EVENT", 0.0)
    with pytest.raises(JecError, match="no block of events was finished within"):
        list(itertools.islice(workers.blocks(*SLEEP, workers=1, events_per_block=1), 4))
    assert children() == []


def test_processes_end_with_their_parent():
    program = (
        "import functools, operator, time, multiprocessing\n"
        "from data.generator import workers\n"
        "source = workers.blocks(functools.partial(functools.partial, operator.call), time.sleep,"
        " workers=2, events_per_block=1)\nnext(source)\nprint(*[child.pid for child in"
        " multiprocessing.active_children()], flush=True)\ntime.sleep(60)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as parent:
        pids = [int(pid) for pid in parent.stdout.readline().split()]
        parent.kill()
    assert len(pids) == 2
    deadline = time.monotonic() + 10
    while any(is_alive(pid) for pid in pids):
        assert time.monotonic() < deadline, "a worker outlived its parent"
        time.sleep(0.05)
