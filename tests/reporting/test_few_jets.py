"""Bins with few jets are always reported; ratios have paired intervals."""

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

RARE = next(curve for curve in CURVES if curve.region == "barrel" and curve.low == 80)


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
    bins = [bin_ for bin_ in metrics.closure.bins if not is_rare(bin_)]
    return dataclasses.replace(
        metrics,
        curves=[bin_ for bin_ in metrics.curves if not is_rare(bin_)],
        closure=dataclasses.replace(metrics.closure, bins=bins),
        eta=[bin_ for bin_ in metrics.eta if bin_.eta_low != 0],
        unmeasured=[*metrics.unmeasured, *few],
    )


def is_rare(bin_) -> bool:
    return (bin_.region, bin_.pt_low, bin_.pt_high) == (RARE.region, RARE.low, RARE.high)


@pytest.mark.parametrize("draw", [response_curve, resolution_curve, closure])
def test_a_bin_of_few_jets_is_hatched_and_counted(documents, metrics, draw):
    with drawing.style():
        whole, with_few = draw(documents.metrics, "barrel"), draw(metrics, "barrel")
    assert (RARE.low, RARE.high) not in hatched(whole.figure)
    assert (RARE.low, RARE.high) in hatched(with_few.figure)
    assert "80-110 GeV (31 jets)" in with_few.caption


def test_a_slice_of_eta_of_few_jets_is_hatched_and_counted(metrics):
    with drawing.style():
        drawing_ = eta(metrics)
    assert hatched(drawing_.figure) == [(0, 0.5)]
    assert "0 to 0.5 (1 jet)" in drawing_.caption


def test_captions_list_missing_points_that_are_not_hatched(documents, metrics):
    with drawing.style():
        flavours = flavour(metrics, "barrel")
    bins_with_points = {
        (entry.flavour, entry.pt_low) for entry in metrics.flavour.bins if entry.region == "barrel"
    }
    missing_bins = {("uds", 1000.0), ("c", 1000.0), ("b", 1000.0), ("g", 1000.0)} - bins_with_points
    for name, _ in missing_bins:
        assert f"{name} at >1000 GeV" in flavours.caption
    uncertainty = documents.metrics.uncertainty
    fewer = [entry for entry in uncertainty.pt if entry.pt_low != 110]
    with drawing.style():
        entry = coverage(dataclasses.replace(uncertainty, pt=fewer))
    assert "barrel 110-150 GeV, " in entry.caption
    assert "endcap 110-150 GeV" in entry.caption


def test_slices_and_flavours_of_few_jets_are_recorded(jets):
    """Of 800 jets in eight slices some hold fewer than 50 from 60 GeV up, and most flavours do."""
    number = 800
    columns = {name: values[:number] for name, values in jets.items()}
    columns["rhoAll"] = np.linspace(10, 30, number)
    record = measure(columns, np.zeros(number), replicates=20)
    places = {(entry["quantity"], entry["where"]) for entry in record["unmeasured"]}
    bins_with_values = {
        (entry["region"], entry["pt_low"], entry["flavour"]) for entry in record["flavour"]["bins"]
    }
    assert ("response of b", "barrel jets above 1000 GeV") in places
    assert ("barrel", 1000.0, "b") not in bins_with_values
    missing_slices = [entry for _, entry in places if entry.startswith("rhoAll from ")]
    assert len(missing_slices) + len(record["residuals"]["rhoAll"]) == 8


def test_the_caption_of_a_residual_names_the_slices_of_few_jets(documents):
    few = Unmeasured(
        quantity="response", where="rhoAll from 5 to 9.5", num_jets=12, reason="fewer than 50 jets"
    )
    metrics = documents.metrics
    slices = [entry for entry in metrics.closure.bins if entry.region == "barrel"]
    residuals = {"rhoAll": [as_slice(entry, place) for place, entry in enumerate(slices)]}
    with drawing.style():
        entry = residual(
            dataclasses.replace(metrics, residuals=residuals, unmeasured=[few]), "rhoAll"
        )
    assert "5 to 9.5" in entry.caption


def as_slice(bin_, place: int):
    from common.measurements import ResidualSlice

    biases = bin_.by_calibration()
    return ResidualSlice(low=place, middle=place, high=place + 1, num_jets=60, **biases)


def test_a_region_without_any_bin_is_reported(documents):
    metrics = documents.metrics
    assert report_physics.regions_without_figures(metrics) == []
    barrel = [curve for curve in metrics.curves if curve.region == "barrel"]
    (sentence,) = report_physics.regions_without_figures(
        dataclasses.replace(metrics, curves=barrel)
    )
    assert "endcap" in sentence


def test_ratios_have_paired_intervals(documents):
    for bin_ in documents.metrics.curves:
        ratio = bin_.ratio["model"]
        value = bin_.model.median.value / bin_.standard.median.value
        assert ratio.value == pytest.approx(value, rel=1e-5)
        assert ratio.low < ratio.high
        # Fluctuations common to both medians do not widen the interval of their ratio.
        unpaired_width = (bin_.model.median.high - bin_.model.median.low) / bin_.model.median.value
        unpaired_width += (
            bin_.standard.median.high - bin_.standard.median.low
        ) / bin_.standard.median.value
        assert ratio.high - ratio.low < unpaired_width


def test_the_panel_of_ratios_has_error_bars(documents):
    with drawing.style():
        drawing_ = response_curve(documents.metrics, "barrel")
    (bars,) = drawing_.figure.axes[1].containers
    lengths = [np.ptp(path.vertices[:, 1]) for path in bars.lines[2][0].get_paths()]
    curves = [bin_ for bin_ in documents.metrics.curves if bin_.region == "barrel"]
    assert lengths == pytest.approx([b.ratio["model"].high - b.ratio["model"].low for b in curves])
    assert "without intervals" not in drawing_.caption
    earlier = [dataclasses.replace(bin_, ratio={}) for bin_ in documents.metrics.curves]
    with drawing.style():
        drawing_ = response_curve(dataclasses.replace(documents.metrics, curves=earlier), "barrel")
    assert "without intervals" in drawing_.caption
