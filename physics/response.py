"""Response, resolution, gain and closure of jets: pure functions of arrays.

The response of a jet is R = pT / pT_gen: its calibrated transverse momentum over that of the
generator jet it was matched to. A good calibration has a median response of 1 everywhere (closure)
and a narrow distribution of R (resolution).

Medians and widths are functions of five quantiles of R, taken at QUANTILES. They take arrays whose
*last* axis holds these five, so that they work for a single sample, for all bins, and for all
resamplings of a bootstrap (physics.bootstrap). All momenta are in GeV. pT and eta in the names of
bins are those of the generator jet.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]
"""Numbers, one a jet or one a quantile; docstrings give the shape."""

Mask = NDArray[np.bool_]
"""Which jets: (N,) bool."""

QUANTILES: Floats = np.array([0.158655, 0.25, 0.5, 0.75, 0.841345])
"""-1 sigma, the quartiles and the median, +1 sigma of a normal distribution."""

REGIONS = {"barrel": (0.0, 1.3), "endcap": (1.3, 2.5)}
"""Region -> range of |eta|, lower edge included.

In the barrel the tracker and the barrel calorimeters overlap; the endcap is the rest of the
tracker.
"""

PT_EDGES = (30.0, 100.0, 300.0, 1000.0, math.inf)
"""pT bins of the summary table (GeV): those of the published results with which it is compared."""

# fmt: off
FINE_PT_EDGES = (
    30.0, 40.0, 50.0, 60.0, 80.0, 110.0, 150.0, 200.0, 300.0, 450.0, 650.0, 1000.0, 1500.0,
    math.inf,
)
# fmt: on
"""pT bins of the curves and of the closure (GeV).

Fine enough to show a trend, coarse enough for a few thousand jets.
"""

CLOSURE_FROM = 60.0
"""GeV. Below, the cut on the reconstructed pT (30 GeV) keeps jets that fluctuated upwards, so the
median response is not 1 for any calibration, and closure cannot be judged."""

FLAVOURS = ("uds", "c", "b", "g")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bin:
    """A range of pT_gen (GeV; upper edge excluded, may be infinite) in a region of |eta|."""

    region: str
    low: float
    high: float

    @property
    def name(self) -> str:
        """The bin's name: its region and its range of pT."""
        return f"{self.region} {self.range}"

    @property
    def range(self) -> str:
        """The pT range as people write it: '30-100' or '>1000'."""
        return f">{self.low:g}" if math.isinf(self.high) else f"{self.low:g}-{self.high:g}"

    @property
    def text(self) -> str:
        """The bin in a sentence: 'barrel jets at 30-100 GeV', or 'jets above 60 GeV' for all."""
        jets = "jets" if self.region == "all" else f"{self.region} jets"
        pt = f"above {self.low:g}" if math.isinf(self.high) else f"at {self.range}"
        return f"{jets} {pt} GeV"

    def contains(self, gen_pt: Floats, gen_eta: Floats) -> Mask:
        """Return which jets lie in the bin: (N,) bool."""
        return (gen_pt >= self.low) & (gen_pt < self.high) & in_region(gen_eta, self.region)


def bins(edges: tuple[float, ...], regions: tuple[str, ...] = tuple(REGIONS)) -> list[Bin]:
    """Return the bins between successive edges (GeV) in each region."""
    result = []
    for region in regions:
        for low, high in itertools.pairwise(edges):
            result.append(Bin(region=region, low=low, high=high))
    return result


def in_region(gen_eta: Floats, region: str) -> Mask:
    """Return which jets lie in a region of |eta| ('all': in any of them): (N,) bool."""
    if region == "all":
        # The regions adjoin, so all of them together are one range.
        lows, highs = zip(*REGIONS.values(), strict=True)
        low, high = min(lows), max(highs)
    else:
        low, high = REGIONS[region]
    inside: Mask = (np.abs(gen_eta) >= low) & (np.abs(gen_eta) < high)
    return inside


