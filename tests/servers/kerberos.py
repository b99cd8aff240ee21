"""A realm of Kerberos of the test's own: a KDC on a free port, configured in a folder."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path

import pytest

from common.machine import free_port
from tests.servers.xrootd import SECONDS

REALM = "JEC.TEST"
SERVICE = f"xrootd/localhost@{REALM}"
PROGRAMS = ("krb5kdc", "kdb5_util", "kadmin.local", "kinit")
FOLDERS = "/usr/sbin:/sbin"  # of the administrator's programs


class Realm:
    """A realm with the service SERVICE and the user `me`."""

    def __init__(self, folder: Path) -> None:
        self._programs = {name: _need(name) for name in PROGRAMS}
        self.folder = folder
        self.port = free_port()
        self.config = folder / "krb5.conf"
        self.keytab = folder / "service.keytab"
        self.config.write_text(
            f"""\
[libdefaults]
default_realm = {REALM}
dns_lookup_kdc = false
dns_lookup_realm = false
dns_canonicalize_hostname = false
rdns = false
udp_preference_limit = 1
clockskew = 1
[realms]
{REALM} = {{
 kdc = 127.0.0.1:{self.port}
}}
[domain_realm]
localhost = {REALM}
"""
        )
        (folder / "kdc.conf").write_text(
            f"""\
[realms]
{REALM} = {{
 kdc_listen = 127.0.0.1:{self.port}
 kdc_tcp_listen = 127.0.0.1:{self.port}
 database_name = {folder / "principal"}
 key_stash_file = {folder / "stash"}
 acl_file = {folder / "acl"}
}}
[logging]
kdc = FILE:{folder / "kdc.log"}
"""
        )
        self._run("kdb5_util", "create", "-s", "-P", os.urandom(16).hex(), "-r", REALM)
        for name, keytab in ((SERVICE, self.keytab), ("me", folder / "me.keytab")):
            self._run("kadmin.local", "-r", REALM, "addprinc", "-randkey", name)
            self._run("kadmin.local", "-r", REALM, "ktadd", "-k", str(keytab), name)
        self._server = subprocess.Popen(
            [self._programs["krb5kdc"], "-n", "-r", REALM],
            env=self.environment(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        self._wait()

    def environment(self, more: Mapping[str, str] | None = None) -> dict[str, str]:
        """The variables of a process that is to know this realm."""
        own = {
            "KRB5_CONFIG": str(self.config),
            "KRB5_KDC_PROFILE": str(self.folder / "kdc.conf"),
            "KRB5RCACHETYPE": "none",
        }
        return os.environ | own | dict(more or {})

    def ticket(self, path: Path, seconds: int) -> Path:
        """A ticket of the user's for so many seconds, in a file."""
        keytab = str(self.folder / "me.keytab")
        self._run("kinit", "-k", "-t", keytab, "-l", f"{seconds}s", "-c", str(path), f"me@{REALM}")
        return path

    def stop(self) -> None:
        self._server.kill()
        self._server.wait(SECONDS)

    def _run(self, name: str, *words: str) -> None:
        process = subprocess.run(
            [self._programs[name], *words],
            env=self.environment(),
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )
        assert process.returncode == 0, f"{name}: {process.stderr}"

    def _wait(self) -> None:
        """Wait until the KDC listens."""
        deadline = time.monotonic() + SECONDS
        while time.monotonic() < deadline and self._server.poll() is None:
            try:
                socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
            except OSError:
                time.sleep(0.02)
            else:
                return
        self.stop()
        pytest.fail(f"krb5kdc does not start: {(self.folder / 'kdc.log').read_text()}")


def _need(name: str) -> str:
    """A program of Kerberos. Where there is none, the test is skipped; with CI=true it fails."""
    program = shutil.which(name, path=f"{os.environ['PATH']}:{FOLDERS}")
    if program is None:
        missing = f"there is no {name}; type: apt-get install krb5-kdc krb5-admin-server krb5-user"
        if os.environ.get("CI") == "true":
            pytest.fail(missing)
        pytest.skip(missing)
    return program
