"""Settings of the C allocator for every process that trains, evaluates or exports on a CPU.

By default glibc maps new pages for each large tensor and returns them to the system when it is
freed. The next step then maps and zeroes them again, which can take longer than the arithmetic.
With these settings tensors are in the heap, whose pages are reused. glibc reads the variables only
at the start of a process, so the parent process must set them. Imports nothing.
"""

from __future__ import annotations

ENVIRONMENT: dict[str, str] = {
    "MALLOC_MMAP_THRESHOLD_": str(4 * 2**30),  # tensors up to 4 GiB come from the heap
    # a heap below 64 GiB is not returned to the system; the process ends with the trial
    "MALLOC_TRIM_THRESHOLD_": str(64 * 2**30),
    "MALLOC_TOP_PAD_": str(64 * 2**20),  # the heap grows in steps of 64 MiB
}


def hint(environment: dict[str, str], platform: str) -> str | None:
    """Return a hint for a user whose process runs without these settings.

    None if they are set, or if the platform is not Linux.
    """
    if platform != "linux" or all(name in environment for name in ENVIRONMENT):
        return None
    settings = " ".join(f"{name}={value}" for name, value in ENVIRONMENT.items())
    return f"hint: training on a CPU is up to twice as fast if you first type: export {settings}"
