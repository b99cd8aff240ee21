"""Settings of the C allocator for every process that trains, evaluates or exports on a CPU.

glibc gives each large tensor pages of its own and hands them back to the system when it is freed;
the next step faults them in again, zeroed, which can take longer than the arithmetic. Kept in the
heap, the same pages serve every step. glibc reads these variables only when a process starts, so
whoever starts it sets them. Imports nothing.
"""

from __future__ import annotations

ENVIRONMENT: dict[str, str] = {
    "MALLOC_MMAP_THRESHOLD_": str(4 * 2**30),  # tensors up to 4 GiB come from the heap
    # and a heap below 64 GiB is never handed back: the process ends with the trial
    "MALLOC_TRIM_THRESHOLD_": str(64 * 2**30),
    "MALLOC_TOP_PAD_": str(64 * 2**20),  # the heap grows in steps of 64 MiB
}


def hint(environment: dict[str, str], platform: str) -> str | None:
    """The line to show a user whose process runs without these settings.

    None where they are set or unknown to the system.
    """
    if platform != "linux" or all(name in environment for name in ENVIRONMENT):
        return None
    settings = " ".join(f"{name}={value}" for name, value in ENVIRONMENT.items())
    return (
        f"hint: training on a CPU is up to twice as fast if the shell says first: export {settings}"
    )
