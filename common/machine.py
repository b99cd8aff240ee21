"""This machine: its processor in words, free ports, and what cores and memory a process may use."""

from __future__ import annotations

import ctypes
import os
import platform
import re
import resource
import socket
from collections.abc import Iterator
from pathlib import Path


def processor() -> tuple[str, list[str]]:
    """Return model and flags of the processor.

    On systems without /proc it is the platform's name for the model, and no flags.
    """
    try:
        fields = dict(
            re.findall(
                r"^(model name|flags)\s*: (.*)$",
                Path("/proc/cpuinfo").read_text(encoding="utf-8"),
                re.MULTILINE,
            )
        )
    except OSError:
        fields = {}
    return (
        fields.get("model name") or platform.processor() or platform.machine(),
        fields.get("flags", "").split(),
    )


def cores() -> int:
    """Return the cores that this process may use.

    Where the system does not say (macOS), all there are.
    """
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def free_port() -> int:
    """Return a TCP port of 127.0.0.1 on which no process listens now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


CGROUPS = Path("/sys/fs/cgroup")
OWN_CGROUPS = Path("/proc/self/cgroup")
OWN_STATUS = Path("/proc/self/status")
UNLIMITED = 2**60  # bytes; cgroup v1 writes a number near 2**63 where nothing is limited


def memory_limit() -> int | None:
    """Return the bytes that the control groups of this process (v2 or v1) let it use.

    None without a limit.

    It is the limit of a container or pod, page cache included.
    """
    return min((limit for limit, _ in _limits()), default=None)


def memory_room() -> int | None:
    """Return the bytes that this process may still allocate; None where nothing limits it.

    Limits are those of its control groups and its own (RLIMIT_AS, RLIMIT_DATA). The page cache of a
    group counts as free, because the kernel takes it back.
    """
    rooms = []
    for limit, folder in _limits():
        rooms.append(limit - _not_reclaimable(folder))
    if OWN_STATUS.exists():
        sizes = dict(
            re.findall(r"^(\w+):\s+(\d+) kB$", OWN_STATUS.read_text(encoding="utf-8"), re.MULTILINE)
        )
        for kind, name in ((resource.RLIMIT_AS, "VmSize"), (resource.RLIMIT_DATA, "VmData")):
            limit = resource.getrlimit(kind)[0]
            if limit != resource.RLIM_INFINITY and name in sizes:
                rooms.append(limit - 1024 * int(sizes[name]))
    return max(min(rooms), 0) if rooms else None


def return_freed_memory() -> None:
    """Return memory that was freed to the system.

    By default glibc keeps freed arrays of up to 32 MB for later ones, and with the settings of
    weaver.fit.allocator all of them. They count for a memory limit, although most of them may never
    be used again. Nothing happens with another C library.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):
        libc.malloc_trim(0)


def _limits() -> Iterator[tuple[int, Path]]:
    """Yield the limit of each control group that has one, and the group's folder."""
    for file in _limit_files():
        try:
            limit = int(file.read_text())
        except (OSError, ValueError):  # no such file, or the word "max"
            continue
        if limit < UNLIMITED:
            yield limit, file.parent


def _not_reclaimable(folder: Path) -> int:
    """Return the bytes of a control group, and those below it, that the kernel cannot take back."""
    try:
        lines = (folder / "memory.stat").read_text().splitlines()
    except OSError:
        return 0
    sizes = {name: int(size) for name, size in (line.split() for line in lines)}
    names = ("anon", "shmem") if "anon" in sizes else ("total_rss", "total_shmem")
    return sum(sizes.get(name, 0) for name in names)


def _limit_files() -> Iterator[Path]:
    """Yield the files of the limits of this process' groups, and of all groups above them."""
    try:
        lines = OWN_CGROUPS.read_text(encoding="utf-8").splitlines()
    except OSError:  # no Linux
        return
    for line in lines:
        _, controllers, group = line.split(":", 2)
        if controllers == "":
            root, name = CGROUPS, "memory.max"
        elif "memory" in controllers.split(","):
            root, name = CGROUPS / "memory", "memory.limit_in_bytes"
        else:
            continue
        # In a container the group's path may be that of the host; its own limit is at the root.
        parts = [part for part in group.split("/") if part]
        for depth in range(len(parts) + 1):
            yield root.joinpath(*parts[:depth], name)
