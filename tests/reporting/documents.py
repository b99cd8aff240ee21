"""The records of a run whose report has every section, for tests of pages and of the evaluation."""

from __future__ import annotations

import pytest

from common.config import RunConfig
from common.measurements import GateSettings, Inference
from common.records import (
    DataSet,
    EpochRecord,
    GoldenAnswers,
    MetricsRecord,
    Objective,
    Observation,
    RoundTrip,
    RunRecord,
    SearchRecord,
    ServiceRecord,
    Trial,
    TrialOptions,
    plain,
)
from common.run import Run
from reporting.report import Documents
from tests.records import export_record

NAME = "pfn-0a1b2c3d"


@pytest.fixture(scope="session")
def documents(good_metrics, widths) -> Documents:
    """The records of a run, as its steps write them."""
    return Documents(
        metrics=_metrics(good_metrics, widths),
        run=Run(
            config=RunConfig(s3_bucket="runs", run_id=NAME, num_epochs=3),
            record=RunRecord(
                data={
                    "test": DataSet(
                        dataset="runs/cache/00ff",
                        jets=6000,
                        read=6100,
                        files=2,
                        fingerprint="00ff",
                    )
                },
                versions={"torch": "2.13.0"},
            ),
        ),
        search=_search(),
        history=[_epoch(number) for number in range(3)],
        options=TrialOptions(network_options={"fc_dim": 200}, num_parameters=12345),
        export=export_record(
            "pfn",
            sha256="abc",
            max_batch_size=2048,
            trial=f"{NAME}-b",
            raw_reason="there is no form of <x> in a graph",
        ),
        service=ServiceRecord(
            name="pfn",
            url="http://pfn.physics.example",
            kind="kserve",
            details={},
            golden=GoldenAnswers(
                max_difference={"1": 0.0, "100": 6.1e-8}, tolerance=1e-5, answer={}, seconds=0.1
            ),
            others={},
            model_sha256="abc",
            round_trips={"1": RoundTrip(median_ms=1.91, min_ms=1.8, max_ms=2.5, repeats=10)},
        ),
    )


def _metrics(record: dict, widths: dict) -> MetricsRecord:
    inference = Inference(
        jets_per_second=12345.6,
        batch_size=1000,
        threads=2,
        provider="CPU",
        processor="Some CPU",
    )
    return MetricsRecord.from_json(
        {
            "passed": True,
            "reasons": [],
            "run": f"runs/{NAME}",
            "run_id": NAME,
            "model": "pfn",
            "trial": f"{NAME}-b",
            "baseline": None,
            "config": plain(GateSettings(min_improvement=0.0, max_closure=0.01, seed=1)),
            **record,
            "inference": plain(inference),
            "uncertainty": widths,
        }
    )


def _search() -> SearchRecord:
    """Three trials, of which the second is the best and the third failed."""
    trials = [
        _trial("a", {"fc-dim": "50", "start-lr": "0.0003", "optimizer": "adam"}, 0.0912),
        _trial("b", {"fc-dim": "200", "start-lr": "0.0011", "optimizer": "ranger"}, 0.0877),
        _trial(
            "c",
            {"fc-dim": "100", "start-lr": "0.0049", "optimizer": "ranger"},
            None,
            "loss is not finite in <epoch 2>",
        ),
    ]
    return SearchRecord(
        experiment=NAME,
        objective=Objective(name="AvgLoss"),
        algorithm="random",
        seed=1,
        optimal=f"{NAME}-b",
        trials=trials,
    )


def _trial(letter: str, parameters: dict[str, str], loss: float | None, reason: str = "") -> Trial:
    metrics = {}
    if loss is not None:
        metrics["AvgLoss"] = Observation(min=loss, max=2 * loss, latest=loss)
    return Trial(
        name=f"{NAME}-{letter}",
        status="Failed" if loss is None else "Succeeded",
        parameters=parameters,
        metrics=metrics,
        reason=reason,
    )


def _epoch(number: int) -> EpochRecord:
    return EpochRecord(
        epoch=number,
        train_loss=0.09,
        val_loss=0.089 - 0.001 * number,
        jets_per_second=4000.0,
        seconds=5.0,
    )
