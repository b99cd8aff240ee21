"""Weights go from weaver.train to weaver-core 0.5.3 and back, by the flags of both.

The network is this project's own, which weaver-core's environment imports like any other. It has
its default options, because weaver-core passes options to get_loss as well.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
import uproot

from tests.weaver.peer import samples
from weaver import train

ROOT = Path(__file__).parents[3]
HERE = Path(__file__).parent
PEER_SECONDS = 300
SCHEMA, JETS = "jetntuple", 60
# so small that training leaves every weight as it is
STANDS_STILL = ("--start-lr", "1e-30")


def exchange(folder: Path, python: str) -> dict[str, float]:
    """Largest differences of weights and predictions that should be equal: operation -> difference.

    python: the interpreter of an environment with weaver-core.

    Raises: RuntimeError where a command fails.
    """
    roles = samples.write(folder, SCHEMA, JETS)
    usual = ["-c", str(ROOT / "data" / "jec_pfn_open.yaml"), "--regression-mode"]
    usual += ["-n", str(ROOT / "networks" / "pfn_regressor_open.py")]
    usual += ["--gpus", "", "--num-workers", "0", "--fetch-step", "1", "--optimizer", "adam"]
    usual += ["--batch-size", "16", "--num-epochs", "1"]
    training = ["--data-train", *roles["train"], "--data-val", *roles["val"]]
    test = ["--data-test", *roles["test"], "--predict-output"]

    def prefix(name: str) -> list[str]:
        return ["-m", str(folder / name / "net")]

    def output(name: str) -> str:
        return str(folder / f"{name}.root")

    def weights(name: str, which: str = "best_epoch") -> str:
        return str(folder / name / f"net_{which}_state.pt")

    def start_from(name: str) -> list[str]:
        return ["--load-model-weights", weights(name), *STANDS_STILL]

    def ours(*words: str) -> None:
        command = [*usual, "--tensorboard-log-dir=none", *words]
        if code := train.main(command):
            raise RuntimeError(f"weaver.train ended with {code}: {command}")

    ours(*training, *prefix("ours"), *test, output("ours by us"))
    _peer(
        python,
        folder,
        [*usual, "--run-mode", "test", *prefix("ours"), *test, output("ours by them")],
        [*usual, *training, *start_from("ours"), *prefix("ours on")],
        [*usual, *training, *prefix("theirs"), *test, output("theirs by them")],
    )
    ours("--predict", *prefix("theirs"), *test, output("theirs by us"))
    ours(*training, *start_from("theirs"), *prefix("theirs on"))
    return {
        "weaver-core predicts with our --model-prefix": _predictions(
            output("ours by them"), output("ours by us")
        ),
        "weaver-core starts from our weights": _weights(
            weights("ours on", "epoch-0"), weights("ours")
        ),
        "weaver.train predicts with its --model-prefix": _predictions(
            output("theirs by us"), output("theirs by them")
        ),
        "weaver.train starts from its weights": _weights(
            weights("theirs on", "epoch-0"), weights("theirs")
        ),
    }


def _peer(python: str, folder: Path, *commands: list[str]) -> None:
    """Run commands of weaver-core."""
    # this project's network imports these; its `weaver` must stay out of the way
    packages = folder / "packages"
    packages.mkdir()
    for name in ("networks", "common", "jec_client"):
        (packages / name).symlink_to(ROOT / name)
    job = {"folder": str(folder), "commands": commands}
    process = subprocess.run(
        [python, str(HERE / "run_commands.py")],
        input=json.dumps([job]),
        text=True,
        capture_output=True,
        timeout=PEER_SECONDS,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(packages)},
    )
    if process.returncode:
        raise RuntimeError(f"weaver-core in {python} failed:\n{process.stderr[-3000:]}")


def _predictions(path: str, other_path: str) -> float:
    with uproot.open(path) as file, uproot.open(other_path) as other_file:
        first, second = file["Events/output"].array(), other_file["Events/output"].array()
    return float(np.max(np.abs(np.asarray(first) - np.asarray(second))))


def _weights(path: str, other_path: str) -> float:
    """Largest difference of the trained weights; batch normalisation's statistics are left out."""
    first: Mapping[str, torch.Tensor] = torch.load(path, weights_only=True)
    second: Mapping[str, torch.Tensor] = torch.load(other_path, weights_only=True)
    if first.keys() != second.keys():
        return float("inf")
    not_trained = ("running_mean", "running_var", "num_batches_tracked")
    names = [name for name in first if not name.endswith(not_trained)]
    return max(float((first[name] - second[name]).abs().max()) for name in names)
