"""Measure how much the response jumps at the edges of a model's valid range.

Inside the valid range the raw model calibrates jets; outside it returns the standard correction. So
at an edge the response changes by the size of the model's correction there. It is measured with
the test jets in a narrow band on each side of the edge. Pure functions of arrays; pT in GeV.
"""

from __future__ import annotations

import dataclasses
import math
from statistics import NormalDist

import numpy as np

from common.measurements import EdgeStep, Interval
from physics.response import Floats, Mask

PT_BAND = 0.1
"""Width of a band in pT, as a fraction of the edge: wide enough for jets, narrow in response."""
ETA_BAND = 0.1
"""Width of a band in |eta|, about that of a calorimeter tower."""
MIN_JETS = 100
"""With fewer jets the interval of a median is unreliable, as in physics.gate."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Edge:
    """An edge of the valid range, with a band (low, high) on each side of it."""

    name: str
    quantity: str
    """The quantity that the bands are ranges of: pt (GeV) or abs_eta."""
    inside: tuple[float, float]
    outside: tuple[float, float]


def edges_of(min_pt: float, max_pt: float, max_abs_eta: float | None) -> list[Edge]:
    """Return the edges of a valid range (pT in GeV); without max_abs_eta, only those in pT."""
    near, far = 1 - PT_BAND, 1 + PT_BAND
    edges = [
        Edge(
            name=f"pT = {min_pt:.4g} GeV",
            quantity="pt",
            inside=(min_pt, min_pt * far),
            outside=(min_pt * near, min_pt),
        ),
        Edge(
            name=f"pT = {max_pt:.4g} GeV",
            quantity="pt",
            inside=(max_pt * near, max_pt),
            outside=(max_pt, max_pt * far),
        ),
    ]
    if max_abs_eta is not None:
        edges.append(
            Edge(
                name=f"|η| = {max_abs_eta:.4g}",
                quantity="abs_eta",
                inside=(max_abs_eta - ETA_BAND, max_abs_eta),
                outside=(max_abs_eta, max_abs_eta + ETA_BAND),
            )
        )
    return edges


def steps(
    edges: list[Edge],
    *,
    pt: Floats,
    abs_eta: Floats | None,
    generated_pt: Floats,
    correction: Floats,
    valid: Mask,
    level: float,
) -> list[EdgeStep]:
    """Return the median responses in the two bands of each edge, with their intervals.

    All arrays are (N,). pt: after the standard correction (GeV). abs_eta: None leaves out the edge
    in |eta|. generated_pt: GeV. correction: the model's output log(pT_gen / pT). valid: the jet is
    in the valid range. level: confidence level of the intervals. A median of fewer than MIN_JETS
    jets is None.
    """
    standard = pt / generated_pt
    model = standard * np.exp(correction)
    is_finite = np.isfinite(standard) & np.isfinite(model)
    edge_steps = []
    for edge in edges:
        values = pt if edge.quantity == "pt" else abs_eta
        if values is None:
            continue
        inside = is_finite & valid & _between(values, edge.inside)
        outside = is_finite & ~valid & _between(values, edge.outside)
        edge_steps.append(
            EdgeStep(
                edge=edge.name,
                num_inside=int(inside.sum()),
                num_outside=int(outside.sum()),
                model_inside=median(model[inside], level),
                standard_inside=median(standard[inside], level),
                standard_outside=median(standard[outside], level),
            )
        )
    return edge_steps


def _between(values: Floats, ends: tuple[float, float]) -> Mask:
    """Return whether values (N,) lie between two ends, these included."""
    low, high = ends
    return (values >= low) & (values <= high)


def median(values: Floats, level: float) -> Interval | None:
    """Return the median of values (N,) with its interval; None for fewer than MIN_JETS.

    The ends are order statistics, at the ranks N/2 ± z sqrt(N)/2 of the binomial distribution's
    normal limit (Conover, Practical Nonparametric Statistics, 3.2), whatever the distribution is.
    """
    count = len(values)
    if count < MIN_JETS:
        return None
    sorted_values = np.sort(values)
    half = NormalDist().inv_cdf((1 + level) / 2) * math.sqrt(count) / 2
    low = max(math.floor(count / 2 - half), 0)
    high = min(math.ceil(count / 2 + half), count - 1)
    return Interval(
        value=float(np.median(sorted_values)),
        low=float(sorted_values[low]),
        high=float(sorted_values[high]),
    )
