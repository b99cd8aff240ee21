"""Converts NanoAOD with particle-flow candidates (PFNano) into the JetNtuple schema
(data.jetntuple), one jet a row.

    python -m data.from_nanoaod 'pfnano/*.root' --output DIR [--all-events] [--events-per-file 5000]

What a network needs is taken over or computed from the candidates with the generator's own
formulas. What NanoAOD has not is said after the conversion, branch by branch:

* PF_fromPV: PFNano has the quality of the association and dz to the leading vertex, not which
    vertex a track was given to. A track
  is taken for the leading vertex's if |dz| < 0.1 cm; then 3 if its quality is 7 (used in the fit),
      else 2; others are 1 below
  quality 6 and 0 from there on. Neutral candidates have 2, as MiniAOD gives them.
* physFlav: the nearest outgoing parton of the hard process (GenPart, status 23) within dR < 0.4.
* Generator jets are matched by distance, dR < 0.2, as in the generator; NanoAOD's own Jet_genJetIdx
    allows 0.4.
* Jets are those of NanoAOD's `Jet` collection: charged hadron subtraction in Run 2, PUPPI in Run 3.
* Plain NanoAOD has no candidates: nPF, multiplicities by type, shapes and girth are then 0, which
    serves to measure the standard
  calibration and nothing else.
"""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from common import storage
from common.cli import Parser, require, run_main
from common.errors import InputError
from common.progress import Progress
from data import jetntuple, ragged
from data.generator import clustering, detector, quark_gluon
from data.generator.detector import Candidates
from data.generator.jet_columns import MAX_ETA, MIN_PT, candidates_around
from data.generator.reconstruction import GEN_MATCH
from data.jetntuple import Columns
from data.trees import open_tree

TREE = "Events"
# Each jet meets all of its event's candidates at once: with 1,800 of them about 20 million pairs,
# some hundred MB an array.
EVENTS_PER_FILE = 5_000
SAME_VERTEX_CM = 0.1
FIT_QUALITY, PRIMARY_QUALITY = 7, 6  # pat::PackedCandidate: UsedInFitTight, UsedInFitLoose
HARD_PROCESS = 23  # Pythia's status of outgoing partons of the hard process

NEEDED = (
    *(
        "run",
        "luminosityBlock",
        "event",
        "Jet_pt",
        "Jet_eta",
        "Jet_phi",
        "Jet_mass",
        "Jet_rawFactor",
        "Jet_area",
    ),
    *("GenJet_pt", "GenJet_eta", "GenJet_phi", "GenJet_mass"),
)
"""Branches without which there is no response to measure."""

LINKS = ("JetPFCands_jetIdx", "JetPFCands_pFCandsIdx")
CANDIDATES = (
    "PFCands_pt",
    "PFCands_eta",
    "PFCands_phi",
    "PFCands_mass",
    "PFCands_pdgId",
    "PFCands_charge",
)
VERTEX = ("PFCands_pvAssocQuality", "PFCands_dz")
GEN_LINKS = ("GenJetCands_jetIdx", "GenJetCands_pFCandsIdx")
GEN_CANDIDATES = ("GenCands_pt", "GenCands_eta", "GenCands_phi", "GenCands_mass", "GenCands_pdgId")
GEN_PARTICLES = ("GenPart_eta", "GenPart_phi", "GenPart_pdgId", "GenPart_status")
GROUPS = {
    (*CANDIDATES, *LINKS): "PF_*, multiplicities by type, QG_*, jetGirth: 0",
    VERTEX: "PF_fromPV: 0",
    (*GEN_CANDIDATES, *GEN_LINKS): "genJetPF_*: none",
    GEN_PARTICLES: "physFlav: 0",
    ("Jet_partonFlavour",): "partonFlav: 0",
    ("Jet_hadronFlavour",): "hadronFlav: 0",
    ("Jet_qgl",): "jetQGl: -1",
    ("Jet_jetId",): "jetLooseID, jetTightID: 0",
    ("Generator_binvar",): "pthat: 0",
    ("genWeight",): "eventWeight: 1",
    ("PV_npvsGood",): "PV_npvsGood: 0",
    ("Pileup_nPU",): "Pileup_nPU: 0",
    ("Pileup_nTrueInt",): "Pileup_nTrueInt: 0",
}
"""Optional branches that serve together -> what the JetNtuple holds without them."""

