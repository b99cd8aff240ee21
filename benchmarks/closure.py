"""Tabulate the closure of finished runs with and without the residual correction.

    python -m benchmarks.closure RUN [RUN ...] --note "100,000 training jets, 15 epochs"

RUN is the folder of an evaluated run, for example of `make run ARGS="--sample-jets 100000"`. --note
gives one remark for each run, in the same order.

    python -m benchmarks.closure RUN [RUN ...] --validation-jets 1000 3000 10000

also fits the correction again on 1,000, 3,000 and 10,000 of the run's validation jets, drawn at
random DRAWS times each, and measures the closure of each fit on the run's test jets.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence

import numpy as np

from benchmarks.measure import Report
from common.cli import run_main
from common.errors import InputError
from common.layout import RunFolder
from common.measurements import ResidualBin
from common.records import ExportRecord, MetricsRecord, plain
from physics import response as r
from physics.residual import fit
from physics.response import Floats

RANGE = (60.0, 1000.0)
"""Range of pT (GeV) of the bins in which closure is required."""

DRAWS = 40
"""Of validation jets: the mean over them is then known to a sixth of the spread of one."""

Jets = Mapping[str, Floats]
"""output (N, C) before any correction, and (N,) each: pt, eta, genJetPt, genJetEta, of which pt is
the one that the label divides by (GeV) and eta is jetEta."""


def inside(residual_bin: ResidualBin) -> bool:
    """Return whether closure is required in a bin."""
    low, high = residual_bin.pt_low, residual_bin.pt_high
    return low >= RANGE[0] and high is not None and high <= RANGE[1]


def add(report: Report, uri: str, note: str) -> None:
    """Add a run's table. Raises InputError for a run whose model has no residual correction."""
    metrics = MetricsRecord.load(RunFolder(uri).metrics)
    export = ExportRecord.load(RunFolder(uri).export)
    effect = metrics.residual
    if effect is None or export.residual is None:
        raise InputError(f"{uri}: its model has no residual correction: {export.residual_reason}")
    standard = {(part.region, part.pt_range): part.standard for part in metrics.closure.bins}
    rows = []
    for part in effect.bins:
        place = (part.region, part.pt_range)
        biases = [standard[place], part.without, part.with_residual]
        remark = "" if part.measured else "unmeasured"
        rows.append([*place, f"{part.num_jets:,}", *(b.percent(100, 2) for b in biases), remark])
    bins = [part for part in effect.bins if inside(part)]
    largest = {
        name: max(abs(getattr(part, name).value) for part in bins)
        for name in ("without", "with_residual")
    }
    notes = [
        note,
        f"{metrics.num_measured:,} test jets, {export.residual.num_jets:,} validation jets.",
        f"Largest |bias| of the bins from {RANGE[0]:g} to {RANGE[1]:g} GeV:"
        f" {100 * largest['without']:.2f} % without the correction,"
        f" {100 * largest['with_residual']:.2f} % with it. Bins that are not measured to"
        f" {100 * effect.measured_to:g} % to either side:"
        f" {sum(not part.measured for part in bins)} of {len(bins)}.",
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


def jets_of(uri: str, split: str) -> Jets:
    """Return the validation or test jets of a run, with the answers of its network alone.

    Raises InputError if the run lacks them.
    """
    from evaluating.inference import load_session, predict
    from weaver.config.data_config import DataConfig
    from weaver.feed.dataset import Dataset
    from weaver.onnx.residual_features import residual_features

    folder = RunFolder(uri)
    name = MetricsRecord.load(folder.metrics).model
    dataset = Dataset.open(folder.data(split), DataConfig.load(folder.data_config))
    answers = predict(load_session(uri, name), dataset)
    if answers.without_residual is None:
        raise InputError(f"{uri}: its model has no residual correction")
    features = []
    for start in range(0, len(dataset), 1000):
        index = np.arange(start, min(start + 1000, len(dataset)))
        features.append(residual_features(dataset.data_config, dataset.batch(index)))
    pt, eta = np.concatenate(features).astype(np.float64).T
    observers = dataset.observers()
    jets = {name: np.asarray(observers[name], float) for name in ("genJetPt", "genJetEta")}
    return {"output": answers.without_residual, "pt": pt, "eta": eta, **jets}


def biases(jets: Jets, log_r: Floats | float) -> Floats:
    """Return median response - 1 in each bin in which closure is required: (bins,).

    Args:
        jets: Columns of the N jets, see `Jets`.
        log_r: Added to the model's logarithm of the correction, (N,) or one number.
    """
    response = jets["pt"] * np.exp(jets["output"][:, 0] + log_r) / jets["genJetPt"]
    values = []
    for jet_bin in r.bins(r.FINE_PT_EDGES):
        if jet_bin.low >= RANGE[0] and jet_bin.high <= RANGE[1]:
            values.append(
                np.median(response[jet_bin.contains(jets["genJetPt"], jets["genJetEta"])])
            )
    return np.array(values) - 1


def add_few(report: Report, uri: str, numbers: Sequence[int]) -> None:
    """Add a table of a run's closure as a function of the number of validation jets in the fit."""
    validation, test = jets_of(uri, "val"), jets_of(uri, "test")
    pt = validation["pt"] * np.exp(validation["output"][:, 0])
    log_pt = np.log(test["pt"]) + test["output"][:, 0]
    without = np.abs(biases(test, 0.0))
    total = len(pt)
    rng = np.random.default_rng(1)
    head = ["validation jets", "draws", "mean abs(bias)", "of which worse", "largest abs(bias)"]
    rows = [["0", "", f"{100 * without.mean():.3f} %", "", f"{100 * without.max():.2f} %"]]
    for number in [*(n for n in numbers if n < total), total]:
        draws = DRAWS if number < total else 1
        means, largest = [], []
        for _ in range(draws):
            indices = rng.choice(total, number, replace=False)
            residual = fit(pt[indices], validation["genJetPt"][indices], validation["eta"][indices])
            log_r = residual.log_r(log_pt, test["eta"]) if residual else 0.0
            bias = np.abs(biases(test, log_r))
            means.append(bias.mean())
            largest.append(bias.max())
        error = f" ± {100 * np.std(means, ddof=1) / draws**0.5:.3f}" if draws > 1 else ""
        worse = np.count_nonzero(np.array(means) > without.mean())
        rows.append(
            [
                f"{number:,}",
                str(draws),
                f"{100 * np.mean(means):.3f}{error} %",
                str(worse),
                f"{100 * np.mean(largest):.2f} %",
            ]
        )
    report.section(
        f"{uri.rstrip('/').rpartition('/')[2]}, by number of validation jets",
        columns=head,
        rows=rows,
        notes=[
            f"Mean and largest |median response - 1| of the bins from {RANGE[0]:g} to"
            f" {RANGE[1]:g} GeV of {len(log_pt):,} test jets; means over the draws, with the error"
            " of the mean. Worse: draws with which the mean |bias| is larger than without a"
            " correction."
        ],
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and write the results; return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.closure",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="folder of an evaluated run")
    parser.add_argument("--note", action="append", default=[], help="of each run, in order")
    parser.add_argument(
        "--validation-jets",
        type=int,
        nargs="+",
        default=[],
        metavar="N",
        help="fit the correction anew on so many validation jets",
    )
    arguments = parser.parse_args(argv)

    def body() -> None:
        report = Report("closure", "Closure with and without the residual correction")
        for number, run in enumerate(arguments.runs):
            add(report, run, arguments.note[number] if number < len(arguments.note) else "")
            if arguments.validation_jets:
                add_few(report, run, arguments.validation_jets)
        report.save()

    return run_main(body)


if __name__ == "__main__":
    sys.exit(main())
