"""Test that a data set ten times as large as the memory limit streams through the programs.

    make large                                     # 600 MB, with 6 GB of prepared data
    python -m benchmarks.large --limit 500 --times 10 --folder DIR
    python -m benchmarks.large --variables 40 --particles 200            # wide rows
    python -m benchmarks.large --variables 6 --full-digits --steps 400   # large files
    python -m benchmarks.large --evaluate --variables 40 --particles 200

The benchmark writes files of random jets, prepares them, and trains on them for one epoch. The
numbers have few digits, so that the files are several times smaller than the prepared data; with
--full-digits the files are large too. With --evaluate, a pipeline without a limit trains a model on
few jets, and the large data set is its test set; then the evaluation is repeated below the limit.
The programs run in a control group with a memory limit, so
that the kernel kills them if they need more. Its counters give their use: anonymous memory, which
no file backs and which the kernel cannot reclaim, and the page cache of the files, which fills the
rest of the limit. A limit on the address space (`ulimit -v`) would count mapped files too.

Needs root (or rights on a control group) on Linux, and free disk of 1.3 times the prepared data
(twice with --full-digits).
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import yaml

from benchmarks.measure import RESULTS, Report
from common.cli import run_main
from common.errors import JecError
from common.layout import RAW_SUFFIX
from common.project import ROOT
from common.run import Run
from common.storage import space

CONFIG = ROOT / "data/jec_pfn_open.yaml"
NETWORK = ROOT / "networks/pfn_regressor_open.py"
SMALL = ("num_conv_layers", "1", "conv_dim", "8", "num_fc_layers", "1", "fc_dim", "8")
"""Options of the network: feeding is tried here, and a small network leaves it the most time."""
SPACE = {
    "parameters": [
        {"name": "conv-dim", "type": "discrete", "list": ["8"]},
        {"name": "loss", "type": "categorical", "list": ["quantile"]},
    ]
}
"""Search space of the only trial of --evaluate."""
SMALL_FILE = "data/small.root"
LARGE = "data/large-*.root"
JETS = 20_000  # of one file
BASKET = 5_000  # jets
BATCH = 500
POLL = 0.02  # seconds between two looks at the counters
DEADLINE = 3600.0
CGROUPS = Path("/sys/fs/cgroup")


_ENTER = """\
import os, sys
with open(sys.argv[1], "w") as file:
    file.write(str(os.getpid()))
os.execv(sys.argv[2], sys.argv[2:])
"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rows:
    """What one jet is."""

    variables: int = 12
    """Numbers of each particle: 5 kB a jet, so that few jets make a large data set."""
    particles: int = 100
    """In the mean; jets have up to a fifth more or less. It is also the length of the inputs."""
    full_digits: bool = False
    """Numbers with all digits, which do not compress."""

    def __str__(self) -> str:
        """Return it in words."""
        digits = ", full digits" if self.full_digits else ""
        return f"{self.variables} variables of {self.particles} particles{digits}"