DENSITIES = {
    "rhoAll": ("fixedGridRhoFastjetAll", "Rho_fixedGridRhoFastjetAll"),
    "rhoCentral": ("fixedGridRhoFastjetCentral", "Rho_fixedGridRhoFastjetCentral"),
    "rhoCentralNeutral": (
        "fixedGridRhoFastjetCentralNeutral",
        "Rho_fixedGridRhoFastjetCentralNeutral",
    ),
    "rhoCentralChargedPileUp": (
        "fixedGridRhoFastjetCentralChargedPileUp",
        "Rho_fixedGridRhoFastjetCentralChargedPileUp",
    ),
}
"""Branch -> its names in NanoAOD, from version 10 on with the prefix Rho_."""


@dataclasses.dataclass(frozen=True)
class Converted:
    """What became of one NanoAOD file."""

    files: list[Path]
    jets: int
    events: int
    lacking: list[str]


def convert(
    uri: str, folder: Path, *, all_events: bool = False, events_per_file: int = EVENTS_PER_FILE
) -> Converted:
    """Write the jets of one NanoAOD file into `folder`, as <name>_<number>.root; complete files
    only.

    all_events: keep every jet above 30 GeV and within |eta| < 2.5; otherwise, as the JetNtuple
    does, only those of events whose two leading jets both pass. Raises InputError for a file that
    cannot be read or lacks one of NEEDED.
    """
    folder.mkdir(parents=True, exist_ok=True)
    written, jets, events, absent = [], 0, 0, []
    opened = open_tree(uri, TREE, "as NanoAOD has it")
    with (
        opened as tree,
        Progress(
            f"converting {storage.name(uri)}", total=tree.num_entries, unit="events"
        ) as progress,
    ):
        names, absent = check_branches(uri, set(tree.keys()))
        for number, arrays in enumerate(_chunks(tree, names, events_per_file)):
            columns = jet_columns(arrays, all_events=all_events)
            if jetntuple.length(columns):
                written.append(
                    _write(folder / f"{Path(storage.name(uri)).stem}_{number:03d}.root", columns)
                )
            jets, events = jets + jetntuple.length(columns), events + len(arrays["run"])
            progress.advance(len(arrays["run"]))
    return Converted(files=written, jets=jets, events=events, lacking=absent)


def check_branches(uri: str, present: set[str]) -> tuple[list[str], list[str]]:
    """(branches to read, what is lacking in words).

    Raises InputError if one of NEEDED is not there.
    """
    missing = [name for name in NEEDED if name not in present]
    if missing:
        why = (
            "; collisions data has no generator jets, so no response can be learned"
            if set(missing) >= {"GenJet_pt"}
            else ""
        )
        raise InputError(
            f"{uri}: tree {TREE} lacks {', '.join(missing)}{why}; give simulated NanoAOD"
        )
    whole = [group for group in GROUPS if present.issuperset(group)]
    lacking = [
        f"{', '.join(_absent(group, present))} ({result})"
        for group, result in GROUPS.items()
        if group not in whole
    ]
    found = {
        branch: next((name for name in names if name in present), None)
        for branch, names in DENSITIES.items()
    }
    lacking += [
        f"{DENSITIES[branch][0]} ({branch}: 0)" for branch, name in found.items() if name is None
    ]
    return [
        *NEEDED,
        *(name for group in whole for name in group),
        *filter(None, found.values()),
    ], lacking


def _absent(group: tuple[str, ...], present: set[str]) -> list[str]:
    """Those of the group that are not there."""
    return [name for name in group if name not in present]


def jet_columns(arrays: Mapping, *, all_events: bool = False) -> Columns:
    """The JetNtuple's columns of a chunk of NanoAOD events: name -> awkward array, as
    `check_branches` chose them.
    """
    jets = _Jets.of(arrays, all_events=all_events)
    members, shape_columns = _candidates(arrays, jets)
    return {
        **jets.columns(),
        **shape_columns,
        **_identification(arrays, jets, members),
        **_flavour(arrays, jets),
        **_generator(arrays, jets),
        **_event(arrays, jets),
    }


