"""Watch a run's processes for what other users can see: their arguments and their ports."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import sys
import threading
from pathlib import Path

import psutil

from clusters.orphans import FOLDER_VARIABLE

SECONDS = 0.3  # between two looks


def listening(pid: int) -> set[str]:
    """The addresses on which a process listens, such as 127.0.0.1."""
    sockets = set()
    for link in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            sockets.add(os.readlink(link))
    addresses = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
            words = line.split()
            if words[3] == "0A" and f"socket:[{words[9]}]" in sockets:  # LISTEN
                addresses.add(_address(words[1].split(":")[0]))
    return addresses


def _address(digits: str) -> str:
    """The address that the kernel writes as words of 32 bits in the machine's byte order."""
    words = [digits[start : start + 8] for start in range(0, len(digits), 8)]
    content = b"".join(int(word, 16).to_bytes(4, sys.byteorder) for word in words)
    address = ipaddress.ip_address(content)
    return str(getattr(address, "ipv4_mapped", None) or address)


class Watch(threading.Thread):
    """Look at all processes of the runs below a folder, again and again, until the block ends."""

    def __init__(self, folder: Path) -> None:
        super().__init__(daemon=True)
        self.arguments: set[str] = set()
        self.addresses: set[str] = set()
        self._folder = str(folder.resolve())
        self._is_over = threading.Event()

    def __enter__(self) -> Watch:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        self.join()

    def run(self) -> None:
        while not self._is_over.wait(SECONDS):
            for process in psutil.process_iter():
                # A process may end while it is looked at.
                with contextlib.suppress(psutil.Error, OSError):
                    line = " ".join(process.cmdline())
                    own = process.environ().get(FOLDER_VARIABLE) == self._folder
                    if own or (self._folder in line and process.pid != os.getpid()):
                        self.arguments.add(line)
                        self.addresses |= listening(process.pid)
