"""How many jets one execution may hold, by ONNX Runtime's peak memory.

It is measured in a process of its own:

    memory = measure_memory("model.onnx", {"pf_features": ("float32", [13, 64]), ...})
    memory.batch_size(budget=2**30)  # the largest power of two that stays within 1 GiB

A process grows and rarely shrinks (ONNX Runtime keeps what it once took), so what counts is the
peak: VmHWM of /proc/self/status after each of a few rising batch sizes, less what it was before the
first. Neither psutil nor resource has that number (ru_maxrss is passed on by the process that
started this one). The same program is run as

    python -m weaver.memory model.onnx '{"pf_features": ["float32", [13, 64]]}'
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from common.errors import GateError
from common.project import ROOT

# jets; rising, because a peak never falls. The largest is a second's work for a ParticleNet on two
# cores.
SIZES = (16, 64, 256)
# jets: the gate has compared 1000 at once, larger batches are no faster, and a client sends several
# requests
MOST = 1024
# bytes for one model: two of them and the server fit in the 4 GiB that the service asks for
BUDGET = 2**30
SECONDS = 300.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Memory:
    """Peak growth in bytes at each batch size."""

    sizes: tuple[int, ...]
    growth: tuple[int, ...]

    @property
    def bytes_per_jet(self) -> int:
        """Bytes by the largest batch, and never below the slope to it."""
        # in the largest batch, what does not depend on the size weighs least
        slope = (self.growth[-1] - self.growth[0]) / (self.sizes[-1] - self.sizes[0])
        return round(max(self.growth[-1] / self.sizes[-1], slope, 1))

    def batch_size(self, budget: int = BUDGET, most: int = MOST) -> int:
        """The largest power of two, from 1 to `most`, that takes no more than `budget` bytes."""
        fits = max(min(budget // self.bytes_per_jet, most), 1)
        return 1 << (fits.bit_length() - 1)

    def asdict(self) -> dict[str, object]:
        """Return the fields and the bytes of a jet, for JSON."""
        return {**dataclasses.asdict(self), "bytes_per_jet": self.bytes_per_jet}


def measure_memory(
    onnx_path: str | os.PathLike,
    inputs: Mapping[str, tuple[str, Sequence[int]]],
    sizes: Sequence[int] = SIZES,
) -> Memory:
    """Measure an ONNX file.

    inputs: {name: (numpy type, shape of one jet)}. Raises GateError where ONNX Runtime cannot run
    it.
    """
    described = json.dumps({name: [kind, list(shape)] for name, (kind, shape) in inputs.items()})
    program = [sys.executable, "-m", "weaver.onnx.memory"]
    # the process must find this project wherever it is started
    path = str(ROOT)
    if others := os.environ.get("PYTHONPATH"):
        path += os.pathsep + others
    done = subprocess.run(
        [*program, os.fspath(onnx_path), described, *map(str, sizes)],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise GateError(
            f"{onnx_path} cannot be run in batches of up to {max(sizes)} jets: {lines[-1]}"
        )
    return Memory(sizes=tuple(sizes), growth=tuple(json.loads(done.stdout)))


def peak_bytes() -> int:
    """The largest resident memory that this process has had.

    Raises GateError on a system that does not count it (other than Linux).
    """
    status = Path("/proc/self/status")
    peak = re.search(r"VmHWM:\s+(\d+) kB", status.read_text()) if status.exists() else None
    if peak is None:
        raise GateError(f"{status} has no VmHWM, by which a model's memory is measured")
    return int(peak[1]) * 1024


def main(argv: list[str] | None = None) -> int:
    """Print the growth of the peak memory at each batch size as a JSON list."""
    import numpy as np

    from weaver.onnx.runtime import session

    argv = sys.argv[1:] if argv is None else argv
    path = argv[0]
    inputs = json.loads(argv[1])
    sizes = [int(word) for word in argv[2:]]
    runtime = session(path)
    before = peak_bytes()
    growth = []
    for size in sizes:
        feed = {name: np.zeros((size, *shape), kind) for name, (kind, shape) in inputs.items()}
        # from the second run on, ONNX Runtime lays memory out by what it saw in the first
        for _ in range(2):
            runtime.run(None, feed)
        growth.append(peak_bytes() - before)
    print(json.dumps(growth))
    return 0


if __name__ == "__main__":
    sys.exit(main())