# ---------------------------------------------------------------------------------------- reading


def _chunks(tree, names: list[str], events: int) -> Iterator[dict]:
    for start in range(0, tree.num_entries, events):
        yield tree.arrays(names, entry_start=start, entry_stop=start + events, how=dict)


def _write(path: Path, columns: Columns) -> Path:
    hidden = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        jetntuple.write(hidden, columns)
        hidden.replace(path)
    finally:
        hidden.unlink(missing_ok=True)
    return path


def _flat(array) -> np.ndarray:
    import awkward as ak

    return ak.to_numpy(ak.flatten(array, axis=None))


def _number(array) -> np.ndarray:
    import awkward as ak

    return ak.to_numpy(ak.num(array))


def _events_of(array) -> np.ndarray:
    """The event of each member of a jagged array."""
    number = _number(array)
    return np.repeat(np.arange(len(number)), number)


def _global(array, members) -> np.ndarray:
    """Indices within an event's `members` -> indices within all members; -1 where the index points
    nowhere.
    """
    number = _number(members)
    event = _events_of(array)
    local = _flat(array).astype(np.int64)
    return np.where(
        (local >= 0) & (local < number[event]), local + ragged.starts(number)[event], -1
    )


# ------------------------------------------------------------------------------------------- jets


@dataclasses.dataclass(frozen=True)
class _Jets:
    """The stored jets, (J,) each, sorted by event and falling pT.

    `source` indexes NanoAOD's jets of the chunk.
    """

    events: int
    event: np.ndarray
    source: np.ndarray
    pt: np.ndarray
    eta: np.ndarray
    phi: np.ndarray
    mass: np.ndarray
    raw: np.ndarray
    area: np.ndarray
    order: np.ndarray
    per_event: Columns

    def __len__(self) -> int:
        return len(self.event)

    @classmethod
    def of(cls, arrays: Mapping, *, all_events: bool) -> _Jets:
        event, events = _events_of(arrays["Jet_pt"]), len(arrays["run"])
        pt, eta, phi = (
            _flat(arrays[f"Jet_{name}"]).astype(np.float64) for name in ("pt", "eta", "phi")
        )
        rank = ragged.rank_in_group(event, -pt)
        passes = (pt > MIN_PT) & (np.abs(eta) < MAX_ETA)
        both = ragged.total(event, passes & (rank < 2), events) == 2
        chosen = np.flatnonzero(passes & (both[event] | all_events))
        chosen = chosen[np.lexsort((rank[chosen], event[chosen]))]
        return cls(
            events=events,
            event=event[chosen],
            source=chosen,
            pt=pt[chosen],
            eta=eta[chosen],
            phi=phi[chosen],
            mass=_flat(arrays["Jet_mass"])[chosen],
            raw=1 - _flat(arrays["Jet_rawFactor"])[chosen],
            area=_flat(arrays["Jet_area"])[chosen],
            order=rank[chosen],
            per_event=_leading(event, pt, eta, phi, rank, events),
        )

    def columns(self) -> Columns:
        return {
            "jetPt": self.pt,
            "jetEta": self.eta,
            "jetPhi": self.phi,
            "jetMass": self.mass,
            "jetArea": self.area,
            "jetRawPt": self.pt * self.raw,
            "jetRawMass": self.mass * self.raw,
            "jetPtOrder": self.order,
            "eventJetMult": ragged.counts_of(self.event, self.events)[self.event],
        }


def _leading(event, pt, eta, phi, rank, events: int) -> Columns:
    """Angles between the two leading jets, and alpha = pT of the third over the mean of the two:

    (events,) each, 0 without them.
    """
    lead = {name: np.zeros((3, events)) for name in ("pt", "eta", "phi")}
    top = rank < 3
    for name, values in (("pt", pt), ("eta", eta), ("phi", phi)):
        lead[name][rank[top], event[top]] = values[top]
    two, mean = lead["pt"][1] > 0, (lead["pt"][0] + lead["pt"][1]) / 2
    return {
        "dPhiJetsLO": np.where(two, ragged.delta_phi(lead["phi"][0], lead["phi"][1]), 0.0),
        "dEtaJetsLO": np.where(two, lead["eta"][0] - lead["eta"][1], 0.0),
        "alpha": np.divide(lead["pt"][2], mean, out=np.zeros(events), where=two),
    }


