"""A summary of each jet, for the checks and comparisons of data.validate.

It has one number a jet in each column, 256 bytes a jet, so that millions of jets fit in memory.
"""

from __future__ import annotations

import numpy as np

from data import ragged
from data.jetntuple import BRANCHES, COUNTERS, Columns, length

SCALARS = tuple(
    branch.name for branch in BRANCHES if branch.counter is None and branch.name not in COUNTERS
)

CONE = 0.4  # dR: the jet radius
CHARGED_HADRON, NEUTRAL_HADRONS, PHOTONS = 211, (130, 1), (22, 2)
"""PDG numbers of particle-flow candidates; 1 and 2 are those of the forward calorimeter."""


def summarise(columns: Columns) -> Columns:
    """Return the scalar branches of a chunk of jets, and sums over their candidates, (N,) each.

    Added: nPF, nInCone (candidates within dR < 0.4), chargedFraction, photonFraction,
    neutralFraction (shares of the pT of the candidates that the jet is made of; NaN for a jet
    without any), fromPVFraction (share of its charged hadrons' pT with PF_fromPV >= 2), and `key`,
    which is equal for equal jets.
    """
    jets = length(columns)
    jet = np.repeat(np.arange(jets), columns["nPF"])
    inside = columns["PF_fromAK4Jet"] == 1
    kind = np.abs(columns["PF_id"])
    pt = columns["PF_pT"].astype(np.float64)  # thousands of float32 would lose digits in a sum
    charged = kind == CHARGED_HADRON

    def share(which: np.ndarray, of: np.ndarray) -> np.ndarray:
        whole = ragged.total(jet[of], pt[of], jets)
        part = ragged.total(jet[of & which], pt[of & which], jets)
        return np.divide(part, whole, out=np.full(jets, np.nan), where=whole > 0)

    return {
        **{name: columns[name] for name in SCALARS},
        "nPF": columns["nPF"],
        "nInCone": ragged.counts_of(jet[columns["PF_dR"] < CONE], jets),
        "chargedFraction": share(charged, inside),
        "photonFraction": share(np.isin(kind, PHOTONS), inside),
        "neutralFraction": share(np.isin(kind, NEUTRAL_HADRONS), inside),
        "fromPVFraction": share(columns["PF_fromPV"] >= 2, inside & charged),
        "key": keys(columns),
    }


def keys(columns: Columns) -> np.ndarray:
    """Hash the kinematics of each jet, to the last bit: (N,) uint64.

    The event's number is left out, as files are renumbered when they are copied; two different jets
    share a key about once in 2^64 pairs.
    """
    hashes = np.zeros(length(columns), dtype=np.uint64)
    for name in ("jetPt", "jetEta", "jetPhi", "jetMass", "genJetPt", "rhoAll"):
        bits = columns[name].astype(np.float32).view(np.uint32).astype(np.uint64)
        hashes = _scramble(hashes ^ bits)
    return hashes


def event_keys(columns: Columns) -> np.ndarray:
    """Hash run, lumi and event number of each jet: (N,) uint64."""
    hashes = np.zeros(length(columns), dtype=np.uint64)
    for name in ("run", "lumi", "event"):
        hashes = _scramble(hashes ^ columns[name].astype(np.uint64))
    return hashes


def _scramble(values: np.ndarray) -> np.ndarray:
    """Map 64-bit numbers one to one, so that a bit of the input moves about half of the output's.

    The constants are those of splitmix64 (G. L. Steele, D. Lea, C. H. Flood, OOPSLA 2014).
    """
    values = values + np.uint64(0x9E3779B97F4A7C15)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
