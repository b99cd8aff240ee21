"""Generate the sample that a run uses without data files: once, and kept in the storage.

    python -m data.sample --storage runs

It writes <storage>/samples/<name>/{train,val,test}/*.root and prints the three patterns. The name
contains the numbers of jets, the seed and a digest of the generator's constants. sample.json, which
is written last, lists the files. If it is missing or lists other files than there are, the sample
is incomplete and generated again.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import shutil
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

from common import scratch, storage
from common.choices import SPLITS
from common.cli import Parser, output_place, require, run_main
from common.errors import InputError
from common.pids import is_alive
from common.storage import durable, space
from data.generator import generate, jec, quark_gluon
from data.generator.blocks import Recipe

# a network learns something from 20,000 jets, and they take two minutes on two cores
JETS = (20_000, 5_000, 5_000)
MARKER = "sample.json"
REVISION = 2  # raise when a change of the generator's code changes the jets


def ensure_sample(
    storage_uri: str,
    *,
    jets: tuple[int, int, int] = JETS,
    seed: int = 1,
    workers: int | None = None,
) -> dict[str, str]:
    """Return the patterns of the ROOT files: {"train": ..., "val": ..., "test": ...}.

    Generates the sample below `storage_uri` (a directory, s3:// or root://) unless it is there. The
    three parts have seeds of their own, so they share no event and no pile-up. Raises InputError as
    data.generator.generate.generate does.
    """
    require(
        len(jets) == len(SPLITS),
        f"a sample needs three numbers of jets (train, val, test), not {len(jets)}",
    )
    # each part has a seed of its own, three times as large
    largest = generate.MAX_SEED // len(SPLITS) - 1
    require(0 <= seed <= largest, f"--seed is {seed}; it must be between 0 and {largest}")
    for number, count in enumerate(jets):
        generate.check_numbers(jets=count, recipe=recipe(seed, number), workers=workers)
    root = storage.join(storage.absolute(storage_uri), "samples", name(jets, seed))
    if not is_whole(root):
        generate.check_installed()
        _make(root, jets, seed, workers)
    return {part: storage.join(root, part, "*.root") for part in SPLITS}


def name(jets: tuple[int, int, int], seed: int) -> str:
    """Return the name of the sample's folder; two samples share it only if their jets are equal."""
    constants = [json.loads(path.read_text()) for path in (jec.STANDARD, quark_gluon.STANDARD)]
    meaning = json.dumps([REVISION, dataclasses.asdict(recipe(seed, 0)), constants], sort_keys=True)
    digest = hashlib.sha256(meaning.encode()).hexdigest()[:8]
    return f"qcd-{'-'.join(map(str, jets))}-seed{seed}-{digest}"


def recipe(seed: int, part: int) -> Recipe:
    """Return the recipe for part 0 (train), 1 (val) or 2 (test) of the sample with this seed."""
    return Recipe(seed=len(SPLITS) * seed + part)


def is_whole(root: str) -> bool:
    """Return whether the marker lists exactly the ROOT files in the folder, with their sizes."""
    try:
        files_of_marker = storage.read_json(storage.join(root, MARKER))["files"]
    except (InputError, KeyError, TypeError):
        return False
    return files_of_marker == _files(root)


def _files(root: str) -> dict[str, int]:
    """ROOT files below the sample's folder: path within it -> size in bytes."""
    return {
        entry.uri[len(root) + 1 :]: entry.size
        for entry in storage.entries(root)
        if entry.uri.endswith(".root")
    }


def _make(root: str, jets: tuple[int, int, int], seed: int, workers: int | None) -> None:
    """Generate into a temporary folder, then bring it to its place with the marker last."""
    with _temporary_folder(root) as folder:
        for number, (part, count) in enumerate(zip(SPLITS, jets, strict=True)):
            label = f"generating {part} jets"
            generate.generate(
                folder / part, jets=count, recipe=recipe(seed, number), workers=workers, label=label
            )
        marker = {
            "jets": dict(zip(SPLITS, jets, strict=True)),
            "seed": seed,
            "files": _files(str(folder)),
        }
        if storage.is_local(root):
            storage.write_json(str(folder / MARKER), marker)
            _move_into_place(folder, Path(root))
        elif not is_whole(root):  # another run may have been faster
            storage.delete(root)  # files of an interrupted upload
            storage.upload(folder, root)
            storage.write_json(storage.join(root, MARKER), marker)


def _move_into_place(folder: Path, root: Path) -> None:
    """Rename the folder; keep the sample of a faster process, which has the same jets."""
    if root.exists() and not is_whole(str(root)):
        shutil.rmtree(root)
    with contextlib.suppress(OSError):
        durable.rename(folder, root)
    require(is_whole(str(root)), f"cannot move the sample to {root}")


@contextlib.contextmanager
def _temporary_folder(root: str) -> Iterator[Path]:
    """Yield a temporary folder, on the disk of the storage if that is a directory.

    It is removed at the end of the block, also after an error.
    """
    if not storage.is_local(root):
        with scratch.folder("jec-sample-") as temporary:
            yield temporary
        return
    parent, last = Path(root).parent, Path(root).name
    try:
        parent.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(parent)
        folder = parent / f"{_folder_prefix()}{os.getpid()}-{last}"
        folder.mkdir()
    except OSError as error:
        if full := space.full_error(error, parent):
            raise full from error
        raise InputError(f"cannot write into {parent}: {error.strerror or error}") from None
    try:
        with space.catch_full_disk(folder):
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _folder_prefix() -> str:
    """Return the prefix of this machine's temporary folders; the process id follows it.

    It has the host name, because machines may share the disk, and a process id is valid on its own
    machine only.
    """
    return f"{generate.PARTIAL}{socket.gethostname()}-"


def _remove_abandoned(parent: Path) -> None:
    """Remove temporary folders of this machine's processes that no longer exist."""
    for folder in parent.glob(f"{_folder_prefix()}*"):
        number = folder.name.removeprefix(_folder_prefix()).split("-")[0]
        if number.isdigit() and not is_alive(int(number)):
            shutil.rmtree(folder, ignore_errors=True)


def main(argv: list[str] | None = None) -> int:
    """Return the command `python -m data.sample`."""
    parser = Parser(prog="python -m data.sample", description=__doc__)
    parser.add_argument(
        "--storage",
        required=True,
        type=output_place,
        metavar="URI",
        help="a directory, s3://bucket/prefix or root://server//path",
    )
    parser.add_argument(
        "--jets",
        type=int,
        nargs=3,
        default=JETS,
        metavar=("TRAIN", "VAL", "TEST"),
        help="jets of each set (default: 20000 5000 5000)",
    )
    parser.add_argument(
        "--seed",
        type=int,
        default=1,
        metavar="N",
        help="whole number from 0 (default: %(default)s)",
    )
    parser.add_argument(
        "--workers", type=int, metavar="N", help="processes (default: one for each core)"
    )
    options = parser.parse_args(argv)

    def body() -> None:
        with generate.terminated_as_interrupt():
            patterns = ensure_sample(
                options.storage,
                jets=tuple(options.jets),
                seed=options.seed,
                workers=options.workers,
            )
        for part, pattern in patterns.items():
            print(f"{part}: {pattern}")

    return run_main(body)


if __name__ == "__main__":
    sys.exit(main())