# ------------------------------------------------------------------------------------- candidates


@dataclasses.dataclass(frozen=True)
class _Members:
    """The candidates that the stored jets are made of, and the jet of each."""

    jet: np.ndarray
    candidates: Candidates
    charge: np.ndarray


def _candidates(arrays: Mapping, jets: _Jets) -> tuple[_Members | None, Columns]:
    """The jets' members, and the columns made of candidates; (None, zeros) for plain NanoAOD."""
    if not set(arrays) >= {*CANDIDATES, *LINKS}:
        zeros = {
            name: np.zeros(len(jets))
            for name in ("nPF", "jetGirth", "QG_ptD", "QG_axis2", "QG_mult")
        }
        return None, zeros | {
            name: np.zeros(0)
            for name, branch in jetntuple.BY_NAME.items()
            if branch.counter == "nPF"
        }
    charge = _flat(arrays["PFCands_charge"])
    everything = Candidates(
        event=_events_of(arrays["PFCands_pt"]),
        id=_flat(arrays["PFCands_pdgId"]),
        **{
            name: _flat(arrays[f"PFCands_{name}"]).astype(np.float64)
            for name in ("pt", "eta", "phi", "mass")
        },
        from_pv=from_pv(arrays, charge),
        vertex=np.where(charge != 0, 0, -1),
    )
    jet, member = _links(
        arrays, LINKS, "Jet_pt", "PFCands_pt", jets.source, _number(arrays["Jet_pt"]).sum()
    )
    members = _Members(jet=jet, candidates=everything[member], charge=charge[member])
    owner = np.full(len(everything), -1)
    owner[member] = jet
    around = candidates_around(jets.event, jets.eta, jets.phi, everything, owner, jets.events)
    return members, around | _shape(jets, members)


def from_pv(arrays: Mapping, charge: np.ndarray) -> np.ndarray:
    """PF_fromPV from what PFNano keeps (see the module's text):

    (N,) int; 0 for tracks if it keeps nothing.
    """
    neutral = np.where(charge == 0, detector.TIGHT, detector.NOT_FROM_VERTEX)
    if not set(arrays) >= set(VERTEX):
        return neutral
    quality, distance = (_flat(arrays[name]) for name in VERTEX)
    here = np.abs(distance) < SAME_VERTEX_CM
    tracks = np.select(
        [here & (quality >= FIT_QUALITY), here, quality < PRIMARY_QUALITY],
        [detector.USED_IN_VERTEX, detector.TIGHT, detector.LOOSE],
        default=detector.NOT_FROM_VERTEX,
    )
    return np.where(charge == 0, neutral, tracks)


def _links(
    arrays: Mapping, names: tuple[str, str], jets: str, members: str, chosen: np.ndarray, total: int
):
    """A table of (jet, candidate) links, for the `chosen` of all jets:

    (place in chosen, candidate), sorted by place.
    """
    place = np.full(int(total) + 1, -1)  # the last one stands for links that point nowhere
    place[chosen] = np.arange(len(chosen))
    jet, member = (
        place[_global(arrays[names[0]], arrays[jets])],
        _global(arrays[names[1]], arrays[members]),
    )
    good = np.flatnonzero((jet >= 0) & (member >= 0))
    good = good[np.argsort(jet[good], kind="stable")]
    return jet[good], member[good]


def _shape(jets: _Jets, members: _Members) -> Columns:
    found = quark_gluon.shape(members.jet, members.candidates, jets.eta, jets.phi)
    distance = np.hypot(
        members.candidates.eta - jets.eta[members.jet],
        ragged.delta_phi(members.candidates.phi, jets.phi[members.jet]),
    )
    girth = ragged.total(members.jet, members.candidates.pt * distance, len(jets)) / (
        jets.pt * jets.raw
    )
    return {
        "jetGirth": girth,
        "QG_ptD": found.pt_d,
        "QG_axis2": found.axis2,
        "QG_mult": found.multiplicity,
    }


