"""A real Kubernetes API server with its etcd, without controllers, kubelet or scheduler.

It is what envtest of Kubernetes' controller-runtime starts: KUBEBUILDER_ASSETS names the folder of
the programs `kube-apiserver` and `etcd`.

    with ApiServer(folder) as server:
        server.kubeconfig(path, "admin", namespace="physics")
"""

from __future__ import annotations

import ctypes
import io
import os
import signal
import socket
import ssl
import subprocess
import tarfile
import time
import urllib.error
import urllib.request
from pathlib import Path

import yaml
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

ASSETS = "KUBEBUILDER_ASSETS"
PROGRAMS = ("etcd", "kube-apiserver")
CRDS = Path(__file__).parent / "crds" / "crds.tar.xz"
START_SECONDS = 120.0
PR_SET_PDEATHSIG = 1  # linux/prctl.h

# user -> its groups; the token of each is its own name
USERS = {
    "admin": ["system:masters"],
    "system:serviceaccount:physics:default-editor": [
        "system:serviceaccounts",
        "system:serviceaccounts:physics",
        "system:authenticated",
    ],
    "nobody": ["system:authenticated"],
}


def programs() -> dict[str, Path]:
    """The programs of KUBEBUILDER_ASSETS. Raises RuntimeError with what is missing."""
    folder = os.environ.get(ASSETS)
    if not folder:
        raise RuntimeError(
            f"{ASSETS} is not set: give the folder of {' and '.join(PROGRAMS)}, as"
            " `setup-envtest use -p path` prints it"
        )
    programs = {name: Path(folder) / name for name in PROGRAMS}
    missing = [name for name, path in programs.items() if not os.access(path, os.X_OK)]
    if missing:
        raise RuntimeError(f"{ASSETS}={folder} has no program {' and no '.join(missing)}")
    return programs


def definitions() -> list[dict]:
    """The vendored custom resource definitions."""
    documents = []
    with tarfile.open(CRDS) as archive:
        for member in archive.getmembers():
            content = archive.extractfile(member)
            assert content is not None, member.name
            text = io.TextIOWrapper(content, "utf-8")
            documents += [
                document for document in yaml.load_all(text, yaml.CSafeLoader) if document
            ]
    return documents


class ApiServer:
    """The two processes, on free ports of 127.0.0.1, with all their files in one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._programs = programs()
        self._processes: list[subprocess.Popen] = []
        self.url = ""

    def __enter__(self) -> ApiServer:
        try:
            self._start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        """End both and wait for it: the API server first, which would complain of a lost etcd."""
        for process in reversed(self._processes):
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._processes.clear()

    def kubeconfig(self, path: Path, user: str, *, namespace: str) -> Path:
        """Write a kubeconfig of one of USERS."""
        cluster = {
            "server": self.url,
            "certificate-authority": str(self.folder / "certs" / "apiserver.crt"),
        }
        content = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "test", "cluster": cluster}],
            "users": [{"name": user, "user": {"token": user}}],
            "contexts": [
                {
                    "name": "test",
                    "context": {"cluster": "test", "user": user, "namespace": namespace},
                }
            ],
            "current-context": "test",
        }
        path.write_text(yaml.safe_dump(content))
        return path

    def _start(self) -> None:
        client, peer, port = free_ports(3)
        etcd, self.url = f"http://127.0.0.1:{client}", f"https://127.0.0.1:{port}"
        self._run(
            "etcd",
            f"--data-dir={self.folder / 'etcd'}",
            f"--listen-client-urls={etcd}",
            f"--advertise-client-urls={etcd}",
            f"--listen-peer-urls=http://127.0.0.1:{peer}",
            "--unsafe-no-fsync",
        )
        key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        key_file = self.folder / "accounts.key"
        key_file.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.TraditionalOpenSSL,
                serialization.NoEncryption(),
            )
        )
        tokens = self.folder / "tokens.csv"
        tokens.write_text(
            "".join(f'{user},{user},{user},"{",".join(USERS[user])}"\n' for user in USERS)
        )
        self._run(
            "kube-apiserver",
            f"--etcd-servers={etcd}",
            "--bind-address=127.0.0.1",
            "--advertise-address=127.0.0.1",
            f"--secure-port={port}",
            f"--cert-dir={self.folder / 'certs'}",  # it makes its own certificate there
            f"--token-auth-file={tokens}",
            "--authorization-mode=RBAC",
            "--allow-privileged=true",
            "--service-cluster-ip-range=10.0.0.0/24",
            "--service-account-issuer=https://test",
            f"--service-account-key-file={key_file}",
            f"--service-account-signing-key-file={key_file}",
            # Without its controller no namespace gets an account.
            "--disable-admission-plugins=ServiceAccount",
            "--enable-admission-plugins=OwnerReferencesPermissionEnforcement",
        )
        self._wait_until_ready()

    def _run(self, name: str, *arguments: str) -> None:
        with (self.folder / f"{name}.log").open("wb") as log:
            process = subprocess.Popen(
                [self._programs[name], *arguments],
                stdout=log,
                stderr=log,
                cwd=self.folder,
                preexec_fn=die_with_parent,  # noqa: PLW1509 (no thread has been started yet)
            )
        self._processes.append(process)

    def _wait_until_ready(self) -> None:
        certificate = self.folder / "certs" / "apiserver.crt"
        end, last = time.monotonic() + START_SECONDS, ""
        while time.monotonic() < end:
            for process in self._processes:
                if process.poll() is not None:
                    raise RuntimeError(f"{process.args[0]} ended:\n{self._last_lines()}")
            try:
                context = ssl.create_default_context(cafile=certificate)
                request = urllib.request.Request(
                    f"{self.url}/readyz", headers={"Authorization": "Bearer admin"}
                )
                opener = urllib.request.build_opener(
                    urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context)
                )
                with opener.open(request, timeout=5):
                    return
            except (OSError, urllib.error.URLError) as error:
                last = str(error)
            time.sleep(0.2)
        raise RuntimeError(
            f"the API server was not ready in {START_SECONDS:g} s ({last}):\n{self._last_lines()}"
        )

    def _last_lines(self) -> str:
        lines = []
        for path in sorted(self.folder.glob("*.log")):
            lines += [f"{path.name}: {line}" for line in path.read_text().splitlines()[-5:]]
        return "\n".join(lines)


def free_ports(number: int) -> list[int]:
    """Ports of 127.0.0.1 on which no process listens."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(number)]
    ports = [listener.getsockname()[1] for listener in sockets]
    for listener in sockets:
        listener.close()
    return ports


def die_with_parent() -> None:
    """Let the kernel end a process when the one that started it is killed."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
