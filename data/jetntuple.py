"""The JetNtuple: one row a jet, tree `AK4jets/jetTree`, in the schema of CMS open data.

The schema is that of record 12100. In memory a sample is a dict of columns: a branch without a
counter is (N,), a branch with a counter is flat, jet after jet, and its counter says how many
values belong to each jet. Momenta and masses are in GeV, angles in radians.

Source of the schema: K. Kallonen (2019), "Sample with jet properties for jet-flavor and other
jet-related ML studies JetNTuple_QCD_RunII_13TeV_MC", CERN Open Data Portal,
doi:10.7483/OPENDATA.CMS.RY2V.T797.
"""

from __future__ import annotations

import dataclasses
import os
from typing import Any

import numpy as np

FOLDER, TREE_NAME = "AK4jets", "jetTree"
TREE = f"{FOLDER}/{TREE_NAME}"
SOURCE = "source"  # name of the text beside the tree, with the file that the jets come from

Columns = dict[str, np.ndarray]
"""Branch -> values: (N,), or flat with the branch's counter."""


@dataclasses.dataclass(frozen=True)
class Branch:
    """One branch: its name, the type of its values, and the counter if a jet has several."""

    name: str
    dtype: np.dtype
    counter: str | None = None


def _branches(dtype: str, names: str, counter: str | None = None) -> list[Branch]:
    return [Branch(name, np.dtype(dtype), counter) for name in names.split()]


BRANCHES: tuple[Branch, ...] = (
    # The jet: anti-kT R = 0.4 of candidates after charged hadron subtraction; jetPt and jetMass
    # carry the standard JEC.
    *_branches("f4", "jetPt jetEta jetPhi jetMass jetGirth jetArea jetRawPt jetRawMass"),
    # Identification (0 or 1), and whether a generator jet was matched.
    *_branches("i4", "jetLooseID jetTightID jetGenMatch"),
    # Quark-gluon likelihood (1 = quark-like) and its variables: axis2 is the minor axis of the
    # pT²-weighted shape.
    *_branches("f4", "jetQGl QG_ptD QG_axis2"),
    *_branches("i4", "QG_mult"),
    # Flavour as signed PDG number (21 = gluon, 0 = none found): of the clustered partons, the
    # hadrons, the hard process.
    *_branches(
        "i4",
        "partonFlav hadronFlav physFlav isPhysUDS isPhysG isPhysOther isPartonUDS isPartonG"
        " isPartonOther",
    ),
    *_branches(
        "i4", "jetChargedHadronMult jetNeutralHadronMult jetChargedMult jetNeutralMult jetMult"
    ),
    # All candidates with |dEta|, |dPhi| < 1 of the jet axis, pile-up included, in the order of the
    # event's list.
    *_branches("i4", "nPF"),
    *_branches("f4", "PF_pT PF_dR PF_dTheta PF_dPhi PF_dEta PF_mass", "nPF"),
    *_branches("i4", "PF_id PF_fromPV PF_fromAK4Jet", "nPF"),
    # The matched generator jet (all 0 without one) and its particles; no neutrinos.
    *_branches("f4", "genJetPt genJetEta genJetPhi genJetMass"),
    *_branches("i4", "nGenJetPF"),
    *_branches("f4", "genJetPF_pT genJetPF_dR genJetPF_dTheta genJetPF_mass", "nGenJetPF"),
    *_branches("i4", "genJetPF_id", "nGenJetPF"),
    # The event: jets stored, place of this jet among them, angles between the two leading jets, pT3
    # / mean(pT1, pT2).
    *_branches("i4", "eventJetMult jetPtOrder"),
    *_branches("f4", "dPhiJetsLO dEtaJetsLO alpha"),
    *_branches("u8", "event"),
    *_branches("i4", "run lumi"),
    *_branches(
        "f4", "pthat eventWeight rhoAll rhoCentral rhoCentralNeutral rhoCentralChargedPileUp"
    ),
    *_branches("i4", "PV_npvsGood Pileup_nPU"),
    *_branches("f4", "Pileup_nTrueInt"),
)

BY_NAME = {branch.name: branch for branch in BRANCHES}
COUNTERS = {"nPF": "PF", "nGenJetPF": "genJetPF"}
"""Counter branch -> prefix of the branches it counts."""