def _identification(arrays: Mapping, jets: _Jets, members: _Members | None) -> Columns:
    """Multiplicities by type, and the bits of Jet_jetId (1 = loose where the year has it, 2 =
    tight).
    """

    def number(which: np.ndarray) -> np.ndarray:
        return ragged.counts_of(members.jet[which], len(jets)) if members else np.zeros(len(jets))

    kind = np.abs(members.candidates.id) if members else np.zeros(0, dtype=int)
    charged = members.charge != 0 if members else np.zeros(0, dtype=bool)
    bits = _of_jets(arrays, "Jet_jetId", jets, 0)
    return {
        "jetLooseID": (bits & 3) > 0,
        "jetTightID": (bits & 2) > 0,
        "jetChargedHadronMult": number(kind == detector.CHARGED_HADRON),
        "jetNeutralHadronMult": number(
            np.isin(kind, (detector.NEUTRAL_HADRON, detector.FORWARD_HADRON))
        ),
        "jetChargedMult": number(charged),
        "jetNeutralMult": number(~charged),
        "jetMult": number(np.ones(len(kind), dtype=bool)),
        "jetQGl": _of_jets(arrays, "Jet_qgl", jets, -1.0),
    }


def _of_jets(arrays: Mapping, name: str, jets: _Jets, default: float) -> np.ndarray:
    return _flat(arrays[name])[jets.source] if name in arrays else np.full(len(jets), default)


# -------------------------------------------------------------------------------------- generator


def _flavour(arrays: Mapping, jets: _Jets) -> Columns:
    parton = _of_jets(arrays, "Jet_partonFlavour", jets, 0)
    physics = _physics_flavour(arrays, jets)
    out = {
        "partonFlav": parton,
        "hadronFlav": _of_jets(arrays, "Jet_hadronFlavour", jets, 0),
        "physFlav": physics,
    }
    for name, flavour in (("Phys", np.abs(physics)), ("Parton", np.abs(parton))):
        light, gluon = (flavour >= 1) & (flavour <= 3), flavour == 21
        out |= {f"is{name}UDS": light, f"is{name}G": gluon, f"is{name}Other": ~(light | gluon)}
    return out


def _physics_flavour(arrays: Mapping, jets: _Jets) -> np.ndarray:
    if not set(arrays) >= set(GEN_PARTICLES):
        return np.zeros(len(jets))
    eta, phi, number, status = (_flat(arrays[name]) for name in GEN_PARTICLES)
    hard = np.flatnonzero((status == HARD_PROCESS) & np.isin(np.abs(number), (1, 2, 3, 4, 5, 21)))
    found = _nearest(
        jets, _events_of(arrays["GenPart_eta"])[hard], eta[hard], phi[hard], clustering.RADIUS
    )
    return np.where(found >= 0, number[hard][found] if len(hard) else 0, 0)


def _nearest(
    jets: _Jets, event: np.ndarray, eta: np.ndarray, phi: np.ndarray, radius: float
) -> np.ndarray:
    """Index of the nearest object of the jet's event within the radius, -1 for none: (J,)."""
    jet, other = ragged.pairs(jets.event, event, jets.events)
    distance = np.hypot(jets.eta[jet] - eta[other], ragged.delta_phi(jets.phi[jet], phi[other]))
    near = distance < radius
    best = ragged.first_in_group(jet[near], distance[near], len(jets))
    return np.where(best >= 0, other[near][best] if near.any() else -1, -1)


def _generator(arrays: Mapping, jets: _Jets) -> Columns:
    """The matched generator jets (0 without one) and, where the file has them, their particles by
    falling pT.
    """
    gen = {name: _flat(arrays[f"GenJet_{name}"]) for name in ("pt", "eta", "phi", "mass")}
    match = _nearest(jets, _events_of(arrays["GenJet_pt"]), gen["eta"], gen["phi"], GEN_MATCH)
    matched = match >= 0

    def of_match(values: np.ndarray) -> np.ndarray:
        return np.where(matched, values[match], 0) if len(values) else np.zeros(len(match))

    columns = {f"genJet{name.capitalize()}": of_match(values) for name, values in gen.items()}
    return {"jetGenMatch": matched, **columns, **_generator_particles(arrays, jets, match, columns)}


