"""Closure of finished runs with and without the residual correction, as a table of the results.

    python -m benchmarks.closure RUN [RUN ...] --note "100,000 training jets, 15 epochs"

RUN is the folder of a run that was evaluated, such as `make run ARGS="--sample-jets 100000"` makes;
a note says of each run, in the same order, what its files do not.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from benchmarks.measure import Report
from common.cli import run_main
from common.errors import InputError
from common.layout import RunFolder
from common.measurements import ResidualBin
from common.records import ExportRecord, MetricsRecord, plain

RANGE = (60.0, 1000.0)
"""GeV: bins within which closure is asked for."""


def inside(one: ResidualBin) -> bool:
    """Whether a bin is one of those that closure is asked for in."""
    return one.pt_low >= RANGE[0] and one.pt_high is not None and one.pt_high <= RANGE[1]


def add(report: Report, uri: str, note: str) -> None:
    """Add a run's table. Raises InputError for a run whose model has no residual correction."""
    metrics = MetricsRecord.load(RunFolder(uri).metrics)
    export = ExportRecord.load(RunFolder(uri).export)
    effect = metrics.residual
    if effect is None or export.residual is None:
        raise InputError(f"{uri}: its model has no residual correction: {export.residual_reason}")
    standard = {(one.region, one.pt_range): one.standard for one in metrics.closure.bins}
    rows = []
    for one in effect.bins:
        place = (one.region, one.pt_range)
        biases = [standard[place], one.without, one.with_residual]
        remark = "" if one.measured else "unmeasured"
        rows.append([*place, f"{one.num_jets:,}", *(b.percent(100, 2) for b in biases), remark])
    asked = [one for one in effect.bins if inside(one)]
    largest = {
        name: max(abs(getattr(one, name).value) for one in asked)
        for name in ("without", "with_residual")
    }
    notes = [
        note,
        f"{metrics.num_measured:,} test jets, {export.residual.num_jets:,} validation jets.",
        f"Largest |bias| of the bins from {RANGE[0]:g} to {RANGE[1]:g} GeV:"
        f" {100 * largest['without']:.2f} % without the correction,"
        f" {100 * largest['with_residual']:.2f} % with it. Bins that are not measured to"
        f" {100 * effect.measured_to:g} % to either side:"
        f" {sum(not one.measured for one in asked)} of {len(asked)}.",
    ]
    if effect.gain:
        notes.append(
            f"Gain above 30 GeV: {effect.gain.without.percent()} without it,"
            f" {effect.gain.with_residual.percent()} with it; difference"
            f" {effect.gain.difference.percent(1, 2)}."
        )
    head = ["region", "pT (GeV)", "jets", "standard JEC", "without", "with", "remark"]
    report.section(
        metrics.run_id,
        columns=head,
        rows=rows,
        notes=[text for text in notes if text],
        residual=plain(export.residual),
    )


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.closure",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="folder of an evaluated run")
    parser.add_argument("--note", action="append", default=[], help="of each run, in order")
    arguments = parser.parse_args(argv)

    def body() -> None:
        report = Report("closure", "Closure with and without the residual correction")
        for number, run in enumerate(arguments.runs):
            add(report, run, arguments.note[number] if number < len(arguments.note) else "")
        report.save()

    return run_main(body)


if __name__ == "__main__":
    sys.exit(main())
