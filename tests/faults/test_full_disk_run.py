"""A whole run whose disk fills up in the middle: the true reason, and equal results after --resume.

The disk is a real one of some MB, which another program fills at a chosen moment.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from common.project import ROOT
from common.storage import space
from tests.weaver.conftest import synthetic_jets, write_jets

pytestmark = [pytest.mark.faults, pytest.mark.slow]

SPACE = {"parameters": [{"name": "conv-dim", "type": "discrete", "list": [8, 16]}]}
# The gate refuses the model, which saves the server.
FLAGS = ["--runner", "local", "--search-space", json.dumps(SPACE), "--algorithm", "grid"]
FLAGS += ["--max-trials", "1", "--parallel-trials", "1", "--num-cpus", "1", "--seed", "5"]
FLAGS += ["--num-epochs", "3", "--batch-size", "50", "--min-improvement", "1000000"]
DISK_MB = 200
LEFT_BYTES = 12 * 1024
"""Room that the other program leaves: too little for what is being written then."""


def pipeline(output, *flags, **options):
    command = [sys.executable, "pipeline.py", "--output", str(output), *map(str, flags)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        **options,
    )


def end_of(process) -> tuple[int, str]:
    text, _ = process.communicate(timeout=900)
    return process.returncode, text


@pytest.fixture(scope="module")
def jets(tmp_path_factory):
    folder = tmp_path_factory.mktemp("jets")
    for seed, (split, count) in enumerate({"train": 400, "val": 200, "test": 400}.items(), 11):
        write_jets(folder / f"{split}.root", synthetic_jets(count, seed))
    flags = []
    for split in ("train", "val", "test"):
        flags += [f"--data-{split}", f"{folder}/{split}.root"]
    return flags


@pytest.fixture(scope="module")
def undisturbed(jets, tmp_path_factory):
    output = tmp_path_factory.mktemp("undisturbed")
    code, text = end_of(pipeline(output, *FLAGS, *jets))
    assert code == 0, text
    return results(output / "latest")


def results(run: Path) -> dict:
    """What training and validation gave, without names and times."""
    search = json.loads((run / "search.json").read_text())
    metrics = json.loads((run / "metrics.json").read_text())
    trials = []
    for trial in search["trials"]:
        trials.append((trial["status"], trial["parameters"], trial["metrics"]))
    numbers = {name: metrics[name] for name in ("gain", "bins") if name in metrics}
    assert trials
    assert numbers
    return {"trials": trials, **numbers}


@pytest.fixture
def disk(tmp_path):
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK_MB}m", "tmpfs", str(folder)]
    if os.getuid() or subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("only root may mount a small disk")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


MOMENTS = {
    "search": lambda runs: any(runs.glob("*/local/search/*/study.db")),
}
"""When the other program fills the disk."""


def fill_when(moment, disk: Path, process) -> Path:
    """Fill the disk, but for LEFT_BYTES, as soon as the moment has come."""
    balloon = disk / "other"
    while not moment(disk / "runs"):
        assert process.poll() is None, process.stdout.read()
        time.sleep(0.002)
    # The run may write at the same time, so that the disk is full before.
    with contextlib.suppress(OSError), balloon.open("wb") as file:
        file.write(b"\0" * max(space.free_bytes(disk) - LEFT_BYTES, 0))
    return balloon


@pytest.mark.timeout(3000)
@pytest.mark.parametrize("point", MOMENTS)
def test_a_run_goes_on_after_its_disk_was_full(point, disk, jets, undisturbed):
    runs = disk / "runs"
    process = pipeline(runs, *FLAGS, *jets)
    balloon = fill_when(MOMENTS[point], disk, process)
    code, text = end_of(process)
    assert code == 1, text
    assert "disk is full" in text
    assert "Traceback" not in text

    (run,) = [path.parent for path in runs.glob("pfn-*/status.json")]
    status = json.loads((run / "status.json").read_text())
    entry = status["steps"][point]
    assert entry["state"] == "failed", status
    assert "disk is full" in entry["reason"]
    assert str(disk) in entry["reason"]
    assert entry["retryable"]

    balloon.unlink()
    code, text = end_of(pipeline(runs, "--resume", run.name, *FLAGS, *jets))
    assert code == 0, text
    assert results(run) == undisturbed
    assert not (run / ".reserve").exists()
