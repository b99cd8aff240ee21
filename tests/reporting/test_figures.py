"""Figures: their descriptions, and their forms in a page and in a file."""

from __future__ import annotations

import dataclasses
import re

import numpy as np
import pytest

from common.measurements import Uncertainty
from common.records import EpochRecord, MetricsRecord, plain
from physics.metrics import measure
from reporting import drawing, figures, uncertainty_figures
from reporting.drawing import Drawing, pdf, svg
from tests.records import metrics_record


def simple(**words) -> Drawing:
    """A line with a gid, drawn in the colour of text."""
    with drawing.style():
        figure, (axes,) = drawing.panels()
        axes.plot([0, 1], [0, 1], color=drawing.INK, gid="line")
    return Drawing(**{"name": "simple", "caption": "", "alt": "a line", "figure": figure} | words)


def test_figures_of_uncertainty_have_a_description(documents):
    uncertainty = documents.metrics.uncertainty
    with drawing.style():
        coverage = uncertainty_figures.coverage(uncertainty)
        width = uncertainty_figures.widths(uncertainty)
    assert "expected 68 %" in coverage.alt
    assert "is predicted" in width.alt
    assert uncertainty_figures.coverage(None) is None
    assert uncertainty_figures.widths(None) is None
    empty: Uncertainty = dataclasses.replace(uncertainty, pt=[], widths=[])
    assert uncertainty_figures.coverage(empty) is None
    assert uncertainty_figures.widths(empty) is None


def test_figures_of_residuals_have_a_description(jets):
    columns = jets | {"rhoAll": np.linspace(10, 30, len(jets["jetPt"]))}
    record = measure(columns, np.zeros(len(jets["jetPt"])), replicates=20)
    metrics = MetricsRecord.from_json({**plain(metrics_record()), **record})
    names = {drawing_.name: drawing_ for drawing_ in figures.drawings(metrics, [], None)}
    assert "Bias against rhoAll: at most" in names["residual-rhoAll"].alt


@pytest.mark.parametrize(
    ("history", "alt"),
    [
        ([], None),
        ([EpochRecord(epoch=0)], None),
        ([EpochRecord(epoch=0, train_loss=1.0)], "Loss over 1 epochs."),
        (
            [EpochRecord(epoch=0, val_loss=0.5), EpochRecord(epoch=1, val_loss=0.25)],
            "Loss over 2 epochs. Lowest validation loss 0.25000 in epoch 1.",
        ),
    ],
    ids=["no epoch", "no loss", "training alone", "validation"],
)
def test_the_figure_of_training_names_the_best_epoch(history, alt):
    with drawing.style():
        training = figures.training(history)
    assert (training and training.alt) == alt


def test_a_figure_in_a_page_has_the_text_s_colour_and_unique_ids():
    text = svg(simple(alt='a "line"'))
    assert text.startswith('<svg role="img" aria-label="a &#34;line&#34;"')
    assert "currentColor" in text
    assert drawing.INK not in text
    assert "<!--" not in text
    names = re.findall(r'\bid="([^"]*)"', text)
    assert names
    assert all(name.startswith("simple-") for name in names)


def test_the_titles_of_a_figure_belong_to_their_artists_and_are_escaped():
    text = svg(simple(titles={"line": "<b>best</b>", "another": "is not drawn"}))
    assert '<g id="simple-line"><title>&lt;b&gt;best&lt;/b&gt;</title>' in text
    assert text.count("<title>") == 1


def test_a_figure_is_written_as_pdf():
    assert pdf(simple()).startswith(b"%PDF")


def test_slug_makes_a_file_name_of_any_text():
    assert drawing.slug("u minus <gluon>/response") == "u-minus-gluon-response"
