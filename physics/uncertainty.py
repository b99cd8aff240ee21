"""How good a network's uncertainty of each jet is: pure functions of arrays.

A quantile network returns for each jet the median of t = log(pT_gen / pT) and further quantiles of
t, such as q16 and q84. Half of the distance between these two is the jet's uncertainty: the
relative 68 % half-width of pT. It is tested in two ways:

  - coverage: t lies between q16 and q84 for 68 % of the jets, in every range of pT;
  - sharpness: jets with a larger predicted width have a wider calibrated response, by the same
      factor.

Jets are binned in quantities that do not need the generator jet: the pT of the file, the predicted
width. In a bin of pT_gen even the true quantiles would not cover 68 % of the jets, because the
interval is one for pT_gen.

Sources: coverage and sharpness, T. Gneiting, F. Balabdaoui, A. Raftery, J. R. Statist. Soc. B 69
(2007) 243; interval of a share, E. B. Wilson, J. Am. Stat. Assoc. 22 (1927) 209.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import re
import statistics
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from physics import response as r
from physics.bootstrap import LEVEL, REPLICATES, bootstrap_quantiles, interval
from physics.groups import MIN_JETS, Masks, equal_slices
from physics.interval import Interval
from physics.metrics import LARGEST, Record
from physics.response import Floats, Mask

MEDIAN = "median"
ONE_SIGMA = 0.68  # the band that the report shows, where a network has several
SLICES = 8  # slices of the predicted width, with equally many jets


@dataclasses.dataclass(frozen=True, kw_only=True)
class Band:
    """Two output columns of a quantile network with opposite levels, such as q16 and q84."""

    low: str
    high: str
    low_level: float
    high_level: float

    @property
    def nominal(self) -> float:
        """The share of jets that should lie between the columns."""
        return round(self.high_level - self.low_level, 9)

    def contains(self, true: Floats, quantiles: Mapping[str, Floats]) -> Mask:
        """Return which jets have their true value (N,) in the band, ends included: (N,) bool."""
        return (quantiles[self.low] <= true) & (true <= quantiles[self.high])

    def half(self, quantiles: Mapping[str, Floats]) -> Floats:
        """Return half of the band's width for each jet, (N,): its relative uncertainty of pT."""
        return (quantiles[self.high] - quantiles[self.low]) / 2


def level_of(column: str) -> float | None:
    """Return the level of an output column by its name: 0.5 for 'median', 0.16 for 'q16'.

    None for a column that is not a quantile.
    """
    if column == MEDIAN:
        return 0.5
    match = re.fullmatch(r"q(\d+(?:\.\d+)?)", column)
    return float(match[1]) / 100 if match else None


def bands(columns: Sequence[str]) -> list[Band]:
    """Return the pairs of columns with opposite levels, the one nearest to 68 % first.

    Empty for a network without quantiles or a median.
    """
    if MEDIAN not in columns:
        return []
    levels = {name: level for name in columns if (level := level_of(name)) is not None}
    pairs = []
    for low, high in itertools.permutations(levels, 2):
        if levels[low] < 0.5 and math.isclose(levels[low] + levels[high], 1):
            band = Band(low=low, high=high, low_level=levels[low], high_level=levels[high])
            pairs.append(band)
    return sorted(pairs, key=lambda band: abs(band.nominal - ONE_SIGMA))


def share(which: Mask, level: float = LEVEL) -> Interval:
    """Return the share of jets for which `which` (N,) bool is true, with Wilson's interval.

    N must be > 0. The interval has the coverage `level` and lies within [0, 1].
    """
    number = len(which)
    value = float(np.mean(which))
    # With z standard deviations: middle (p + z² / 2n) / (1 + z² / n), and to either side of it
    # z / (1 + z² / n) sqrt(p (1 - p) / n + z² / 4n²).
    z = statistics.NormalDist().inv_cdf((1 + level) / 2)
    middle = (value + z**2 / (2 * number)) / (1 + z**2 / number)
    variance = value * (1 - value) / number + z**2 / (4 * number**2)
    reach = z / (1 + z**2 / number) * math.sqrt(variance)
    # Rounding must not put the value outside of its own interval.
    return {
        "value": value,
        "low": max(min(middle - reach, value), 0.0),
        "high": min(max(middle + reach, value), 1.0),
    }


