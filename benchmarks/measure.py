"""Functions that all benchmarks share: alternating runs, ratios with spread, files of results.

Ratios come with their spread.

    report = Report("feeding", "From ROOT files to batches")
    runs = alternate({"ours": ours, "weaver-core": theirs}, rounds=5)      # functions that return a
        rate, in turn: A B A B ...
    report.section("later epochs", columns=["loader", "jets/s", "ratio"], rows=[...], runs=runs,
        notes=["..."])
    report.save()                                                          #
        results/feeding-<date>-<machine>.json and .md

Speeds of different days or machines are not comparable, so that a claim is always a ratio within
one run: `ratio(runs["ours"], runs["weaver-core"])` pairs the i-th run of one with the i-th run of
the other, shortly after it. A section that is measured again replaces the one of the same name in
the file of the same day and machine, so that a long benchmark can be run in parts.
"""

from __future__ import annotations

import dataclasses
import datetime
import json
import os
import platform
import re
import statistics
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from common.errors import InputError
from common.machine import processor
from weaver.fit.allocator import ENVIRONMENT as ALLOCATOR

RESULTS = Path(__file__).parent / "results"
# flags of a CPU that multiplies bfloat16 in hardware
FAST_BF16 = ("avx512_bf16", "amx_bf16", "amx_tile")
TELLING_FLAGS = ("avx2", "avx512f", "avx512_vnni", *FAST_BF16)


# ------------------------------------------------------------------------------------ the machine


def machine() -> dict[str, Any]:
    """This machine and what runs on it, as the head of a result.

    Imports torch only if the program has done so.
    """
    model, flags = processor()
    entries = {
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "processor": model,
        "flags": [flag for flag in TELLING_FLAGS if flag in flags],
        "cores": (
            len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        ),
        "memory_gib": round(_memory_bytes() / 2**30, 1),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "allocator": {name: os.environ.get(name) for name in ALLOCATOR},
    }
    if torch := sys.modules.get("torch"):
        entries |= {
            "torch": torch.__version__,
            "threads": torch.get_num_threads(),
            "gpu": _gpu(torch),
        }
    return entries


def has_fast_bf16() -> bool:
    """True where the CPU multiplies bfloat16 in hardware.

    Elsewhere bf16 autocast is emulated and slow.
    """
    return bool(set(FAST_BF16) & set(processor()[1]))


def kind(of_machine: Mapping[str, Any] | None = None) -> str:
    """A short name of the machine for file names, such as amd-epyc-2c or nvidia-h200."""
    of_machine = of_machine or machine()
    words = of_machine.get("gpu") or f"{of_machine['processor']} {of_machine['cores']}c"
    words = re.sub(r"\((r|tm)\)|\b(cpu|processor|@.*ghz|\d+-core)\b", " ", words.lower())
    return re.sub(r"[^a-z0-9]+", "-", words).strip("-")


def _memory_bytes() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _gpu(torch: Any) -> str | None:
    return torch.cuda.get_device_name() if torch.cuda.is_available() else None


# ------------------------------------------------------------------------------------------- runs


@dataclasses.dataclass(frozen=True, kw_only=True)
class Spread:
    """Least, median and largest of several values."""

    least: float
    median: float
    most: float

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread:
        """Take least, median and most of some values."""
        values = list(values)
        return cls(least=min(values), median=statistics.median(values), most=max(values))

    def text(self, form: str = ",.0f", unit: str = "") -> str:
        """As `median unit (least - most)`."""
        return f"{self.median:{form}}{unit} ({self.least:{form}} - {self.most:{form}})"


def alternate(
    contenders: Mapping[str, Callable[[], float]],
    rounds: int,
    report: Callable[[str], None] | None = None,
) -> dict[str, list[float]]:
    """Run each contender once a round, in turn (A B A B ...).

    So whatever slows the machine meets all of them. A contender returns its rate. Returns name ->
    the rates of its rounds.
    """
    report = report or (lambda line: print(line, file=sys.stderr, flush=True))
    runs: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(rounds):
        for name, contender in contenders.items():
            runs[name].append(float(contender()))
            report(f"round {number + 1}/{rounds}: {name}: {runs[name][-1]:,.1f}")
    return runs


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> Spread:
    """Spread of the ratios of rates measured in the same round."""
    return Spread.of(a / b for a, b in zip(ours, theirs, strict=True))


