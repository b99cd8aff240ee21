"""The residual correction: a smooth factor that makes a network's calibration close.

A network that is trained on jets of all kinds may be off by a per cent in a region of |eta| and pT.
The residual correction r multiplies its calibrated pT, one curve a region, as a function of the
calibrated pT before it:

    residual = fit(calibrated_pt, gen_pt, eta)         # of validation jets, which trained nothing
    log_r = residual.log_r(np.log(calibrated_pt), eta)

In each pT_gen bin of the closure the median response R of the jets is measured, and so is the
median calibrated pT p. A median commutes with the rising function p r(p); so log r = -log R at
p makes the median response of the bin 1, although r does not depend on pT_gen.

The curve rests on -log R of the bins, smoothed and drawn towards r = 1 by each bin's own error
(Gaussian process regression: C. E. Rasmussen, C. K. I. Williams, Gaussian Processes for Machine
Learning (2006), equation 2.23, with a prior of mean zero). The width of that prior follows from
the bins: the curve is the mean over all widths, each weighted by the probability of the bins
under it (the same book, equation 2.30) times a half-Cauchy prior of the width (A. Gelman, Bayesian
Analysis 1 (2006) 515). So bins whose deviations look like their errors give r = 1, however many or
few jets they hold, and a network that is plainly off is corrected in full. A monotone cubic
interpolation (PCHIP: F. N. Fritsch, J. Butland, SIAM J. Sci. Stat. Comput. 5 (1984) 300) joins the
bins; outside of them r is constant. So |r - 1| is at most MAX_CORRECTION, and p r(p) rises
strictly.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from physics import response as r
from physics.groups import MIN_JETS
from physics.response import Floats

MAX_CORRECTION = 0.1
"""Largest |r - 1|. A network that is further off needs another training, not a correction."""

WIDTHS = np.geomspace(2e-4, MAX_CORRECTION, 28)
"""Widths of the prior of log r; the curve is the weighted mean over them."""

WIDTH_SCALE = 0.001
"""Median of the half-Cauchy prior of the width.

Small, so that 1,000 validation jets do not add their noise to a network that nearly closes; its
long tail leaves networks that are off by several per cent to the jets. benchmarks/closure.py shows
both on independent jets.
"""

PRIOR_LENGTH = 2.0
"""Distance in log pT over which log r changes: bins that are closer support each other.

Training leaves slow trends. With 1 the noise of single bins comes through: on 98,415 independent
jets the largest bias was then 0.7 % in place of 0.5 %.
"""

MIN_STEP = 0.05
"""Least distance in log pT between two points, so that their errors cause no steep slope."""

MIN_SLOPE = 0.2
"""Least d log(p r) / d log p; 1 without a correction. Above 0 the corrected pT rises."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Point:
    """The measurement of r in one bin of validation jets."""

    region: str
    log_pt: float
    """Median of log(calibrated pT / GeV)."""
    log_r: float
    """Logarithm of the factor that makes the bin close: -log(median response)."""
    error: float
    """Standard deviation of log_r."""
    num_jets: int