def calibrated_pt(jet_pt: Floats, output: Floats) -> Floats:
    """Return calibrated pT (GeV): pT * exp(output), as the network learns log(pT_gen / pT).

    Both arrays (N,), the result (N,) float64. An output that is not finite, or so large that exp
    overflows, gives NaN: such a jet has no calibrated pT.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        factor = np.exp(np.asarray(output, dtype=np.float64))
        pt = np.asarray(jet_pt, dtype=np.float64) * factor
    return np.where(np.isfinite(pt), pt, np.nan)


def response(pt: Floats, gen_pt: Floats) -> Floats:
    """R = pT / pT_gen, float64 (N,). NaN where there is no generator jet (pT_gen <= 0)."""
    gen_pt = np.asarray(gen_pt, dtype=np.float64)
    return np.asarray(pt, dtype=np.float64) / np.where(gen_pt > 0, gen_pt, np.nan)


def quantiles(values: Floats) -> Floats:
    """Return the five quantiles of a sample at QUANTILES, (5,), linear between order statistics.

    NaN for an empty sample.
    """
    return np.quantile(values, QUANTILES) if len(values) else np.full(len(QUANTILES), np.nan)


def median(q: Floats) -> Floats:
    """Return median response. q: (..., 5) quantiles; returns (...)."""
    return q[..., 2]


def resolution(q: Floats) -> Floats:
    """IQR / median: (q75 - q25) / q50, without unit.

    For a narrow normal distribution this is 1.349 sigma / mean. q: (..., 5) quantiles; returns
    (...). Insensitive to tails, and to a scale common to all jets.
    """
    return (q[..., 3] - q[..., 1]) / q[..., 2]


def half_width(q: Floats) -> Floats:
    """Return half of the central 68.3 % over the median: (q84 - q16) / (2 q50).

    sigma / mean for a normal distribution. q: (..., 5) quantiles; returns (...). Sees more of the
    tails than the quartiles do.
    """
    return (q[..., 4] - q[..., 0]) / (2 * q[..., 2])


CORE = 2.0
"""Standard deviations on either side of the mean that a fit of the core uses."""

# Standard deviation of a standard normal distribution that is cut at +-CORE: a cut at c leaves the
# variance 1 - 2 c phi(c) / (2 Phi(c) - 1), with 2 Phi(c) - 1 = erf(c / sqrt(2)).
CORE_WIDTH = math.sqrt(
    1 - 2 * CORE * math.exp(-(CORE**2) / 2) / math.sqrt(2 * math.pi) / math.erf(CORE / math.sqrt(2))
)


def gaussian_core(values: Floats, steps: int = 50) -> tuple[float, float]:
    """Return mean and standard deviation of the normal core of a response distribution.

    CMS quotes them beside the median. The core is the normal distribution whose moments within CORE
    standard deviations of its mean are those of the sample there. It is found by iteration from the
    median and the quartiles, without bins; the standard deviation is corrected for the cut (a
    normal distribution cut at 2 sigma has 0.880 of its width). values: (N,) finite. NaN for fewer
    than 20 values and for values whose quartiles coincide. The iteration ends after `steps` rounds,
    even if it has not converged.
    """
    q = quantiles(values)
    mean, sigma = q[2], (q[3] - q[1]) / 1.349
    # Fewer than 20 values have about one in each tail, so the cut would decide the result.
    if len(values) < 20 or not sigma > 0:
        return math.nan, math.nan
    for _ in range(steps):
        previous_mean, previous_sigma = mean, sigma
        core = values[np.abs(values - mean) < CORE * sigma]
        if not len(core):
            return math.nan, math.nan
        mean = float(np.mean(core))
        sigma = float(np.std(core)) / CORE_WIDTH
        if abs(mean - previous_mean) + abs(sigma - previous_sigma) < 1e-6 * abs(mean):
            break
    return mean, sigma


def gain(q: Floats, reference: Floats, width: Callable[[Floats], Floats] = resolution) -> Floats:
    """Return by how many per cent the response is narrower than that of a reference calibration.

    100 (1 - width / width_reference). q, reference: (..., 5) quantiles of the *same* jets (of the
    same resampling, in a bootstrap: then its interval is paired). Returns (...).
    """
    return 100 * (1 - width(q) / width(reference))


def bias(q: Floats) -> Floats:
    """Return median response - 1: zero where the calibration closes.

    q: (..., 5) quantiles; returns (...).
    """
    return q[..., 2] - 1


def spread_squared(medians: Floats) -> Floats:
    """Return the variance of the median response between flavours without noise: (draws + 1,).

    medians: (draws + 1, flavours), row 0 for the sample, the others for its bootstrap draws; at
    least two flavours, which have equal weights.

    The variance of measured medians is that of the true ones plus the mean variance of their
    statistical noise. The noise is estimated from the draws and subtracted: once from the sample,
    and twice from a draw, which has the sample's noise and its own. The result is an unbiased
    estimate, unlike the largest minus the smallest median, which noise always increases. If the
    flavours do not differ, it is as often negative as positive.

    Source: the moment estimator of the variance between groups of R. DerSimonian, N. Laird,
    Controlled Clinical Trials 7 (1986) 177, with equal weights as in R. DerSimonian, R. Kacker,
    Contemp. Clin. Trials 28 (2007) 105, equation 6.
    """
    noise = np.mean(np.var(medians[1:], axis=0))
    values: Floats = np.var(medians, axis=1, ddof=1)
    values[0] -= noise
    values[1:] -= 2 * noise
    return values


def signed_root(values: Floats) -> Floats:
    """Return sign(x) sqrt(|x|) of each number, in the shape of `values`."""
    return np.sign(values) * np.sqrt(np.abs(values))


def flavour(parton: np.ndarray, hadron: np.ndarray) -> NDArray[np.str_]:
    """Return the flavour of each jet as (N,) text: 'uds', 'c', 'b', 'g', or '' without a match.

    'b' or 'c' by its hadrons, else 'uds' or 'g' by its parton. parton: signed PDG code of the
    matched parton (21 = gluon, 0 = none); hadron: 5, 4 or 0, as CMS ghost-matches hadrons. Hadrons
    come first: a gluon that split into b quarks is a b jet.
    """
    parton = np.abs(np.asarray(parton))
    hadron = np.abs(np.asarray(hadron))
    light = np.isin(parton, (1, 2, 3))
    return np.select(
        [hadron == 5, hadron == 4, light, parton == 21], ["b", "c", "uds", "g"], default=""
    )


def num_far(values: Floats, limit: float = 1.0) -> int:
    """Count responses (N,) with |log R| >= limit: mismatched jets, or a calibration that failed.

    The default, 1, is a factor e. Jets without a finite, positive response count as far.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        near = np.abs(np.log(values)) < limit
    return int(np.count_nonzero(~near))
