"""Whether a process is alive, by its pid."""

import os
import signal
import subprocess
import sys

import psutil
import pytest

from common import pids

SLEEPER = [sys.executable, "-c", "import time; time.sleep(60)"]


def test_a_zombie_has_ended():
    process = subprocess.Popen(SLEEPER)
    try:
        assert pids.is_alive(process.pid)
        assert float(pids.start_time(process.pid)) == psutil.Process(process.pid).create_time()
        process.send_signal(signal.SIGKILL)
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert psutil.Process(process.pid).status() == psutil.STATUS_ZOMBIE
        assert not pids.is_alive(process.pid)
    finally:
        process.kill()
        process.wait()
    assert not pids.is_alive(process.pid)
    assert pids.start_time(process.pid) == ""


@pytest.mark.parametrize("pid", [-1, 2**22 + 1, 2**31, 2**70])
def test_a_number_that_no_process_can_have(pid):
    assert not pids.is_alive(pid)
    assert pids.start_time(pid) == ""
