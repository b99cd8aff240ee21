"""Bins with few jets never vanish silently; ratios have paired intervals."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from common.measurements import Unmeasured
from physics.groups import CURVES
from physics.metrics import measure
from reporting import drawing, report_physics
from reporting.closure_figures import closure, eta, residual
from reporting.response_figures import flavour, resolution_curve, response_curve
from reporting.uncertainty_figures import coverage

RARE = next(one for one in CURVES if one.region == "barrel" and one.low == 80)


def hatched(figure) -> list[tuple[float, float]]:
    """The ranges of x that the first panel hatches."""
    spans = []
    for patch in figure.axes[0].patches:
        if patch.get_hatch():
            spans.append((patch.get_x(), patch.get_x() + patch.get_width()))
    return spans


@pytest.fixture
def metrics(documents):
    """Metrics in which one bin of pT and one slice of eta hold few jets."""
    metrics = documents.metrics
    few = [
        Unmeasured(quantity="response", where=RARE.text, num_jets=31, reason="fewer than 50 jets"),
        Unmeasured(quantity="response", where="eta from 0 to 0.5", num_jets=1, reason="few"),
    ]
    bins = [one for one in metrics.closure.bins if not is_rare(one)]
    return dataclasses.replace(
        metrics,
        curves=[one for one in metrics.curves if not is_rare(one)],
        closure=dataclasses.replace(metrics.closure, bins=bins),
        eta=[one for one in metrics.eta if one.eta_low != 0],
        unmeasured=[*metrics.unmeasured, *few],
    )


def is_rare(one) -> bool:
    return (one.region, one.pt_low, one.pt_high) == (RARE.region, RARE.low, RARE.high)


@pytest.mark.parametrize("draw", [response_curve, resolution_curve, closure])
def test_a_bin_of_few_jets_is_hatched_and_counted(documents, metrics, draw):
    with drawing.style():
        whole, one = draw(documents.metrics, "barrel"), draw(metrics, "barrel")
    assert (RARE.low, RARE.high) not in hatched(whole.figure)
    assert (RARE.low, RARE.high) in hatched(one.figure)
    assert "80-110 GeV (31 jets)" in one.caption


def test_a_slice_of_eta_of_few_jets_is_hatched_and_counted(metrics):
    with drawing.style():
        one = eta(metrics)
    assert hatched(one.figure) == [(0, 0.5)]
    assert "0 to 0.5 (1 jet)" in one.caption


def test_captions_list_what_they_cannot_hatch(documents, metrics):
    with drawing.style():
        flavours = flavour(metrics, "barrel")
    bins_with_points = {
        (one.flavour, one.pt_low) for one in metrics.flavour.bins if one.region == "barrel"
    }
    missing_bins = {("uds", 1000.0), ("c", 1000.0), ("b", 1000.0), ("g", 1000.0)} - bins_with_points
    for name, _ in missing_bins:
        assert f"{name} at >1000 GeV" in flavours.caption
    measured = documents.metrics.uncertainty
    fewer = [one for one in measured.pt if one.pt_low != 110]
    with drawing.style():
        one = coverage(dataclasses.replace(measured, pt=fewer))
    assert "barrel 110-150 GeV, " in one.caption
    assert "endcap 110-150 GeV" in one.caption


def test_slices_and_flavours_of_few_jets_are_recorded(jets):
    """Of 800 jets in eight slices some hold fewer than 50 from 60 GeV up, and most flavours do."""
    number = 800
    columns = {name: values[:number] for name, values in jets.items()}
    columns["rhoAll"] = np.linspace(10, 30, number)
    record = measure(columns, np.zeros(number), replicates=20)
    places = {(one["quantity"], one["where"]) for one in record["unmeasured"]}
    measured = {(one["region"], one["pt_low"], one["flavour"]) for one in record["flavour"]["bins"]}
    assert ("response of b", "barrel jets above 1000 GeV") in places
    assert ("barrel", 1000.0, "b") not in measured
    missing_slices = [one for _, one in places if one.startswith("rhoAll from ")]
    assert len(missing_slices) + len(record["residuals"]["rhoAll"]) == 8


def test_the_caption_of_a_residual_names_the_slices_of_few_jets(documents):
    few = Unmeasured(
        quantity="response", where="rhoAll from 5 to 9.5", num_jets=12, reason="fewer than 50 jets"
    )
    metrics = documents.metrics
    slices = [one for one in metrics.closure.bins if one.region == "barrel"]
    residuals = {"rhoAll": [as_slice(one, place) for place, one in enumerate(slices)]}
    with drawing.style():
        one = residual(
            dataclasses.replace(metrics, residuals=residuals, unmeasured=[few]), "rhoAll"
        )
    assert "5 to 9.5" in one.caption


def as_slice(one, place: int):
    from common.measurements import ResidualSlice

    biases = one.by_calibration()
    return ResidualSlice(low=place, middle=place, high=place + 1, num_jets=60, **biases)


def test_a_region_without_any_bin_is_named(documents):
    metrics = documents.metrics
    assert report_physics.regions_without_figures(metrics) == []
    barrel = [one for one in metrics.curves if one.region == "barrel"]
    (sentence,) = report_physics.regions_without_figures(
        dataclasses.replace(metrics, curves=barrel)
    )
    assert "endcap" in sentence


def test_ratios_have_paired_intervals(documents):
    for one in documents.metrics.curves:
        ratio = one.ratio["model"]
        value = one.model.median.value / one.standard.median.value
        assert ratio.value == pytest.approx(value, rel=1e-5)
        assert ratio.low < ratio.high
        # What moves both medians does not widen the interval of their ratio.
        apart = (one.model.median.high - one.model.median.low) / one.model.median.value
        apart += (one.standard.median.high - one.standard.median.low) / one.standard.median.value
        assert ratio.high - ratio.low < apart


def test_the_panel_of_ratios_has_error_bars(documents):
    with drawing.style():
        one = response_curve(documents.metrics, "barrel")
    (bars,) = one.figure.axes[1].containers
    lengths = [np.ptp(path.vertices[:, 1]) for path in bars.lines[2][0].get_paths()]
    curves = [bin_ for bin_ in documents.metrics.curves if bin_.region == "barrel"]
    assert lengths == pytest.approx([b.ratio["model"].high - b.ratio["model"].low for b in curves])
    assert "without intervals" not in one.caption
    earlier = [dataclasses.replace(bin_, ratio={}) for bin_ in documents.metrics.curves]
    with drawing.style():
        one = response_curve(dataclasses.replace(documents.metrics, curves=earlier), "barrel")
    assert "without intervals" in one.caption
