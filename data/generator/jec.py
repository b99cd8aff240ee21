"""The standard jet energy corrections (JEC) of the generated sample, the reference for the network.

As in CMS (JINST 12 (2017) P02014, arXiv:1607.03663), in two steps:

L1    subtracts pile-up: pT - area × offset, where the offset density is linear in the event's rho.
      Intercept and slope are fitted in bins of |eta| to bunch crossings without a hard collision,
      where all momentum is pile-up.
L2L3  makes the median response 1 by numerical inversion: the median R of (L1-corrected pT) / pT_gen
      in bins of pT_gen gives the correction 1/R at the pT that such jets are measured with,
      R × pT_gen.

The constants are in standard_jec.json beside this module. They depend on data.generator.detector:
after a change there, derive them again with

    python -m data.derive
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from common.errors import InputError

STANDARD = Path(__file__).with_name("standard_jec.json")
# share of the pT that L1 leaves at least: a jet of nothing but pile-up keeps a positive pT
MIN_L1 = 0.1
MIN_PT = 3.0  # GeV; below, the L2L3 factor is that of this pT


@dataclasses.dataclass(frozen=True, kw_only=True)
class StandardJEC:
    """Constants in B bins of |eta|. Units: GeV, GeV per unit area."""

    eta_edges: np.ndarray
    """(B + 1,) rising; the last bin also serves beyond its edge."""
    l1_intercept: np.ndarray
    """(B,) offset density at rho = 0."""
    l1_slope: np.ndarray
    """(B,) offset density per rho."""
    log_pt: tuple[np.ndarray, ...]
    """B arrays of rising log(pT after L1)."""
    factor: tuple[np.ndarray, ...]
    """B arrays: the L2L3 correction at these points.

    Linear in log pT between them, constant outside.
    """

    def eta_bin(self, eta: np.ndarray) -> np.ndarray:
        """Return the bin number of each eta: (N,)."""
        number = np.searchsorted(self.eta_edges, np.abs(eta), side="right") - 1
        return np.clip(number, 0, len(self.eta_edges) - 2)

    def l1(self, pt: np.ndarray, eta: np.ndarray, area: np.ndarray, rho: np.ndarray) -> np.ndarray:
        """Return the L1 factor (N,): 1 - area × offset / pT, at least MIN_L1.

        pt: raw pT (GeV); area: of the jet; rho: of the event (GeV per unit area); all (N,).
        """
        eta_bin = self.eta_bin(eta)
        density = self.l1_intercept[eta_bin] + self.l1_slope[eta_bin] * rho
        offset = area * np.maximum(density, 0.0)
        return np.maximum(1 - offset / pt, MIN_L1)

    def l2l3(self, pt: np.ndarray, eta: np.ndarray) -> np.ndarray:
        """Return the L2L3 factor (N,) for the L1-corrected pT (GeV)."""
        eta_bin = self.eta_bin(eta)
        log_pt = np.log(np.maximum(pt, MIN_PT))
        factor = np.ones(len(pt))
        for number, (points, values) in enumerate(zip(self.log_pt, self.factor, strict=True)):
            inside = eta_bin == number
            factor[inside] = np.interp(log_pt[inside], points, values)
        return factor

    def correction(
        self, pt: np.ndarray, eta: np.ndarray, area: np.ndarray, rho: np.ndarray
    ) -> np.ndarray:
        """Return the whole factor (N,): corrected pT = raw pT × factor."""
        l1 = self.l1(pt, eta, area, rho)
        return l1 * self.l2l3(pt * l1, eta)


def load(path: Path = STANDARD) -> StandardJEC:
    """Read the constants. Raises InputError where the file is missing or is not of this form."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        bins = content["bins"]
        return StandardJEC(
            eta_edges=np.array(content["eta_edges"], dtype=float),
            l1_intercept=np.array([b["l1_intercept"] for b in bins]),
            l1_slope=np.array([b["l1_slope"] for b in bins]),
            log_pt=tuple(np.log(b["pt"]) for b in bins),
            factor=tuple(np.array(b["l2l3"]) for b in bins),
        )
    except FileNotFoundError:
        raise InputError(
            f"there is no file {path}; derive it with: python -m data.derive --output {path.parent}"
        ) from None
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{path} does not hold jet energy corrections: {error!r}; derive them with:"
            f" python -m data.derive --output {path.parent}"
        ) from None


def content(jec: StandardJEC, made_by: Mapping[str, object]) -> dict[str, object]:
    """Return the constants as they are stored; `made_by` says how they were derived."""
    bins = []
    for number in range(len(jec.eta_edges) - 1):
        constants = {
            "l1_intercept": _short(jec.l1_intercept[number]),
            "l1_slope": _short(jec.l1_slope[number]),
            "pt": [_short(pt) for pt in np.exp(jec.log_pt[number])],
            "l2l3": [_short(factor) for factor in jec.factor[number]],
        }
        bins.append(constants)
    return {"made_by": made_by, "eta_edges": jec.eta_edges.tolist(), "bins": bins}


def _short(value: float) -> float:
    """Return five significant digits: more than the derivation's own accuracy."""
    return float(f"{value:.5g}")


def no_corrections(eta_edges: np.ndarray) -> StandardJEC:
    """Return the corrections that do nothing: the start of a derivation.

    Args:
        eta_edges: (B + 1,), edges of the bins in |eta|.
    """
    count = len(eta_edges) - 1
    return StandardJEC(
        eta_edges=np.asarray(eta_edges, dtype=float),
        l1_intercept=np.zeros(count),
        l1_slope=np.zeros(count),
        # one point a bin: interpolation is then constant
        log_pt=(np.zeros(1),) * count,
        factor=(np.ones(1),) * count,
    )
