"""A real XRootD server (Debian's xrootd-server) on a free port, for tests."""

from __future__ import annotations

import dataclasses
import os
import pwd
import re
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path

import pytest

from common.machine import free_port

SECONDS = 20
ATTEMPTS = 3
USER = "nobody"  # the server refuses to run as root


@dataclasses.dataclass
class Server:
    """A running server: what lies in `data` is at `uri`/NAME."""

    process: subprocess.Popen
    port: int
    data: Path
    log: Path

    @property
    def uri(self) -> str:
        return f"root://localhost:{self.port}/"

    def kill(self) -> None:
        """End it at once, in the middle of whatever it does."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(SECONDS)

    def remove(self) -> None:
        """End it, and remove its folder."""
        self.kill()
        shutil.rmtree(self.data.parent)


def need_program() -> str:
    """The server's program. Where there is none, the test is skipped; with CI=true it fails."""
    program = shutil.which("xrootd")
    if program is None:
        missing = "there is no xrootd; type: apt-get install xrootd-server"
        if os.environ.get("CI") == "true":
            pytest.fail(missing)
        pytest.skip(missing)
    return program


def own(*paths: Path) -> None:
    """Give files to the server's user, where the test is root."""
    if os.getuid() == 0:
        user = pwd.getpwnam(USER)
        for path in paths:
            os.chown(path, user.pw_uid, user.pw_gid)


def start(*directives: str, port: int = 0, environment: dict[str, str] | None = None) -> Server:
    """Start a server on a new folder, with further lines of its configuration and variables."""
    program = need_program()
    # Not pytest's folder: the server's user must not enter that.
    folder = Path(tempfile.mkdtemp(prefix="jec-xrootd-"))
    port = port or free_port()
    for name in ("data", "admin"):
        (folder / name).mkdir(exist_ok=True)
    lines = [
        f"xrd.port {port}",
        "all.export /",
        f"oss.localroot {folder / 'data'}",
        f"all.adminpath {folder / 'admin'}",
        f"all.pidpath {folder / 'admin'}",
        *directives,
    ]
    (folder / "xrootd.cfg").write_text("\n".join(lines) + "\n")
    log = folder / "xrootd.log"
    command = [program, "-c", str(folder / "xrootd.cfg"), "-l", str(log)]
    own(folder, *folder.rglob("*"))
    if os.getuid() == 0:
        command += ["-R", USER]
    for _ in range(ATTEMPTS):
        log.unlink(missing_ok=True)
        process = subprocess.Popen(
            command,
            env=os.environ | (environment or {}),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        server = Server(process=process, port=port, data=folder / "data", log=log)
        log_text = _wait_for(server)
        if log_text is None:
            return server
        # Its threads race for its environment while it starts (seen with 5.5.3, in getenv).
        if process.poll() != -signal.SIGSEGV:
            break
    server.remove()
    pytest.fail(f"xrootd does not start: {log_text[-2000:]}")


def _wait_for(server: Server) -> str | None:
    """Wait until the server says that it is ready: it opens its port before.

    Returns None, or what a server says that did not get ready.
    """
    deadline = time.monotonic() + SECONDS
    log_text = ""
    while time.monotonic() < deadline and server.process.poll() is None:
        log_text = server.log.read_text() if server.log.exists() else ""
        end = re.search(
            r"^------ xrootd .* initialization (completed|failed)", log_text, re.MULTILINE
        )
        if end and end[1] == "completed":
            return None
        if end:
            break
        time.sleep(0.02)
    return log_text
