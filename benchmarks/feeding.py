"""Compare the rate from ROOT files to batches with weaver-core's.

Both have the same files, config and batch size.

    python -m benchmarks.feeding [--peer-python .venv-peer/bin/python] [--rounds 5] [--only
        first-pass,search,memory]

first-pass  from ROOT to batches in the first epoch, and in the later epochs; weaver-core with the
            flags that a scan finds fastest (or --peer-flags), and with its defaults
search      the time that a search of 30 trials saves because files are decoded once
memory      anonymous memory of the process during an epoch, for data sets of increasing size

Both sides run in processes of their own, in turn, with the same C allocator settings and with the
files in the page cache.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.measure import Report, Spread, alternate, check_peer, ratio, with_allocator
from common.cli import run_main
from common.errors import JecError
from common.project import ROOT
from weaver.read.root.inflate import zlib_library

PEER_FEED = Path(__file__).parent / "peer" / "feed.py"
BATCH = 500
EPOCHS = 4
COPIES = 5  # of the sample's files: as many jets as a first pass of a second or two needs
DEFAULT_FLAGS: dict[str, Any] = {"fetch_step": 0.01, "num_workers": 1}
SCANNED_FLAGS: tuple[dict[str, Any], ...] = (
    {"fetch_step": 0.1, "num_workers": 2},
    {"fetch_step": 1, "num_workers": 1},
    {"fetch_step": 1, "num_workers": 2},
    {"fetch_by_files": True, "fetch_step": 1, "num_workers": 1},
    {"fetch_by_files": True, "fetch_step": 1, "num_workers": 2},
    {"fetch_by_files": True, "fetch_step": 2, "num_workers": 2},
    {"fetch_by_files": True, "fetch_step": 5, "num_workers": 2},
)
TRIALS = 30


# ----------------------------------------------------------------- what the measured processes do


def feed(order: dict[str, Any]) -> dict[str, Any]:
    """Our side: prepare into an empty storage, then epochs of batches.

    Rates as benchmarks/peer/feed.py gives them, and more.
    """
    from weaver.config.data_config import DataConfig
    from weaver.feed.dataset import Dataset
    from weaver.feed.loader import Loader
    from weaver.prepared.prepare import prepare

    with tempfile.TemporaryDirectory(dir=order["scratch"]) as storage:
        start = time.perf_counter()
        config = DataConfig.load(order["config"])
        reference = prepare(
            order["files"], config, storage, for_training=True, report=lambda line: None
        )
        prepare_end = time.perf_counter()
        dataset = Dataset.open(reference.uri, config)
        open_end = time.perf_counter()
        loader = Loader(dataset, order["batch_size"], shuffle=True, seed=1)
        first = sum(len(batch) for batch in loader.epoch(0)) / (time.perf_counter() - start)
        resident = Loader(dataset, order["batch_size"], shuffle=True, seed=1, in_memory=True)
        return {
            "rates": [first, *(_epoch_rate(loader, number) for number in range(1, EPOCHS))],
            "in_memory": [_epoch_rate(resident, number) for number in range(1, EPOCHS)],
            "prepare_seconds": prepare_end - start,
            "open_seconds": open_end - prepare_end,
            "jets": len(dataset),
        }


def _epoch_rate(loader: Any, number: int) -> float:
    start = time.perf_counter()
    jets = sum(len(batch) for batch in loader.epoch(number))
    return jets / (time.perf_counter() - start)


def decompress(order: dict[str, Any]) -> dict[str, Any]:
    """Our library for zlib on the baskets that the config needs, which are in memory already.

    One file in each thread. No decoding can pass this rate.
    """
    from concurrent.futures import ThreadPoolExecutor

    from common import storage
    from weaver.config.data_config import DataConfig
    from weaver.read import files
    from weaver.read.root import inflate

    file_check = files.check(
        [storage.glob(path)[0] for path in order["files"]],
        DataConfig.load(order["config"]),
        for_training=True,
    )
    records = [
        [_stored_baskets(file.entry.uri, branch) for branch in file.baskets.branches.values()]
        for file in file_check.files
    ]
    threads = len(os.sched_getaffinity(0))
    seconds, cpu = [], []
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(3):
            start, cpu_start = time.perf_counter(), time.process_time()
            list(
                pool.map(
                    lambda branches: [
                        inflate.inflate(*record) and None
                        for baskets in branches
                        for record in baskets
                    ],
                    records,
                )
            )
            seconds.append(time.perf_counter() - start)
            cpu.append(time.process_time() - cpu_start)
    jets = sum(file.num_entries for file in file_check.files)
    return {"jets": jets, "seconds": min(seconds), "cpu": min(cpu), "threads": threads}


def _stored_baskets(path: str, branch: Any) -> list[tuple[bytes, int]]:
    """Return a branch's compressed baskets, each with its uncompressed size."""
    content, baskets = Path(path).read_bytes(), []
    for seek, size in zip(branch.seeks.tolist(), branch.sizes.tolist(), strict=True):
        full = int.from_bytes(content[seek + 6 : seek + 10], "big")
        key = int.from_bytes(content[seek + 14 : seek + 16], "big")
        baskets.append((content[seek + key : seek + size], full))
    return baskets


