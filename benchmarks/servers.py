"""Real servers of S3, XRootD and https on this machine, over one folder of files.

XRootD is Debian's package xrootd-server, which serves https as well. S3 is versitygw where it is
installed (`go install github.com/versity/versitygw/cmd/versitygw@v1.8.0`), else moto, which takes
several times the client's CPU time for a request and so limits the rate.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil

from common.errors import JecError
from common.machine import free_port

START_SECONDS = 30  # a server that does not listen by then has failed
STOP_SECONDS = 10
UNPRIVILEGED = "nobody"  # xrootd refuses to run as root
KEYS = {
    "AWS_ACCESS_KEY_ID": "benchmark",
    "AWS_SECRET_ACCESS_KEY": "benchmark",
    "AWS_DEFAULT_REGION": "us-east-1",
}


@dataclasses.dataclass(frozen=True)
class Server:
    """A running server."""

    name: str
    """Of the program."""
    ports: tuple[int, ...]
    process: int


def cpu_seconds(process: int) -> float:
    """CPU time that a process has taken so far."""
    times = psutil.Process(process).cpu_times()
    return times.user + times.system


@contextlib.contextmanager
def xrootd(data: Path, work: Path) -> Iterator[Server]:
    """XRootD over the folder `data`, as `root://127.0.0.1:<first port>//<file>`.

    The second port is that of https, for the host name localhost. work: a folder of the server's
    own, which then holds ca.pem. Raises JecError where it does not start.
    """
    import trustme

    program = shutil.which("xrootd")
    if program is None:
        raise JecError("there is no xrootd server; type: apt-get install xrootd-server")
    work.mkdir(parents=True, exist_ok=True)
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(work / "ca.pem"))
    certificate = authority.issue_cert("localhost", "127.0.0.1")
    key = work / "server.pem"
    certificate.private_key_and_cert_chain_pem.write_to_path(str(key))
    key.chmod(0o600)
    ports = free_port(), free_port()
    config = work / "xrootd.cfg"
    config.write_text(
        f"""all.export /
oss.localroot {data}
all.adminpath {work}
all.pidpath {work}
xrd.port {ports[0]}
xrd.protocol XrdHttp:{ports[1]} libXrdHttp.so
xrd.tls {key} {key}
xrd.tlsca noverify
http.listingdeny no
"""
    )
    command = [program, "-c", str(config), "-l", str(work / "server.log")]
    if os.geteuid() == 0:
        for path in (work, *work.iterdir()):
            shutil.chown(path, UNPRIVILEGED)
        command += ["-R", UNPRIVILEGED]
    with _running("xrootd", command, work, ports) as server:
        yield server


@contextlib.contextmanager
def s3(work: Path) -> Iterator[Server]:
    """An empty S3 with the keys of KEYS. Raises JecError where it does not start."""
    port = free_port()
    work.mkdir(parents=True, exist_ok=True)
    if program := shutil.which("versitygw"):
        keys = ["--access", KEYS["AWS_ACCESS_KEY_ID"], "--secret", KEYS["AWS_SECRET_ACCESS_KEY"]]
        serve = ["--port", f"127.0.0.1:{port}", "--quiet", "--keep-alive", "posix", str(work)]
        command, name = [program, *keys, *serve], "versitygw"
    else:
        command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
        name = "moto"
    with _running(name, command, work, (port,)) as server:
        yield server


@contextlib.contextmanager
def _running(name: str, command: list[str], work: Path, ports: tuple[int, ...]) -> Iterator[Server]:
    """A server while the block runs, once it listens. Raises JecError where it ends before."""
    with open(work / "output.log", "wb") as log:
        server = subprocess.Popen(command, cwd=work, stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + START_SECONDS
        for port in ports:
            while not _listens(port):
                if server.poll() is not None or time.monotonic() > deadline:
                    logs = [path.read_text(errors="replace")[-1000:] for path in _logs(work)]
                    raise JecError(f"{command[0]} does not listen on port {port}: {logs}")
                time.sleep(0.05)
        yield Server(name, ports, server.pid)
    finally:
        server.send_signal(signal.SIGTERM)
        try:
            server.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


def _logs(work: Path) -> list[Path]:
    """The files that the server in this folder has written its messages to."""
    return sorted(work.rglob("*.log")) + sorted(work.rglob("log"))


def _listens(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False
