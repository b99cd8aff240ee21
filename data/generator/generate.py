"""Generate jets: QCD events of Pythia 8 in a CMS-like detector, as JetNtuple ROOT files.

The detector is parametrised; pile-up is laid over each event.

    python -m data.generate --jets 100000 --output samples/train --seed 1

writes samples/train/jets_0000.root, jets_0001.root, ... with 10,000 jets each. The same seed gives
the same jets, whatever the number of workers. Use different seeds for training, validation and
test. The files appear together when all are written; an interrupted run leaves hidden files, which
the next run removes.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import signal
import sys
from collections.abc import Generator, Iterator
from pathlib import Path

from common.cli import Parser, output_folder, require, run_main
from common.errors import InputError, InterruptedRun
from common.progress import Progress
from common.storage import durable
from data import jetntuple
from data.generator import workers
from data.generator.blocks import EVENTS_PER_BLOCK, JetMaker, Recipe
from data.generator.pileup import MEAN_COLLISIONS
from data.jetntuple import Columns

# about 30 MB: a few files a worker when training reads them, and little memory to write one
JETS_PER_FILE = 10_000
MAX_SEED = 2**33  # event numbers hold the seed and must fit into 64 bits (blocks.EVENTS_PER_SEED)
MOST_JETS = 1_000_000_000  # about 1 TB
MOST_WORKERS = 1024
PARTIAL = ".partial-"  # a prefix that storage.entries, storage.glob and shells do not list


def generate(
    output: str | os.PathLike,
    *,
    jets: int,
    recipe: Recipe,
    workers: int | None = None,
    jets_per_file: int = JETS_PER_FILE,
    label: str = "generating",
) -> list[Path]:
    """Write `jets` jets into the folder `output` and return the files.

    Raises InputError for invalid numbers, a folder that cannot be written or already
    holds ROOT files, or where Pythia 8 or FastJet is not installed; JecError if a worker process
    fails.
    """
    check_installed()
    check_numbers(jets=jets, recipe=recipe, workers=workers, jets_per_file=jets_per_file)
    folder = _prepare(Path(output))
    try:
        processes = workers or available_cores()
        hidden_files = _write_hidden_files(folder, jets, recipe, processes, jets_per_file, label)
        return [_make_visible(path) for path in hidden_files]
    finally:
        _remove_hidden_files(folder)


def _make_visible(path: Path) -> Path:
    """Rename a hidden file to its final name; return the new path."""
    target = path.with_name(path.name.removeprefix(PARTIAL))
    durable.rename(path, target)
    return target


def _write_hidden_files(
    folder: Path, jets: int, recipe: Recipe, workers: int, jets_per_file: int, label: str
) -> list[Path]:
    """Write all files under hidden names; returns them in order."""
    paths = []
    with contextlib.closing(_files(jets, recipe, workers, jets_per_file, label)) as files:
        for number, columns in enumerate(files):
            paths.append(folder / f"{PARTIAL}jets_{number:04d}.root")
            with _explained(folder):
                jetntuple.write(paths[-1], columns)
    return paths


def _files(
    jets: int, recipe: Recipe, count: int, jets_per_file: int, label: str
) -> Generator[Columns, None, None]:
    """Yield the columns of one file after the other.

    Blocks in order, cut at `jets_per_file` and, at the end, at `jets`.
    """
    waiting: list[Columns] = []
    num_made = num_written = 0
    source = workers.blocks(
        JetMaker, recipe, workers=count, events_per_block=recipe.events_per_block
    )
    with contextlib.closing(source), Progress(label, total=jets, unit="jets") as progress:
        while num_written < jets:
            waiting.append(next(source))
            num_made += jetntuple.length(waiting[-1])
            progress.advance(min(num_made, jets) - progress.num_done)
            while num_written < jets and num_made - num_written >= (
                size := min(jets_per_file, jets - num_written)
            ):
                together = jetntuple.concatenate(waiting)
                yield jetntuple.slice_jets(together, 0, size)
                waiting = [jetntuple.slice_jets(together, size, num_made - num_written)]
                num_written += size


# ----------------------------------------------------------------------------------------- checks


def check_installed() -> None:
    """Raise InputError where Pythia 8 or FastJet is missing."""
    packages = {"pythia8mc": "Pythia 8", "fastjet": "FastJet"}
    missing = [name for module, name in packages.items() if not importlib.util.find_spec(module)]
    require(
        not missing,
        f"{' and '.join(missing)} not found, which generating jets needs; install with: pip install"
        " '.[generate]'",
    )


def check_numbers(
    *, jets: int, recipe: Recipe, workers: int | None, jets_per_file: int = JETS_PER_FILE
) -> None:
    """Raise InputError for a number out of range; the error names the flag."""
    require(1 <= jets <= MOST_JETS, f"--jets is {jets}; it must be between 1 and {MOST_JETS:,}")
    require(
        0 <= recipe.seed <= MAX_SEED,
        f"--seed is {recipe.seed}; it must be between 0 and {MAX_SEED}",
    )
    check_workers(workers)
    require(
        1 <= recipe.events_per_block <= 10_000,
        f"--events-per-block is {recipe.events_per_block}; it must be between 1 and 10000",
    )
    require(
        0 <= recipe.pileup <= 200, f"--pileup is {recipe.pileup:g}; it must be between 0 and 200"
    )
    require(jets_per_file >= 1, f"--jets-per-file is {jets_per_file}; it must be at least 1")


def check_workers(workers: int | None) -> None:
    """Raise InputError for a number of processes that no machine has cores for."""
    require(
        workers is None or 1 <= workers <= MOST_WORKERS,
        f"--workers is {workers}; it must be between 1 and {MOST_WORKERS}",
    )


def available_cores() -> int:
    """Return the cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _prepare(folder: Path) -> Path:
    """Create the output folder; check that it is writable and has no ROOT files; return it."""
    with _explained(folder):
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f"{PARTIAL}probe"
        probe.touch()
        probe.unlink()
    present = sorted(path.name for path in folder.glob("[!.]*.root"))
    require(
        not present,
        f"{folder} already holds ROOT files ({', '.join(present[:3])}); delete them"
        " or name another --output",
    )
    _remove_hidden_files(folder)
    return folder


