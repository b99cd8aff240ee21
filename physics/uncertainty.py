"""How good a network's uncertainty of each jet is: pure functions of arrays.

A quantile network answers, beside the median of t = log(pT_gen / pT), with further quantiles of t
for the very jet, such as q16 and q84. Half of what lies between these two is its uncertainty of the
jet: the relative 68 % half-width of pT. It is good if

  - it covers: t lies between q16 and q84 for 68 % of the jets, in every range of pT;
  - it tells jets apart: where a larger width is predicted, the calibrated response is found to be
      wider, by as much.

Jets are binned in what is known of them without their generator jet: the pT of the file, the
predicted width. Among the jets of one pT_gen even the true quantiles would not cover 68 %, as
pT_gen is what the interval is for.

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
from typing import Any

import numpy as np

from physics import response as r
from physics.bootstrap import LEVEL, REPLICATES, bootstrap_quantiles, interval
from physics.metrics import MIN_JETS, equal_slices

MEDIAN = "median"
ONE_SIGMA = 0.68  # the band that the report shows, where a network has several
SLICES = 8  # of the predicted width, with equally many jets


@dataclasses.dataclass(frozen=True, kw_only=True)
class Band:
    """Two columns of a quantile network whose levels lie as far below and above one half, such as
    q16 and q84.
    """

    low: str
    high: str
    low_level: float
    high_level: float

    @property
    def nominal(self) -> float:
        """The share of jets that ought to lie between the columns."""
        return round(self.high_level - self.low_level, 9)


def level_of(column: str) -> float | None:
    """The level of an output column by its name: 0.5 of 'median', 0.16 of 'q16';

    None for what is no quantile.
    """
    if column == MEDIAN:
        return 0.5
    match = re.fullmatch(r"q(\d+(?:\.\d+)?)", column)
    return float(match[1]) / 100 if match else None


def bands(columns: Sequence[str]) -> list[Band]:
    """The pairs of columns with opposite levels, the one nearest to 68 % first; empty for a network
    without quantiles or a median.
    """
    levels = {name: level for name in columns if (level := level_of(name)) is not None}
    found = [
        Band(low=low, high=high, low_level=levels[low], high_level=levels[high])
        for low, high in itertools.permutations(levels, 2)
        if levels[low] < 0.5 and math.isclose(levels[low] + levels[high], 1)
    ]
    return sorted(found, key=lambda band: abs(band.nominal - ONE_SIGMA)) if MEDIAN in levels else []


def share(which: np.ndarray, level: float = LEVEL) -> dict[str, float]:
    """The share of jets for which `which` (N,) bool is true, with Wilson's binomial interval:

    {"value", "low", "high"}. N must be > 0.
    """
    number, found = len(which), float(np.mean(which))
    z = statistics.NormalDist().inv_cdf((1 + level) / 2)
    middle = (found + z**2 / (2 * number)) / (1 + z**2 / number)
    reach = (
        z / (1 + z**2 / number) * math.sqrt(found * (1 - found) / number + z**2 / (4 * number**2))
    )
    return {
        "value": found,
        "low": max(min(middle - reach, found), 0.0),
        "high": min(max(middle + reach, found), 1.0),
    }


def measure(
    columns: Mapping[str, np.ndarray],
    answers: np.ndarray,
    names: Sequence[str],
    *,
    replicates: int = REPLICATES,
    seed: int = 0,
    advance: Callable[[], None] | None = None,
) -> dict[str, Any] | None:
    """What the quantiles of a network are worth on jets: columns name -> (N,) as in
    physics.metrics; answers: (N, C), its output columns, called `names`.

    None for a network that has no two opposite quantiles beside the median, or with fewer than
    MIN_JETS jets to measure it on. Jets without generator jet, or with an answer that is not
    finite, are left out, the latter counted. `advance` is called after each draw of the bootstrap.
    No NaN or infinity is returned.
    """
    found = bands(names)
    if not found:
        return None
    matched = np.asarray(columns["genJetPt"]) > 0
    finite = (
        np.isfinite(answers).all(axis=1)
        & np.isfinite(columns["jetPt"])
        & (np.asarray(columns["jetPt"]) > 0)
    )
    kept = matched & finite & r.in_region(columns["genJetEta"], "all")
    if np.count_nonzero(kept) < MIN_JETS:
        return None
    jets = {
        name: np.asarray(columns[name], dtype=np.float64)[kept]
        for name in ("jetPt", "genJetPt", "genJetEta")
    }
    quantiles = dict(zip(names, np.asarray(answers, dtype=np.float64)[kept].T, strict=True))
    true = np.log(jets["genJetPt"] / jets["jetPt"])
    return {
        "columns": list(names),
        "num_jets": len(true),
        "num_without_answer": int(np.count_nonzero(matched & ~finite)),
        "bands": [_band(band, true, quantiles) for band in found],
        "below": [
            _below(name, true, quantiles[name]) for name in names if level_of(name) is not None
        ],
        "pt": _in_pt(found[0], true, quantiles, jets),
        **_widths(
            found[0], true, quantiles, jets, replicates=replicates, seed=seed, advance=advance
        ),
    }


def _inside(band: Band, true: np.ndarray, quantiles: Mapping[str, np.ndarray]) -> np.ndarray:
    return (quantiles[band.low] <= true) & (true <= quantiles[band.high])


def _band(band: Band, true: np.ndarray, quantiles: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Coverage of a band over all jets, and for how many its ends are the wrong way round."""
    crossed = int(np.count_nonzero(quantiles[band.low] > quantiles[band.high]))
    place = {"low": band.low, "high": band.high, "nominal": band.nominal}
    return place | {"coverage": share(_inside(band, true, quantiles)), "num_crossed": crossed}


