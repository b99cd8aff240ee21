"""Figures: the words that go with them, and what a page and a file need of them."""

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


def test_the_words_of_uncertainty(documents):
    measured = documents.metrics.uncertainty
    with drawing.style():
        coverage = uncertainty_figures.coverage(measured)
        width = uncertainty_figures.widths(measured)
    assert "expected 68 %" in coverage.alt
    assert "is predicted" in width.alt
    assert uncertainty_figures.coverage(None) is None
    assert uncertainty_figures.widths(None) is None
    empty: Uncertainty = dataclasses.replace(measured, pt=[], widths=[])
    assert uncertainty_figures.coverage(empty) is None
    assert uncertainty_figures.widths(empty) is None


def test_the_words_of_a_residual(jets):
    columns = jets | {"rhoAll": np.linspace(10, 30, len(jets["jetPt"]))}
    measured = measure(columns, np.zeros(len(jets["jetPt"])), replicates=20)
    metrics = MetricsRecord.from_json({**plain(metrics_record()), **measured})
    names = {one.name: one for one in figures.drawings(metrics, [], None)}
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
def test_training_says_where_it_was_best(history, alt):
    with drawing.style():
        training = figures.training(history)
    assert (training and training.alt) == alt


def test_a_figure_in_a_page_has_the_text_s_colour_and_names_of_its_own():
    text = svg(simple(alt='a "line"'))
    assert text.startswith('<svg role="img" aria-label="a &#34;line&#34;"')
    assert "currentColor" in text
    assert drawing.INK not in text
    assert "<!--" not in text
    names = re.findall(r'\bid="([^"]*)"', text)
    assert names
    assert all(name.startswith("simple-") for name in names)


def test_the_titles_of_a_figure_stand_at_their_artists_and_are_escaped():
    text = svg(simple(titles={"line": "<b>best</b>", "another": "is not drawn"}))
    assert '<g id="simple-line"><title>&lt;b&gt;best&lt;/b&gt;</title>' in text
    assert text.count("<title>") == 1


def test_a_file_of_a_figure():
    assert pdf(simple()).startswith(b"%PDF")


def test_a_name_of_anything():
    assert drawing.slug("u minus <gluon>/response") == "u-minus-gluon-response"
