"""Test whether many searches in one process leak memory, descriptors or files.

It runs small local searches one after the other in this process, each with its prepare step.

    python -m benchmarks.soak                               # 40 searches, about half an hour
    python -m benchmarks.soak --searches 5 --output DIR     # a look

After each search it counts the process' memory, threads and descriptors, the files in the temporary
folder, in /dev/shm and in the cache of prepared data, and the size of the search's folder; the
memory of the trials is their largest sum during the search. A straight line is fitted to each
count. If a count grows significantly (by SIGNIFICANT errors of the slope, and by more than SHARE of
its mean over all searches), it is printed and the exit code is 1. The first searches are left out
of the fit, because they import modules and fill caches.

/dev/shm is shared by all programs of a machine; `unshare --mount` with a tmpfs on it gives these
searches one of their own.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import psutil

from benchmarks.measure import RESULTS, Report
from common.cli import run_main
from common.config import RunConfig
from common.errors import JecError
from components import step
from components.prepare import prepare
from components.search import search
from reporting.drawing import INK, SET_LOOKS, Drawing, panels, style, svg, whole_number_axis
from weaver.prepared.node_cache import CACHE_VARIABLE

SPACE = """[
 {"name": "fc-dim", "type": "discrete", "list": [32, 64]},
 {"name": "start-lr", "type": "double", "min": 1e-4, "max": 1e-2, "distribution": "logUniform"}]"""
WARM_UP = 5
"""Searches before the fit: the first ones import modules and fill caches of the libraries."""
SIGNIFICANT = 3.0
"""Errors of its slope by which a count must rise to count as growing."""
SHARE = 0.01
"""Least growth over all searches, as a share of the mean: 1 % is 3 MB of this process' memory."""
SAMPLE_SECONDS = 0.5


@dataclasses.dataclass(frozen=True, kw_only=True)
class Count:
    """The quantities that are counted after each search."""

    name: str
    unit: str


COUNTS = (
    Count(name="memory of this process", unit="MB"),
    Count(name="memory of all processes, at most", unit="MB"),
    Count(name="processes left", unit=""),
    Count(name="threads", unit=""),
    Count(name="descriptors", unit=""),
    Count(name="files in /dev/shm", unit=""),
    Count(name="temporary files", unit=""),
    Count(name="temporary files, size", unit="MB"),
    Count(name="prepared data", unit="MB"),
    Count(name="folder of one search", unit="MB"),
)


class TreeMemory(threading.Thread):
    """Sample the memory of this process and of all below it, until `stop`."""

    def __init__(self) -> None:
        """Make the thread; `start` begins to sample."""
        super().__init__(daemon=True)
        self.most = 0
        self._end = threading.Event()

    def run(self) -> None:
        """Sample until `stop`."""
        own = psutil.Process()
        while not self._end.wait(SAMPLE_SECONDS):
            memory = own.memory_info().rss
            for process in own.children(recursive=True):
                try:
                    memory += process.memory_info().rss
                except psutil.NoSuchProcess:
                    continue
            self.most = max(self.most, memory)

    def stop(self) -> int:
        """End it; the largest sum in bytes."""
        self._end.set()
        self.join()
        return self.most


def one_search(output: Path, number: int, jets: int) -> None:
    """Prepare and search, as the two steps of a run do. All searches do the same work."""
    config = RunConfig(
        s3_bucket=str(output),
        run_id=f"soak-{number:08x}",
        search_space=SPACE,
        seed="1",
        max_trials=2,
        parallel_trials=1,
        num_epochs=2,
        batch_size=100,
        num_cpus=1,
        sample_jets=jets,
    )
    search(prepare(config, ""), step.Artifacts(""))


def count(output: Path, temporary: Path, number: int, most_memory: int) -> list[float]:
    """The values of COUNTS after a search."""
    own = psutil.Process()
    files, size = _files(temporary)
    folder = output / f"soak-{number:08x}"
    return [
        own.memory_info().rss / 1e6,
        most_memory / 1e6,
        len(own.children(recursive=True)),
        own.num_threads(),
        own.num_fds(),
        len(os.listdir("/dev/shm")),  # noqa: S108 (it is counted only)
        files,
        size / 1e6,
        _files(output / "cache")[1] / 1e6,
        (_files(folder)[1] + _files(output / "trials" / folder.name)[1]) / 1e6,
    ]


def _files(folder: Path) -> tuple[int, int]:
    """How many files and folders lie below a folder, and the bytes of the files."""
    number, size = 0, 0
    for parent, folders, files in os.walk(folder):
        number += len(folders) + len(files)
        for name in files:
            try:
                size += os.lstat(os.path.join(parent, name)).st_size
            except FileNotFoundError:
                continue
    return number, size


@dataclasses.dataclass(frozen=True, kw_only=True)
class Line:
    """A straight line through a count: its slope for each search, with the slope's error."""

    mean: float
    slope: float
    error: float
    searches: int

    @classmethod
    def through(cls, values: Sequence[float]) -> Line:
        """Fit by least squares; the error follows from the scatter of the values around the line.

        Raises ValueError for fewer than 3 values, whose scatter is not known.
        """
        if len(values) < 3:
            raise ValueError(f"a line with an error needs 3 values, not {len(values)}")
        y = np.asarray(values, dtype=float)
        x = np.arange(len(y)) - (len(y) - 1) / 2
        slope = float(x @ y / (x @ x))
        rest = y - y.mean() - slope * x
        error = float(np.sqrt(rest @ rest / (len(y) - 2) / (x @ x)))
        return cls(mean=float(y.mean()), slope=slope, error=error, searches=len(y))

    @property
    def grows(self) -> bool:
        """Whether the slope is significant and the growth exceeds SHARE."""
        rise = self.slope * (self.searches - 1)
        return self.slope > SIGNIFICANT * self.error and rise > SHARE * self.mean


