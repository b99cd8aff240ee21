"""Trials for the tests: their command line, how to start and await them, and the files they
write.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import torch

ROOT = Path(__file__).parents[2]
SMALL = {"conv_dim": 16, "fc_dim": 16, "num_conv_layers": 2, "num_fc_layers": 1}
SMALL_PARTICLE_NET = {**SMALL, "num_edge_conv_blocks": 2, "k": 4}


def command(
    prepared, folder: Path | str, network: str = "pfn", options: dict | None = None, **flags
) -> list[str]:
    """Arguments of weaver.train on prepared data; `flags` as start_lr=0.01."""
    flags_and_defaults = {
        "num_epochs": 3,
        "batch_size": 100,
        "start_lr": 1e-3,
        "tensorboard_log_dir": "none",
        **flags,
    }
    words = [
        f"--data-train={prepared.train}",
        f"--data-val={prepared.val}",
        f"--data-config={prepared.data_config}",
    ]
    words += [
        f"--network-config={ROOT}/networks/{network}_regressor_open.py",
        f"--model-prefix={folder}",
        "--regression-mode",
    ]
    words += [f"--{name.replace('_', '-')}={value}" for name, value in flags_and_defaults.items()]
    network_options = {**(SMALL if network == "pfn" else SMALL_PARTICLE_NET), **(options or {})}
    return [
        *words,
        "--network-option",
        ",".join(f"{name}:{value}" for name, value in network_options.items()),
    ]


def start(words: list[str], *, session: bool = False, **environment: str) -> subprocess.Popen:
    """Start `python -m weaver.train` with one thread, as the leader of a session if asked."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    return subprocess.Popen(
        [sys.executable, "-m", "weaver.train", *words],
        cwd=ROOT,
        env=env,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=session,
    )


def finish(process: subprocess.Popen, seconds: float = 60) -> str:
    """Wait for a process and return its stderr; the process is killed if it takes too long."""
    try:
        return process.communicate(timeout=seconds)[1]
    finally:
        process.kill()
        process.wait()
        process.stderr.close()  # communicate closes it, except after a timeout


def history(folder: Path) -> list[dict]:
    path = folder / "history.json"
    return json.loads(path.read_text()) if path.exists() else []


def weights(folder: Path, name: str = "checkpoint.pt") -> dict[str, torch.Tensor]:
    return torch.load(folder / name, weights_only=True)["model"]


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    """Equal to the last bit."""
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