def least_slope(knots: Sequence[float] | Floats, pieces: Any) -> float:
    """Return least d log(p r) / d log p of knots (K,) and pieces (K - 1, 4) as `Curve` has them."""
    slopes = []
    for width, (_, c1, c2, c3) in zip(np.diff(knots), pieces, strict=True):
        places = [0.0, width]
        # The slope c1 + 2 c2 t + 3 c3 t^2 is least at an end, or where its own slope is zero.
        if c3 != 0:
            places.append(min(max(-c2 / (3 * c3), 0.0), width))
        slopes += [1 + c1 + t * (2 * c2 + t * 3 * c3) for t in places]
    return float(min(slopes))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Curve:
    """log r of one region: a cubic of log pT between successive knots, constant outside of them.

    Raises ValueError for knots that do not rise, another number of pieces than there are between
    them, a correction beyond MAX_CORRECTION, or a corrected pT that does not rise.
    """

    knots: tuple[float, ...]
    """(K,) log(pT / GeV), rising; K >= 2."""
    pieces: tuple[tuple[float, float, float, float], ...]
    """(K - 1, 4): coefficients of the powers 0 to 3 of log pT minus the piece's lower knot."""

    def __post_init__(self) -> None:
        """Check that the knots rise, and that the factor stays within bounds. Raises ValueError."""
        steps = np.diff(self.knots)
        if len(self.knots) < 2 or not (steps > 0).all() or not np.isfinite(self.knots).all():
            raise ValueError(f"the knots of a residual correction must rise: {self.knots}")
        if len(self.pieces) != len(steps):
            raise ValueError(
                f"a residual correction has {len(steps)} pieces between {len(self.knots)} knots,"
                f" not {len(self.pieces)}"
            )
        largest = float(np.abs(np.expm1(self(self.sample()))).max())
        if not largest <= MAX_CORRECTION + 1e-9:
            raise ValueError(f"a residual correction of {largest:.3g} exceeds {MAX_CORRECTION}")
        if not least_slope(self.knots, self.pieces) > 0:
            raise ValueError("the pT after a residual correction must rise with the pT before it")

    def __call__(self, log_pt: Floats) -> Floats:
        """Log r (N,) at log(calibrated pT / GeV) (N,); NaN where that is NaN."""
        x = np.clip(np.asarray(log_pt, dtype=np.float64), self.knots[0], self.knots[-1])
        piece = np.searchsorted(self.knots[1:-1], x, side="right")
        # NaN sorts behind all knots.
        piece = np.minimum(piece, len(self.pieces) - 1)
        step = x - np.asarray(self.knots)[piece]
        c0, c1, c2, c3 = np.asarray(self.pieces)[piece].T
        log_r: Floats = c0 + step * (c1 + step * (c2 + step * c3))
        return log_r

    def sample(self) -> Floats:
        """Return many values of log pT, from the first knot to the last."""
        return np.linspace(self.knots[0], self.knots[-1], 1000)


INNER_EDGES = tuple(high for _, high in r.REGIONS.values())[:-1]
"""Of |eta|, between the regions."""

IDENTITY = Curve(knots=(0.0, 1.0), pieces=((0.0, 0.0, 0.0, 0.0),))
"""r = 1."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Residual:
    """The curves of all regions of physics.response.REGIONS.

    Regions are those of |jetEta|; the outermost one goes on outwards.
    """

    curves: Mapping[str, Curve]
    points: Sequence[Point] = ()
    """What the curves were fitted to."""
    num_jets: int = 0
    """Jets of the fit."""

    def log_r(self, log_pt: Floats, eta: Floats) -> Floats:
        """Log r (N,), of log(calibrated pT / GeV) before it (N,) and jetEta (N,)."""
        number = region_number(eta)
        by_region = [self.curves[region](log_pt) for region in r.REGIONS]
        return np.choose(number, by_region)

    def apply(self, output: Floats, reference_pt: Floats, eta: Floats) -> Floats:
        """Add log r to a network's answers (N, C), logarithms of factors to reference_pt (N,).

        All columns of a jet get the r of its first one, the median.
        """
        output = np.asarray(output, dtype=np.float64)
        log_r = self.log_r(np.log(reference_pt) + output[:, 0], eta)
        return output + log_r[:, None]

    def remove(self, output: Floats, reference_pt: Floats, eta: Floats) -> Floats:
        """Return the inverse of `apply`: the answers (N, C) as they were without the correction."""
        output = np.asarray(output, dtype=np.float64)
        corrected = np.log(reference_pt) + output[:, 0]  # log of the calibrated pT
        # The pT before, x, lies within the bound of the pT after; its logarithm x + log r(x) rises.
        reach = -math.log1p(-MAX_CORRECTION)
        low, high = corrected - reach, corrected + reach
        for _ in range(60):
            middle = (low + high) / 2
            too_low = middle + self.log_r(middle, eta) < corrected
            low = np.where(too_low, middle, low)
            high = np.where(too_low, high, middle)
        return output - (corrected - (low + high) / 2)[:, None]

    def as_json(self) -> dict[str, object]:
        """Return regions and curves as plain numbers, as in the ONNX file's metadata."""
        content: dict[str, object] = {}
        for region, curve in self.curves.items():
            content[region] = {
                "knots": list(curve.knots),
                "pieces": [list(p) for p in curve.pieces],
            }
        return content


