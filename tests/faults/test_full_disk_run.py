"""A whole run whose disk fills up, and each of its steps on a full disk.

The true reason is in status.json, and once there is room again the results are those of a run that
was never disturbed. The disk is a real one of some MB, which another program fills.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from common.project import ROOT
from common.storage import space
from components.step import LOCAL_DIR, RESERVE, RESERVED_BYTES
from serving import server_folder, triton
from tests.disks import fill, small_disk
from tests.weaver.conftest import synthetic_jets, write_jets

pytestmark = [pytest.mark.faults, pytest.mark.slow]

SPACE = {"parameters": [{"name": "conv-dim", "type": "discrete", "list": [8, 16]}]}
# The gate refuses the model, which saves the server.
FLAGS = ["--runner", "local", "--search-space", json.dumps(SPACE), "--algorithm", "grid"]
FLAGS += ["--max-trials", "1", "--parallel-trials", "1", "--num-cpus", "1", "--seed", "5"]
FLAGS += ["--num-epochs", "3", "--batch-size", "50", "--min-improvement", "1000000"]
FLAGS += ["--raw-model", "none"]
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
    try:
        text, _ = process.communicate(timeout=900)
    finally:
        process.kill()  # what it started ends with it
        process.wait()
        process.stdout.close()
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
def undisturbed_run(jets, tmp_path_factory):
    output = tmp_path_factory.mktemp("undisturbed")
    code, text = end_of(pipeline(output, *FLAGS, *jets))
    assert code == 0, text
    return (output / "latest").resolve()


OF_THE_RUN = ("run", "run_id", "inference", "trial", "created")
"""What differs in metrics.json between two runs: names, and the speed of the model."""


def results(run: Path) -> dict:
    """What the steps gave, without names and times: columns, trials, weights, answers, metrics."""
    search = json.loads((run / "search.json").read_text())
    trials = []
    for trial in search["trials"]:
        metrics = dict(trial["metrics"])
        del metrics["jets_per_second"]
        trials.append((trial["status"], trial["parameters"], metrics))
    (best,) = run.glob("trials/*/_best_epoch_state.pt")
    weights = torch.load(best, weights_only=True)
    (answers,) = run.glob("golden/*/response-100.json")
    metrics = json.loads((run / "metrics.json").read_text())
    del metrics["headline"]["onnx_jets_per_second"]
    columns = {}
    for path in sorted(run.parent.glob("cache/*/*.npy")):
        columns[f"{path.parent.name}/{path.name}"] = digest(path)
    assert trials
    assert columns
    return {
        "columns": columns,
        "trials": trials,
        "weights": {name: tensor.tolist() for name, tensor in weights.items()},
        "answers": json.loads(answers.read_text())["outputs"],
        "metrics": {key: value for key, value in metrics.items() if key not in OF_THE_RUN},
    }


def differences(expected: dict, other: dict) -> list[str]:
    """The parts of two results, and of their metrics, that are not equal."""
    parts = [name for name in expected if expected[name] != other[name]]
    for name in expected["metrics"]:
        if expected["metrics"][name] != other["metrics"].get(name):
            parts.append(
                f"metrics.{name}: {expected['metrics'][name]} {other['metrics'].get(name)}"
            )
    return parts


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def disk(tmp_path):
    with small_disk(tmp_path / "disk", f"size={DISK_MB}m") as folder:
        yield folder


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
def test_a_run_resumes_after_its_disk_was_full(point, disk, jets, undisturbed_run):
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
    assert differences(results(run), results(undisturbed_run)) == []
    assert not (run / ".reserve").exists()


RESULTS = {
    "search": ["search.json", "search.html", "trials.csv", "trials", "local/search"],
    "export": ["model", "golden", "model_card.json", "model_card.md", "local/jobs"],
    "evaluate": ["metrics.json", "report.html", "figures", "local/jobs"],
    "deploy": ["service.json", "local/services"],
}
"""Step -> what it makes."""


def servers_of(run: Path) -> list[server_folder.Running]:
    """The model servers of a run that run now."""
    servers = []
    for server in server_folder.running():
        if any(Path(folder).is_relative_to(run) for folder in server.models.values()):
            servers.append(server)
    return servers


def step(name: str, run: Path) -> tuple[int, str]:
    """Run one step of a run alone."""
    command = [sys.executable, "-m", f"components.{name}", "--run", str(run)]
    if name == "deploy":
        command += ["--passed", "true"]
    elif name != "search":
        command += ["--trial", next(run.glob("trials/*")).name]
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", LOCAL_DIR: str(run.parent)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    return end_of(process)


@pytest.mark.timeout(3000)
@pytest.mark.parametrize("remaining_bytes", [0, LEFT_BYTES], ids=["full", "12 kB left"])
@pytest.mark.parametrize("name", RESULTS)
def test_a_step_on_a_full_disk_fails_and_may_be_repeated(
    name, remaining_bytes, disk, undisturbed_run
):
    """Its run was moved to that disk, with the room that earlier steps kept for its status."""
    shutil.copytree(undisturbed_run.parent, disk / "runs", symlinks=True)
    run = disk / "runs" / undisturbed_run.name
    for place in RESULTS[name]:
        path = run / place
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    (run / RESERVE).write_bytes(bytes(RESERVED_BYTES))
    balloon = fill(disk, remaining_bytes)

    code, text = step(name, run)
    assert code == 1, text
    assert "Traceback" not in text
    entry = json.loads((run / "status.json").read_text())["steps"][name]
    assert (entry["state"], entry["retryable"]) == ("failed", True), entry
    assert "disk is full" in entry["reason"]
    assert f" in {disk}" in entry["reason"]
    assert len(entry["reason"].splitlines()) == 1
    assert text.splitlines()[-1] == f"error: {entry['reason']}"

    balloon.unlink()
    code, text = step(name, run)
    servers = servers_of(run)
    for server in servers:
        triton.stop(server.pid)
    assert code == 0, text
    # also if the first attempt failed after its server had started
    assert len(servers) == (name == "deploy")
    assert differences(results(run), results(undisturbed_run)) == []
    if name == "deploy":  # it compared the answers
        assert json.loads((run / "service.json").read_text())["url"] == servers[0].url