def hold(order: dict[str, Any]) -> dict[str, Any]:
    """Measure the anonymous memory (of no file) of preparing files, and of an epoch over them.

    Beyond what the imports took.
    """
    from weaver.config.data_config import DataConfig
    from weaver.feed.dataset import Dataset
    from weaver.feed.loader import Loader
    from weaver.prepared.prepare import prepare

    with tempfile.TemporaryDirectory(dir=order["scratch"]) as storage:
        config = DataConfig.load(order["config"])
        # made once for all sizes
        prepare(order["files"][:1], config, storage, for_training=True, report=lambda line: None)
        before = _anonymous()
        with _Peak() as preparing:
            reference = prepare(
                order["files"], config, storage, for_training=True, report=lambda line: None
            )
        dataset = Dataset.open(reference.uri, config)
        with _Peak() as feeding:
            for _ in Loader(
                dataset, order["batch_size"], shuffle=True, seed=1, block=order["block"]
            ).epoch(0):
                pass
        return {
            "jets": len(dataset),
            "data": dataset.nbytes,
            "preparing": preparing.most - before,
            "feeding": feeding.most - feeding.first,
        }


class _Peak:
    """The peak of anonymous memory while the block runs, sampled every few milliseconds."""

    def __enter__(self) -> _Peak:
        import threading

        self.first = self.most = _anonymous()
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._end.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._end.wait(0.005):
            self.most = max(self.most, _anonymous())


def _anonymous() -> int:
    """Bytes of this process in memory that no file backs (Linux)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith("RssAnon")).split()[1])


WORK = {"feed": feed, "hold": hold, "decompress": decompress}


# ----------------------------------------------------------------------------- running both sides


class Sides:
    """Starts the processes of both sides on the same files."""

    def __init__(self, arguments: argparse.Namespace, scratch: str) -> None:
        """Both sides read the same files with the same config."""
        self.peer_python, self.scratch = os.path.abspath(arguments.peer_python), scratch
        self.config = str(Path(arguments.data_config).resolve())
        self.files = _files(arguments, scratch)

    def ours(self, work: str = "feed", **order: Any) -> dict[str, Any]:
        """Run our feeding in a process of its own; return what it measured."""
        order = {
            "files": self.files,
            "config": self.config,
            "batch_size": BATCH,
            "scratch": self.scratch,
            **order,
        }
        return _answer(
            [sys.executable, "-m", "benchmarks.feeding", "--work", work, json.dumps(order)],
            cwd=str(ROOT),
        )

    def peer(self, flags: dict[str, Any], epochs: int = EPOCHS, **order: Any) -> dict[str, Any]:
        """Run weaver-core's loader in a process of its own; return what it measured."""
        order = {
            "files": self.files,
            "config": self.config,
            "batch_size": BATCH,
            "epochs": epochs,
            **flags,
            **order,
        }
        return _answer([self.peer_python, str(PEER_FEED), json.dumps(order)], cwd=self.scratch)


def _answer(command: list[str], cwd: str) -> dict[str, Any]:
    environment = {name: value for name, value in with_allocator().items() if name != "PYTHONPATH"}
    process = subprocess.run(
        command,
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=1800,
        check=False,
    )
    if process.returncode:
        raise JecError(
            f"{command[0]} ended with {process.returncode}:"
            f" {process.stderr.strip().splitlines()[-1:]}"
        )
    return json.loads(process.stdout.strip().splitlines()[-1])


def _files(arguments: argparse.Namespace, scratch: str) -> list[str]:
    """Link the training files under several names, so that both sides see more files."""
    from common import storage
    from data.generator.sample import ensure_sample

    pattern = arguments.data or ensure_sample(arguments.storage)["train"]
    paths = [entry.uri for entry in storage.glob(pattern)]
    names = []
    for copy in range(arguments.copies):
        for index, path in enumerate(paths):
            names.append(os.path.join(scratch, f"jets_{copy:03d}_{index:03d}.root"))
            os.symlink(os.path.abspath(path), names[-1])
    for path in paths:
        Path(path).read_bytes()  # into the page cache
    return names


# --------------------------------------------------------------------------------------- sections