def soak(output: Path, searches: int, minutes: float, jets: int) -> list[list[float]]:
    """Run so many searches, or as many as begin within so many minutes; COUNTS after each."""
    end = time.monotonic() + 60 * minutes
    temporary = output / "temporary"
    temporary.mkdir(parents=True)
    # Trials and this process use them; nothing else on the machine does.
    os.environ[step.LOCAL_DIR] = str(output)
    os.environ["TMPDIR"] = tempfile.tempdir = str(temporary)
    os.environ[CACHE_VARIABLE] = str(temporary / "node-cache")
    counts = []
    for number in range(searches):
        start = time.monotonic()
        if start > end and number >= WARM_UP + 3:
            break
        memory = TreeMemory()
        memory.start()
        try:
            one_search(output, number, jets)
        finally:
            most = memory.stop()
        counts.append(count(output, temporary, number, most))
        texts = [
            f"{quantity.name} {value:.4g}"
            for quantity, value in zip(COUNTS, counts[-1], strict=True)
        ]
        seconds = time.monotonic() - start
        print(f"search {number + 1}/{searches}, {seconds:.0f} s: {', '.join(texts)}", flush=True)
    return counts


def lines_of(counts: Sequence[Sequence[float]]) -> list[Line]:
    """A line through each of COUNTS, without the searches of the warm-up."""
    return [Line.through([row[i] for row in counts[WARM_UP:]]) for i in range(len(COUNTS))]


def figure(counts: Sequence[Sequence[float]]) -> Drawing:
    """Memory above, numbers of things below, by the number of the search."""
    with style():
        figure, (above, below) = panels((1, 1), (10, 10))
        x = np.arange(1, len(counts) + 1)
        values = np.array(counts)
        for axes, columns in ((above, (0, 1, 9)), (below, (3, 4, 5, 6))):
            looks = [*SET_LOOKS, {"color": INK, "linestyle": "-."}]
            for look, index in zip(looks, columns, strict=False):
                axes.plot(x, values[:, index], label=COUNTS[index].name, **look)
            axes.set_ylim(0, 1.6 * max(values[:, columns].max(), 1))
            axes.legend(fontsize=17, loc="upper right", ncols=2)
        above.set_ylabel("MB")
        below.set_ylabel("number")
        whole_number_axis(below, "search")
    alt = f"memory, threads, descriptors and files after each of {len(counts)} searches"
    return Drawing(name="soak", caption=alt, alt=alt, figure=figure)


def save_figure(drawing: Drawing, path: Path) -> None:
    """An SVG of its own, whose ink suits a light and a dark page."""
    colours = (
        '<svg xmlns="http://www.w3.org/2000/svg"><style>svg{color:#1b1b1f}'
        "@media (prefers-color-scheme:dark){svg{color:#e4e4e8}}</style>"
    )
    path.write_text(f"{colours}{svg(drawing)}</svg>\n")


def write(counts: list[list[float]], arguments: argparse.Namespace) -> list[str]:
    """Write the results; the names of what grows."""
    report = Report("soak", "Many searches in one process", arguments.results)
    rows = []
    growing = []
    for quantity, line, first in zip(COUNTS, lines_of(counts), counts[WARM_UP], strict=True):
        if line.grows:
            growing.append(quantity.name)
        rows.append(
            [
                f"{quantity.name} ({quantity.unit})" if quantity.unit else quantity.name,
                f"{first:.4g}",
                f"{counts[-1][len(rows)]:.4g}",
                f"{line.slope:+.4f} ± {line.error:.4f}",
                "yes" if line.grows else "no",
            ]
        )
    plot = report.path.with_suffix(".svg")
    report.section(
        "after each search",
        columns=["count", f"search {WARM_UP + 1}", f"search {len(counts)}", "a search", "grows"],
        rows=rows,
        notes=[
            f"{len(counts)} searches in one process, each with prepare: 2 trials of 2 epochs of"
            f" {arguments.jets:,} jets.",
            f"a search: slope of a straight line from search {WARM_UP + 1} on, with its error."
            f" Grows: by more than {SIGNIFICANT:g} errors and {SHARE:.0%} of the mean in all.",
            f"Plot: [{plot.name}]({plot.name}).",
        ],
        counts=counts,
    )
    report.save()
    save_figure(figure(counts), plot)
    return growing


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.soak",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--searches", type=int, default=40)
    parser.add_argument(
        "--minutes", type=float, default=120, help="begin no search after so many minutes"
    )
    parser.add_argument("--jets", type=int, default=1000, help="training jets")
    parser.add_argument(
        "--output", type=Path, help="keep the searches in this new folder, to look at"
    )
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the results")
    arguments = parser.parse_args(argv)
    if arguments.searches < WARM_UP + 3:
        parser.error(f"--searches {arguments.searches}: at least {WARM_UP + 3} are needed")

    def body() -> None:
        folder = Path(tempfile.mkdtemp(prefix="soak-", dir=arguments.output))
        try:
            counts = soak(folder, arguments.searches, arguments.minutes, arguments.jets)
        finally:
            if arguments.output is None:
                shutil.rmtree(folder, ignore_errors=True)
        if growing := write(counts, arguments):
            raise JecError(f"this grows from search to search: {', '.join(growing)}")

    return run_main(body)


if __name__ == "__main__":
    sys.exit(main())