def length(columns: Columns) -> int:
    """Return the number of jets of columns in the schema."""
    return len(columns["jetPt"])


def in_schema(columns: Columns) -> Columns:
    """Return the columns in the schema's order and types.

    Args:
        columns: branch -> (N,) for jets, (entries of all jets,) for lists.

    Raises:
        KeyError: a branch is missing.
        ValueError: a column is not in the schema.
    """
    extra = columns.keys() - BY_NAME.keys()
    if extra:
        raise ValueError(f"not in the JetNtuple schema: {', '.join(sorted(extra))}")
    return {
        branch.name: columns[branch.name].astype(branch.dtype, copy=False) for branch in BRANCHES
    }


def concatenate(parts: list[Columns]) -> Columns:
    """Join samples, in their order, to one; the columns are those of the first sample."""
    together = {}
    for name in parts[0]:
        together[name] = np.concatenate([part[name] for part in parts])
    return together


def slice_jets(columns: Columns, first: int, last: int) -> Columns:
    """Return jets first, ..., last - 1 with the values that belong to them.

    Args:
        columns: branch -> (N,) for jets, (entries of all jets,) for lists.
        first: number of the first jet.
        last: number after the last jet.
    """
    jets = length(columns)
    part = {}
    for name, values in columns.items():
        counter = BY_NAME[name].counter
        if counter is None:
            part[name] = values[first:last]
        else:
            # Jet j has the values edges[j] to edges[j + 1].
            edges = np.append(0, np.cumsum(columns[counter], dtype=np.int64))
            part[name] = values[edges[min(first, jets)] : edges[min(last, jets)]]
    return part


def write(path: str | os.PathLike, columns: Columns, *, source: str = "") -> None:
    """Write one ROOT file.

    Write under a temporary name and rename the file afterwards, because a killed process leaves an
    incomplete file.

    Args:
        path: of the file.
        columns: branch -> (N,) for jets, (entries of all jets,) for lists.
        source: the file that the jets come from, which `source` returns.
    """
    import uproot

    data = _records(in_schema(columns))
    types = {}
    for name, values in data.items():
        types[name] = values.type if name in COUNTERS.values() else values.dtype
    prefix_counter = {prefix: counter for counter, prefix in COUNTERS.items()}
    # Level 1: float32 mantissas hardly compress at any level, and this process also serves the
    # workers.
    with uproot.recreate(path, compression=uproot.ZLIB(1)) as file:
        tree = file.mkdir(FOLDER).mktree(
            TREE_NAME,
            types,
            title="jets",
            counter_name=lambda prefix: prefix_counter[prefix],
            field_name=lambda prefix, field: f"{prefix}_{field}",
        )
        tree.extend(data)
        if source:
            file[SOURCE] = source


def source(path: str | os.PathLike) -> str:
    """Return the file from which a file's jets were converted; empty where that is not stored."""
    import uproot

    try:
        with uproot.open(path) as file:
            return str(file[SOURCE]) if SOURCE in file else ""
    except Exception:  # uproot raises many kinds for what is no ROOT file
        return ""


def read(path: str | os.PathLike) -> Columns:
    """Return all columns of one ROOT file in this schema, as `write` received them."""
    import awkward as ak
    import uproot

    columns = {}
    with uproot.open(path) as file:
        tree = file[TREE]
        for branch in BRANCHES:
            values = tree[branch.name].array()
            columns[branch.name] = ak.to_numpy(ak.flatten(values, axis=None))
    return columns


def _records(columns: Columns) -> dict[str, Any]:  # NumPy arrays and awkward records
    """Return the columns as uproot writes them.

    Each counter's branches are zipped into one jagged record; uproot writes the counter itself.
    """
    import awkward as ak

    data: dict[str, Any] = {}
    fields: dict[str, dict[str, object]] = {prefix: {} for prefix in COUNTERS.values()}
    for name, values in columns.items():
        counter = BY_NAME[name].counter
        if counter is not None:
            prefix = COUNTERS[counter]
            field = name.removeprefix(f"{prefix}_")
            fields[prefix][field] = ak.unflatten(values, columns[counter])
        elif name not in COUNTERS:
            data[name] = values
    for prefix, of_prefix in fields.items():
        data[prefix] = ak.zip(of_prefix)
    return data
