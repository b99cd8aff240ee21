"""Create the private folder of each model server, and list the running servers.

Triton's Python backend puts paths into a shell command without quoting them, so that a blank or a
`$` in a run's path would break it. Each server therefore gets a folder with a plain name below the
system's temporary folder. In it, local models are links, and models on S3 are copies.

    <temporary folder>/jec-server-<uid>-<random>/
        lock           held by the server and its children as long as one of them lives
        server.json    what is served where
        repository/    NAME -> the model's folder
        backends/, lib/, python_env_*/

The name of the folder is the server's identity, and the prefix of its shared memory. A folder that
no process locks was left by a killed server: `remove_abandoned` removes it with its shared memory.
That happens at each start and stop of a server, and in `--resume` and `--down`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import os
import re
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from common import pids, storage
from common.errors import InputError
from common.exported_model import check_model
from common.storage import space

PLAIN = re.compile(r"[-\w./]+", re.ASCII)  # characters that mean nothing to a shell
SHARED_MEMORY = Path("/dev") / "shm"
NEW_SECONDS = 60.0
"""A folder this young is kept even without a lock; it gets its lock within milliseconds."""
_FALLBACKS = ("/tmp", "/var/tmp")  # noqa: S108  # mkdtemp makes a folder that only the user can read


@dataclasses.dataclass(frozen=True, kw_only=True)
class ServerFolder:
    """The folder of one server, locked."""

    path: Path
    lock: int
    """File descriptor; the server inherits it."""

    @property
    def identity(self) -> str:
        """The unique name of the server."""
        return self.path.name

    @property
    def repository(self) -> Path:
        """Folder of the models that the server loads."""
        return self.path / "repository"

    def add_models(self, models: Mapping[str, str]) -> None:
        """Link these models, name -> folder, into the repository; copy those elsewhere.

        Raises InputError where there is nothing at an address, or another model than was exported,
        and StorageError.
        """
        self.repository.mkdir()
        for name, uri in models.items():
            place = self.repository / name
            onnx = storage.join(storage.absolute(uri), "1", "model.onnx")
            copy = onnx
            if storage.is_local(uri):
                if not storage.exists(uri):
                    raise InputError(f"the model {name} is no longer at {uri}; put it back there")
                place.symlink_to(storage.absolute(uri), target_is_directory=True)
            else:
                storage.download(uri, place)
                copy = str(place / "1" / "model.onnx")
            # Triton also takes a folder of this name, with the weights in files of their own.
            if storage.exists(copy) and not os.path.isdir(copy):
                check_model(onnx, storage.read_bytes(copy))

    def record(self, running: Running) -> None:
        """Record what the server serves."""
        storage.write_json(str(self.path / "server.json"), dataclasses.asdict(running))

    def leave(self) -> None:
        """Leave the folder to the server, or to the next clean-up if no server was started."""
        os.close(self.lock)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Running:
    """A server that runs on this machine."""

    pid: int
    url: str
    models: dict[str, str]
    """Name -> the folder or s3:// URI that it was loaded from."""
    owner: int | None = None
    """pid of the command that restarts the server and ends it; None for a server without one."""

    @property
    def pid_to_kill(self) -> int:
        """The process whose end is the end of the server."""
        return self.pid if self.owner is None else self.owner


def create() -> ServerFolder:
    """Make a locked folder for a new server, after removing those that are abandoned.

    Raises FullDiskError.
    """
    remove_abandoned()
    with space.catch_full_disk(space.temporary_folder()):
        path = Path(tempfile.mkdtemp(prefix=_prefix(), dir=_parent()))
        space.add_removed_folder(path)
        lock = os.open(path / "new-lock", os.O_RDWR | os.O_CREAT, 0o600)
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # it appears as `lock` once it is held, so that nobody takes the folder for an abandoned one
        os.rename(path / "new-lock", path / "lock")
    return ServerFolder(path=path, lock=lock)


def remove_abandoned() -> None:
    """Remove folders and shared memory of servers of this user that have ended."""
    for path in _folders():
        if not _in_use(path):
            remove_shared_memory(path.name)
            _remove(path)


def _remove(path: Path) -> None:
    """Remove a folder, its lock last, so that a removal that was interrupted is repeated."""
    with contextlib.suppress(OSError):  # another process removes it too
        for entry in path.iterdir():
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry, ignore_errors=True)
            elif entry.name != "lock":
                entry.unlink()
    shutil.rmtree(path, ignore_errors=True)


def remove_shared_memory(identity: str) -> None:
    """Remove the shared memory of a server that was killed."""
    for region in SHARED_MEMORY.glob(f"{identity}*"):
        with contextlib.suppress(OSError):  # gone meanwhile, or another user's of that name
            region.unlink()


def running() -> Iterator[Running]:
    """Yield the servers of this user that run on this machine."""
    for path in _folders():
        # a server that is being started has none yet, and one may end while it is looked at
        with contextlib.suppress(OSError, ValueError, TypeError, RecursionError):
            record = Running(**json.loads((path / "server.json").read_text()))
            # a killed server's helper processes hold its lock for another moment
            if _in_use(path) and pids.is_alive(record.pid):
                yield record


def _in_use(path: Path) -> bool:
    """Return whether a process holds the lock of a folder."""
    try:
        lock = os.open(path / "lock", os.O_RDWR)
    except FileNotFoundError:
        # Another process is making the folder at this moment, or was killed while it removed it.
        with contextlib.suppress(FileNotFoundError):
            return time.time() - path.stat().st_mtime < NEW_SECONDS
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(lock)
    return False


def _folders() -> list[Path]:
    """Return the folders of this user, not those of the same name that another user made."""
    folders = []
    for path in Path(_parent()).glob(f"{_prefix()}*"):
        with contextlib.suppress(FileNotFoundError):
            status = path.lstat()
            if stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid():
                folders.append(path)
    return folders


def _prefix() -> str:
    return f"jec-server-{os.getuid()}-"


def _parent() -> str:
    """Return the temporary folder, or another one if its name has special characters."""
    for folder in (tempfile.gettempdir(), *_FALLBACKS):
        if PLAIN.fullmatch(folder) and os.access(folder, os.W_OK):
            return folder
    raise InputError(
        f"a model server needs a temporary folder with a plain name; {tempfile.gettempdir()} has"
        " other characters than letters, digits, '-', '_', '.' and '/': set TMPDIR"
    )
