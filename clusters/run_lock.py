"""The lock of a run, with which at most one process runs it, and its holder.

The lock has two parts. On disk it is flock on `<run>/local/lock`, which the kernel releases however
its holder ends, and `pipeline.json` beside it, which names the holder. If the results lie in a
storage that several machines share, an object `lock.json` in the folder of the run names the holder
as well. It is created by a conditional write. The holder renews it, so that a lock that is no
longer renewed belongs to a process that has ended.
"""

from __future__ import annotations

import dataclasses
import fcntl
import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path

from common import storage
from common.errors import InputError, JecError
from common.pids import start_time

OWNER = "pipeline.json"  # file below <run>/local that names the process that runs it
LOCK = "lock"  # file beside it, which that process locks
REMOTE = "lock.json"  # object below <run> in a remote storage
RENEWAL_SECONDS = 20.0
STALE_SECONDS = 120.0
"""A lock of another machine is stale if it was not renewed for so long."""
READ_BACK_SECONDS = 2.0
"""If two processes write at once without conditions, both have finished after this time."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Holder:
    """The process that holds a lock."""

    pid: int
    host: str = ""
    started: str = ""
    """Start time of the process by psutil, which together with the pid identifies it."""
    renewed: float = 0.0
    """Unix time."""
    token: str = ""

    @classmethod
    def this_process(cls) -> Holder:
        """Return a record of this process."""
        return cls(
            pid=os.getpid(),
            host=socket.gethostname(),
            started=start_time(os.getpid()),
            renewed=time.time(),
            token=secrets.token_hex(8),
        )

    @classmethod
    def from_json(cls, values: object) -> Holder | None:
        """Return the holder of a record; None if the record is invalid, as in a truncated file."""
        try:
            holder = cls(**values)  # type: ignore[arg-type]
        except TypeError:
            return None
        has_texts = all(
            isinstance(text, str) for text in (holder.host, holder.started, holder.token)
        )
        has_numbers = isinstance(holder.pid, int) and isinstance(holder.renewed, int | float)
        return holder if has_texts and has_numbers else None

    @property
    def is_here(self) -> bool:
        """Whether the holder runs on this machine."""
        return self.host in ("", socket.gethostname())

    @property
    def is_alive(self) -> bool:
        """Whether the process runs; on another machine: whether it recently renewed its lock."""
        if self.is_here:
            return bool(self.started) and start_time(self.pid) == self.started
        return time.time() - self.renewed < STALE_SECONDS

    def __str__(self) -> str:
        """Return the process, its machine and its start time."""
        since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(_seconds(self.started)))
        return f"process {self.pid} on {self.host or socket.gethostname()}, which began at {since}"


class RunLock:
    """The lock of one run."""

    def __init__(self, run_id: str, folder: Path, remote: str = "") -> None:
        """Use a lock file, and an object in a remote storage.

        Args:
            run_id: The run.
            folder: <run>/local on this machine.
            remote: Folder of the run in a remote storage; empty without one.
        """
        self.run_id = run_id
        self._folder = folder
        self._remote = storage.join(remote, REMOTE) if remote else ""
        self._holder = Holder.this_process()
        self._file = -1
        self._has_remote = False
        self._release_event = threading.Event()

    def take(self, report: Callable[[str], None]) -> None:
        """Take the lock, also from a holder that has ended.

        Raises:
            InputError: If another process holds it; the error names the process.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        before = read_owner(self._folder)
        self._file = os.open(self._folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise self._refusal(before) from None
            # machines may share a disk, but not its locks
            if before is not None and not before.is_here and before.is_alive:
                raise self._refusal(before)
            if before is not None:
                report(f"{before} ran {self.run_id} and has ended: its lock is taken over")
            self._write_owner()
            if self._remote:
                self._take_remote(report)
        except BaseException:
            self.release()
            raise
        threading.Thread(target=self._renew, daemon=True).start()

    def release(self) -> None:
        """Release the lock; no error if it is not held."""
        self._release_event.set()
        if self._has_remote:
            self._has_remote = False
            try:
                if _read_remote(self._remote, self._holder.token) is not None:
                    storage.delete(self._remote)
            except JecError:
                pass  # it becomes stale
        if self._file >= 0:
            owner_file = self._folder / OWNER
            mine = read_owner(self._folder)
            if mine is not None and mine.token == self._holder.token:
                owner_file.unlink(missing_ok=True)
            # The file itself stays, since another process may have opened it to lock it next.
            os.close(self._file)
            self._file = -1

    def _take_remote(self, report: Callable[[str], None]) -> None:
        before = _read_remote(self._remote)
        if before is not None:
            if before.is_alive:
                raise self._refusal(before)
            report(f"{before} ran {self.run_id} and has ended: {self._remote} is taken over")
            storage.delete(self._remote)
        is_mine = storage.create(self._remote, self._content())
        if is_mine is None:
            report(
                f"note: the storage makes no conditional writes, so {self._remote} is written and"
                " read back: start no second command for this run at the same moment"
            )
            storage.write_bytes(self._remote, self._content())
            time.sleep(READ_BACK_SECONDS)
        after = _read_remote(self._remote)
        # Compared by the token, so that a write that was repeated after a lost answer counts.
        if after is None or after.token != self._holder.token:
            raise self._refusal(after)
        self._has_remote = True

    def _renew(self) -> None:
        """Renew the records until the lock is released."""
        while not self._release_event.wait(RENEWAL_SECONDS):
            try:
                self._write_owner()
                if self._has_remote:
                    storage.write_bytes(self._remote, self._content())
            except (OSError, JecError):
                continue  # the next one may succeed

    def _content(self) -> bytes:
        holder = dataclasses.replace(self._holder, renewed=time.time())
        return json.dumps(dataclasses.asdict(holder)).encode()

    def _write_owner(self) -> None:
        storage.write_bytes(str(self._folder / OWNER), self._content())

    def _refusal(self, holder: Holder | None) -> InputError:
        who = holder or "another process"
        return InputError(
            f"run {self.run_id} is being run by {who}; nothing was changed. Wait for its end, or"
            f" end it: python pipeline.py --down {self.run_id}"
        )


def read_owner(folder: Path) -> Holder | None:
    """Return the recorded owner of the run with this local folder; None without a record."""
    try:
        return Holder.from_json(json.loads((folder / OWNER).read_text()))
    except (OSError, ValueError, RecursionError):
        return None


def owner(folder: Path) -> int | None:
    """Return the pid of the process that runs the run; None if it has ended.

    The record alone proves nothing, because it may be old, copied or forged. So the process must
    have the start time of the record, and this lock file open.
    """
    holder = read_owner(folder)
    if holder is None or not holder.is_here or not holder.is_alive:
        return None
    return holder.pid if _has_open(holder.pid, folder / LOCK) else None


def _has_open(pid: int, path: Path) -> bool:
    try:
        lock_status = os.stat(path)
        for name in os.listdir(f"/proc/{pid}/fd"):
            try:
                status = os.stat(f"/proc/{pid}/fd/{name}")
            except OSError:
                continue  # closed meanwhile
            if (status.st_dev, status.st_ino) == (lock_status.st_dev, lock_status.st_ino):
                return True
    except OSError:
        return False
    return False


def _read_remote(uri: str, token: str = "") -> Holder | None:
    """Return the holder that an object names; with a token, only the holder with this token."""
    if not storage.exists(uri):
        return None
    try:
        holder = Holder.from_json(storage.read_json(uri))
    except InputError:
        return None
    if holder is not None and token and holder.token != token:
        return None
    return holder


def _seconds(text: str) -> float:
    """Return Unix time from its text; 0 for another text, and for more than a date can hold."""
    try:
        time.localtime(float(text))
    except (ValueError, OverflowError, OSError):
        return 0.0
    return float(text)