def from_json(content: Mapping[str, Mapping[str, Sequence[object]]]) -> Residual:
    """Return the inverse of `Residual.as_json`, without the points.

    Raises ValueError as Curve does.
    """
    curves = {}
    for region in r.REGIONS:
        knots = np.asarray(content[region]["knots"], dtype=np.float64)
        pieces = np.asarray(content[region]["pieces"], dtype=np.float64)
        curves[region] = _curve(knots, pieces)
    return Residual(curves=curves)


def region_number(eta: Floats) -> NDArray[np.int64]:
    """Index in REGIONS of the region of each jet (N,); beyond the last region it is the last."""
    # In single precision, as the graph compares: an eta at the edge is then in the same region.
    edges = np.array(INNER_EDGES, dtype=np.float32)
    single = np.abs(np.asarray(eta, dtype=np.float32))
    # NaN sorts behind all edges: the last region.
    number: NDArray[np.int64] = np.searchsorted(edges, single, side="right")
    return number


def fit(calibrated_pt: Floats, gen_pt: Floats, eta: Floats) -> Residual | None:
    """Fit the curves on jets that trained nothing: (N,) each, in GeV, GeV and jetEta.

    Jets without a finite, positive calibrated or generated pT are left out. A region with fewer
    than two usable bins gets r = 1; None where all regions are such.
    """
    with np.errstate(invalid="ignore"):
        usable = np.isfinite(calibrated_pt) & np.isfinite(gen_pt) & np.isfinite(eta)
        usable &= (np.asarray(calibrated_pt) > 0) & (np.asarray(gen_pt) > 0)
    log_pt = np.log(np.asarray(calibrated_pt, dtype=np.float64)[usable])
    gen_pt = np.asarray(gen_pt, dtype=np.float64)[usable]
    number = region_number(np.asarray(eta)[usable])

    by_region: dict[str, list[Point]] = {}
    for index, region in enumerate(r.REGIONS):
        inside = number == index
        points = measure(region, log_pt[inside], gen_pt[inside])
        if len(points) >= 2:
            by_region[region] = points
    if not by_region:
        return None
    shares = width_shares(list(by_region.values()))
    curves = dict.fromkeys(r.REGIONS, IDENTITY)
    all_points: list[Point] = []
    for region, points in by_region.items():
        curves[region] = curve_through(points, shares)
        all_points += points
    return Residual(curves=curves, points=tuple(all_points), num_jets=len(log_pt))


