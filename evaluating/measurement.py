"""Measure a model's answers on the test jets, and judge them: the numbers of metrics.json."""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import NDArray

from common.measurements import GateSettings
from common.progress import Progress
from common.records import MetricsRecord
from evaluating.inference import Answers
from evaluating.inputs import Columns, Inputs
from physics import uncertainty
from physics.gate import gate
from physics.metrics import measure
from physics.residual_effect import residual_effect
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
    baseline: NDArray[np.float32] | None,
    settings: GateSettings,
    replicates: int,
) -> MetricsRecord:
    """Everything measured on the test jets, with the gate's verdict.

    columns: name -> (N,); baseline: an earlier model's answers for the same jets, (N,).
    """
    seed = settings.seed
    with Progress("bootstrap", total=replicates + 1, unit="draws") as progress:
        numbers = measure(
            columns,
            answers.correction,
            baseline=baseline,
            replicates=replicates,
            seed=seed,
            advance=progress.advance,
        )
    # The gate judges the numbers as they are, before they are rounded for the file.
    passed, reasons = gate(numbers, settings.min_improvement, settings.max_closure)

    content = {
        "passed": passed,
        "reasons": reasons,
        "run": subject.run,
        "run_id": inputs.run.id,
        "model": subject.model,
        "trial": inputs.trial,
        "baseline": subject.baseline,
        "config": dataclasses.asdict(settings),
        **numbers,
        "inference": dataclasses.asdict(answers.inference),
    }
    # Only a quantile network says how sure it is of each jet.
    if uncertainty.bands(answers.columns):
        with Progress(
            "bootstrap of the uncertainties", total=replicates + 1, unit="draws"
        ) as progress:
            content["uncertainty"] = uncertainty.measure(
                columns,
                answers.output,
                answers.columns,
                replicates=replicates,
                seed=seed,
                advance=progress.advance,
            )
    if answers.without_residual is not None:
        with Progress(
            "bootstrap of the residual correction", total=replicates + 1, unit="draws"
        ) as progress:
            content["residual"] = residual_effect(
                columns,
                answers.correction,
                answers.without_residual[:, 0],
                replicates=replicates,
                seed=settings.seed,
                advance=progress.advance,
            )
    metrics = MetricsRecord.from_json(content)
    return dataclasses.replace(metrics, headline=headline(metrics, inputs.search))
