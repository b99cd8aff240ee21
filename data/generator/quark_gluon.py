"""The quark-gluon likelihood of a jet, from its multiplicity, pT-D and minor axis.

As CMS's (CMS-PAS-JME-13-002): L = Q / (Q + G), where Q and G are products of the three variables'
one-dimensional densities for light-quark and gluon jets in bins of |eta| and pT. The densities lie
beside this module in quark_gluon.json and are derived together with the jet energy corrections
(data.generator.derive).
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from common.errors import InputError
from data import ragged
from data.generator.detector import Candidates
from data.generator.table import Table

STANDARD = Path(__file__).with_name("quark_gluon.json")

ETA_EDGES = np.array([0.0, 1.3, 2.5])
PT_EDGES = np.array([30.0, 50.0, 80.0, 120.0, 200.0, 400.0, 800.0, np.inf])  # GeV
EDGES = (np.linspace(0, 100, 21), np.linspace(0, 1, 21), np.linspace(0, 8, 21))
"""Bins of the multiplicity, of pT-D and of -log(axis2).

Values outside go to the first or the last bin.
"""
# jets of the rarer kind that are added to each bin, so that the likelihood of an empty bin is even
SMOOTHING = 1.0


@dataclasses.dataclass(frozen=True)
class Shape(Table):
    """Quark-gluon variables, (J,) each."""

    multiplicity: np.ndarray
    pt_d: np.ndarray
    axis2: np.ndarray


def shape(jet: np.ndarray, candidates: Candidates, eta: np.ndarray, phi: np.ndarray) -> Shape:
    """Return the variables of jets with axes eta and phi (radians), (J,) each.

    candidates: the members of all jets, (N,); jet: the jet of each member. multiplicity: tracks,
    and neutrals with pT > 1 GeV. pT-D: sqrt(sum pT²) / sum pT. axis2: square root of the smaller
    eigenvalue of the pT²-weighted covariance of (d eta, d phi).
    """
    jets = len(eta)
    d_eta = candidates.eta - eta[jet]
    d_phi = ragged.delta_phi(candidates.phi, phi[jet])
    weight = candidates.pt**2
    norm = np.maximum(ragged.total(jet, weight, jets), 1e-12)  # of a jet without members

    def mean(values: np.ndarray) -> np.ndarray:
        return ragged.total(jet, weight * values, jets) / norm  # (N,) -> (J,)

    # The covariance ((a, c), (c, b)) of (d eta, d phi), and its smaller eigenvalue.
    mean_eta = mean(d_eta)
    mean_phi = mean(d_phi)
    a = mean(d_eta**2) - mean_eta**2
    b = mean(d_phi**2) - mean_phi**2
    c = mean(d_eta * d_phi) - mean_eta * mean_phi
    minor = (a + b - np.sqrt((a - b) ** 2 + 4 * c**2)) / 2
    counts_in_multiplicity = ~candidates.is_neutral | (candidates.pt > 1.0)
    return Shape(
        multiplicity=ragged.counts_of(jet[counts_in_multiplicity], jets),
        pt_d=np.sqrt(norm) / np.maximum(ragged.total(jet, candidates.pt, jets), 1e-12),
        axis2=np.sqrt(np.maximum(minor, 0.0)),
    )


@dataclasses.dataclass(frozen=True)
class Likelihood:
    """Log ratios quark / gluon of the densities: (eta bins, pT bins, 3 variables, 20 bins)."""

    log_ratio: np.ndarray

    def __call__(self, pt: np.ndarray, eta: np.ndarray, shapes: Shape) -> np.ndarray:
        """L between 0 (gluon) and 1 (light quark) for jets of pT (GeV) and eta, (J,) each."""
        eta_bin = _bin(np.abs(eta), ETA_EDGES)
        pt_bin = _bin(pt, PT_EDGES)
        total = np.zeros(len(pt))
        for number, (values, edges) in enumerate(zip(_variables(shapes), EDGES, strict=True)):
            total += self.log_ratio[eta_bin, pt_bin, number, _bin(values, edges)]
        return 1 / (1 + np.exp(-total))


def derive(pt: np.ndarray, eta: np.ndarray, shapes: Shape, flavour: np.ndarray) -> Likelihood:
    """Derive the likelihood from jets of known flavour (signed PDG number), (J,) each.

    pt in GeV. Jets of heavy or no flavour are left out.
    """
    kind = np.abs(flavour)
    quarks = _histograms(pt, eta, shapes, (kind >= 1) & (kind <= 3))
    gluons = _histograms(pt, eta, shapes, kind == 21)
    # (eta bins, pT bins, variables, 1): jets of each kind, at least one where there are none
    num_quarks = np.maximum(quarks.sum(axis=-1, keepdims=True), 1.0)
    num_gluons = np.maximum(gluons.sum(axis=-1, keepdims=True), 1.0)
    floor = SMOOTHING / np.minimum(num_quarks, num_gluons)
    return Likelihood(np.log((quarks / num_quarks + floor) / (gluons / num_gluons + floor)))


def load(path: Path = STANDARD) -> Likelihood:
    """Read the densities. Raises InputError where the file is missing or is not of this form."""
    try:
        ratio = np.array(json.loads(path.read_text(encoding="utf-8"))["log_ratio"], dtype=float)
    except FileNotFoundError:
        raise InputError(
            f"there is no file {path}; derive it with: python -m data.derive"
        ) from None
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{path} does not hold a quark-gluon likelihood: {error!r}; derive it with:"
            " python -m data.derive"
        ) from None
    if ratio.shape != _SHAPE:
        raise InputError(
            f"{path}: log_ratio has the shape {ratio.shape}, expected {_SHAPE}; derive it with:"
            " python -m data.derive"
        )
    return Likelihood(ratio)


def content(likelihood: Likelihood, made_by: Mapping[str, object]) -> dict[str, object]:
    """Return the densities as they are stored; `made_by` says how they were derived."""
    return {"made_by": made_by, "log_ratio": np.round(likelihood.log_ratio, 3).tolist()}


_SHAPE = (len(ETA_EDGES) - 1, len(PT_EDGES) - 1, len(EDGES), len(EDGES[0]) - 1)


def _variables(shapes: Shape) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the variables as EDGES bins them; a minor axis of 0 falls into the last bin."""
    return shapes.multiplicity, shapes.pt_d, -np.log(np.maximum(shapes.axis2, 1e-4))


def _bin(values: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Return the bin of each value, the first or the last one for values outside."""
    return np.clip(np.searchsorted(edges, values, side="right") - 1, 0, len(edges) - 2)


def _histograms(pt: np.ndarray, eta: np.ndarray, shapes: Shape, which: np.ndarray) -> np.ndarray:
    """Return the jets in each bin of each variable: the shape of Likelihood.log_ratio."""
    counts = np.zeros(_SHAPE)
    eta_bin = _bin(np.abs(eta[which]), ETA_EDGES)
    pt_bin = _bin(pt[which], PT_EDGES)
    for number, (values, edges) in enumerate(zip(_variables(shapes), EDGES, strict=True)):
        # add.at counts a bin as often as it is listed, which `counts[...] += 1` would not.
        np.add.at(counts[:, :, number], (eta_bin, pt_bin, _bin(values[which], edges)), 1.0)
    return counts
