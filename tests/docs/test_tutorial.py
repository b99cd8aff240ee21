"""The tutorial's commands, in its order, as somebody types them into a shell."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from common.project import ROOT
from data.generator.sample import ensure_sample
from serving import triton_wheel
from tests.docs.printed import python_block
from tests.docs.test_commands import code

PAGE = "docs/tutorial.md"
GATES = {
    "min_improvement": -1e6,
    "max_closure": 1000,
    "max_resolution_ratio": 1000,
    "max_tail_ratio": 1000,
    "max_flavour_ratio": 1000,
    "max_coverage_points": 100,
}
"""A few hundred jets and two epochs are judged by nothing but their arrival."""
SMALLER = {"--num-epochs 20": "--num-epochs 2", "--more-trials 20": "--more-trials 1"}

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(triton_wheel.find() is None, reason="Triton's wheel is not installed"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Make a folder that looks like a checkout beside a user's jets."""
    folder = tmp_path_factory.mktemp("tutorial")
    for name in ("pipeline.py", "data", "networks", "training", "serving", "weaver"):
        (folder / name).symlink_to(ROOT / name)
    sample = ensure_sample(str(folder), jets=(600, 200, 600))
    for split, pattern in sample.items():
        (folder / split).symlink_to(Path(pattern).parent)
    (folder / "jets").mkdir()
    some_jets = min((folder / "test").glob("*.root"))
    (folder / "jets.root").symlink_to(some_jets)
    (folder / "jets/a.root").symlink_to(some_jets)
    (folder / "gates.yaml").write_text(json.dumps(GATES))
    return folder


def shell(folder: Path, command: str) -> str:
    """Run a command in the folder with this environment's python first on PATH."""
    answer = subprocess.run(
        ["bash", "-c", command],
        cwd=folder,
        env=environment(folder),
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert answer.returncode == 0, f"{command}\n{answer.stdout}{answer.stderr}"
    return answer.stdout


def environment(folder: Path) -> dict[str, str]:
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return {
        **os.environ,
        "PATH": path,
        "PYTHONPATH": str(ROOT),
        "JEC_CONFIG": str(folder / "gates.yaml"),
    }


def command(words: str) -> str:
    """Return the one command of the tutorial that begins with these words, in its smaller form."""
    (line,) = {line for line in code(PAGE) if line.startswith(words)}
    for large, small in SMALLER.items():
        line = line.replace(large, small)
    return line


def test_all_commands_of_the_tutorial_work_in_their_order(folder):
    assert "error" not in shell(folder, command("python pipeline.py --check"))
    assert "jets" in shell(folder, command("python -m data.validate"))
    output = shell(folder, command("python pipeline.py --data-train"))
    for part in ("run ", "best trial", "gain", "served by"):
        assert part in output
    run_id = (folder / "runs/latest").resolve().name
    serve_and_calibrate(folder)
    shell(folder, command("python -m serving.calibrate"))
    assert (folder / "calibrated/a.root").is_file()
    assert run_id in shell(folder, command("python pipeline.py --list"))
    for words in ("--resume", "--more-trials", "--down"):
        line = command(f"python pipeline.py {words}").replace("RUN_ID", run_id)
        shell(folder, line + (" --yes" if words == "--down" else ""))
    assert not (folder / "runs" / run_id).exists()


def serve_and_calibrate(folder: Path) -> None:
    """Start the server as printed, and run the printed Python with its address and name."""
    server = subprocess.Popen(
        ["bash", "-c", "exec " + command("python -m serving.serve")],
        cwd=folder,
        env=environment(folder),
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        lines = []
        for line in server.stdout:
            lines.append(line)
            if (match := re.search(r"http://[\d.]+:\d+", line)) is not None:
                break
        else:
            pytest.fail("the server ended: " + "".join(lines))
        (name,) = [
            path.name for path in (folder / "runs/latest/model").iterdir() if "-raw" in path.name
        ]
        script = python_block(PAGE, "from jec_client import Client")
        script = script.replace("http://127.0.0.1:8000", match[0]).replace("NAME-raw", name)
        (folder / "ask.py").write_text(script)
        answer = shell(folder, "python ask.py").splitlines()
        assert len(answer) >= 2
    finally:
        server.send_signal(signal.SIGINT)
        server.wait(timeout=60)
        server.stdout.close()
