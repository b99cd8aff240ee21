"""Checks of JetNtuple files: their schema, their values, and that no jet is in two sets."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Mapping
from typing import Any

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
"""Largest |mass| / energy that rounding gives a massless jet: float32 has E^2 - p^2 wrong by up to
2^-22 E^2. Where that is negative, the file has minus the root of its absolute value.
"""

CANDIDATE_IDS = (1, 2, 11, 13, 22, 130, 211)
"""|PF_id| of the particle-flow algorithm; 1 and 2 are the forward calorimeter's."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Finding:
    """A problem in a file: its level (ERROR or WARNING), place, description and remedy."""

    level: str
    where: str
    problem: str
    remedy: str


def schema(where: str, present: Mapping[str, str]) -> list[Finding]:
    """Find branches that are missing or have another type than the schema.

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
                    problem=f"branch {branch.name} is missing (there is {near})",
                    remedy="rename it, or leave what uses it out of the data config",
                )
            )
        elif branch.dtype.name != present[branch.name]:
            findings.append(
                Finding(
                    level=WARNING,
                    where=where,
                    problem=(
                        f"branch {branch.name} is {present[branch.name]}, the schema has"
                        f" {branch.dtype.name}"
                    ),
                    remedy="harmless if the values fit",
                )
            )
    return findings


def forms(where: str, arrays: Mapping[str, Any]) -> list[Finding]:
    """Find branches that hold no numbers, or lists of other lengths than the schema.

    arrays: branch of the schema -> awkward array of the same jets.
    """
    import awkward as ak

    findings = []
    for name, array in arrays.items():
        counter = BY_NAME[name].counter
        problem = ""
        if ak.to_numpy(ak.flatten(array, axis=None)).dtype.kind not in "biuf":
            problem = "holds no numbers"
        elif array.ndim != (2 if counter else 1):
            is_list = "a list" if array.ndim > 1 else "one number"
            needed = "a list" if counter else "one number"
            problem = f"holds {is_list} for each jet, the schema has {needed}"
        # a counter of another form has an error of its own
        elif (
            counter
            and arrays[counter].ndim == 1
            and (ak.to_numpy(ak.num(array)) != ak.to_numpy(arrays[counter])).any()
        ):
            problem = f"holds lists whose lengths are not those in {counter}"
        if problem:
            findings.append(
                Finding(
                    level=ERROR,
                    where=where,
                    problem=f"branch {name} {problem}",
                    remedy="write the file again as data/jetntuple.py describes it",
                )
            )
    return findings


def values(where: str, columns: Columns) -> list[Finding]:
    """Find values that are not finite, out of range, contradictory, or unusable.

    Args:
        where: the file, for the findings.
        columns: branch of the JetNtuple schema -> (N,), or (entries of all jets,) for lists.
    """
    findings: list[Finding] = []
    for check in (not_finite, out_of_range, contradictory, unusable):
        findings += check(where, columns)
    return findings


def not_finite(where: str, columns: Columns) -> Iterable[Finding]:
    """Yield the branches with values that are NaN or infinite."""
    for name, column in columns.items():
        # Integers are always finite.
        bad = np.count_nonzero(~np.isfinite(column)) if column.dtype.kind == "f" else 0
        if bad:
            yield Finding(
                level=ERROR,
                where=where,
                problem=f"{name}: {bad:,} of {len(column):,} values are NaN or infinite",
                remedy=(
                    "leave these jets out by the data config's selection, or make the file again"
                ),
            )


def out_of_range(where: str, columns: Columns) -> Iterable[Finding]:
    """Yield the branches with finite values outside of RANGES."""
    for name, (low, high) in RANGES.items():
        column = columns[name]
        lowest: float | np.ndarray = low
        if name in MASSES:
            pt, eta = (columns[branch] for branch in MASSES[name])
            # genJetPt is 0 without a generator jet; NaN is reported by not_finite
            energy = np.nan_to_num(np.abs(pt) * np.cosh(np.clip(eta, -6, 6)))
            lowest = low - ROUNDED_MASS * energy
        bad = column[np.isfinite(column) & ((column < lowest) | (column > high))]
        if len(bad):
            yield Finding(
                level=ERROR,
                where=where,
                problem=(
                    f"{name}: {len(bad):,} of {len(column):,} values lie outside {low:g} to"
                    f" {high:g} (as {bad[0]:g})"
                ),
                remedy="look at the units (GeV, radians) and at who filled the branch",
            )


def contradictory(where: str, columns: Columns) -> Iterable[Finding]:
    """Find values of one jet or candidate that contradict each other."""
    has_gen_jet = columns["genJetPt"] > 0
    distance = np.hypot(columns["PF_dEta"], columns["PF_dPhi"])
    yield from _if_any(
        np.abs(distance - columns["PF_dR"]) > 1e-3,
        Finding(
            level=ERROR,
            where=where,
            problem="PF_dR is not the length of (PF_dEta, PF_dPhi)",
            remedy="fill it anew",
        ),
    )
    yield from _if_any(
        ~np.isin(np.abs(columns["PF_id"]), CANDIDATE_IDS),
        Finding(
            level=WARNING,
            where=where,
            problem="PF_id is none of the particle-flow types",
            remedy="the network's one-hot types leave them out",
        ),
    )
    yield from _if_any(
        (columns["jetGenMatch"] == 1) != has_gen_jet,
        Finding(
            level=ERROR,
            where=where,
            problem="jetGenMatch disagrees with genJetPt > 0",
            remedy="fill one of them anew",
        ),
    )


def unusable(where: str, columns: Columns) -> Iterable[Finding]:
    """Find jets without candidates or generator jet, and values without a logarithm or weight."""
    yield from _if_any(
        columns["nPF"] == 0,
        Finding(
            level=WARNING,
            where=where,
            problem="jets have no candidates (nPF = 0)",
            remedy="a network can only guess there; leave them out of training",
        ),
    )
    yield from _if_any(
        ~(columns["genJetPt"] > 0),
        Finding(
            level=WARNING,
            where=where,
            problem="jets have no generator jet",
            remedy="the configs' selection genJetPt > 20 leaves them out",
        ),
    )
    yield from _if_any(
        columns["jetRawPt"] <= 0,
        Finding(
            level=ERROR,
            where=where,
            problem="jetRawPt is not positive",
            remedy="log(jetPt / jetRawPt) is then not finite",
        ),
    )
    yield from _if_any(
        columns["eventWeight"] <= 0,
        Finding(
            level=WARNING,
            where=where,
            problem="eventWeight is not positive",
            remedy="weighted training and evaluation need it",
        ),
    )


def _if_any(wrong: np.ndarray, finding: Finding) -> Iterable[Finding]:
    """Yield the finding with the number of jets or candidates concerned, if there are any."""
    if wrong.any():
        count = f"{np.count_nonzero(wrong):,} of {len(wrong):,}"
        yield dataclasses.replace(finding, problem=f"{finding.problem}: {count}")


# ---------------------------------------------------------------------------------------- leakage


def duplicates(sets: Mapping[str, Columns]) -> list[Finding]:
    """Find jets that occur twice in a set or in two sets, and events whose jets are in two sets.

    sets: name -> data.summary columns.
    """
    findings = []
    for name, jets in sets.items():
        num_copies = len(jets["key"]) - len(np.unique(jets["key"]))
        if num_copies:
            findings.append(
                Finding(
                    level=ERROR,
                    where=name,
                    problem=f"{num_copies:,} of {len(jets['key']):,} jets are there more than once",
                    remedy="a file was given or merged twice: intervals would come out too narrow",
                )
            )
    for first, second in itertools.combinations(sets, 2):
        findings += overlap(first, second, sets[first], sets[second])
    return findings


def overlap(first: str, second: str, a: Columns, b: Columns) -> Iterable[Finding]:
    """Find jets and events that are in both sets.

    Args:
        first: name of one set.
        second: name of the other set.
        a: data.summary columns of the first set, (N,) each.
        b: those of the second set.
    """
    common = np.isin(a["key"], b["key"])
    where = f"{first} and {second}"
    if common.any():
        yield Finding(
            level=ERROR,
            where=where,
            problem=f"{np.count_nonzero(common):,} jets are in both",
            remedy="give each set files of its own: jets of the training cannot measure the model",
        )
    events = np.isin(summary.event_keys(a), summary.event_keys(b)) & ~common
    if events.any():
        yield Finding(
            level=WARNING,
            where=where,
            problem=(
                f"{np.count_nonzero(events):,} other jets share run, lumi and event number with a"
                " jet of the other set"
            ),
            remedy=(
                "split by event, not by jet; harmless if the sets come from different productions"
                " that count alike"
            ),
        )


def summarise(findings: Iterable[Finding]) -> list[Finding]:
    """Put errors first, and join equal findings of several files into one."""
    groups: dict[tuple[str, str, str], list[Finding]] = {}
    for finding in findings:
        # The numbers after the colon differ from file to file.
        what = finding.problem.split(":")[0]
        groups.setdefault((finding.level, what, finding.remedy), []).append(finding)
    summary_findings = []
    for first, *others in groups.values():
        where = f"{first.where} and {len(others)} other files" if others else first.where
        summary_findings.append(dataclasses.replace(first, where=where))
    return sorted(summary_findings, key=lambda finding: finding.level != ERROR)
