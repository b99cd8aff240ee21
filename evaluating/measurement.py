"""Compute the content of metrics.json: all measurements on the test jets, and the gate."""

from __future__ import annotations

import dataclasses
import hashlib

import numpy as np
from numpy.typing import NDArray

from common.machine import return_freed_memory
from common.measurements import EdgeStep, GateSettings
from common.progress import Progress
from common.records import MetricsRecord, plain
from evaluating.inference import Predictions
from evaluating.inputs import Columns, RunRecords
from evaluating.jet_columns import PILEUP
from evaluating.trees import TreesComparison
from physics import range_edges, uncertainty
from physics.bootstrap import LEVEL
from physics.gate import judge
from physics.metrics import REQUIRED_COLUMNS, Record, record_of, sample_of
from physics.pileup import against_pileup
from physics.residual_effect import residual_effect
from physics.tails import tails
from reporting.headline import headline


@dataclasses.dataclass(frozen=True, kw_only=True)
class Subject:
    """The model to measure, and the run with which it is compared."""

    run: str
    """URI of the folder of the run."""
    model: str
    baseline: str | None
    """URI of the folder of an earlier run; None without one."""


def measure(
    subject: Subject,
    inputs: RunRecords,
    columns: Columns,
    predictions: Predictions,
    label_problem: str,
    baseline: NDArray[np.float32] | None,
    trees: TreesComparison,
    settings: GateSettings,
    replicates: int,
) -> MetricsRecord:
    """Measure a model on the test jets and decide the gate.

    Args:
        subject: The model, its run and its baseline.
        inputs: Records of the run.
        columns: Observers of the test jets, (N,) each.
        predictions: Outputs of the model for these jets.
        label_problem: Why the label gives no correction of jetPt (`label_reason`); empty if it
            does.
        baseline: Correction of an earlier model for the same jets, (N,).
        trees: Predictions of boosted trees for the same jets, and pile-up columns.
        settings: Mode and limits of the gate.
        replicates: Number of bootstrap draws.

    Returns:
        The content of metrics.json, with floats not rounded yet.
    """
    all_columns = {**trees.pileup, **columns}
    pileup = next((name for name in PILEUP if name in all_columns), "")
    # before the sample, whose arrays stay in memory
    widths = widths_of(columns, predictions, replicates, settings.seed)
    return_freed_memory()
    with Progress("bootstrap", total=replicates + 1, unit="draws") as progress:
        sample = sample_of(
            columns,
            predictions.correction,
            baseline=baseline,
            trees=trees.predictions,
            pileup=np.asarray(all_columns[pileup]) if pileup else None,
            replicates=replicates,
            seed=settings.seed,
            advance=progress.advance,
        )
    return_freed_memory()
    # The gate judges exact numbers; they are rounded later, for the file.
    gate, reasons = judge(sample, settings, widths)
    if label_problem:
        reasons.insert(0, label_problem)

    content = {
        "passed": not reasons,
        "reasons": reasons,
        "run": subject.run,
        "run_id": inputs.run.id,
        "model": subject.model,
        "trial": inputs.trial,
        "baseline": subject.baseline,
        "config": dataclasses.asdict(settings),
        **record_of(sample),
        "gate": gate,
        "inference": dataclasses.asdict(predictions.inference),
        "trees": plain(trees.record),
        "label": dict(predictions.labels),
        "test_fingerprint": jets_fingerprint(columns),
        "tails": tails(sample),
        "edges": [dataclasses.asdict(step) for step in steps_of(columns, predictions)],
    }
    if pileup:
        content["pileup"] = {"column": pileup, "slices": against_pileup(sample)}
    if widths:
        content["uncertainty"] = widths
    if predictions.without_residual is not None:
        with Progress(
            "bootstrap of the residual correction", total=replicates + 1, unit="draws"
        ) as progress:
            content["residual"] = residual_effect(
                sample, predictions.without_residual[:, 0], advance=progress.advance
            )
    metrics = MetricsRecord.from_json(content)
    return dataclasses.replace(metrics, headline=headline(metrics, inputs.search))


def steps_of(columns: Columns, predictions: Predictions) -> list[EdgeStep]:
    """Return the steps in response at the edges of the valid range; empty without a range.

    Args:
        columns: Observers of the N jets by name, (N,) each; jetPt and genJetPt in GeV.
        predictions: Outputs of the model for the same jets.
    """
    limits = predictions.valid_range
    if limits is None:
        return []
    pt = np.asarray(columns["jetPt"], np.float64)
    valid = (pt >= limits["min_pt"]) & (pt <= limits["max_pt"])
    max_abs_eta = limits["max_abs_eta"]
    if max_abs_eta is not None and predictions.abs_eta is not None:
        valid &= predictions.abs_eta <= max_abs_eta
    return range_edges.steps(
        range_edges.edges_of(limits["min_pt"], limits["max_pt"], max_abs_eta),
        pt=pt,
        abs_eta=predictions.abs_eta,
        generated_pt=np.asarray(columns["genJetPt"], np.float64),
        correction=np.asarray(predictions.correction, np.float64),
        valid=valid,
        level=LEVEL,
    )


def jets_fingerprint(columns: Columns) -> str:
    """Return a digest of the momenta of the test jets, equal for runs tested on the same jets.

    The momenta (N,) are rounded, because files may store them in other types.
    """
    digest = hashlib.sha256()
    for name in REQUIRED_COLUMNS:
        digest.update(np.round(np.asarray(columns[name], dtype=np.float64), 3).data)
    return digest.hexdigest()


def widths_of(
    columns: Columns, predictions: Predictions, replicates: int, seed: int
) -> Record | None:
    """Measure the coverage of the quantiles that a network predicts (physics.uncertainty).

    Args:
        columns: Observers of the N jets by name, (N,) each; momenta in GeV.
        predictions: Outputs of the model for the same jets.
        replicates: Number of bootstrap draws for the intervals.
        seed: Seed of the draws.

    Returns:
        The measurements; empty with too few jets. None for a network without quantiles.
    """
    if not uncertainty.bands(predictions.columns):
        return None
    with Progress("bootstrap of the uncertainties", total=replicates + 1, unit="draws") as progress:
        widths = uncertainty.measure(
            columns,
            predictions.output,
            predictions.columns,
            replicates=replicates,
            seed=seed,
            advance=progress.advance,
        )
    return widths or {}
