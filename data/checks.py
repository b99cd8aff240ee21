"""What must hold for a file of the JetNtuple, whoever made it.

Its schema, its values, and that no jet is in two sets.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Mapping

import numpy as np

from common.errors import nearest
from data import summary
from data.jetntuple import BRANCHES, BY_NAME, Columns

ERROR, WARNING = "error", "warning"

_MOMENTUM = (0.0, 14_000.0)  # GeV: no collision of the LHC has more
_AZIMUTH = (-3.1416, 3.1416)
_BOX = (-1.0001, 1.0001)  # float32 may round up
_FLAG = (0.0, 1.0)
_RADIUS = (0.0, 1.5)
_PILEUP = (0.0, 300.0)
RANGES: dict[str, tuple[float, float]] = {
    "jetPt": _MOMENTUM,
    "jetRawPt": _MOMENTUM,
    "jetMass": _MOMENTUM,
    "jetRawMass": _MOMENTUM,
    "genJetPt": _MOMENTUM,
    "genJetMass": _MOMENTUM,
    "PF_pT": _MOMENTUM,
    "jetEta": (-5.5, 5.5),
    "genJetEta": (-5.5, 5.5),
    "jetPhi": _AZIMUTH,
    "genJetPhi": _AZIMUTH,
    "PF_dTheta": _AZIMUTH,
    "dPhiJetsLO": _AZIMUTH,
    "PF_dEta": _BOX,
    "PF_dPhi": _BOX,
    "jetLooseID": _FLAG,
    "jetTightID": _FLAG,
    "jetGenMatch": _FLAG,
    "PF_fromAK4Jet": _FLAG,
    "PF_dR": _RADIUS,
    "QG_ptD": _RADIUS,
    "jetArea": _RADIUS,
    "jetGirth": _RADIUS,
    "rhoAll": _PILEUP,
    "rhoCentral": _PILEUP,
    "rhoCentralNeutral": _PILEUP,
    "PV_npvsGood": _PILEUP,
    "Pileup_nPU": _PILEUP,
    "jetQGl": (-1.0, 1.0),
    "QG_axis2": (0.0, 1.0),
    "PF_fromPV": (0, 3),
    "partonFlav": (-21, 21),
    "hadronFlav": (0, 5),
}
"""Branch -> lowest and highest value that it can have. GeV, radians."""

MASSES = {
    "jetMass": ("jetPt", "jetEta"),
    "jetRawMass": ("jetRawPt", "jetEta"),
    "genJetMass": ("genJetPt", "genJetEta"),
}
"""Mass -> pT and pseudorapidity of the same jet."""
ROUNDED_MASS = 2**-11
"""A massless jet's mass by its energy, at most: in float32 E^2 - p^2 of it is off by 2^-22 E^2.

Of a negative square the root is stored with a minus.
"""

CANDIDATE_IDS = (1, 2, 11, 13, 22, 130, 211)
"""|PF_id| of the particle-flow algorithm; 1 and 2 are the forward calorimeter's."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Finding:
    """Something that is not as it should be: how bad, where, what, and what to do about it."""

    level: str
    where: str
    found: str
    cure: str


def schema(where: str, present: Mapping[str, str]) -> list[Finding]:
    """Branches that are missing or not of their type.

    present: branch -> type by NumPy's name ('float32').
    """
    findings = []
    # A branch of the schema is no misspelling of another one.
    unknown = present.keys() - BY_NAME.keys()
    for branch in BRANCHES:
        if branch.name not in present:
            near = ", ".join(nearest(branch.name, unknown)) or "nothing like it"
            findings.append(
                Finding(
                    level=ERROR,
                    where=where,
                    found=f"branch {branch.name} is missing (there is {near})",
                    cure="rename it, or leave what uses it out of the data config",
                )
            )
        elif branch.dtype.name != present[branch.name]:
            findings.append(
                Finding(
                    level=WARNING,
                    where=where,
                    found=(
                        f"branch {branch.name} is {present[branch.name]}, the schema has"
                        f" {branch.dtype.name}"
                    ),
                    cure="harmless if the values fit",
                )
            )
    return findings


def values(where: str, columns: Columns) -> list[Finding]:
    """Values that cannot be: not finite, out of range, or at odds with each other."""
    findings: list[Finding] = []
    for check in (not_finite, out_of_range, at_odds, unusable):
        findings += check(where, columns)
    return findings


def not_finite(where: str, columns: Columns) -> Iterable[Finding]:
    """Branches with values that are NaN or infinite."""
    for name, column in columns.items():
        # Integers are always finite.
        bad = np.count_nonzero(~np.isfinite(column)) if column.dtype.kind == "f" else 0
        if bad:
            yield Finding(
                level=ERROR,
                where=where,
                found=f"{name}: {bad:,} of {len(column):,} values are NaN or infinite",
                cure="leave these jets out by the data config's selection, or make the file again",
            )