def first_pass(sides: Sides, report: Report, arguments: argparse.Namespace) -> None:
    """Measure the first epoch, decoding included, side by side."""
    flags = json.loads(arguments.peer_flags) if arguments.peer_flags else best_flags(sides)
    answers: dict[str, list[dict[str, Any]]] = {"ours": [], "peer": [], "peer in memory": []}

    def run(name: str, start: Any) -> Any:
        return lambda: answers[name].append(start()) or answers[name][-1]["rates"][0]

    in_memory = {"fetch_step": 1, "num_workers": 0, "in_memory": True}
    in_memory["most_jets"] = sides.peer(flags, epochs=1)["jets"]  # it knows no end of an epoch then
    runs = alternate(
        {
            "ours": run("ours", sides.ours),
            "peer": run("peer", lambda: sides.peer(flags)),
            "peer in memory": run("peer in memory", lambda: sides.peer(in_memory)),
        },
        arguments.rounds,
    )
    default = sides.peer(DEFAULT_FLAGS, epochs=1, most_seconds=20)["rates"][0]
    ours = {
        part: [statistics.median(answer[part][-EPOCHS + 1 :]) for answer in answers["ours"]]
        for part in ("rates", "in_memory")
    }
    peer = {
        name: [statistics.median(answer["rates"][1:]) for answer in answers[name]]
        for name in ("peer", "peer in memory")
    }
    jets = answers["ours"][0]["jets"]
    report.section(
        "ROOT to ready batches, first pass",
        columns=["loader", "jets/s: median (least - most)", "ours is faster by"],
        rows=[
            ["ours: prepare, open, one epoch", _spread(runs["ours"]), ""],
            [
                f"weaver-core {_words(flags)}",
                _spread(runs["peer"]),
                ratio(runs["ours"], runs["peer"]).text(".1f", "x"),
            ],
            [
                "weaver-core as by default",
                f"{default:,.0f} (once)",
                f"{statistics.median(runs['ours']) / default:.0f}x",
            ],
        ],
        notes=[
            (
                f"{jets:,} selected jets in {len(sides.files)} files, batch {BATCH}, shuffled;"
                " files in the page cache; imports left out."
            ),
            f"Ours inflates with {zlib_library()}.",
            *_inflate_notes(sides, runs["ours"]),
        ],
        runs=runs,
        peer_flags=flags,
    )
    report.section(
        "ready batches, later epochs",
        columns=[
            "loader",
            "jets/s: median (least - most)",
            "ours (mapped) is faster by",
            "ours (--in-memory) is faster by",
        ],
        rows=[
            ["ours: mapped from disk", _spread(ours["rates"]), "", ""],
            ["ours: --in-memory", _spread(ours["in_memory"]), "", ""],
            *(
                [
                    words,
                    _spread(peer[name]),
                    *(
                        ratio(ours[part], peer[name]).text(".1f", "x")
                        for part in ("rates", "in_memory")
                    ),
                ]
                for words, name in (
                    (f"weaver-core {_words(flags)}", "peer"),
                    ("weaver-core --in-memory --num-workers 0", "peer in memory"),
                )
            ),
        ],
        notes=[
            "Without --in-memory weaver-core decodes ROOT again in each epoch; with it all padded"
            " jets stay in memory, on both sides."
        ],
        ours=ours,
        peer=peer,
    )


def _inflate_notes(sides: Sides, rates: list[float]) -> list[str]:
    """Return notes with the rate that decompressing the needed baskets alone would allow."""
    answer = sides.ours("decompress")
    most = answer["jets"] / answer["seconds"]
    return [
        f"Inflating the needed baskets and nothing else, on {answer['threads']} threads:"
        f" {most:,.0f} jets/s at most, {1e6 * answer['cpu'] / answer['jets']:.1f} us of CPU a jet;"
        f" ours is at {statistics.median(rates) / most:.0%} of that."
    ]


def best_flags(sides: Sides) -> dict[str, Any]:
    """The flags with which weaver-core's first two epochs are fastest on this machine."""
    rates = {
        json.dumps(flags): statistics.mean(sides.peer(flags, epochs=2, most_seconds=20)["rates"])
        for flags in SCANNED_FLAGS
    }
    for flags, rate in rates.items():
        print(f"weaver-core {_words(json.loads(flags))}: {rate:,.0f} jets/s", file=sys.stderr)
    return json.loads(max(rates, key=rates.__getitem__))


