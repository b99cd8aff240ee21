import dataclasses

import pytest

from common.measurements import Interval
from common.records import MetricsRecord, plain
from physics.metrics import measure
from reporting.headline import (
    MAX_KUBEFLOW_METRICS,
    evaluation_lines,
    headline,
    kubeflow_metrics_of_evaluation,
    kubeflow_metrics_of_search,
    search_lines,
)
from tests.physics.jets import make_jets
from tests.records import metrics_record

FIXED = {
    "resolution_gain_percent_value",
    "resolution_gain_percent_low",
    "resolution_gain_percent_high",
    "resolution_model",
    "resolution_standard",
    "closure_barrel_percent",
    "closure_endcap_percent",
    "closure_worst_bin_percent",
    "flavour_spread_barrel_percent",
    "flavour_spread_endcap_percent",
    "flavour_spread_removed_barrel_percent",
    "flavour_spread_removed_endcap_percent",
    "uncertainty_coverage_percent",
    "validation_loss",
    "test_jets",
    "onnx_jets_per_second",
}
"""The Kubeflow UI compares runs by these names: another name would be another column."""


def test_headline_names_are_fixed_and_values_are_plain_numbers(documents):
    metrics = documents.metrics
    reduction = Interval(value=30.0, low=20.0, high=40.0)
    regions = {}
    for region, entry in metrics.flavour.regions.items():
        regions[region] = dataclasses.replace(entry, reduction=reduction)
    metrics = dataclasses.replace(
        metrics, flavour=dataclasses.replace(metrics.flavour, regions=regions)
    )
    numbers = headline(metrics, documents.search)
    assert set(numbers) == FIXED
    assert all(isinstance(value, (int, float)) for value in numbers.values())
    assert numbers["resolution_gain_percent_low"] == metrics.gain.low
    assert numbers["validation_loss"] == 0.0877
    assert numbers["closure_barrel_percent"] == pytest.approx(
        100 * metrics.closure.bins[0].model.value
    )


def test_without_a_significant_spread_there_is_no_reduction(documents):
    """6,000 jets do not show a spread of the standard JEC."""
    assert documents.metrics.flavour.regions["barrel"].reduction is None
    numbers = headline(documents.metrics, documents.search)
    assert {"flavour_spread_removed_barrel_percent"} <= FIXED - set(numbers)


def test_missing_measurements_are_left_out():
    record = measure(make_jets(0), [], replicates=20)
    without_jets = {**plain(metrics_record(inference=None)), **record}
    assert headline(MetricsRecord.from_json(without_jets)) == {"test_jets": 0}


KUBEFLOW_NAMES = [
    "closure_barrel_percent",
    "closure_endcap_percent",
    "closure_worst_percent",
    "coverage_percent",
    "gain_high",
    "gain_low",
    "gain_percent",
    "gate_passed",
    "test_jets",
]
"""As Kubeflow sorts them, on one page."""


def test_kubeflow_metrics_fit_one_page_without_duplicates(documents):
    metrics, search = documents.metrics, documents.search
    kubeflow_metrics = kubeflow_metrics_of_evaluation(metrics)
    assert sorted(kubeflow_metrics) == KUBEFLOW_NAMES
    assert kubeflow_metrics["gain_percent"] == float(f"{metrics.gain.value:.4g}")
    assert kubeflow_metrics["test_jets"] == metrics.num_measured
    assert not set(kubeflow_metrics) & set(kubeflow_metrics_of_search(search))
    # a baseline replaces the least important metric
    compared = dataclasses.replace(metrics, gain_over_baseline=metrics.gain)
    kubeflow_metrics = kubeflow_metrics_of_evaluation(compared)
    assert len(kubeflow_metrics) == MAX_KUBEFLOW_METRICS
    assert "gain_over_baseline_percent" in kubeflow_metrics
    assert "coverage_percent" not in kubeflow_metrics
    # a network without its own interval leaves room for another metric
    plain_network = dataclasses.replace(metrics, uncertainty=None)
    assert "resolution" in kubeflow_metrics_of_evaluation(plain_network)


def test_kubeflow_metrics_of_a_search_have_names_without_blanks(documents):
    search = documents.search
    trials = [dataclasses.replace(search.best, name=f"t-{number}") for number in range(3)]
    failed_trial = dataclasses.replace(trials[0], name="t-3", status="Failed")
    search = dataclasses.replace(search, trials=[*trials, failed_trial], optimal="t-0")
    kubeflow_metrics = kubeflow_metrics_of_search(search)
    name = search.objective.name
    assert kubeflow_metrics == {
        name: pytest.approx(search.best_value, 1e-3),
        "trials": 4,
        "trials_failed": 1,
    }


def test_each_metrics_artifact_has_its_headline_in_three_lines(documents):
    lines = evaluation_lines(documents.metrics).splitlines()
    assert len(lines) == 3
    assert documents.metrics.gain.percent() in lines[0]
    refused_metrics = dataclasses.replace(documents.metrics, passed=False, reasons=["closure 3 %"])
    assert evaluation_lines(refused_metrics).splitlines()[2] == "gate not passed: closure 3 %"
    lines = search_lines(documents.search).splitlines()
    assert len(lines) == 3
    assert documents.search.optimal in lines[0]
