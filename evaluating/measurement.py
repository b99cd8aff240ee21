"""Measure a model's answers on the test jets, and judge them: the numbers of metrics.json."""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import NDArray

from common import storage
from common.measurements import EdgeStep, GateSettings
from common.progress import Progress
from common.records import MetricsRecord, plain
from evaluating.inference import Answers
from evaluating.inputs import Columns, Inputs
from evaluating.jet_columns import PILEUP
from evaluating.requirements import label_reason
from evaluating.trees import Compared
from physics import range_edges, uncertainty
from physics.bootstrap import LEVEL
from physics.gate import judge
from physics.metrics import NEEDED, Record, record_of, sample_of
from physics.pileup import against_pileup
from physics.residual_effect import residual_effect
from physics.response import Floats
from physics.tails import tails
from reporting.headline import headline


@dataclasses.dataclass(frozen=True, kw_only=True)
class Subject:
    """Which model is measured, and what it is compared with."""

    run: str
    """URI of the run's folder."""
    model: str
    baseline: str | None
    """URI of an earlier run's folder; None without one."""


def measured(
    subject: Subject,
    inputs: Inputs,
    columns: Columns,
    answers: Answers,
    label: Floats | None,
    baseline: NDArray[np.float32] | None,
    trees: Compared,
    settings: GateSettings,
    replicates: int,
) -> MetricsRecord:
    """Everything measured on the test jets, with the gate's verdict.

    columns: name -> (N,); label: what the network learns, as `label_values` gives it; baseline: an
    earlier model's answers for the same jets, (N,); trees: what boosted trees answered, and the
    pile-up columns.
    """
    known = {**trees.pileup, **columns}
    pileup = next((name for name in PILEUP if name in known), "")
    with Progress("bootstrap", total=replicates + 1, unit="draws") as progress:
        sample = sample_of(
            columns,
            answers.correction,
            baseline=baseline,
            trees=trees.answers,
            pileup=np.asarray(known[pileup]) if pileup else None,
            replicates=replicates,
            seed=settings.seed,
            advance=progress.advance,
        )
    widths = widths_of(columns, answers, replicates, settings.seed)
    # The gate judges the numbers as they are, before they are rounded for the file.
    gate, reasons = judge(sample, settings, widths)
    if reason := label_reason(answers.labels, label, columns):
        reasons.insert(0, reason)

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
        "inference": dataclasses.asdict(answers.inference),
        "trees": plain(trees.record),
        "label": dict(answers.labels),
        "test_fingerprint": fingerprint(columns),
        "tails": tails(sample),
        "edges": [dataclasses.asdict(step) for step in steps_of(columns, answers)],
    }
    if pileup:
        content["pileup"] = {"column": pileup, "slices": against_pileup(sample)}
    if widths:
        content["uncertainty"] = widths
    if answers.without_residual is not None:
        with Progress(
            "bootstrap of the residual correction", total=replicates + 1, unit="draws"
        ) as progress:
            content["residual"] = residual_effect(
                sample, answers.without_residual[:, 0], advance=progress.advance
            )
    metrics = MetricsRecord.from_json(content)
    return dataclasses.replace(metrics, headline=headline(metrics, inputs.search))


def steps_of(columns: Columns, answers: Answers) -> list[EdgeStep]:
    """The steps in response at the edges of the model's range; empty where it is not known."""
    limits = answers.valid_range
    if limits is None:
        return []
    pt = np.asarray(columns["jetPt"], np.float64)
    valid = (pt >= limits["min_pt"]) & (pt <= limits["max_pt"])
    max_abs_eta = limits["max_abs_eta"]
    if max_abs_eta is not None and answers.abs_eta is not None:
        valid &= answers.abs_eta <= max_abs_eta
    return range_edges.steps(
        range_edges.edges_of(limits["min_pt"], limits["max_pt"], max_abs_eta),
        pt=pt,
        abs_eta=answers.abs_eta,
        generated_pt=np.asarray(columns["genJetPt"], np.float64),
        correction=np.asarray(answers.correction, np.float64),
        valid=valid,
        level=LEVEL,
    )


def fingerprint(columns: Columns) -> str:
    """Digest of the momenta of the test jets, which says whether two runs were tested on the same.

    columns: name -> (N,). Rounded, because files may hold them in other types.
    """
    parts = []
    for name in NEEDED:
        parts.append(np.round(np.asarray(columns[name], dtype=np.float64), 3).tobytes())
    return storage.digest(b"".join(parts))


def widths_of(columns: Columns, answers: Answers, replicates: int, seed: int) -> Record | None:
    """What the quantiles of a network are worth (physics.uncertainty).

    None for a network that does not say how sure it is of each jet; empty with too few jets.
    """
    if not uncertainty.bands(answers.columns):
        return None
    with Progress("bootstrap of the uncertainties", total=replicates + 1, unit="draws") as progress:
        widths = uncertainty.measure(
            columns,
            answers.output,
            answers.columns,
            replicates=replicates,
            seed=seed,
            advance=progress.advance,
        )
    return widths or {}