def search(sides: Sides, report: Report, arguments: argparse.Namespace) -> None:
    """Compare decoding once with decoding in each trial."""
    ours = sides.ours()
    flags = json.loads(arguments.peer_flags) if arguments.peer_flags else best_flags(sides)
    peer = sides.peer(flags, epochs=1)
    decode = peer["jets"] / peer["rates"][0]
    total = ours["prepare_seconds"] + TRIALS * ours["open_seconds"]
    report.section(
        f"decoding in a search of {TRIALS} trials",
        columns=["", "once", "each trial", f"{TRIALS} trials, 1 epoch each"],
        rows=[
            [
                "ours",
                f"prepare {ours['prepare_seconds']:.2f} s",
                f"open {1000 * ours['open_seconds']:.1f} ms",
                f"{total:.1f} s",
            ],
            [
                f"weaver-core {_words(flags)}",
                "",
                f"decode {decode:.2f} s",
                f"{TRIALS * decode:.0f} s ({TRIALS * decode / total:.0f}x)",
            ],
        ],
        notes=[
            (
                f"{ours['jets']:,} jets. weaver-core decodes in every epoch of every trial: with 50"
                " epochs, 50 times as much as shown."
            ),
            (
                "Trials of one machine map the same prepared files: one copy in memory, whatever"
                " their number."
            ),
        ],
        ours=ours,
        peer=peer,
    )


def memory(sides: Sides, report: Report, arguments: argparse.Namespace) -> None:
    """Anonymous memory for one and for many files, with both ways of shuffling."""
    sizes = [len(sides.files) // 5, len(sides.files), 5 * len(sides.files)]
    rows, data = [], []
    for size in sizes:
        files = (sides.files * 5)[:size]
        for block in (0, 2000):
            answer = sides.ours("hold", files=_distinct(files, sides.scratch), block=block)
            data.append(answer)
            cells = [
                f"{answer[part] / 2**20:,.0f} MiB" for part in ("data", "preparing", "feeding")
            ]
            rows.append([f"{answer['jets']:,}", "in blocks" if block else "as a whole", *cells])
    report.section(
        "memory of the process, page cache aside",
        columns=[
            "jets",
            "shuffled",
            "prepared data",
            "most while preparing",
            "most during an epoch",
        ],
        rows=rows,
        notes=[
            "Anonymous memory beyond what was there before (RssAnon). Shuffled as a whole, an epoch"
            " lists its jets: 8 bytes each, twice while the list is made; data sets above 4 GiB are"
            " shuffled in blocks (weaver/feed/order.py)."
        ],
        answers=data,
    )


def _distinct(files: list[str], scratch: str) -> list[str]:
    """The same files, each named once: a repeated name gets another."""
    counts: dict[str, int] = {}
    names = []
    for path in files:
        counts[path] = counts.get(path, 0) + 1
        other = path if counts[path] == 1 else path.replace(".root", f"_{counts[path]}.root")
        if not os.path.exists(other):
            os.symlink(os.path.realpath(path), other)
        names.append(other)
    return names


def _words(flags: dict[str, Any]) -> str:
    """Return flags as they are typed."""
    return " ".join(
        f"--{name.replace('_', '-')}" + ("" if value is True else f" {value}")
        for name, value in flags.items()
    )


def _spread(values: list[float]) -> str:
    return Spread.of(values).text()


SECTIONS = {"first-pass": first_pass, "search": search, "memory": memory}


def main(argv: list[str] | None = None) -> int:
    """Measure and write the results; return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.feeding", description=__doc__.splitlines()[0]
    )
    parser.add_argument(
        "--peer-python",
        default=str(ROOT / ".venv-peer" / "bin" / "python"),
        help="interpreter that has weaver-core",
    )
    parser.add_argument(
        "--peer-flags",
        help=(
            'loader flags of weaver-core as JSON, e.g. {"fetch_step": 1} (default: the best of a'
            " scan)"
        ),
    )
    parser.add_argument(
        "--data", help="ROOT files (default: the training part of the generated sample)"
    )
    parser.add_argument("--data-config", default=str(ROOT / "data" / "jec_pfn_open.yaml"))
    parser.add_argument(
        "--storage", default="runs", help="where the generated sample lies or will lie"
    )
    parser.add_argument(
        "--copies",
        type=int,
        default=COPIES,
        help="how often the files are used, under different names",
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", default=",".join(SECTIONS), help="sections to measure")
    parser.add_argument("--work", nargs=2, metavar=("NAME", "JSON"), help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.work:
        print(json.dumps(WORK[arguments.work[0]](json.loads(arguments.work[1]))))
        return 0

    def body() -> int | None:
        check_peer(arguments.peer_python)
        report = Report("feeding", "Feeding: from ROOT files to ready batches")
        with tempfile.TemporaryDirectory(prefix="bench-feeding-") as scratch:
            sides = Sides(arguments, scratch)
            for name in arguments.only.split(","):
                SECTIONS[name](sides, report, arguments)
                report.save()

    return run_main(body)


if __name__ == "__main__":
    sys.exit(main())