def _generator_particles(arrays: Mapping, jets: _Jets, match: np.ndarray, gen: Columns) -> Columns:
    if not set(arrays) >= {*GEN_CANDIDATES, *GEN_LINKS}:
        empty = {
            name: np.zeros(0)
            for name, branch in jetntuple.BY_NAME.items()
            if branch.counter == "nGenJetPF"
        }
        return {"nGenJetPF": np.zeros(len(jets))} | empty
    # Two jets may match the same generator jet, so links are taken from the jets' side.
    total = int(_number(arrays["GenJet_pt"]).sum())
    of_gen, particle = _links(
        arrays, GEN_LINKS, "GenJet_pt", "GenCands_pt", np.arange(total), total
    )
    number = np.where(match >= 0, ragged.counts_of(of_gen, max(total, 1))[match], 0)
    first = ragged.starts(ragged.counts_of(of_gen, max(total, 1)))[match]
    jet = np.repeat(np.arange(len(jets)), number)
    index = particle[ragged.ranges(first, number)]
    pt, eta, phi, mass, kind = (_flat(arrays[name])[index] for name in GEN_CANDIDATES)
    order = np.lexsort((-pt, jet))
    d_eta = (eta - gen["genJetEta"][jet])[order]
    d_phi = ragged.delta_phi(phi, gen["genJetPhi"][jet])[order]
    return {
        "nGenJetPF": number,
        "genJetPF_pT": pt[order],
        "genJetPF_dR": np.hypot(d_eta, d_phi),
        "genJetPF_dTheta": np.arctan2(d_phi, d_eta),
        "genJetPF_mass": mass[order],
        "genJetPF_id": kind[order],
    }


def _event(arrays: Mapping, jets: _Jets) -> Columns:
    """Per-event values, repeated for each jet of the event."""

    def value(name: str | None, default: float) -> np.ndarray:
        return np.asarray(arrays[name]) if name in arrays else np.full(jets.events, default)

    per_event = {
        **jets.per_event,
        "event": value("event", 0),
        "run": value("run", 0),
        "lumi": value("luminosityBlock", 0),
        "pthat": value("Generator_binvar", 0.0),
        "eventWeight": value("genWeight", 1.0),
        **{
            branch: value(next((name for name in names if name in arrays), None), 0.0)
            for branch, names in DENSITIES.items()
        },
        "PV_npvsGood": value("PV_npvsGood", 0),
        "Pileup_nPU": value("Pileup_nPU", 0),
        "Pileup_nTrueInt": value("Pileup_nTrueInt", 0.0),
    }
    return {name: values[jets.event] for name, values in per_event.items()}


# ----------------------------------------------------------------------------------- command line


def main(argv: list[str] | None = None) -> int:
    found = Parser(prog="python -m data.from_nanoaod", description=__doc__)
    found.add_argument("files", nargs="+", help="NanoAOD or PFNano files: paths, globs, s3://")
    found.add_argument(
        "--output", required=True, type=Path, metavar="DIR", help="folder for the JetNtuple files"
    )
    found.add_argument(
        "--all-events",
        action="store_true",
        help="jets of every event, not only where the two leading jets pass",
    )
    found.add_argument(
        "--events-per-file",
        type=int,
        default=EVENTS_PER_FILE,
        metavar="N",
        help="default %(default)s",
    )
    options = found.parse_args(argv)
    return run_main(lambda: _convert_all(options))


def _convert_all(options) -> None:
    from weaver.read.files import find

    require(
        options.events_per_file > 0, f"--events-per-file {options.events_per_file}: give at least 1"
    )
    results = [
        convert(
            entry.uri,
            options.output,
            all_events=options.all_events,
            events_per_file=options.events_per_file,
        )
        for entry in find(options.files)
    ]
    for line in sorted({line for one in results for line in one.lacking}):
        print(f"not in the file: {line}")
    jets, events = sum(one.jets for one in results), sum(one.events for one in results)
    files = sum(len(one.files) for one in results)
    require(
        jets > 0,
        f"none of {events:,} events has jets that pass; --all-events keeps the jets of every event",
    )
    print(f"{jets:,} jets of {events:,} events in {files} files in {options.output}")
    print(f"next: python -m data.validate '{options.output}/*.root'")


if __name__ == "__main__":
    sys.exit(main())