def check_peer(python: str) -> None:
    """Raise InputError unless the interpreter of the peer's environment is there."""
    if not os.path.isfile(python):
        raise InputError(
            f"there is no weaver-core to compare with at {python}; make peer installs it, or say"
            " --peer-python PATH"
        )


def with_allocator(
    threads: int | None = None, base: Mapping[str, str] | None = None
) -> dict[str, str]:
    """The environment in which both sides of a comparison run.

    It has the C allocator's settings, and a number of threads if given.
    """
    environment = {**(os.environ if base is None else base), **ALLOCATOR}
    return environment if threads is None else {**environment, "OMP_NUM_THREADS": str(threads)}


def without_allocator(base: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment without the C allocator's settings: how a program runs as installed."""
    return {
        name: value
        for name, value in (os.environ if base is None else base).items()
        if name not in ALLOCATOR
    }


def peak_flops(dtype: Any, device: str = "cpu", size: int = 2048, seconds: float = 2.0) -> float:
    """Floating-point operations a second of a large matrix product.

    A network on this device cannot pass it.
    """
    import time

    import torch

    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    wait = torch.cuda.synchronize if device.startswith("cuda") else (lambda: None)
    best, end = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < end:
        step_start = time.perf_counter()
        torch.matmul(a, b)
        wait()
        best = min(best, time.perf_counter() - step_start)
    return 2 * size**3 / best


# ---------------------------------------------------------------------------------------- results


class Report:
    """Sections of one benchmark's results, kept as JSON and, for reading, as Markdown."""

    def __init__(self, name: str, title: str, folder: Path = RESULTS) -> None:
        """Describe the machine; nothing is written yet."""
        self.machine = machine()
        self.path = folder / f"{name}-{self.machine['date'][:10]}-{kind(self.machine)}.json"
        self.content: dict[str, Any] = {"benchmark": name, "title": title, "sections": {}}

    def section(
        self,
        name: str,
        *,
        columns: Sequence[str],
        rows: Sequence[Sequence[Any]],
        notes: Sequence[str] = (),
        **data: Any,
    ) -> None:
        """Add a table (cells as they shall read) with notes under it.

        `data` (JSON) is what the table was made from. Also printed.
        """
        section = {
            "measured": machine(),
            "columns": list(columns),
            "rows": [[str(cell) for cell in row] for row in rows],
        }
        self.content["sections"][name] = {**section, "notes": list(notes), "data": data}
        print("\n".join(_table(name, self.content["sections"][name])), flush=True)

    def save(self) -> Path:
        """Write both files; returns the path of the readable one."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if self.path.exists():  # other parts of the same day
            self.content["sections"] = (
                json.loads(self.path.read_text())["sections"] | self.content["sections"]
            )
        _write(self.path, json.dumps({**self.content, "machine": self.machine}, indent=1) + "\n")
        readable = self.path.with_suffix(".md")
        _write(readable, self.text())
        print(f"written: {readable}", file=sys.stderr)
        return readable

    def text(self) -> str:
        """The results as Markdown."""
        lines = [f"# {self.content['title']}", "", *_machine_lines(self.machine)]
        for name, section in self.content["sections"].items():
            lines += ["", *_table(name, section), "", f"Measured {section['measured']['date']}."]
        return "\n".join(lines) + "\n"


def _machine_lines(of_machine: Mapping[str, Any]) -> list[str]:
    torch = (
        f"torch {of_machine['torch']}, {of_machine['threads']} threads, "
        if "torch" in of_machine
        else ""
    )
    lines = [
        f"{of_machine['processor']}, {of_machine['cores']} cores ({' '.join(of_machine['flags'])}),"
        f" {of_machine['memory_gib']} GiB, {of_machine['system']}."
    ]
    lines += [f"GPU: {of_machine['gpu']}."] if of_machine.get("gpu") else []
    return [*lines, f"{torch}Python {of_machine['python']}."]


def _table(name: str, section: Mapping[str, Any]) -> list[str]:
    """A section as lines of Markdown, its columns aligned for reading as plain text too."""
    rows = [section["columns"], *section["rows"]]
    widths = [max(len(row[i]) for row in rows) for i in range(len(section["columns"]))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |"
        for row in rows
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    notes = [f"- {note}" for note in section["notes"]]
    return [f"## {name}", "", *lines, *([""] if notes else []), *notes]


def _write(path: Path, text: str) -> None:
    """Whole or not at all."""
    partial = path.with_suffix(path.suffix + ".partial")
    partial.write_text(text)
    partial.replace(path)
