"""Two ranks on gloo train like one rank, and all end soon after one of them dies."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time

import numpy as np
import psutil
import pytest
import torch
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

from clusters.processes import host_command
from common.errors import ClusterError, InputError
from tests.waiting import wait_until
from tests.watching import listening
from tests.weaver.trials import ROOT, command, finish, history, start, weights
from weaver.fit import torchrun
from weaver.fit.distributed import World, is_loopback, ranks, select_device

# 539 jets in batches of 100: the last one holds 39, so that one rank gets 20 of them, and the other
# 19 and one of weight 0.
WORDS = {"num_epochs": 2, "batch_size": 100, "lr_scheduler": "none", "optimizer": "adam"}


def start_ranks(words: list[str], size: int = 2) -> list:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(size)}
    return [start(words, RANK=str(rank), **common) for rank in range(size)]


def test_two_ranks_train_like_one_rank_with_the_same_global_batch(prepared, tmp_path):
    processes = [
        start(command(prepared, tmp_path / "one", **WORDS)),
        *start_ranks(command(prepared, tmp_path / "two", **WORDS)),
    ]
    messages = [finish(process) for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0], messages
    for name in ("train_loss", "val_loss"):
        losses = [
            [record[name] for record in history(tmp_path / folder)] for folder in ("one", "two")
        ]
        np.testing.assert_allclose(*losses, rtol=1e-5)
    one, two = (weights(tmp_path / folder) for folder in ("one", "two"))
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, rtol=1e-4, atol=1e-5)
    assert "epoch 2/2" in messages[1]
    assert "epoch" not in messages[2]  # only the first rank prints and writes


def test_a_rank_that_dies_ends_the_other_with_a_reason(prepared, tmp_path):
    first, second = start_ranks(command(prepared, tmp_path, **{**WORDS, "num_epochs": 1000}))
    wait_until(lambda: len(history(tmp_path)) >= 1, process=first, seconds=100)
    second.send_signal(signal.SIGKILL)
    died = time.monotonic()
    messages = finish(first)
    finish(second)
    assert time.monotonic() - died < 60
    assert first.returncode == 1
    assert "error: rank 0 of 2 lost another rank, whose own log has the reason" in messages
    assert not (tmp_path / "failed").exists()  # a restart may well succeed


@pytest.mark.faults
def test_ranks_of_one_machine_listen_on_the_loopback_only(prepared, tmp_path):
    first, second = start_ranks(command(prepared, tmp_path, **{**WORDS, "num_epochs": 1000}))
    try:
        wait_until(lambda: len(history(tmp_path)) >= 1, process=first, seconds=100)
        addresses = listening(first.pid) | listening(second.pid)
    finally:
        for process in (first, second):
            process.kill()
            finish(process)
    assert addresses
    assert addresses <= {"127.0.0.1", "::1"}


@pytest.mark.slow
@pytest.mark.faults
def test_torchrun_of_one_machine_listens_on_the_loopback_only(prepared, tmp_path):
    """A replica with several GPUs: torchrun keeps the store, and starts a rank for each.

    No temporary file remains.
    """
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    words = command(prepared, tmp_path, **{**WORDS, "num_epochs": 1000})
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    program = host_command(["torchrun", "-m", "weaver.train", *words])
    agent = subprocess.Popen(
        program,
        cwd=ROOT,
        env={
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "PET_MASTER_ADDR": "127.0.0.1",
            "PET_MASTER_PORT": port,
            "PET_NODE_RANK": "0",
            "PET_NNODES": "1",
            "PET_NPROC_PER_NODE": "2",
            "TMPDIR": str(temporary),
        },
        stderr=subprocess.PIPE,
        text=True,
    )
    ranks = []
    try:
        wait_until(lambda: len(history(tmp_path)) >= 1, process=agent, seconds=100)
        ranks = psutil.Process(agent.pid).children(recursive=True)
        addresses = [listening(pid) for pid in (agent.pid, *(rank.pid for rank in ranks))]
    finally:
        agent.terminate()  # it ends its ranks
        finish(agent)
    assert len(ranks) >= 2
    assert addresses[0] <= {"127.0.0.1", "::1"}
    assert addresses[0]
    assert set().union(*addresses) <= {"127.0.0.1", "::1"}
    assert list(temporary.iterdir()) == []


@pytest.mark.parametrize(
    ("address", "local"),
    [
        ("127.0.0.1", True),
        ("localhost", True),
        ("::1", True),
        ("jec-trial-master-0", False),
        ("10.1.2.3", False),
        ("0.0.0.0", False),
    ],
)
def test_loopback_addresses_are_recognised(address, local):
    assert is_loopback(address) == local


def test_sigterm_to_one_rank_stops_all_ranks_after_the_same_step(prepared, tmp_path):
    words = command(prepared, tmp_path, **{**WORDS, "num_epochs": 1000})
    first, second = start_ranks(words)
    wait_until(lambda: len(history(tmp_path)) >= 1, process=first, seconds=100)
    second.terminate()
    messages = [finish(process) for process in (first, second)]
    assert [first.returncode, second.returncode] == [143, 143], messages
    state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)["progressed"]
    assert (
        f"stopped by a signal in epoch {state['epoch'] + 1}/1000 after {state['batch']} of 5 steps"
        in messages[0]
    )


def test_a_batch_that_ranks_cannot_share_is_refused():
    with pytest.raises(InputError, match="--batch-size 100 cannot be divided by 3 ranks; 99 can"):
        World(size=3).share_of(100)
    assert World(size=4).share_of(100) == 25


def test_without_the_training_operator_s_variables_there_is_one_rank(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with ranks(torch.device("cpu"), "auto") as world:
        assert (world.size, world.is_main, world.sum([1, 2.5])) == (1, True, [1.0, 2.5])


def test_missing_and_invalid_variables_are_refused_by_name(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    with (
        pytest.raises(InputError, match="WORLD_SIZE is 2, but MASTER_ADDR"),
        ranks(torch.device("cpu"), "gloo"),
    ):
        pass
    monkeypatch.setenv("WORLD_SIZE", "two")
    with (
        pytest.raises(InputError, match="WORLD_SIZE must be a whole number, not 'two'"),
        ranks(torch.device("cpu"), "gloo"),
    ):
        pass


def test_waiting_for_other_ranks_ends_after_the_timeout(monkeypatch):
    from datetime import timedelta

    monkeypatch.setattr("weaver.fit.distributed.START_TIMEOUT", timedelta(seconds=1))
    for name, value in {
        "WORLD_SIZE": "2",
        "RANK": "0",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "0",
    }.items():
        monkeypatch.setenv(name, value)
    with (
        pytest.raises(
            ClusterError, match="rank 0 of 2 could not connect to the other ranks at 127"
        ),
        ranks(torch.device("cpu"), "gloo"),
    ):
        pass


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_without_a_gpu_auto_selects_the_cpu_without_a_message(capsys):
    assert select_device("auto") == select_device("") == torch.device("cpu")
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("code", "error_class"), [(74, SystemExit), (75, SystemExit), (1, ChildFailedError)]
)
def test_torchrun_exits_with_the_retryable_exit_code_of_a_rank(
    monkeypatch, tmp_path, code, error_class
):
    failure = ProcessFailure(local_rank=1, pid=1, exitcode=code, error_file="none")

    def fail():
        raise ChildFailedError("train", {1: failure})

    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setenv("PET_LOG_DIR", "")
    monkeypatch.setattr(torchrun.static_tcp_rendezvous, "TCPStore", None)
    monkeypatch.setattr(torchrun.run, "main", fail)
    with pytest.raises((SystemExit, ChildFailedError)) as error:
        torchrun.main()
    assert isinstance(error.value, error_class)
    if error_class is SystemExit:
        assert error.value.code == code
    assert list(tmp_path.iterdir()) == []
