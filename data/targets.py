"""Compare jets of a sample with those of CMS simulation.

Each number is compared with a target range. Targets were measured on the CMS open data JetNtuple
(record 12100). The functions take columns of data.summary and return plain numbers. Momenta in GeV;
pT and eta are the generator jet's.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable

import numpy as np

from data.jetntuple import Columns
from physics import response as r

RESOLUTION = {50.0: 0.187, 111.0: 0.137, 245.0: 0.101, 540.0: 0.076, 1192.0: 0.063}
"""pT (GeV) -> IQR / median of the response of the standard JEC in the barrel."""
RESOLUTION_TOLERANCE = 0.15  # relative difference
WINDOW = 1.15  # jets within this factor of a target's pT are measured for it

GAP_EDGES = (30.0, 60.0, 100.0, 200.0, 400.0, 1000.0)
GAP = (0.015, 0.035)
"""Median response of u quark jets minus that of gluon jets, barrel."""

FRACTIONS = {
    "charged hadrons": ("chargedFraction", 0.60),
    "photons": ("photonFraction", 0.25),
    "neutral hadrons": ("neutralFraction", 0.10),
}
"""Kind -> column of data.summary, mean share of the jet's pT."""
FRACTION_TOLERANCE = 0.05

CLOSURE_EDGES = (40.0, 60.0, 100.0, 200.0, 400.0, 1000.0)
CLOSURE = 0.01

MIN_JETS = 100  # the median of fewer is not known to 2 %


@dataclasses.dataclass(frozen=True, kw_only=True)
class Comparison:
    """A number measured on a sample, and the range of its target, `low` to `high`.

    `error` is the statistical uncertainty (one standard deviation) of `value`.
    """

    topic: str
    where: str
    value: float
    error: float
    low: float
    high: float
    jets: int

    @property
    def within(self) -> bool:
        """True unless the value lies outside the target by more than two standard deviations."""
        return self.low - 2 * self.error <= self.value <= self.high + 2 * self.error


def compare(jets: Columns) -> list[Comparison]:
    """Compare all quantities for which there are at least MIN_JETS jets.

    Args:
        jets: data.summary columns, (N,) each.
    """
    matched_jets = {name: values[jets["genJetPt"] > 0] for name, values in jets.items()}
    comparisons: list[Comparison] = []
    for measure in (resolution, quark_gluon_gap, closure, fractions, likelihood):
        comparisons += measure(matched_jets)
    comparisons += multiplicity(jets)
    return [comparison for comparison in comparisons if comparison.jets >= MIN_JETS]


def resolution(jets: Columns) -> Iterable[Comparison]:
    """IQR / median of the response about each pT of RESOLUTION."""
    for pt, target in RESOLUTION.items():
        values = _response(jets, pt / WINDOW, pt * WINDOW, "barrel")
        q = r.quantiles(values)
        width = float(r.resolution(q))
        low = target * (1 - RESOLUTION_TOLERANCE)
        high = target * (1 + RESOLUTION_TOLERANCE)
        # The interquartile range of n normal values is known to about 1.17 / sqrt(n), relative.
        error = 1.17 * width / max(len(values), 1) ** 0.5
        yield Comparison(
            topic="resolution, barrel",
            where=f"{pt:g} GeV",
            value=width,
            error=error,
            low=low,
            high=high,
            jets=len(values),
        )


def quark_gluon_gap(jets: Columns) -> Iterable[Comparison]:
    """Yield the median response of u quark jets minus that of gluon jets by pT."""
    flavour = np.abs(jets["partonFlav"])
    for low, high in itertools.pairwise(GAP_EDGES):
        quark, gluon = (_response(jets, low, high, "barrel", flavour == kind) for kind in (2, 21))
        error = float(np.hypot(_median_error(quark), _median_error(gluon)))
        value = float(r.median(r.quantiles(quark)) - r.median(r.quantiles(gluon)))
        yield Comparison(
            topic="u minus gluon response, barrel",
            where=f"{low:g}-{high:g} GeV",
            value=value,
            error=error,
            low=GAP[0],
            high=GAP[1],
            jets=min(len(quark), len(gluon)),
        )