def measure(region: str, log_pt: Floats, gen_pt: Floats) -> list[Point]:
    """Return the bins of a region's jets, by rising pT, from CLOSURE_FROM up.

    log_pt, gen_pt: (N,). A bin with fewer than MIN_JETS jets is joined with the next one. Bins
    whose jets have no larger calibrated pT than those of the bin before are left out.
    """
    points: list[Point] = []
    log_response = log_pt - np.log(gen_pt)
    low = r.CLOSURE_FROM
    for bin_ in r.bins(r.FINE_PT_EDGES, (region,)):
        in_bin = (gen_pt >= low) & (gen_pt < bin_.high)
        number = int(np.count_nonzero(in_bin))
        if bin_.low < r.CLOSURE_FROM or number < MIN_JETS:
            continue
        low = bin_.high
        lower, median, upper = np.quantile(log_response[in_bin], (0.25, 0.5, 0.75))
        # The median of n values of a nearly normal distribution has the standard deviation
        # 1.253 sigma / sqrt(n), and its quartiles are 1.349 sigma apart.
        error = 1.253 * (upper - lower) / 1.349 / math.sqrt(number)
        place = float(np.median(log_pt[in_bin]))
        if points and place < points[-1].log_pt + MIN_STEP:
            continue
        points.append(
            Point(
                region=region,
                log_pt=place,
                log_r=float(-median),
                # Equal responses have no width, and would be trusted beyond all others.
                error=max(float(error), 1e-4),
                num_jets=number,
            )
        )
    return points


def curve_through(points: Sequence[Point], shares: Floats) -> Curve:
    """Build the curve of a region from two or more points: smooth, bounded, rising.

    Args:
        points: by rising pT.
        shares: (len(WIDTHS),), weight of each width of the prior, from `width_shares`.
    """
    from scipy.interpolate import PchipInterpolator

    knots = np.array([point.log_pt for point in points])
    bounds = math.log1p(-MAX_CORRECTION), math.log1p(MAX_CORRECTION)
    values = np.clip(smooth(points, shares), *bounds)
    pieces = PchipInterpolator(knots, values).c[::-1].T  # (K - 1, 4), by rising powers
    # Of a network that is far off the curve may be too steep; half of it is half as steep.
    while least_slope(knots, pieces) < MIN_SLOPE:
        pieces = pieces / 2
    return _curve(knots, pieces)


def width_shares(regions: Sequence[Sequence[Point]]) -> Floats:
    """Compute the probability of each of WIDTHS given the points of all regions: (W,), of sum 1."""
    # The widths are evenly spaced in their logarithm: a density per width, times the width.
    log_share = np.log(WIDTHS) - np.log1p((WIDTHS / WIDTH_SCALE) ** 2)
    for points in regions:
        log_r, prior, noise = _matrices(points)
        for index, width in enumerate(WIDTHS):
            covariance = width**2 * prior + noise
            # Rasmussen and Williams, equation 2.30, without its constant
            log_share[index] -= log_r @ np.linalg.solve(covariance, log_r) / 2
            log_share[index] -= np.linalg.slogdet(covariance)[1] / 2
    share = np.exp(log_share - log_share.max())
    shares: Floats = share / share.sum()
    return shares


def smooth(points: Sequence[Point], shares: Floats) -> Floats:
    """Compute log r at the points, (K,), smoothed and drawn towards zero according to their errors.

    shares: of WIDTHS, (W,).
    """
    log_r, prior, noise = _matrices(points)
    smooth_log_r: Floats = np.zeros(len(points))
    for width, share in zip(WIDTHS, shares, strict=True):
        signal = width**2 * prior
        # Rasmussen and Williams, equation 2.23
        smooth_log_r += share * (signal @ np.linalg.solve(signal + noise, log_r))
    return smooth_log_r


def _matrices(points: Sequence[Point]) -> tuple[Floats, Floats, Floats]:
    """Return measured log r (K,), covariances (K, K) of a prior of width 1 and of the errors."""
    x = np.array([point.log_pt for point in points])
    log_r = np.array([point.log_r for point in points])
    distance = (x[:, None] - x[None, :]) / PRIOR_LENGTH
    noise = np.diag([point.error**2 for point in points])
    return log_r, np.exp(-(distance**2) / 2), noise


def _curve(knots: Floats, pieces: Floats) -> Curve:
    """Return a curve of arrays, (K,) and (K - 1, 4)."""
    rows = []
    for c0, c1, c2, c3 in pieces.tolist():
        rows.append((c0, c1, c2, c3))
    return Curve(knots=tuple(knots.tolist()), pieces=tuple(rows))
