"""ONNX Runtime 1.15.1, the one inside Triton 23.05, installed in a separate folder; it runs in a
process of its own.

It is installed once, from the hash-pinned onnxruntime-1.15.lock, into `.venv-onnxruntime-1.15.1` of
the checkout.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / ".venv-onnxruntime-1.15.1"
LOCK = Path(__file__).with_name("onnxruntime-1.15.lock")
PROGRAM = """
import json, sys
sys.path.insert(0, sys.argv[1])
import numpy, onnxruntime
assert onnxruntime.__version__ == "1.15.1", onnxruntime.__version__
session = onnxruntime.InferenceSession(sys.argv[2], providers=["CPUExecutionProvider"])
answers = session.run(None, dict(numpy.load(sys.argv[3])))
names = [output.name for output in session.get_outputs()]
numpy.savez(sys.argv[4], **dict(zip(names, answers)))
"""


def folder() -> Path:
    """The folder of the packages; installs them the first time.

    Skips the test where that is not possible, with the reason.
    """
    if sys.version_info[:2] != (3, 11) or os.uname().machine != "x86_64":
        pytest.skip(
            "onnxruntime 1.15.1 has no wheel for Python"
            f" {sys.version_info[0]}.{sys.version_info[1]} on {os.uname().machine}"
        )
    if not FOLDER.exists():
        _install()
    return FOLDER


def _install() -> None:
    temporary = tempfile.mkdtemp(dir=ROOT, prefix=".venv-partial-")
    command = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--disable-pip-version-check",
        "--quiet",
        "--no-deps",
        "--require-hashes",
    ]
    result = subprocess.run(
        [*command, "--target", temporary, "-r", LOCK],
        check=False,
        capture_output=True,
        text=True,
        timeout=170,
    )
    if result.returncode == 0 and not FOLDER.exists():
        os.rename(temporary, FOLDER)
    shutil.rmtree(temporary, ignore_errors=True)
    if result.returncode == 0:
        return
    reason = (result.stderr.strip().splitlines() or ["pip failed"])[-1]
    # A wrong hash or a missing package is a fault of the lock; only an unreachable index is a
    # reason to skip.
    unreachable = (
        "Could not find a version" in result.stderr and "from versions: none" in result.stderr
    )
    assert unreachable or "connection" in result.stderr.lower(), result.stderr
    pytest.skip(f"onnxruntime 1.15.1 cannot be installed here: {reason}")


def answers(onnx_path: Path, inputs: dict[str, np.ndarray], workdir: Path) -> dict[str, np.ndarray]:
    """The outputs of ONNX Runtime 1.15.1: {output: array}."""
    np.savez(workdir / "inputs.npz", **inputs)
    command = [
        sys.executable,
        "-I",
        "-S",
        "-c",
        PROGRAM,
        folder(),
        onnx_path,
        workdir / "inputs.npz",
        workdir / "outputs.npz",
    ]
    result = subprocess.run(command, check=False, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, json.dumps(result.stderr)
    return dict(np.load(workdir / "outputs.npz"))
