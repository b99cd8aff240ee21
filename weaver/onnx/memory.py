"""Measure ONNX Runtime's peak memory, to decide how many jets one execution may contain.

The measurement runs in a separate process:

    memory = measure_memory("model.onnx", {"pf_features": ("float32", [13, 64]), ...})
    memory.batch_size(budget=2**30)  # the largest power of two that needs at most 1 GiB

ONNX Runtime rarely returns memory, so the peak is measured: VmHWM of /proc/self/status after each
of a few rising batch sizes, minus its value before the first. Neither psutil nor resource has this
number (ru_maxrss includes that of the parent process). The command is

    python -m weaver.memory model.onnx '{"pf_features": ["float32", [13, 64]]}' 16 64 256
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

# numbers of jets; rising, because a peak never falls. The largest takes a second for a ParticleNet
# on two cores.
SIZES = (16, 64, 256)
# jets: the gate compares up to 1000 at once, larger batches are not faster, and a client can send
# several requests
MOST_JETS = 1024
# bytes for one model: two of them and the server fit in the 4 GiB that the service requests
BUDGET = 2**30
SECONDS = 300.0
"""Time limit of a measurement."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Memory:
    """Growth of the peak memory, in bytes, at each batch size."""

    sizes: tuple[int, ...]
    growth: tuple[int, ...]

    @property
    def bytes_per_jet(self) -> int:
        """Bytes for each jet: the mean of the largest batch, or the slope if that is larger."""
        # in the largest batch the constant part has the smallest effect
        slope = (self.growth[-1] - self.growth[0]) / (self.sizes[-1] - self.sizes[0])
        return round(max(self.growth[-1] / self.sizes[-1], slope, 1))

    def batch_size(self, budget: int = BUDGET, most: int = MOST_JETS) -> int:
        """Return the largest power of two, from 1 to `most`, that needs at most `budget` bytes."""
        fits = max(min(budget // self.bytes_per_jet, most), 1)
        return 1 << (fits.bit_length() - 1)

    def asdict(self) -> dict[str, object]:
        """Return the fields and the bytes for each jet, as JSON values."""
        return {**dataclasses.asdict(self), "bytes_per_jet": self.bytes_per_jet}


def measure_memory(
    onnx_path: str | os.PathLike,
    inputs: Mapping[str, tuple[str, Sequence[int]]],
    sizes: Sequence[int] = SIZES,
) -> Memory:
    """Measure an ONNX file.

    inputs: name -> (numpy type, shape of one jet). Raises GateError if ONNX Runtime cannot run it.
    """
    inputs_json = json.dumps({name: [kind, list(shape)] for name, (kind, shape) in inputs.items()})
    program = [sys.executable, "-m", "weaver.onnx.memory"]
    # so that the process can import this project from any working directory
    path = str(ROOT)
    if others := os.environ.get("PYTHONPATH"):
        path += os.pathsep + others
    process = subprocess.run(
        [*program, os.fspath(onnx_path), inputs_json, *map(str, sizes)],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    if process.returncode != 0:
        lines = process.stderr.strip().splitlines() or [f"exit code {process.returncode}"]
        raise GateError(
            f"{onnx_path} cannot be run in batches of up to {max(sizes)} jets: {lines[-1]}"
        )
    return Memory(sizes=tuple(sizes), growth=tuple(json.loads(process.stdout)))


def peak_bytes() -> int:
    """Return the largest resident memory of this process so far, in bytes.

    Raises GateError on systems other than Linux, which do not report it.
    """
    status = Path("/proc/self/status")
    peak = (
        re.search(r"VmHWM:\s+(\d+) kB", status.read_text(encoding="utf-8"))
        if status.exists()
        else None
    )
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
        # from the second run on, ONNX Runtime plans its memory by the first
        for _ in range(2):
            runtime.run(None, feed)
        growth.append(peak_bytes() - before)
    print(json.dumps(growth))
    return 0


if __name__ == "__main__":
    sys.exit(main())
