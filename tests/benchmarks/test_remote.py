"""The delaying proxy, and one measured run on each of the benchmark's servers."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest

from benchmarks import proxy as proxy_module
from benchmarks import remote
from benchmarks.measure import Spread
from benchmarks.proxy import Counts, Proxy, ProxyProcess
from common.errors import InputError
from tests.servers.xrootd import need_program
from tests.weaver.conftest import DATA, synthetic_jets, write_jets


@contextlib.contextmanager
def echo_server():
    """A server that sends back what it gets, until its client ends; gives its port."""
    listener = socket.create_server(("127.0.0.1", 0))

    def echo(connection):
        with connection:
            while data := connection.recv(2**16):
                connection.sendall(data)

    def serve():
        with contextlib.suppress(OSError):  # closed below
            while True:
                threading.Thread(target=echo, args=(listener.accept()[0],), daemon=True).start()

    threading.Thread(target=serve, daemon=True).start()
    try:
        yield listener.getsockname()[1]
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()


def all_bytes_of(connection):
    parts = []
    while part := connection.recv(2**16):
        parts.append(part)
    return b"".join(parts)


@pytest.mark.parametrize("start", [Proxy, ProxyProcess])
def test_the_proxy_delays_counts_and_does_not_change_bytes(start):
    delay = 0.1
    with echo_server() as port, start(port, delay) as proxy:
        with socket.create_connection(("127.0.0.1", proxy.port)) as connection:
            start_time = time.monotonic()
            connection.sendall(b"a" * 1000)
            assert connection.recv(2000) == b"a" * 1000
            assert time.monotonic() - start_time >= 2 * delay
            connection.sendall(b"b" * 500)
            assert connection.recv(2000) == b"b" * 500
            connection.shutdown(socket.SHUT_WR)
            assert all_bytes_of(connection) == b""
        counts = proxy.counts if start is Proxy else proxy.take_counts()
        assert counts == Counts(received=1500, sent=1500, connections=1, requests=2)
        if start is ProxyProcess:
            assert proxy.take_counts() == Counts()


def test_the_delay_takes_no_bandwidth():
    content = os.urandom(30_000_000)
    with echo_server() as port, Proxy(port, 0.05) as proxy:
        with socket.create_connection(("127.0.0.1", proxy.port)) as connection:
            sender = threading.Thread(
                target=lambda: (connection.sendall(content), connection.shutdown(socket.SHUT_WR))
            )
            sender.start()
            assert all_bytes_of(connection) == content
            sender.join()
        assert proxy.counts.received == proxy.counts.sent == len(content)
        assert proxy.counts.connections == 1


def test_with_all_pipes_in_use_further_bytes_are_copied(monkeypatch):
    monkeypatch.setattr(proxy_module, "PIPES", 1)
    content = os.urandom(3_000_000)
    with echo_server() as port, Proxy(port, 0.05) as proxy:
        with socket.create_connection(("127.0.0.1", proxy.port)) as connection:
            sender = threading.Thread(
                target=lambda: (connection.sendall(content), connection.shutdown(socket.SHUT_WR))
            )
            sender.start()
            assert all_bytes_of(connection) == content
            sender.join()
        assert proxy.counts.received == proxy.counts.sent == len(content)


def test_client_and_servers_have_cores_of_their_own(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {5, 2, 7})
    apart = remote.Cores.divided(remote.APART)
    assert (apart.client, apart.servers) == ({2}, {5, 7})
    shared = remote.Cores.divided(remote.SHARED)
    assert shared.client == shared.servers == {2, 5, 7}
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0})
    with pytest.raises(InputError, match="--cores"):
        remote.Cores.divided(remote.APART)


def test_processes_of_servers_run_on_their_cores():
    before = os.sched_getaffinity(0)
    cores = remote.Cores(client=frozenset(before), servers=frozenset([max(before)]))
    with cores.for_servers():
        command = [sys.executable, "-c", "import os; print(os.sched_getaffinity(0))"]
        process = subprocess.run(command, capture_output=True, text=True, check=True)
    assert process.stdout.strip() == f"{{{max(before)}}}"
    assert os.sched_getaffinity(0) == before


def test_the_busy_share_is_that_of_server_and_proxy_on_their_cores():
    cores = remote.Cores(client=frozenset([0]), servers=frozenset([1, 2]))
    place = remote.Place("s3", 20, "s3://jets", [], {}, cores)
    answer = {"cpu": 10.0, "server_cpu": 3.0, "proxy_cpu": 2.0, "seconds": 10.0}
    assert remote.busy_share(place, answer) == 0.25


def test_a_closed_proxy_cuts_its_connections():
    with echo_server() as port, Proxy(port) as proxy:
        with socket.create_connection(("127.0.0.1", proxy.port)) as connection:
            connection.sendall(b"a")
            assert connection.recv(10) == b"a"
            proxy.close()
            with contextlib.suppress(ConnectionResetError):
                assert connection.recv(10) == b""
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", proxy.port))


@pytest.fixture
def open_folder():
    """A folder that the server's user may enter, which pytest's are not."""
    with tempfile.TemporaryDirectory(prefix="jec-remote-") as folder:
        path = Path(folder)
        path.chmod(0o755)
        yield path


@pytest.mark.slow
def test_each_contender_runs_on_each_server(open_folder):
    need_program()
    names = ["jets_0.root", "jets_1.root"]
    for seed, name in enumerate(names):
        write_jets(open_folder / "data" / name, synthetic_jets(2000, seed), basket=2000)
    config = str(DATA / "jec_pfn_open.yaml")
    cores = remote.Cores.divided(remote.SHARED)
    with remote.places(names, [0.0], list(remote.DISTANT), open_folder, cores) as (servers, _):
        comparison = remote.Comparison(servers, list(remote.CONTENDERS), config, str(open_folder))
        for place in servers:
            source = remote.UPROOT_SOURCES[place.where][0]
            comparison.best[place.where] = {"source": source, "files_at_a_time": 1}
        runs = {name: [run()] for name, run in comparison.contenders(servers).items()}
    assert len(runs) == len(servers) * len(remote.CONTENDERS) == 12
    for key, (answer,) in comparison.answers.items():
        assert answer["jets"] == 4000, key
        assert 0 < answer["cpu"] < 60, key
        if not key.startswith(remote.DISK):
            assert 0.9 < answer["received"] / comparison.needed["bytes"] < 1.3, key
            assert answer["requests"] >= len(names), key
            assert answer["server_cpu"] >= 0, key
            assert answer["proxy_cpu"] >= 0, key
    for place in servers:
        row = comparison.row(place, remote.OURS, runs)
        assert row[2] == Spread.of(runs[f"{place.name}: {remote.OURS}"]).text()
