"""The report's part on the residual correction."""

from __future__ import annotations

import dataclasses

from common.measurements import Interval, ResidualBin, ResidualEffect, ResidualGain
from common.records import ResidualPoint, ResidualRecord
from reporting import residual_section
from reporting.report import render


def of(value: float) -> Interval:
    return Interval(value=value, low=value - 0.005, high=value + 0.005)


EFFECT = ResidualEffect(
    bins=[
        ResidualBin(
            region="endcap",
            pt_range="60-80",
            pt_low=60.0,
            pt_high=80.0,
            num_jets=1234,
            with_residual=of(0.0012),
            without=of(-0.0131),
            measured=False,
        )
    ],
    gain=ResidualGain(with_residual=of(14.0), without=of(13.3), difference=of(0.7)),
    measured_to=0.01,
)
FIT = ResidualRecord(
    num_jets=24813,
    points=[
        ResidualPoint(
            region="endcap", pt=68.2, num_jets=936, needed=1.0196, error=0.0041, applied=1.0157
        )
    ],
)


def test_the_report_shows_closure_with_and_without_the_correction(documents):
    with_residual = dataclasses.replace(
        documents,
        metrics=dataclasses.replace(documents.metrics, residual=EFFECT),
        export=dataclasses.replace(documents.export, residual=FIT),
    )
    section = residual_section.content(with_residual.metrics, with_residual.export)
    assert section.closure is not None
    assert section.fit is not None
    row = ["endcap", "60-80", "1,234", "-1.31 % [-1.81, -0.81]", "+0.12 % [-0.38, 0.62]"]
    assert section.closure.rows == [row]
    assert section.unmeasured == "endcap 60-80"
    assert section.fit.rows == [["endcap", "68", "936", "1.0196 ± 0.0041", "1.0157"]]
    assert section.uncorrected == "barrel", "nothing was fitted there"
    page = render(with_residual, [])
    assert "factor is 1: barrel" in page
    for text in (*row, "24,813", "+0.70 %", "1.0196 ± 0.0041"):
        assert text in page


def test_without_a_correction_the_report_shows_the_reason(documents):
    reason = "jetEta is not among <the network's> inputs"
    export = dataclasses.replace(documents.export, residual_reason=reason)
    page = render(dataclasses.replace(documents, export=export), [])
    assert "no residual correction: jetEta is not among &lt;the network" in page
    section = residual_section.content(documents.metrics, None)
    assert (section.reason, section.closure, section.fit) == ("", None, None)


def test_a_correction_that_cannot_be_measured_is_still_shown(documents):
    with_fit = dataclasses.replace(
        documents,
        metrics=dataclasses.replace(documents.metrics, residual=None),
        export=dataclasses.replace(documents.export, residual=FIT),
    )
    page = render(with_fit, [])
    assert "24,813 validation jets" in page
    assert "Too few test jets to measure closure without it" in page