def measure(
    columns: Mapping[str, np.ndarray],
    answers: Floats,
    names: Sequence[str],
    *,
    replicates: int = REPLICATES,
    seed: int = 0,
    advance: Callable[[], None] | None = None,
) -> Record | None:
    """Measure how well the quantiles of a network describe jets.

    columns: name -> (N,) as in physics.metrics; answers: (N, C), its output columns, called
    `names`. None for a network that has no two opposite quantiles beside the median, or with fewer
    than MIN_JETS jets to measure it on. Jets without generator jet or jetPt, or with an answer that
    is not finite, are left out, the last counted. `advance` is called after each draw of the
    bootstrap. No NaN or infinity is returned.
    """
    pairs = bands(names)
    if not pairs:
        return None
    main = pairs[0]
    gen_pt = np.asarray(columns["genJetPt"])
    pt = np.asarray(columns["jetPt"])
    # A jet without a momentum is no fault of the model's.
    measurable = np.isfinite(gen_pt) & (gen_pt > 0) & np.isfinite(pt) & (pt > 0)
    # A served model answers with float32: a larger number is no answer.
    finite = np.ones(len(answers), dtype=bool)
    for column in answers.T:
        finite &= np.abs(column) <= LARGEST
    usable = measurable & finite & r.in_region(columns["genJetEta"], "all")
    if np.count_nonzero(usable) < MIN_JETS:
        return None

    jets = {}
    for name in ("jetPt", "genJetPt", "genJetEta"):
        jets[name] = np.asarray(columns[name])[usable].astype(np.float64)
    # (N, C) -> C columns of the usable jets
    quantiles = {}
    for name, column in zip(names, answers.T, strict=True):
        quantiles[name] = column[usable].astype(np.float64)
    true = np.log(jets["genJetPt"] / jets["jetPt"])
    groups = width_groups(main.half(quantiles), jets)
    at = np.array([main.low_level, 0.5, main.high_level])
    # The error of the median, and the pull: the error in units of the jet's own uncertainty.
    error = true - quantiles[MEDIAN]
    values = {"error": error, "pull": error / np.maximum(main.half(quantiles), 1e-9)}
    draws = bootstrap_quantiles(
        values, groups, at=at, replicates=replicates, seed=seed, advance=advance
    )
    return {
        "columns": list(names),
        "num_jets": len(true),
        "num_without_answer": int(np.count_nonzero(measurable & ~finite)),
        "bands": [_band(band, true, quantiles) for band in pairs],
        "below": _below(true, quantiles),
        "pt": coverage_in_pt(main, true, quantiles, jets),
        "regions": coverage_in_regions(main, true, quantiles, jets),
        **_widths(draws, groups, main.half(quantiles)),
    }


def _band(band: Band, true: Floats, quantiles: Mapping[str, Floats]) -> Record:
    """Return the coverage of a band over all jets, and the number of jets with crossed ends."""
    return {
        "low": band.low,
        "high": band.high,
        "nominal": band.nominal,
        "coverage": share(band.contains(true, quantiles)),
        "num_crossed": int(np.count_nonzero(quantiles[band.low] > quantiles[band.high])),
    }


def _below(true: Floats, quantiles: Mapping[str, Floats]) -> list[Record]:
    """Return how often the truth lies below each quantile, which is its level if it is right."""
    records: list[Record] = []
    for name, values in quantiles.items():
        level = level_of(name)
        if level is not None:
            records.append({"column": name, "level": level, "share": share(true < values)})
    return records


def coverage_in_pt(
    band: Band, true: Floats, quantiles: Mapping[str, Floats], jets: Mapping[str, Floats]
) -> list[Record]:
    """Return coverage and mean half-width of the band by the pT of the file (GeV), in each region.

    Bins with too few jets are left out.

    Args:
        band: two opposite quantiles.
        true: (N,), log(pT_gen / jetPt).
        quantiles: column of the network -> (N,).
        jets: jetPt (GeV) and genJetEta, (N,) each.
    """
    inside = band.contains(true, quantiles)
    half = band.half(quantiles)
    records: list[Record] = []
    for bin_ in r.bins(r.FINE_PT_EDGES):
        in_bin = bin_.contains(jets["jetPt"], jets["genJetEta"])
        num_jets = int(np.count_nonzero(in_bin))
        if num_jets >= MIN_JETS:
            record = {
                "region": bin_.region,
                "pt_range": bin_.range,
                "pt_low": bin_.low,
                "pt_high": None if math.isinf(bin_.high) else bin_.high,
                "pt": float(np.median(jets["jetPt"][in_bin])),
                "num_jets": num_jets,
                "coverage": share(inside[in_bin]),
                "half_width": float(np.mean(half[in_bin])),
            }
            records.append(record)
    return records