def closure(jets: Columns) -> Iterable[Comparison]:
    """Yield the median response of the standard JEC - 1 by pT in each region."""
    for region in r.REGIONS:
        for low, high in itertools.pairwise(CLOSURE_EDGES):
            values = _response(jets, low, high, region)
            yield Comparison(
                topic=f"closure of the standard JEC, {region}",
                where=f"{low:g}-{high:g} GeV",
                value=float(r.bias(r.quantiles(values))),
                error=_median_error(values),
                low=-CLOSURE,
                high=CLOSURE,
                jets=len(values),
            )


def fractions(jets: Columns) -> Iterable[Comparison]:
    """Yield the mean share of the jet's pT by kind of candidate."""
    barrel = r.in_region(jets["genJetEta"], "barrel")
    for name, (column, target) in FRACTIONS.items():
        values = jets[column][barrel]
        values = values[np.isfinite(values)]
        yield _mean(
            values,
            "share of the jet's pT, barrel",
            name,
            target - FRACTION_TOLERANCE,
            target + FRACTION_TOLERANCE,
        )


def multiplicity(jets: Columns) -> Iterable[Comparison]:
    """Yield the mean number of candidates stored with a jet, and of those in its cone."""
    yield _mean(jets["nPF"], "candidates a jet", "stored", 110, 150)
    yield _mean(jets["nInCone"], "candidates a jet", "within dR < 0.4", 31, 41)


def likelihood(jets: Columns) -> Iterable[Comparison]:
    """Compute the area under the ROC curve of jetQGl, light quarks against gluons.

    It is the probability that a light-quark jet has the larger jetQGl.
    """
    flavour = np.abs(jets["partonFlav"])
    has_likelihood = jets["jetQGl"] >= 0  # -1 where the file has no likelihood
    quark = jets["jetQGl"][has_likelihood & np.isin(flavour, (1, 2, 3))]
    gluon = jets["jetQGl"][has_likelihood & (flavour == 21)]
    number = min(len(quark), len(gluon))
    yield Comparison(
        topic="jetQGl, light quarks over gluons",
        where="area under ROC",
        value=area_under_roc(quark, gluon),
        # A uniform rank has the standard deviation sqrt(1 / 12), about 0.3.
        error=0.3 / max(number, 1) ** 0.5,
        low=0.65,
        high=0.95,
        jets=number,
    )


def area_under_roc(signal: np.ndarray, background: np.ndarray) -> float:
    """Return P(signal > background) + P(equal) / 2, NaN where either is empty.

    Source: D. Bamber, J. Math. Psychol. 12 (1975) 387.

    Args:
        signal: (S,), scores of the signal.
        background: (B,), scores of the background.
    """
    if not len(signal) or not len(background):
        return float("nan")
    sorted_background = np.sort(background)
    below = np.searchsorted(sorted_background, signal, side="left")
    not_above = np.searchsorted(sorted_background, signal, side="right")
    # Values below count twice here, equal ones once.
    return float((below + not_above).mean() / 2 / len(background))


def _response(
    jets: Columns, low: float, high: float, region: str, which: np.ndarray | None = None
) -> np.ndarray:
    """Return the response of jets in a pT bin (GeV) of a region, or of those of `which` (N,)."""
    bin_ = r.Bin(region=region, low=low, high=high)
    mask = bin_.contains(jets["genJetPt"], jets["genJetEta"])
    if which is not None:
        mask = mask & which
    return r.response(jets["jetPt"][mask], jets["genJetPt"][mask])


def _median_error(values: np.ndarray) -> float:
    """Return the standard deviation of the median of a nearly normal sample.

    1.253 sigma / sqrt(n), sigma from the quartiles, which are 1.349 sigma apart.
    """
    q = r.quantiles(values)
    return float(1.253 * (q[3] - q[1]) / 1.349 / max(len(values), 1) ** 0.5)


def _mean(values: np.ndarray, topic: str, where: str, low: float, high: float) -> Comparison:
    """Compare the mean of values (N,) with its target; NaN for none."""
    value, error = float("nan"), 0.0
    if len(values):
        value = float(np.mean(values))
        error = float(np.std(values)) / len(values) ** 0.5
    return Comparison(
        topic=topic, where=where, value=value, error=error, low=low, high=high, jets=len(values)
    )
