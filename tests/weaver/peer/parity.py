"""weaver-core and this project load the same files with the same data configs; every array is
compared bit by bit.

    python -m tests.weaver.peer.parity --peer-python .venv-peer/bin/python             a table, exit
        code 1 where a bit differs
    python -m tests.weaver.peer.parity --peer-python .venv-peer/bin/python --write     the same, and
        weaver-core's arrays are stored

The stored arrays (arrays/*.npz) are the reference of tests/weaver/test_peer.py, which runs without
weaver-core.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from tests.weaver.peer import commands, samples
from tests.weaver.peer.exchange import exchange
from tests.weaver.peer.flag_cases import OF_WEAVER_CORE
from tests.weaver.peer.math_bits import math_bits
from weaver.config.data_config import DataConfig
from weaver.feed.dataset import Dataset
from weaver.prepared.prepare import prepare

HERE = Path(__file__).parent
ARRAYS = HERE / "arrays"
DATA = HERE.parents[2] / "data"
PEER_PYTHON = HERE.parents[2] / ".venv-peer" / "bin" / "python"
ROUNDING = 1e-6  # of weights and predictions, which are of the order of one
PEER_SECONDS = 600  # weaver-core compiles its kernels first


@dataclasses.dataclass(frozen=True)
class Case:
    """One data config on files of one schema, with so many jets in each of its three files."""

    name: str
    schema: str
    jets: int

    @property
    def config(self) -> Path:
        return next(
            path
            for path in (HERE / "configs" / f"{self.name}.yaml", DATA / f"{self.name}.yaml")
            if path.exists()
        )

    @property
    def array_file(self) -> Path:
        return ARRAYS / f"{self.name}.npz"


CASES = (
    Case("jec_pfn_open", "jetntuple", 30),
    Case("jec_particle_net_open", "jetntuple", 30),
    Case("jetclass_full", "jetclass", 20),
    Case("jetclass_kin_auto", "jetclass", 24),
    Case("top_kin", "top", 20),
    Case("qg_kinpidplus", "top", 20),
    Case("ak8_mass_decorrelated", "cms", 400),
    Case("ak4_flavour", "cms", 300),
    Case("ak8_mass_regression", "cms", 120),
    Case("mixed_manual", "mixed", 60),
    Case("mixed_auto", "mixed", 60),
    Case("changing_types", "changing", 40),
    Case("forms_root", "forms_root", 24),
    Case("forms_rntuple", "forms_rntuple", 24),
    Case("forms_pyarrow", "forms_pyarrow", 24),
    Case("forms_hdf5", "forms_hdf5", 24),
)


def ours(case: Case, folder: Path) -> dict[str, np.ndarray]:
    """This project's arrays by the names that dump.py gives them."""
    roles = samples.write(folder, case.schema, case.jets)
    config = DataConfig.load(str(case.config))
    result: dict[str, np.ndarray] = {}
    for role, files in roles.items():
        prepared = prepare(
            files,
            config,
            str(folder),
            for_training=role != "test",
            validation=role == "val",
            step_bytes=20_000,
            report=lambda line: None,
        )
        config = prepared.data_config
        result |= {
            f"{role} {name}": array
            for name, array in _arrays(Dataset.open(prepared.uri, config), role)
        }
    return result | {"math_bits": np.array(math_bits())}


def _arrays(dataset: Dataset, role: str) -> Iterator[tuple[str, np.ndarray]]:
    batch, config = dataset.batch(np.arange(len(dataset))), dataset.data_config
    yield from ((f"input {name}", tensor.numpy()) for name, tensor in batch.inputs.items())
    yield from ((f"label {name}", tensor.numpy()) for name, tensor in batch.labels.items())
    # weaver-core leaves observers out in training; here they are kept where the files have them.
    observers = batch.observers if role == "test" or config.monitor_variables else {}
    yield from ((f"observer {name}", values) for name, values in observers.items())
    for name, params in config.preprocess_params.items():
        values = [params[key] for key in ("center", "scale", "min", "max", "pad_value")]
        yield (
            f"standardisation {name}",
            np.array([np.nan if value is None else value for value in values]),
        )
    if config.weight_name and role != "test":
        yield "weight", batch.weights.numpy()
        yield from (
            (f"histogram {name}", hist) for name, hist in (config.reweight_hists or {}).items()
        )


def peers(cases: tuple[Case, ...], folder: Path, python: str) -> dict[str, dict[str, np.ndarray]]:
    """weaver-core's arrays of each case."""
    jobs = []
    for case in cases:
        place = folder / case.name
        place.mkdir()
        shutil.copy(case.config, place / "config.yaml")  # weaver-core writes beside it
        roles = samples.write(place, case.schema, case.jets)
        jobs.append(
            {
                "config": str(place / "config.yaml"),
                "output": str(place / "peer.npz"),
                "roles": roles,
            }
        )
    # By its path, not as a module: this project has a package `weaver` too.
    process = subprocess.run(
        [python, str(HERE / "dump.py")],
        input=json.dumps(jobs),
        text=True,
        capture_output=True,
        timeout=PEER_SECONDS,
        cwd=folder,
    )
    if process.returncode:
        raise SystemExit(f"error: weaver-core in {python} failed:\n{process.stderr[-3000:]}")
    return {case.name: dict(np.load(job["output"])) for case, job in zip(cases, jobs, strict=True)}


