"""Every calibration has one look in all figures, and all readers can distinguish the looks."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import numpy as np
import pytest
from matplotlib.colors import to_hex, to_rgb
from matplotlib.container import ErrorbarContainer
from matplotlib.text import Text
from matplotlib.transforms import Bbox

from reporting import drawing, page
from reporting.drawing import CALIBRATIONS, FLAVOURS
from reporting.report import figures_of

# Linear RGB as readers without one kind of cones see it.
# Source: G. M. Machado, M. M. Oliveira, L. A. F. Fernandes, IEEE Trans. Vis. Comput. Graph. 15
# (2009) 1291, severity 1.
VISION = {
    "all cones": np.eye(3),
    "protanopia": [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
    "deuteranopia": [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ],
    "tritanopia": [
        [1.255528, -0.076749, -0.178779],
        [-0.078411, 0.930809, 0.147602],
        [0.004733, 0.691367, 0.303900],
    ],
}


def linear(colour: str) -> np.ndarray:
    """Linear RGB of a colour, (3,)."""
    encoded = np.array(to_rgb(colour))
    return np.where(encoded <= 0.04045, encoded / 12.92, ((encoded + 0.055) / 1.055) ** 2.4)


def contrast(first: str, second: str) -> float:
    """The contrast of two colours as WCAG 2 defines it, from 1 to 21."""
    dark, light = sorted(float(linear(c) @ [0.2126, 0.7152, 0.0722]) for c in (first, second))
    return (light + 0.05) / (dark + 0.05)


def lab(rgb: np.ndarray) -> np.ndarray:
    """CIE L*a*b* of linear RGB: equal distances look about equally different."""
    to_xyz = [[0.4125, 0.3576, 0.1804], [0.2127, 0.7152, 0.0722], [0.0193, 0.1192, 0.9503]]
    xyz = np.array(to_xyz) @ np.clip(rgb, 0, 1) / [0.9505, 1.0, 1.0888]
    root = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * root[1] - 16, 500 * (root[0] - root[1]), 200 * (root[1] - root[2])])


def grounds() -> list[str]:
    """The colours of the page's ground, on light, dark and printed pages."""
    style = (Path(page.__file__).parent / "templates" / "style.css").read_text()
    return re.findall(r"--ground: (#\w+)", style)


@pytest.mark.parametrize("name", CALIBRATIONS)
def test_calibrations_have_contrast_to_every_background(name):
    assert len(grounds()) == 3
    for ground in grounds():
        assert contrast(CALIBRATIONS[name].colour, ground) >= 3


@pytest.mark.parametrize("vision", VISION)
def test_calibrations_are_distinguishable_by_colour(vision):
    looks = {}
    for name, look in CALIBRATIONS.items():
        looks[name] = lab(np.array(VISION[vision]) @ linear(look.colour))
    for first, second in itertools.combinations(looks, 2):
        assert np.linalg.norm(looks[first] - looks[second]) >= 20, f"{first} and {second}"


def test_calibrations_are_distinguishable_without_colour():
    looks = CALIBRATIONS.values()
    for part in ("marker", "dashes", "label"):
        assert len({getattr(look, part) for look in looks}) == len(looks)
    assert not {look.marker for look in looks} & set(FLAVOURS.values())


def drawn_artists(figure):
    """(colour, label, marker) of each line and bar of points that a figure shows."""
    for axes in figure.axes:
        for container in axes.containers:
            line = container[0]
            if line is not None and hasattr(line, "get_marker"):
                yield to_hex(line.get_color()), container.get_label(), line.get_marker()
        for line in axes.get_lines():
            yield to_hex(line.get_color()), line.get_label(), line.get_marker()
        for patch in axes.patches:
            yield to_hex(patch.get_edgecolor()), patch.get_label(), "None"


def test_each_figure_draws_a_calibration_as_the_table_says(documents):
    by_colour = {look.colour: look for look in CALIBRATIONS.values()}
    by_label = {look.label: look for look in CALIBRATIONS.values()}
    num_labelled = 0
    for drawing_ in figures_of(documents):
        # Figures of a search mark the best trial, and no calibration.
        of_search = drawing_.name in ("search", "parallel", "importance")
        for colour, label, marker in drawn_artists(drawing_.figure):
            if label in by_label:
                num_labelled += 1
                assert colour == by_label[label].colour, f"{label} in {drawing_.name}"
                assert marker in (by_label[label].marker, "None"), f"{label} in {drawing_.name}"
            elif colour in by_colour and not of_search:
                markers = (by_colour[colour].marker, "None", *FLAVOURS.values())
                assert marker in markers, f"{colour} in {drawing_.name}"
            else:
                best = [CALIBRATIONS["model"].colour] if of_search else []
                assert colour in [drawing.INK, *best], drawing_.name
    assert num_labelled > 20


WIDTH_ON_A_PHONE = 358
"""Pixels that a figure has in a window of 390."""


def test_text_of_figures_is_readable_on_a_phone(documents):
    """As the page shows them: a figure is as wide as the window, and its letters shrink with it."""
    for drawing_ in figures_of(documents):
        with drawing.style():
            drawing_.figure.canvas.draw()
        shrunk = WIDTH_ON_A_PHONE / (72 * drawing_.figure.get_figwidth())
        texts = [text for text in drawing_.figure.findobj(Text) if text.get_text().strip()]
        assert texts
        for text in texts:
            assert text.get_fontsize() * shrunk >= 9.5, f"{text.get_text()} in {drawing_.name}"


def test_no_text_overlaps_a_measurement(documents):
    """Legends and texts inside a frame leave points and error bars free."""
    for drawing_ in figures_of(documents):
        with drawing.style():
            drawing_.figure.canvas.draw()
            for axes in drawing_.figure.axes:
                boxes = [text.get_window_extent() for text in axes.texts]
                if legend := axes.get_legend():
                    boxes.append(legend.get_window_extent())
                for container in axes.containers:
                    if not isinstance(container, ErrorbarContainer):
                        continue
                    for bars in container.lines[2]:
                        for ends in bars.get_segments():
                            if len(ends) == 0:  # of a point that has no finite interval
                                continue
                            bar = Bbox(axes.transData.transform(ends)).padded(1)
                            assert not any(bar.overlaps(box) for box in boxes), drawing_.name