def out_of_range(where: str, columns: Columns) -> Iterable[Finding]:
    """Branches with finite values outside of RANGES."""
    for name, (low, high) in RANGES.items():
        column = columns[name]
        lowest: float | np.ndarray = low
        if name in MASSES:
            pt, eta = (columns[branch] for branch in MASSES[name])
            # a jet without a true one has the pT 0; NaN is reported by itself
            energy = np.nan_to_num(np.abs(pt) * np.cosh(np.clip(eta, -6, 6)))
            lowest = low - ROUNDED_MASS * energy
        bad = column[np.isfinite(column) & ((column < lowest) | (column > high))]
        if len(bad):
            yield Finding(
                level=ERROR,
                where=where,
                found=(
                    f"{name}: {len(bad):,} of {len(column):,} values lie outside {low:g} to"
                    f" {high:g} (as {bad[0]:g})"
                ),
                cure="look at the units (GeV, radians) and at who filled the branch",
            )


def at_odds(where: str, columns: Columns) -> Iterable[Finding]:
    """Values of one jet or candidate that contradict each other."""
    matched = columns["genJetPt"] > 0
    distance = np.hypot(columns["PF_dEta"], columns["PF_dPhi"])
    yield from _if_any(
        np.abs(distance - columns["PF_dR"]) > 1e-3,
        Finding(
            level=ERROR,
            where=where,
            found="PF_dR is not the length of (PF_dEta, PF_dPhi)",
            cure="fill it anew",
        ),
    )
    yield from _if_any(
        ~np.isin(np.abs(columns["PF_id"]), CANDIDATE_IDS),
        Finding(
            level=WARNING,
            where=where,
            found="PF_id is none of the particle-flow types",
            cure="the network's one-hot types leave them out",
        ),
    )
    yield from _if_any(
        (columns["jetGenMatch"] == 1) != matched,
        Finding(
            level=ERROR,
            where=where,
            found="jetGenMatch disagrees with genJetPt > 0",
            cure="fill one of them anew",
        ),
    )


def unusable(where: str, columns: Columns) -> Iterable[Finding]:
    """Jets that leave nothing to learn, or numbers that a logarithm or a weight does not take."""
    yield from _if_any(
        columns["nPF"] == 0,
        Finding(
            level=WARNING,
            where=where,
            found="jets have no candidates (nPF = 0)",
            cure="a network can only guess there; leave them out of training",
        ),
    )
    yield from _if_any(
        ~(columns["genJetPt"] > 0),
        Finding(
            level=WARNING,
            where=where,
            found="jets have no generator jet",
            cure="the configs' selection genJetPt > 20 leaves them out",
        ),
    )
    yield from _if_any(
        columns["jetRawPt"] <= 0,
        Finding(
            level=ERROR,
            where=where,
            found="jetRawPt is not positive",
            cure="log(jetPt / jetRawPt) is then not finite",
        ),
    )
    yield from _if_any(
        columns["eventWeight"] <= 0,
        Finding(
            level=WARNING,
            where=where,
            found="eventWeight is not positive",
            cure="weighted training and evaluation need it",
        ),
    )


def _if_any(wrong: np.ndarray, finding: Finding) -> Iterable[Finding]:
    """The finding with the number of jets or candidates it holds for, where there are any."""
    if wrong.any():
        count = f"{np.count_nonzero(wrong):,} of {len(wrong):,}"
        yield dataclasses.replace(finding, found=f"{finding.found}: {count}")


# ---------------------------------------------------------------------------------------- leakage


def duplicates(sets: Mapping[str, Columns]) -> list[Finding]:
    """Jets that are twice in a set or in two sets, and events whose jets are in two sets.

    sets: name -> data.summary columns.
    """
    findings = []
    for name, jets in sets.items():
        repeated = len(jets["key"]) - len(np.unique(jets["key"]))
        if repeated:
            findings.append(
                Finding(
                    level=ERROR,
                    where=name,
                    found=f"{repeated:,} of {len(jets['key']):,} jets are there more than once",
                    cure="a file was given or merged twice: intervals would come out too narrow",
                )
            )
    for left, right in itertools.combinations(sets, 2):
        findings += shared(left, right, sets[left], sets[right])
    return findings


def shared(left: str, right: str, a: Columns, b: Columns) -> Iterable[Finding]:
    """Jets, and events, that the sets `left` and `right` have in common."""
    common = np.isin(a["key"], b["key"])
    where = f"{left} and {right}"
    if common.any():
        yield Finding(
            level=ERROR,
            where=where,
            found=f"{np.count_nonzero(common):,} jets are in both",
            cure="give each set files of its own: what was seen in training measures nothing",
        )
    events = np.isin(summary.event_keys(a), summary.event_keys(b)) & ~common
    if events.any():
        yield Finding(
            level=WARNING,
            where=where,
            found=(
                f"{np.count_nonzero(events):,} other jets share run, lumi and event number with a"
                " jet of the other set"
            ),
            cure=(
                "split by event, not by jet; harmless if the sets come from different productions"
                " that count alike"
            ),
        )


def summarised(findings: Iterable[Finding]) -> list[Finding]:
    """Errors first; what is alike in many files once, with the number of files."""
    groups: dict[tuple[str, str, str], list[Finding]] = {}
    for one in findings:
        # The numbers after the colon differ from file to file.
        what = one.found.split(":")[0]
        groups.setdefault((one.level, what, one.cure), []).append(one)
    merged = []
    for first, *others in groups.values():
        where = f"{first.where} and {len(others)} other files" if others else first.where
        merged.append(dataclasses.replace(first, where=where))
    return sorted(merged, key=lambda one: one.level != ERROR)