def difference(ours: np.ndarray, peer: np.ndarray) -> float:
    """Return the largest difference of two arrays, 0 if they are equal (NaN equals NaN).

    Infinite if the shapes differ, or if either holds Python objects.
    """
    if ours.shape != peer.shape or "O" in (ours.dtype.kind, peer.dtype.kind):
        return float("inf")
    floats = ours.dtype.kind == "f" and peer.dtype.kind == "f"
    if np.array_equal(ours, peer, equal_nan=floats):
        return 0.0
    with np.errstate(invalid="ignore"):
        gaps = np.abs(ours.astype("f8") - peer.astype("f8"))[ours != peer]
    return float(np.max(np.nan_to_num(gaps, nan=np.inf)))


def compare(ours: dict[str, np.ndarray], peer: dict[str, np.ndarray]) -> list[tuple[str, float]]:
    """Return (name, largest difference) for each array; infinite if only one side has the array."""
    return [
        (name, difference(*(_comparable(name, side) for side in (ours, peer))))
        for name in {**peer, **ours}
        if name != "math_bits"
    ]


def _comparable(name: str, arrays: dict[str, np.ndarray]) -> np.ndarray:
    """Return the array of a name for `difference`, or one of objects if there is none.

    Precomputed weights are converted to float32: weaver-core has them in float64.
    """
    values = arrays.get(name, np.full((1,), object()))
    return values.astype(np.float32) if name.endswith(" weight") and name in arrays else values


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.weaver.peer.parity", description=__doc__.splitlines()[0]
    )
    parser.add_argument(
        "--peer-python",
        default=str(PEER_PYTHON),
        help="Python of an environment with weaver-core (make peer)",
    )
    parser.add_argument("--write", action="store_true", help="store weaver-core's arrays")
    parser.add_argument(
        "--case",
        action="append",
        choices=[case.name for case in CASES],
        help="only these (may be repeated)",
    )
    arguments = parser.parse_args(argv)
    # not resolved: a link into another environment would leave its own
    python = Path(arguments.peer_python).absolute()
    if not python.exists():
        print(f"error: there is no {python}; type: make peer", file=sys.stderr)
        return 2
    cases = tuple(case for case in CASES if not arguments.case or case.name in arguments.case)
    with tempfile.TemporaryDirectory(prefix="jec-parity-") as folder:
        result = peers(cases, Path(folder), str(python))
        different = sum(report(case, result[case.name], Path(folder)) for case in cases)
        if not arguments.case:
            different += report_commands(Path(folder), str(python), write=arguments.write)
            different += report_exchange(Path(folder), str(python))
    if arguments.write:
        ARRAYS.mkdir(exist_ok=True)
        for case in cases:
            np.savez_compressed(case.array_file, **result[case.name])
        print(
            f"stored: {sum(path.stat().st_size for path in ARRAYS.glob('*.npz')) / 1e3:.0f} kB in"
            f" {ARRAYS}"
        )
    print(f"{different} arrays differ" if different else "every array is equal to the bit")
    return 1 if different else 0


def report_commands(folder: Path, python: str, *, write: bool) -> int:
    """Run the command for each flag in weaver-core, and compare the results with the stored ones.

    Returns the number of differences. With `write` the results are stored instead, and it returns
    0. tests/weaver/test_flags.py compares this project's results with the stored ones.
    """
    place = folder / "commands"
    place.mkdir()
    cases = [case for case in OF_WEAVER_CORE if case.is_of_peer]
    result = commands.of_peer({case.name: case.command for case in cases}, place, python)
    if write:
        commands.store(result)
        return 0
    expected = json.loads(commands.STORED.read_text())
    different = 0
    for case in cases:
        rows = commands.differences(result[case.name], expected[case.name], case.leave_out)
        different += len(rows)
        print(f"--{case.name:<43} {'; '.join(rows) or 'equal'}")
    return different


def report_exchange(folder: Path, python: str) -> int:
    """Let each program load the weights of the other; returns how many numbers differ."""
    place = folder / "exchange"
    place.mkdir()
    differences = exchange(place, python)
    for name, gap in differences.items():
        print(f"{name:<48} {'equal' if gap < ROUNDING else f'max difference {gap:.3g}'}")
    return sum(gap >= ROUNDING for gap in differences.values())


def report(case: Case, peer: dict[str, np.ndarray], folder: Path) -> int:
    place = folder / f"{case.name}-ours"
    place.mkdir()
    rows = compare(ours(case, place), peer)
    print(f"{case.name} ({case.schema}, {case.jets} jets a file)")
    for name, gap in rows:
        shape = "x".join(map(str, peer[name].shape)) if name in peer else "-"
        print(f"  {name:<45} {shape:>14}  {'equal' if gap == 0 else f'max difference {gap:.3g}'}")
    return sum(gap != 0 for _, gap in rows)


if __name__ == "__main__":
    sys.exit(main())