def coverage_in_regions(
    band: Band, true: Floats, quantiles: Mapping[str, Floats], jets: Mapping[str, Floats]
) -> list[Record]:
    """Return the coverage over all jets, in each region, and in its wide bins of the file's pT.

    Groups with too few jets are left out.

    Args:
        band: two opposite quantiles.
        true: (N,), log(pT_gen / jetPt).
        quantiles: column of the network -> (N,).
        jets: jetPt (GeV) and genJetEta, (N,) each.
    """
    inside = band.contains(true, quantiles)
    masks: dict[tuple[str, str], Mask] = {}
    for region in ("all", *r.REGIONS):
        masks[region, ""] = r.in_region(jets["genJetEta"], region)
    for bin_ in r.bins(r.PT_EDGES):
        masks[bin_.region, bin_.range] = bin_.contains(jets["jetPt"], jets["genJetEta"])
    records: list[Record] = []
    for (region, pt_range), mask in masks.items():
        num_jets = int(np.count_nonzero(mask))
        if num_jets >= MIN_JETS:
            coverage = share(inside[mask])
            place = {"region": region, "pt_range": pt_range, "num_jets": num_jets}
            records.append({**place, "coverage": coverage})
    return records


def width_groups(half: Floats, jets: Mapping[str, Floats]) -> Masks:
    """Return the groups of jets by their predicted half-width (N,): name -> which jets (N,).

    `slice 0`, `slice 1`, ... by rising width, `all`, and the `narrow` and `wide` halves of
    `wider_half`. Those with fewer than MIN_JETS jets are left out.
    """
    groups = Masks(len(half))
    for number, (low, high) in enumerate(itertools.pairwise(equal_slices(half, SLICES))):
        groups[f"slice {number}"] = (half >= low) & (half < high)
    wide = wider_half(half, jets)
    groups["all"] = np.ones(len(half), dtype=bool)
    groups["narrow"] = wide < 0
    groups["wide"] = wide > 0
    return groups.select(
        name for name, mask in groups.items() if np.count_nonzero(mask) >= MIN_JETS
    )


def _widths(
    draws: Mapping[str, Mapping[str, Floats]], groups: Mapping[str, Mask], half: Floats
) -> Record:
    """Return predicted and measured half-widths, the pull, and the prediction's separation of jets.

    draws: 'error' and 'pull' -> group -> (replicates + 1, 3), the quantiles at the band's lower
    level, one half and upper level. `same_pt` compares jets of the same pT with narrow and wide
    predictions.
    """
    errors = {group: absolute_half_width(q) for group, q in draws["error"].items()}
    widths: list[Record] = []
    for name, mask in groups.items():
        if name.startswith("slice"):
            record = {
                "predicted": float(np.mean(half[mask])),
                "measured": interval(errors[name]),
                "num_jets": int(np.count_nonzero(mask)),
            }
            widths.append(record)
    pull = draws["pull"]["all"]
    return {
        "widths": widths,
        "pull": {"median": interval(pull[:, 1]), "half_width": interval(absolute_half_width(pull))},
        "same_pt": halves_of_same_pt(errors, groups, half),
    }


def absolute_half_width(q: Floats) -> Floats:
    """Return half of what lies between the first and the last quantile. q: (..., 3).

    Returns (...).
    """
    return (q[..., -1] - q[..., 0]) / 2


def wider_half(half: Floats, jets: Mapping[str, Floats]) -> NDArray[np.int8]:
    """Divide the jets of each fine pT bin and region by predicted width: (N,).

    1 for jets predicted wider than the middle one of their bin, -1 for narrower ones, 0 for the
    middle one and for jets in no bin. So the two halves have the same spectrum, and
    their difference is not an effect of pT.
    """
    side = np.zeros(len(half), dtype=np.int8)
    for bin_ in r.bins(r.FINE_PT_EDGES):
        in_bin = np.flatnonzero(bin_.contains(jets["jetPt"], jets["genJetEta"]))
        by_width = in_bin[np.argsort(half[in_bin], kind="stable")]
        side[by_width[: len(by_width) // 2]] = -1
        side[by_width[(len(by_width) + 1) // 2 :]] = 1
    return side


def halves_of_same_pt(
    errors: Mapping[str, Floats], groups: Mapping[str, Mask], half: Floats
) -> Record | None:
    """Return measured and predicted half-widths of both halves of `wider_half`, and their ratio.

    The ratio is paired: both halves come from the same draws.

    Args:
        errors: group -> (R + 1,), measured half-width in the sample and in each draw.
        groups: "narrow" and "wide" -> (N,) bool.
        half: (N,), predicted half-width.

    Returns:
        The record; None with too few jets.
    """
    if not {"narrow", "wide"} <= groups.keys():
        return None
    narrow, wide = (float(np.mean(half[groups[name]])) for name in ("narrow", "wide"))
    return {
        "narrow": {"measured": interval(errors["narrow"]), "predicted": narrow},
        "wide": {"measured": interval(errors["wide"]), "predicted": wide},
        "ratio": interval(errors["wide"] / np.maximum(errors["narrow"], 1e-9)),
        "predicted_ratio": wide / max(narrow, 1e-9),
    }