def _below(name: str, true: np.ndarray, quantile: np.ndarray) -> dict[str, Any]:
    """How often the truth lies below a quantile, which is its level if it is right."""
    return {"column": name, "level": level_of(name), "share": share(true < quantile)}


def _in_pt(
    band: Band,
    true: np.ndarray,
    quantiles: Mapping[str, np.ndarray],
    jets: Mapping[str, np.ndarray],
) -> list[dict[str, Any]]:
    """Coverage and mean half-width of the band by the pT of the file (GeV), in each region."""
    inside, half = _inside(band, true, quantiles), (quantiles[band.high] - quantiles[band.low]) / 2
    records = []
    for one in r.bins(r.FINE_PT_EDGES):
        chosen = one.contains(jets["jetPt"], jets["genJetEta"])
        if np.count_nonzero(chosen) >= MIN_JETS:
            high = None if math.isinf(one.high) else one.high
            place = {
                "region": one.region,
                "pt_range": one.range,
                "pt_low": one.low,
                "pt_high": high,
            }
            middle = {
                "pt": float(np.median(jets["jetPt"][chosen])),
                "num_jets": int(np.count_nonzero(chosen)),
            }
            records.append(
                {
                    **place,
                    **middle,
                    "coverage": share(inside[chosen]),
                    "half_width": float(np.mean(half[chosen])),
                }
            )
    return records


def _widths(
    band: Band,
    true: np.ndarray,
    quantiles: Mapping[str, np.ndarray],
    jets: Mapping[str, np.ndarray],
    **draws: Any,
) -> dict[str, Any]:
    """Predicted half-widths beside measured ones, the pull, and what the prediction knows of jets
    of the same pT.

    draws: keywords of bootstrap_quantiles.
    """
    error, half = true - quantiles[MEDIAN], (quantiles[band.high] - quantiles[band.low]) / 2
    values = {"error": error, "pull": error / np.maximum(half, 1e-9)}
    slices = list(itertools.pairwise(equal_slices(half, SLICES)))
    groups = {
        f"slice {place}": (half >= low) & (half < high) for place, (low, high) in enumerate(slices)
    }
    wide = wider_half(half, jets)
    groups |= {"all": np.ones(len(half), dtype=bool), "narrow": wide < 0, "wide": wide > 0}
    groups = {name: mask for name, mask in groups.items() if np.count_nonzero(mask) >= MIN_JETS}
    at = np.array([band.low_level, 0.5, band.high_level])
    found = bootstrap_quantiles(values, groups, at=at, **draws)
    errors = {group: half_width(q) for group, q in found["error"].items()}
    return {
        "widths": [
            {
                "predicted": float(np.mean(half[mask])),
                "measured": interval(errors[name]),
                "num_jets": int(np.count_nonzero(mask)),
            }
            for name, mask in groups.items()
            if name.startswith("slice")
        ],
        "pull": {
            "median": interval(found["pull"]["all"][:, 1]),
            "half_width": interval(half_width(found["pull"]["all"])),
        },
        "same_pt": _same_pt(errors, groups, half),
    }


def half_width(q: r.Floats) -> r.Floats:
    """Half of what lies between the first and the last quantile. q: (..., 3); returns (...)."""
    return (q[..., -1] - q[..., 0]) / 2


def wider_half(half: np.ndarray, jets: Mapping[str, np.ndarray]) -> np.ndarray:
    """1 for jets predicted wider than the middle one of their own fine pT bin and region, -1 for
    narrower ones, 0 in no bin: (N,).

    So that the two halves have the same spectrum, and what they differ by is not merely that soft
    jets are measured worse.
    """
    found = np.zeros(len(half), dtype=np.int8)
    for one in r.bins(r.FINE_PT_EDGES):
        chosen = np.flatnonzero(one.contains(jets["jetPt"], jets["genJetEta"]))
        ranked = chosen[np.argsort(half[chosen], kind="stable")]
        found[ranked[: len(ranked) // 2]] = -1
        found[ranked[(len(ranked) + 1) // 2 :]] = 1
    return found


def _same_pt(
    errors: Mapping[str, np.ndarray], groups: Mapping[str, np.ndarray], half: np.ndarray
) -> dict[str, Any] | None:
    """Measured and predicted half-widths of both halves of `wider_half`, and their ratio (paired);

    None with too few jets.
    """
    if not {"narrow", "wide"} <= groups.keys():
        return None
    record: dict[str, dict[str, Any]] = {
        name: {"measured": interval(errors[name]), "predicted": float(np.mean(half[groups[name]]))}
        for name in ("narrow", "wide")
    }
    ratio = interval(errors["wide"] / np.maximum(errors["narrow"], 1e-9))
    return record | {
        "ratio": ratio,
        "predicted_ratio": record["wide"]["predicted"] / max(record["narrow"]["predicted"], 1e-9),
    }
