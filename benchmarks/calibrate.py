"""Measure how fast files are calibrated, compared with the model alone on decoded jets.

    python -m benchmarks.calibrate RUN 'jets/*.root'             # writes results/calibrate-*
    python -m benchmarks.calibrate RUN 'jets/*.root' --rounds 3

RUN is a run's folder with both exported models. Two contenders run the command, from the files to
the friend trees: once in a new process, and once in a process that has calibrated a file before,
without the imports of libraries. The others call InferenceSession.run of the model of columns and
of the model of features, both with 1,000 jets and as many threads as there are cores.
`python -m data.generate --jets 100000` generates jets in several minutes; copies of fewer jets work
as well, because the time does not depend on the values.
"""

from __future__ import annotations

import argparse
import functools
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from benchmarks.measure import Report, Spread, alternate, ratio
from common import storage
from common.cli import run_main
from common.layout import RunFolder
from common.machine import cores
from common.project import ROOT
from common.records import ExportRecord
from serving.calibration.model import local_model
from serving.calibration.outputs import read_info
from weaver.config.data_config import DataConfig
from weaver.onnx.raw_jets import raw_columns, read_raw, reference_inputs
from weaver.onnx.raw_program import raw_program
from weaver.onnx.runtime import feed_of, session
from weaver.read import files

FILES, COMMAND = "files to files", "with the start of the command"
RAW, FEATURES = "columns, decoded", "features, decoded"
LIMITS = {RAW: 0.7, FEATURES: 0.4}
"""The least ratio of the rate from files to files to the others'."""
# first the imports, by the first file; then all files, with the time that they take
WARM = """
import sys, time
from serving import calibrate
model, folder, first, *patterns = sys.argv[1:]
calibrate.main([first, "--model", model, "--output", f"{folder}/first"])
started = time.perf_counter()
code = calibrate.main([*patterns, "--model", model, "--output", f"{folder}/all"])
print("seconds", time.perf_counter() - started)
sys.exit(code)
"""
BATCH = 1000  # jets of one call of a session
SESSION_JETS = 20_000  # jets that the sessions are asked for in one round

Batch = Mapping[str, np.ndarray]


def rate_of_command(model: str, patterns: Sequence[str], is_warm: bool) -> float:
    """Calibrate all files by the command into an empty folder; return jets/s."""
    with tempfile.TemporaryDirectory(prefix="jec-bench-") as folder:
        command = [sys.executable, "-m", "serving.calibrate", *patterns, "--model", model]
        command += ["--output", f"{folder}/all"]
        if is_warm:
            first = files.find(patterns)[0].uri
            command = [sys.executable, "-c", WARM, model, folder, first, *patterns]
        start = time.perf_counter()
        answer = subprocess.run(command, check=True, cwd=ROOT, capture_output=True, text=True)
        seconds = time.perf_counter() - start
        if is_warm:
            seconds = float(answer.stdout.split()[-1])
        infos = [read_info(str(path)) for path in Path(folder, "all").glob("*.root")]
    return sum(info.jets for info in infos if info is not None) / seconds


def rate_of_session(onnx: str, batches: Sequence[Batch]) -> float:
    """Run a session on batches, one after the other; return jets/s."""
    runtime = session(storage.read_bytes(onnx), threads=cores())
    fed = [feed_of(runtime, batch) for batch in batches]
    runtime.run(None, fed[0])
    start = time.perf_counter()
    for inputs in fed:
        runtime.run(None, inputs)
    jets = sum(len(next(iter(inputs.values()))) for inputs in fed)
    return jets / (time.perf_counter() - start)


def read_batches(
    run: RunFolder, patterns: Sequence[str], count: int
) -> tuple[list[Batch], list[Batch]]:
    """Return batches of jets in the order of the files, as padded columns and as features."""
    config = DataConfig.load(run.data_config)
    entries = files.find(patterns)
    program = raw_program(config, raw_columns(entries[0], config))
    raw = read_raw(entries, config, program, count)
    columns: list[Batch] = []
    features: list[Batch] = []
    for first in range(0, count, BATCH):
        jets = {name: array[first : first + BATCH] for name, array in raw.items()}
        # As a client pads them: to the fullest jet of the batch.
        for name, column in program.inputs.items():
            if column.particles:
                most = max(int(jets[column.counter].max()), 1)
                jets[name] = np.ascontiguousarray(jets[name][:, :most])
        columns.append(jets)
        features.append(reference_inputs(jets, config, program))
    return columns, features


def measure(report: Report, uri: str, patterns: Sequence[str], rounds: int) -> bool:
    """Measure a run's models; return whether both ratios reach their minimum."""
    run = RunFolder(storage.absolute(uri))
    record = ExportRecord.load(run.export)
    assert record.raw is not None
    raw_onnx, onnx = run.onnx(record.raw.model), run.onnx(record.model)
    columns, features = read_batches(run, patterns, SESSION_JETS)
    runs = alternate(
        {
            FILES: functools.partial(rate_of_command, raw_onnx, patterns, True),
            COMMAND: functools.partial(rate_of_command, raw_onnx, patterns, False),
            RAW: functools.partial(rate_of_session, raw_onnx, columns),
            FEATURES: functools.partial(rate_of_session, onnx, features),
        },
        rounds,
    )
    rows = [[name, Spread.of(runs[name]).text(), "", ""] for name in (FILES, COMMAND)]
    meets_goals = True
    for name, least in LIMITS.items():
        spread = ratio(runs[FILES], runs[name])
        meets_goals = meets_goals and spread.median >= least
        rows.append([name, Spread.of(runs[name]).text(), spread.text(".2f"), f"{least:g}"])
    entries = files.find(patterns)
    report.section(
        local_model(raw_onnx).description.name,
        columns=["contender", "jets/s", "files to files / contender", "at least"],
        rows=rows,
        notes=[
            f"{len(entries)} files, {sum(entry.size for entry in entries) / 1e6:,.0f} MB."
            " The start of the command is the import of its libraries.",
            f"Sessions: {BATCH:,} jets a call, {cores()} threads, {SESSION_JETS:,} jets a round in"
            " the order of the files, padded to the fullest jet of a call.",
            "The command sorts a step's jets by their number of particles, so that fewer places"
            " are empty, and asks one step a core.",
        ],
        runs=runs,
    )
    return meets_goals


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print; return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.calibrate",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run", metavar="RUN", help="a run's folder")
    parser.add_argument("files", nargs="+", metavar="FILES", help="JetNtuple files, patterns")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args(argv)

    def body() -> int:
        report = Report("calibrate", "Files of jets, calibrated")
        meets_goals = measure(report, arguments.run, arguments.files, arguments.rounds)
        report.save()
        return 0 if meets_goals else 1

    return run_main(body)


if __name__ == "__main__":
    sys.exit(main())