@contextlib.contextmanager
def _explained(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise InputError(f"cannot write into {folder}: {error.strerror or error}") from None


def _remove_hidden_files(folder: Path) -> None:
    for path in folder.glob(f"{PARTIAL}jets_*.root"):
        path.unlink(missing_ok=True)


# ----------------------------------------------------------------------------------- command line


def main(argv: list[str] | None = None) -> int:
    """Return the command `python -m data.generate`."""
    options = _parser().parse_args(argv)
    recipe = Recipe(
        seed=options.seed, events_per_block=options.events_per_block, pileup=options.pileup
    )

    def body() -> None:
        with terminated_as_interrupt():
            files = generate(
                options.output,
                jets=options.jets,
                recipe=recipe,
                workers=options.workers,
                jets_per_file=options.jets_per_file,
            )
        print(
            f"{options.jets:,} jets in {len(files)} file{'s' if len(files) > 1 else ''}:"
            f" {files[0].parent}/jets_*.root"
        )

    return run_main(body)


@contextlib.contextmanager
def terminated_as_interrupt() -> Iterator[None]:
    """Raise InterruptedRun on SIGTERM inside the block, so that it cleans up as on Ctrl-C."""

    def stop(*_: object) -> None:
        raise InterruptedRun("stopped by SIGTERM; no jets were written")

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _parser() -> Parser:
    parser = Parser(prog="python -m data.generate", description=__doc__)
    parser.add_argument(
        "--jets", type=int, required=True, metavar="N", help="number of jets to write"
    )
    parser.add_argument(
        "--output",
        required=True,
        type=output_folder,
        metavar="DIR",
        help="folder for the ROOT files; it is created if missing",
    )
    parser.add_argument(
        "--seed",
        type=int,
        default=1,
        metavar="N",
        help="whole number from 0; each seed gives other jets (default: %(default)s)",
    )
    parser.add_argument(
        "--workers", type=int, metavar="N", help="processes (default: one for each core)"
    )
    parser.add_argument(
        "--pileup",
        type=float,
        default=MEAN_COLLISIONS,
        metavar="X",
        help="mean number of pile-up collisions (default: %(default)g)",
    )
    block_help = (
        "events that are generated at once; other numbers give other jets (default: %(default)s)"
    )
    parser.add_argument(
        "--events-per-block", type=int, default=EVENTS_PER_BLOCK, metavar="N", help=block_help
    )
    parser.add_argument(
        "--jets-per-file",
        type=int,
        default=JETS_PER_FILE,
        metavar="N",
        help="jets for each file (default: %(default)s)",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
