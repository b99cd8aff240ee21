import dataclasses

import pytest

from common.measurements import Interval
from common.records import MetricsRecord, plain
from physics.metrics import measure
from reporting.headline import headline
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
"""By these names runs are compared in the Kubeflow UI: another name would be another column."""


def test_the_names_stay_and_the_numbers_are_plain(documents):
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


def test_no_share_of_a_spread_that_may_be_zero_is_removed(documents):
    """6,000 jets do not show a spread of the standard JEC."""
    assert documents.metrics.flavour.regions["barrel"].reduction is None
    numbers = headline(documents.metrics, documents.search)
    assert {"flavour_spread_removed_barrel_percent"} <= FIXED - set(numbers)


def test_what_was_not_measured_is_left_out():
    measured = measure(make_jets(0), [], replicates=20)
    without_jets = {**plain(metrics_record(inference=None)), **measured}
    assert headline(MetricsRecord.from_json(without_jets)) == {"test_jets": 0}
