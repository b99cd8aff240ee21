"""Section of report.html that compares the model with other calibrations on the same jets."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from common.measurements import ResponseBin
from common.records import MetricsRecord
from reporting.drawing import CALIBRATIONS
from reporting.page import MISSING, Table


@dataclasses.dataclass(frozen=True, kw_only=True)
class BaselinesSection:
    """The section's content."""

    bins: Table | None
    trees: str
    """How the trees were trained, or why there are none; empty for runs of earlier versions."""
    columns: str
    """Input columns of the trees; empty without trees."""
    missing: str
    """Input columns that the files lack; empty where they have all of them."""
    baseline: str
    """Earlier run that the model is compared with; empty without one."""


def content(metrics: MetricsRecord) -> BaselinesSection:
    """Return the content of the section for these metrics."""
    trees = metrics.trees
    text = columns = missing = ""
    if trees and trees.reason:
        text = f"No boosted trees: {trees.reason}."
    elif trees:
        text = (
            f"Boosted trees: scikit-learn {trees.scikit_learn}, absolute error (median), trained on"
            f" {trees.num_training_jets:,} of this run's training jets to the network's label;"
            f" {trees.num_trees} trees, in {trees.seconds:.0f} s."
        )
        columns, missing = ", ".join(trees.columns), ", ".join(trees.missing)
    return BaselinesSection(
        bins=_bins(metrics.bins),
        trees=text,
        columns=columns,
        missing=missing,
        baseline=metrics.baseline or "",
    )


def _bins(bins: Sequence[ResponseBin]) -> Table | None:
    """Return the resolution of each calibration by bin, and the gain of the model over each."""
    if not bins:
        return None
    # The last bin holds all jets, so that it has every calibration that was measured.
    others = [name for name in bins[-1].by_calibration() if name not in ("model", "uncorrected")]
    rows = []
    for bin_ in bins:
        row = [bin_.region, bin_.pt_range, f"{bin_.num_jets:,}"]
        calibrations = bin_.by_calibration()
        for name in (*others, "model"):
            response = calibrations.get(name)
            row.append(f"{response.resolution.value:.4f}" if response else MISSING)
        gains = {
            "standard": bin_.gain,
            "trees": bin_.gain_over_trees,
            "baseline": bin_.gain_over_baseline,
        }
        for name in others:
            gain = gains[name]
            row.append(gain.percent() if gain else MISSING)
        rows.append(row)
    head = ["Region", "pT (GeV)", "Jets"]
    head += [f"Resolution, {_plain(name)}" for name in (*others, "model")]
    head += [f"Gain over {_plain(name)}" for name in others]
    return Table(head=head, rows=rows)


def _plain(name: str) -> str:
    """Return the label of a calibration as it reads within a sentence: "standard JEC"."""
    label = CALIBRATIONS[name].label
    return label[0].lower() + label[1:]