class MemoryGroup:
    """A control group with a memory limit, of version 2 or 1. Raises JecError without the right."""

    def __init__(self, limit: int) -> None:
        """Make it; limit: bytes, page cache included."""
        self.is_v2 = (CGROUPS / "cgroup.controllers").exists()
        parent = CGROUPS if self.is_v2 else CGROUPS / "memory"
        self.path = parent / f"jec-large-{secrets.token_hex(4)}"
        self.limit = limit
        try:
            self.path.mkdir()
            if self.is_v2:
                self._write("memory.max", limit)
                self._write("memory.swap.max", 0)
            else:
                self._write("memory.limit_in_bytes", limit)
        except OSError as error:
            with contextlib.suppress(OSError):
                self.path.rmdir()
            raise JecError(
                f"cannot limit memory with a control group below {parent}: {error.strerror};"
                " this needs root on Linux with the memory controller"
            ) from error

    def _write(self, name: str, value: int) -> None:
        (self.path / name).write_text(f"{value}\n")

    def command(self, command: Sequence[str]) -> list[str]:
        """The command that first puts its own process into the group."""
        return [sys.executable, "-c", _ENTER, str(self.path / "cgroup.procs"), *command]

    def anonymous(self) -> int:
        """Bytes in memory now that no file backs, of all processes of the group.

        Raises JecError if the control group does not count them.
        """
        name = "anon" if self.is_v2 else "rss"
        for line in (self.path / "memory.stat").read_text().splitlines():
            key, value = line.split()
            if key == name:
                return int(value)
        raise JecError(f"{self.path}/memory.stat has no '{name}'")

    def peak(self) -> int:
        """The most bytes of all kinds, page cache included."""
        name = "memory.peak" if self.is_v2 else "memory.max_usage_in_bytes"
        return int((self.path / name).read_text())

    def kills(self) -> int:
        """How many processes the kernel ended at the limit."""
        name = "memory.events" if self.is_v2 else "memory.oom_control"
        for line in (self.path / name).read_text().splitlines():
            key, value = line.split()
            if key == "oom_kill":
                return int(value)
        return 0

    def remove(self) -> None:
        """Remove the group. Its processes have ended; the kernel may take a moment."""
        for _ in range(50):
            with contextlib.suppress(OSError):
                self.path.rmdir()
                return
            time.sleep(0.1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Use:
    """Memory (bytes) and time (seconds) of a program below the limit."""

    anonymous: int
    peak: int
    kills: int
    exit_code: int
    seconds: float


def run_with_limit(command: Sequence[str], limit: int, log: Path) -> Use:
    """Run a command below a memory limit. Raises JecError if it takes too long."""
    group = MemoryGroup(limit)
    start = time.monotonic()
    most = 0
    try:
        with log.open("w") as file:
            process = subprocess.Popen(
                group.command(command), cwd=ROOT, stdout=file, stderr=subprocess.STDOUT
            )
            try:
                while process.poll() is None:
                    most = max(most, group.anonymous())
                    if time.monotonic() - start > DEADLINE:
                        raise JecError(f"{' '.join(command)} runs for {DEADLINE:.0f} s: stopped")
                    time.sleep(POLL)
            finally:
                process.kill()
                process.wait()
        return Use(
            anonymous=most,
            peak=group.peak(),
            kills=group.kills(),
            exit_code=process.returncode,
            seconds=time.monotonic() - start,
        )
    finally:
        group.remove()


def write_file(path: Path, jets: int, seed: int, kind: Rows) -> None:
    """A ROOT file of jets with the branches of CONFIG, at random."""
    import awkward as ak
    import uproot

    rng = np.random.default_rng(seed)
    counts = rng.integers(int(0.8 * kind.particles), int(1.2 * kind.particles) + 1, jets)
    particles = {}
    for name in ("pT", "dEta", "dPhi", "dTheta", "dR"):
        if kind.full_digits:
            values = rng.uniform(0.1, 1, counts.sum())
        else:
            values = rng.integers(1, 9, counts.sum()) / 8
        particles[name] = ak.unflatten(values.astype(np.float32), counts)
    scalars: dict[str, np.ndarray] = {}
    for name in ("jetPt", "genJetPt"):
        # files of two seeds have no jet in common
        scalars[name] = (rng.integers(30, 500, jets) + seed / 8).astype(np.float32)
    for name in ("genJetEta", "jetEta", "jetPhi", "jetMass", "jetArea", "QG_ptD", "QG_axis2"):
        scalars[name] = rng.integers(1, 20, jets).astype(np.float32) / 10
    for name in ("QG_mult", "partonFlav", "hadronFlav"):
        scalars[name] = rng.integers(0, 6, jets).astype(np.int32)
    with uproot.recreate(path) as file:
        columns = {"PF": ak.zip(particles), **scalars}
        types = {
            name: column.type if name == "PF" else column.dtype for name, column in columns.items()
        }
        tree = file.mktree("AK4jets/jetTree", types)
        for start in range(0, jets, BASKET):
            tree.extend({name: column[start : start + BASKET] for name, column in columns.items()})


def write_config(path: Path, kind: Rows) -> None:
    """CONFIG with more variables for each particle, multiples of those that it has."""
    options = yaml.safe_load(CONFIG.read_text())
    names = options["inputs"]["pf_features"]["vars"]
    for number in range(kind.variables - len(names)):
        name = f"PF_multiple{number}"
        options["new_variables"][name] = f"PF_dEta * {number + 2}"
        names.append(name)
    for group in ("pf_features", "pf_mask"):
        options["inputs"][group]["length"] = kind.particles
    path.write_text(yaml.safe_dump(options))


def size_of(folder: Path) -> int:
    """Bytes of all files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


@dataclasses.dataclass(frozen=True, kw_only=True)
class Result:
    """The result of `stream` or `evaluate`."""

    root: int
    """Bytes of the ROOT files."""
    prepared: int
    """Bytes of the prepared data."""
    jets: int
    programs: dict[str, Use]
    """What was done -> its use."""


def stream(folder: Path, limit: int, least: int, kind: Rows, steps: int | None) -> Result:
    """Write files whose prepared data have at least so many bytes; prepare and train below a limit.

    steps: batches of the epoch, by default all. Raises JecError where one of both fails.
    """
    val = _write_files(folder, least, kind)
    uses = []
    train = _prepare(folder / LARGE, folder, (limit, uses))
    command = [sys.executable, "-m", "weaver.train", "--data-train", str(train)]
    command += ["--data-val", str(val), "--data-config", str(folder / "data.yaml")]
    command += ["--network-config", str(NETWORK), "--num-epochs", "1"]
    command += ["--batch-size", str(BATCH)]
    if steps is not None:
        command += ["--steps-per-epoch", str(steps)]
    for name, value in zip(SMALL[::2], SMALL[1::2], strict=True):
        command += ["--network-option", name, value]
    command += ["--model-prefix", str(folder / "model"), "--regression-mode"]
    log = folder / "train.log"
    uses.append(_check_use(run_with_limit(command, limit, log), log))
    jets = _num_jets(train)
    trained = jets if steps is None else min(steps * BATCH, jets)
    return Result(
        root=size_of(folder / "data"),
        prepared=size_of(train),
        jets=jets,
        programs={"prepare": uses[0], f"training on {trained:,} jets": uses[1]},
    )


def evaluate(folder: Path, limit: int, least: int, kind: Rows) -> Result:
    """Evaluate a model below a limit; its test set is files like those of `stream`.

    Raises JecError where the evaluation fails, or the pipeline that makes the model.
    """
    _write_files(folder, least, kind)
    write_file(folder / "data/train.root", 2_000, 2, kind)
    command = [sys.executable, "pipeline.py", "--runner", "local"]
    command += ["--output", str(folder / "runs"), "--data-config", str(folder / "data.yaml")]
    command += ["--data-train", str(folder / "data/train.root")]
    command += ["--data-val", str(folder / SMALL_FILE), "--data-test", str(folder / LARGE)]
    command += ["--search-space", json.dumps(SPACE), "--algorithm", "grid", "--max-trials", "1"]
    command += ["--parallel-trials", "1", "--num-epochs", "1", "--num-cpus", "1"]
    command += ["--batch-size", str(BATCH)]
    command += ["--min-improvement", "1000000"]  # the gate refuses the model: nothing is served
    log = folder / "pipeline.log"
    with log.open("w") as file:
        ended = subprocess.run(
            command, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT, timeout=DEADLINE, check=False
        )
    if ended.returncode != 0:
        end = "\n".join(log.read_text().splitlines()[-10:])
        raise JecError(f"the pipeline ended with exit code {ended.returncode}:\n{end}")

    run = (folder / "runs/latest").resolve()
    (raw_model,) = (run / "model").glob(f"*{RAW_SUFFIX}")
    name = raw_model.name.removesuffix(RAW_SUFFIX)
    test = Path(Run.load(str(run)).record.data["test"].dataset)
    for trees in test.parent.glob("trees-*"):
        trees.unlink()  # the limited evaluation trains them again
    log = folder / "evaluate.log"
    command = [sys.executable, "-m", "evaluating.evaluate", "--run", str(run), "--name", name]
    use = _check_use(run_with_limit(command, limit, log), log)
    return Result(
        root=size_of(folder / "data"),
        prepared=size_of(test),
        jets=_num_jets(test),
        programs={"evaluate": use},
    )


def _write_files(folder: Path, least: int, kind: Rows) -> Path:
    """Write the data config, a small file, and files with at least so many bytes when prepared.

    Returns the folder of the small file's prepared data.
    """
    data = folder / "data"
    data.mkdir(parents=True)
    write_config(folder / "data.yaml", kind)
    write_file(folder / SMALL_FILE, 2_000, 0, kind)
    small = _prepare(folder / SMALL_FILE, folder, None, "--validation")
    per_jet = size_of(small) / 2_000
    files = int(np.ceil(least / (per_jet * JETS)))
    need = (2 if kind.full_digits else 1.3) * files * per_jet * JETS
    space.require_free(folder, int(need), "this data set")
    first = data / "large-000.root"
    write_file(first, JETS, 1, kind)
    for number in range(1, files):  # the same jets under other names: only the size matters here
        shutil.copyfile(first, data / f"large-{number:03}.root")
    return small


def _num_jets(prepared: Path) -> int:
    number: int = json.loads((prepared / "dataset.json").read_text())["num_jets"]
    return number


def _prepare(
    files: Path, folder: Path, limit_and_uses: tuple[int, list[Use]] | None, *flags: str
) -> Path:
    """Prepare files with the command; the folder that it names."""
    command = [sys.executable, "-m", "weaver.prepare", *flags]
    command += [
        "--data-config",
        str(folder / "data.yaml"),
        "--data",
        str(files),
        "--output",
        str(folder),
    ]
    log = folder / "prepare.log"
    if limit_and_uses:
        limit, uses = limit_and_uses
        uses.append(_check_use(run_with_limit(command, limit, log), log))
    else:
        with log.open("w") as file:
            subprocess.run(command, cwd=ROOT, check=True, stdout=file, stderr=subprocess.STDOUT)
    return Path(log.read_text().splitlines()[-1])


def _check_use(use: Use, log: Path) -> Use:
    if use.exit_code != 0:
        raise JecError(
            f"exit code {use.exit_code}, {use.kills} processes ended by the kernel at the limit,"
            f" {space.size_text(use.anonymous)} of anonymous memory; the last lines:\n"
            + "\n".join(log.read_text().splitlines()[-10:])
        )
    return use


@contextlib.contextmanager
def _work_folder(parent: Path | None) -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="jec-large-", dir=parent))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.large",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--limit", type=int, default=600, help="memory limit in MB")
    parser.add_argument("--times", type=float, default=10, help="prepared data over the limit")
    parser.add_argument("--variables", type=int, default=Rows.variables, help="of each particle")
    parser.add_argument("--particles", type=int, default=Rows.particles, help="of each jet, mean")
    parser.add_argument(
        "--full-digits", action="store_true", help="numbers with all digits: large files"
    )
    parser.add_argument(
        "--evaluate", action="store_true", help="evaluate a model, in place of prepare and train"
    )
    parser.add_argument("--steps", type=int, help="batches of the epoch (default: all)")
    parser.add_argument("--folder", type=Path, help="make the data in a new folder below this one")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the results")
    arguments = parser.parse_args(argv)

    def body() -> None:
        limit = arguments.limit * 10**6
        kind = Rows(
            variables=arguments.variables,
            particles=arguments.particles,
            full_digits=arguments.full_digits,
        )
        with _work_folder(arguments.folder) as folder:
            least = int(limit * arguments.times)
            if arguments.evaluate:
                result = evaluate(folder, limit, least, kind)
            else:
                result = stream(folder, limit, least, kind, arguments.steps)
        write(result, limit, kind, arguments.results)

    return run_main(body)


def write(result: Result, limit: int, kind: Rows, results: Path) -> None:
    """Write the results of a limit (bytes) into a folder."""
    report = Report("large", "A data set larger than the memory limit", results)
    rows = []
    for name, use in result.programs.items():
        rows.append(
            [
                name,
                f"{use.anonymous / 1e6:.0f}",
                f"{use.peak / 1e6:.0f}",
                str(use.kills),
                f"{use.seconds:.0f}",
            ]
        )
    # Evaluations have a section of their own, beside that of the same files.
    prefix = "evaluate, " if "evaluate" in result.programs else ""
    report.section(
        f"{prefix}limit of {limit / 1e6:.0f} MB: {kind}",
        columns=["program", "anonymous, MB", "peak with page cache, MB", "kills", "s"],
        rows=rows,
        notes=[
            f"{result.jets:,} jets: {result.root / 1e9:.2f} GB of ROOT files,"
            f" {result.prepared / 1e9:.2f} GB of prepared data,"
            f" {result.prepared / limit:.1f} times the limit.",
            "anonymous: the most memory at a time that no file backs. The page cache fills the rest"
            " of the limit; the kernel takes it back when it is needed.",
        ],
        use=dataclasses.asdict(result),
    )
    report.save()


if __name__ == "__main__":
    sys.exit(main())
