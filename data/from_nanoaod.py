"""Convert NanoAOD with particle-flow candidates (PFNano) to the JetNtuple schema: one jet per row.

    python -m data.from_nanoaod 'pfnano/*.root' --output DIR [--all-events] [--events-per-file 5000]

The inputs of a network are copied, or computed from the candidates with the generator's formulas.
Branches without a source in NanoAOD are listed after the conversion:

* PF_fromPV: PFNano has the quality of the association and dz to the leading vertex, not the vertex
  that a track was assigned to. A track counts as from the leading vertex if |dz| < 0.1 cm; then 3
  if its quality is 7 (used in the fit), else 2; others are 1 below quality 6 and 0 from there on.
  Neutral candidates have 2, as in MiniAOD.
* physFlav: the nearest outgoing parton of the hard process (GenPart, status 23) within dR < 0.4.
* Generator jets are matched by distance, dR < 0.2, as in the generator; NanoAOD's own
  Jet_genJetIdx allows 0.4.
* Jets are those of NanoAOD's `Jet` collection: charged hadron subtraction in Run 2, PUPPI in Run 3.
* Plain NanoAOD has no candidates: nPF, multiplicities by type, shapes and girth are then 0. Such
  files are good for measuring the standard calibration, and not for training.
"""

from __future__ import annotations

import dataclasses
import glob
import os
import sys
from argparse import Namespace
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from common import storage
from common.cli import Parser, output_folder, require, run_main
from common.errors import InputError
from common.progress import Progress
from common.storage import durable
from data import jetntuple, ragged
from data.generator import clustering, detector, jet_columns, quark_gluon
from data.generator.detector import Candidates
from data.generator.events import HARD_PROCESS
from data.generator.reconstruction import GEN_MATCH, nearest
from data.jetntuple import Columns
from data.trees import find_files, open_tree, read_branches
from weaver.read.files import SUFFIXES

TREE = "Events"
# Each jet meets all of its event's candidates at once: with 1,800 of them about 20 million pairs,
# some hundred MB an array.
EVENTS_PER_FILE = 5_000
SAME_VERTEX_CM = 0.1
FIT_QUALITY, PRIMARY_QUALITY = 7, 6  # pat::PackedCandidate: UsedInFitTight, UsedInFitLoose
PARTONS = (1, 2, 3, 4, 5, 21)  # |PDG number| of quarks that form jets, and of the gluon

# fmt: off
JETS = (
    "run", "luminosityBlock", "event",
    "Jet_pt", "Jet_eta", "Jet_phi", "Jet_mass", "Jet_rawFactor", "Jet_area",
)
# fmt: on
"""Branches without which there are no jets."""

REQUIRED_BRANCHES = (*JETS, "GenJet_pt", "GenJet_eta", "GenJet_phi", "GenJet_mass")
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
"""Optional branches that are used together -> values of the JetNtuple without them."""

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

OF_CANDIDATES = (
    *("nPF", "jetGirth", "QG_ptD", "QG_axis2", "QG_mult"),
    *(branch.name for branch in jetntuple.BRANCHES if branch.counter == "nPF"),
    *("jetChargedHadronMult", "jetNeutralHadronMult", "jetChargedMult", "jetNeutralMult"),
    "jetMult",
)
OF_JETS = (
    *("jetPt", "jetEta", "jetPhi", "jetMass", "jetArea", "jetRawPt", "jetRawMass", "jetPtOrder"),
    *("eventJetMult", "dPhiJetsLO", "dEtaJetsLO", "alpha", "event", "run", "lumi"),
)
SOURCES: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(OF_JETS, JETS),
    **dict.fromkeys(OF_CANDIDATES, (*CANDIDATES, *LINKS)),
    "PF_fromPV": (*CANDIDATES, *LINKS, *VERTEX),
    "jetQGl": ("Jet_qgl",),
    "jetLooseID": ("Jet_jetId",),
    "jetTightID": ("Jet_jetId",),
    "PV_npvsGood": ("PV_npvsGood",),
}
"""Column of the JetNtuple -> the branches that it is made of.

Those of DENSITIES, and those that only simulation has, are not among them.
"""

Arrays = Mapping[str, Any]
"""NanoAOD branch -> awkward array of a chunk of events: (events,) or events × objects."""


@dataclasses.dataclass(frozen=True)
class ConvertedFile:
    """The result of converting one NanoAOD file."""

    files: list[Path]
    jets: int
    events: int
    lacking: list[str]


def output_names(uris: Sequence[str]) -> dict[str, str]:
    """Return a unique name for the outputs of each input file: input -> name.

    It is the file's name without its suffix. If several inputs have the same name, which is usual
    for jobs on several samples, it begins with the names of enough parent folders to be unique:
    qcd_nano_1 and top_nano_1 for qcd/nano_1.root and top/nano_1.root.
    """
    parts = {}
    for uri in uris:
        parts[uri] = storage.name(uri)
        for suffix in SUFFIXES:
            parts[uri] = parts[uri].removesuffix(suffix)
    names = dict(parts)
    folders = {uri: uri.split("/")[:-1] for uri in uris}
    while equal := [uri for uri in uris if list(names.values()).count(names[uri]) > 1]:
        for uri in equal:
            if folders[uri]:
                names[uri] = f"{folders[uri].pop()}_{names[uri]}".lstrip("_")
            else:  # a_b/c and a/b_c
                names[uri] = f"{parts[uri]}_{storage.digest(uri.encode())[:8]}"
    return names


def check_output(folder: Path, names: Mapping[str, str]) -> None:
    """Raise InputError where the conversion would overwrite a file, or double its jets.

    The folder may hold outputs of the same input files by the same names, which are replaced, and
    those of other input files. names: input file -> name of its outputs.
    """
    inputs = {str(Path(uri).absolute()) for uri in names if storage.is_local(uri)}
    of_output = {name: uri for uri, name in names.items()}
    problems = []
    for path in sorted(folder.glob("*_[0-9][0-9][0-9]*.root")):
        name = path.stem.rpartition("_")[0]
        if str(path.absolute()) in inputs:
            if name in of_output:
                problems.append(f"{of_output[name]} would overwrite the input file {path}")
            continue
        source = jetntuple.source(path)
        if name in of_output and source != of_output[name]:
            made_of = source or "another file"
            problems.append(f"{of_output[name]} would overwrite {path}, made of {made_of}")
        elif source in names and names[source] != name:
            problems.append(f"the jets of {source} are already in {path}")
    if problems:
        raise InputError(f"{'; '.join(problems)}; give another --output, or delete what is there")


def convert(
    uri: str,
    folder: Path,
    *,
    name: str | None = None,
    all_events: bool = False,
    events_per_file: int = EVENTS_PER_FILE,
) -> ConvertedFile:
    """Write the jets of one NanoAOD file into `folder`, as <name>_<number>.root.

    Only complete files have that name. name: by default the file's own. all_events: keep every jet
    above 30 GeV and within |eta| < 2.5; otherwise, as the JetNtuple does, only those of events
    whose two leading jets both pass. Raises InputError for a file that cannot be read or lacks one
    of REQUIRED_BRANCHES.
    """
    label = storage.name(uri)
    name = name or Path(label).stem
    paths: list[Path] = []
    jets = events = 0
    with open_tree(uri, TREE, "as NanoAOD has it") as tree:
        names, lacking = check_branches(uri, set(tree.keys()))
        folder.mkdir(parents=True, exist_ok=True)
        with Progress(f"converting {label}", total=tree.num_entries, unit="events") as progress:
            for number, start in enumerate(range(0, tree.num_entries, events_per_file)):
                stop = start + events_per_file
                arrays = read_branches(uri, tree, names, start, stop)
                columns = columns_of(arrays, all_events=all_events)
                if jetntuple.length(columns):
                    path = folder / f"{name}_{number:03d}.root"
                    _write(path, columns, uri)
                    paths.append(path)
                jets += jetntuple.length(columns)
                events += len(arrays["run"])
                progress.advance(len(arrays["run"]))
    # of an earlier conversion of the same file into more outputs
    for path in folder.glob(f"{glob.escape(name)}_[0-9][0-9][0-9]*.root"):
        if path not in paths and jetntuple.source(path) == uri:
            path.unlink()
    return ConvertedFile(files=paths, jets=jets, events=events, lacking=lacking)


def check_branches(uri: str, present: set[str]) -> tuple[list[str], list[str]]:
    """Return (branches to read, descriptions of missing branches).

    Raises InputError if one of REQUIRED_BRANCHES is not there.
    """
    missing = [name for name in REQUIRED_BRANCHES if name not in present]
    if missing:
        is_collisions = "GenJet_pt" in missing
        why = "; collisions data has no generator jets, so no response can be learned"
        raise InputError(
            f"{uri}: tree {TREE} lacks {', '.join(missing)}{why if is_collisions else ''}; give"
            " simulated NanoAOD"
        )
    branches = list(REQUIRED_BRANCHES)
    lacking = []
    for group, result in GROUPS.items():
        absent = [name for name in group if name not in present]
        # An incomplete group is of no use, so it is not read.
        if absent:
            lacking.append(f"{', '.join(absent)} ({result})")
        else:
            branches += group
    for branch, names in DENSITIES.items():
        name = _first_of(names, present)
        if name is None:
            lacking.append(f"{names[0]} ({branch}: 0)")
        else:
            branches.append(name)
    return branches, lacking


def columns_of(arrays: Arrays, *, all_events: bool = False) -> Columns:
    """Return the JetNtuple's columns of a chunk of NanoAOD events, chosen by `check_branches`."""
    jets = _Jets.of(arrays, all_events=all_events)
    members, candidate_columns = _candidates(arrays, jets)
    parton = _of_jets(arrays, "Jet_partonFlavour", jets, 0)
    hadron = _of_jets(arrays, "Jet_hadronFlavour", jets, 0)
    return {
        **jets.columns(),
        **candidate_columns,
        **_identification(arrays, jets, members),
        **jet_columns.flavour_columns(parton, hadron, _physics_flavour(arrays, jets)),
        **_generator(arrays, jets),
        **_event(arrays, jets),
    }


def branches_for(columns: Iterable[str], present: set[str]) -> tuple[list[str], dict[str, str]]:
    """Return the branches to read for these columns, and column -> why it cannot be made.

    present: the branches of the file.
    """
    branches = dict.fromkeys(JETS)
    lacking = {}
    for column in columns:
        names = SOURCES.get(column, ())
        if column in DENSITIES:
            names = (_first_of(DENSITIES[column], present) or DENSITIES[column][0],)
        elif not names:
            lacking[column] = "NanoAOD has nothing that it is made of"
            continue
        absent = [name for name in names if name not in present]
        if absent:
            lacking[column] = f"the file has no {', '.join(absent)}"
        branches |= dict.fromkeys(names)
    return list(branches), lacking


def columns_of_all(arrays: Arrays) -> tuple[Columns, np.ndarray]:
    """Return the columns of SOURCES and DENSITIES for every jet, and the jets of each event.

    Jets are in the order of the file, none is left out, and nothing of a generator is needed.
    Columns whose branches were not read (`branches_for` says which to read) have no meaning.
    """
    jets = _Jets.every(arrays)
    members, candidate_columns = _candidates(arrays, jets)
    columns = {
        **jets.columns(),
        **candidate_columns,
        **_identification(arrays, jets, members),
        **_event(arrays, jets),
    }
    columns_of_schema = {}
    for name in (*SOURCES, *DENSITIES):
        columns_of_schema[name] = columns[name].astype(jetntuple.BY_NAME[name].dtype)
    return columns_of_schema, _number(arrays["Jet_pt"])


# ---------------------------------------------------------------------------------------- reading


def _first_of(names: tuple[str, ...], present: set[str] | Arrays) -> str | None:
    """Return the first of the names that is there."""
    return next((name for name in names if name in present), None)


def _write(path: Path, columns: Columns, source: str) -> None:
    hidden_path = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        jetntuple.write(hidden_path, columns, source=source)
        durable.rename(hidden_path, path)
    finally:
        hidden_path.unlink(missing_ok=True)


def _flat(array: Any) -> np.ndarray:
    """Return events × objects -> (objects,)."""
    import awkward as ak

    return ak.to_numpy(ak.flatten(array, axis=None))


def _number(array: Any) -> np.ndarray:
    """Return the objects in each event: (events,)."""
    import awkward as ak

    return ak.to_numpy(ak.num(array))


def _events_of(array: Any) -> np.ndarray:
    """Return the event of each object: (objects,)."""
    number = _number(array)
    return np.repeat(np.arange(len(number)), number)


def _global(array: Any, members: Any) -> np.ndarray:
    """Return indices within an event's `members` -> indices within all members: (indices,).

    -1 where the index points nowhere.
    """
    number = _number(members)
    event = _events_of(array)
    local = _flat(array).astype(np.int64)
    points_somewhere = (local >= 0) & (local < number[event])
    return np.where(points_somewhere, local + ragged.starts(number)[event], -1)


# ------------------------------------------------------------------------------------------- jets


@dataclasses.dataclass(frozen=True)
class _Jets:
    """Jets of the chunk, (J,) each: the stored ones, sorted by event and falling pT, or all.

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
    """Place by falling pT in the event, from 0."""
    multiplicity: np.ndarray
    """Jets of each event above 30 GeV and within |eta| < 2.5, (events,)."""
    per_event: Columns

    def __len__(self) -> int:
        return len(self.event)

    @classmethod
    def of(cls, arrays: Arrays, *, all_events: bool) -> _Jets:
        """Return the jets of the chunk's events that pass, of all events if `all_events` is set."""
        every = cls.every(arrays)
        passes = jet_columns.passing(
            every.event, every.pt, every.eta, every.order, every.events, all_events=all_events
        )
        passing_jets = np.flatnonzero(passes)
        return every.select(
            passing_jets[np.lexsort((every.order[passing_jets], every.event[passing_jets]))]
        )

    @classmethod
    def every(cls, arrays: Arrays) -> _Jets:
        """Return all jets of the chunk, in the order of the file."""
        event, events = _events_of(arrays["Jet_pt"]), len(arrays["run"])
        pt, eta, phi = (
            _flat(arrays[f"Jet_{name}"]).astype(np.float64) for name in ("pt", "eta", "phi")
        )
        rank = ragged.rank_in_group(event, -pt)
        passes = jet_columns.passing(event, pt, eta, rank, events, all_events=True)
        return cls(
            events=events,
            event=event,
            source=np.arange(len(event)),
            pt=pt,
            eta=eta,
            phi=phi,
            mass=_flat(arrays["Jet_mass"]),
            raw=1 - _flat(arrays["Jet_rawFactor"]),
            area=_flat(arrays["Jet_area"]),
            order=rank,
            multiplicity=ragged.counts_of(event[passes], events),
            per_event=jet_columns.leading_jets(event, pt, eta, phi, rank, events),
        )

    def select(self, jets: np.ndarray) -> _Jets:
        """Return the jets at these indices, (n,), or of a mask, (J,)."""
        of_jets = ("event", "source", "pt", "eta", "phi", "mass", "raw", "area", "order")
        values = {name: getattr(self, name)[jets] for name in of_jets}
        return dataclasses.replace(self, **values)

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
            "eventJetMult": self.multiplicity[self.event],
        }


# ------------------------------------------------------------------------------------- candidates


@dataclasses.dataclass(frozen=True)
class _Members:
    """The candidates of the stored jets, and the jet of each."""

    jet: np.ndarray
    candidates: Candidates
    charge: np.ndarray


def _empty(counter: str) -> Columns:
    """Return the branches of a counter for jets without any entries."""
    branches = jetntuple.BY_NAME.values()
    return {branch.name: np.zeros(0) for branch in branches if branch.counter == counter}


def _candidates(arrays: Arrays, jets: _Jets) -> tuple[_Members | None, Columns]:
    """Return the jets' members, and the columns made of candidates.

    (None, zeros) for plain NanoAOD.
    """
    if not set(arrays) >= {*CANDIDATES, *LINKS}:
        made_of_candidates = ("nPF", "jetGirth", "QG_ptD", "QG_axis2", "QG_mult")
        return None, dict.fromkeys(made_of_candidates, np.zeros(len(jets))) | _empty("nPF")
    charge = _flat(arrays["PFCands_charge"])
    pt, eta, phi, mass = (_flat(arrays[name]).astype(np.float64) for name in CANDIDATES[:4])
    everything = Candidates(
        event=_events_of(arrays["PFCands_pt"]),
        id=_flat(arrays["PFCands_pdgId"]),
        pt=pt,
        eta=eta,
        phi=phi,
        mass=mass,
        from_pv=from_pv(arrays, charge),
        # NanoAOD has no true vertex; 0 makes a candidate count as charged.
        vertex=np.where(charge != 0, 0, -1),
    )
    jet, member = _links(arrays, LINKS, ("Jet_pt", "PFCands_pt"), jets.source)
    members = _Members(jet=jet, candidates=everything[member], charge=charge[member])
    shape = quark_gluon.shape(jet, members.candidates, jets.eta, jets.phi)
    shape_columns = {
        "jetGirth": jet_columns.girth(
            jet, members.candidates, jets.pt * jets.raw, jets.eta, jets.phi
        ),
        "QG_ptD": shape.pt_d,
        "QG_axis2": shape.axis2,
        "QG_mult": shape.multiplicity,
    }
    owner = np.full(len(everything), -1)
    owner[member] = jet
    around = jet_columns.candidates_around(
        jets.event, jets.eta, jets.phi, everything, owner, jets.events
    )
    return members, around | shape_columns


def from_pv(arrays: Arrays, charge: np.ndarray) -> np.ndarray:
    """Return PF_fromPV from PFNano's branches (see the module's text): (N,) int.

    charge: of the candidates, (N,). 0 for tracks if the file has no such branch.
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
    arrays: Arrays, names: tuple[str, str], ends: tuple[str, str], selected_jets: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return a table of (jet, candidate) links, for the `selected_jets` among all jets.

    names: the branches with the jet's and the candidate's index. ends: a branch of all jets and one
    of all candidates. Returns (place in selected_jets, candidate), (links,) each, sorted by place.
    """
    all_jets, all_members = (arrays[name] for name in ends)
    # The last entry stands for links that point nowhere: their index is -1.
    place = np.full(int(_number(all_jets).sum()) + 1, -1)
    place[selected_jets] = np.arange(len(selected_jets))
    jet = place[_global(arrays[names[0]], all_jets)]
    member = _global(arrays[names[1]], all_members)
    good = np.flatnonzero((jet >= 0) & (member >= 0))
    good = good[np.argsort(jet[good], kind="stable")]
    return jet[good], member[good]


def _identification(arrays: Arrays, jets: _Jets, members: _Members | None) -> Columns:
    """Return the multiplicities by type, and the bits of Jet_jetId.

    1 is loose where the year has it, 2 is tight.
    """

    def number(which: np.ndarray) -> np.ndarray:
        return ragged.counts_of(members.jet[which], len(jets)) if members else np.zeros(len(jets))

    kind = np.abs(members.candidates.id) if members else np.zeros(0, dtype=int)
    charged = members.charge != 0 if members else np.zeros(0, dtype=bool)
    bits = _of_jets(arrays, "Jet_jetId", jets, 0)
    # The default is an integer like the branch, so that its bits can be taken.
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


def _of_jets(arrays: Arrays, name: str, jets: _Jets, default: float) -> np.ndarray:
    """Return a branch of NanoAOD's jets for the stored ones (J,), or its default."""
    return _flat(arrays[name])[jets.source] if name in arrays else np.full(len(jets), default)


# -------------------------------------------------------------------------------------- generator


@dataclasses.dataclass(frozen=True)
class _Objects:
    """Generator jets or partons of several events, (N,) each, sorted by event."""

    event: np.ndarray
    eta: np.ndarray
    phi: np.ndarray


def _physics_flavour(arrays: Arrays, jets: _Jets) -> np.ndarray:
    """PDG number of the nearest outgoing parton of the hard process: (J,), 0 for none."""
    if not set(arrays) >= set(GEN_PARTICLES):
        return np.zeros(len(jets))
    eta, phi, number, status = (_flat(arrays[name]) for name in GEN_PARTICLES)
    hard = np.flatnonzero((status == HARD_PROCESS) & np.isin(np.abs(number), PARTONS))
    partons = _Objects(_events_of(arrays["GenPart_eta"])[hard], eta[hard], phi[hard])
    parton = nearest(jets, partons, events=jets.events, radius=clustering.RADIUS)
    return ragged.take(number[hard], parton, 0)


def _generator(arrays: Arrays, jets: _Jets) -> Columns:
    """Return the matched generator jets (0 without one), and their particles if there are any."""
    pt, eta, phi, mass = (_flat(arrays[f"GenJet_{name}"]) for name in ("pt", "eta", "phi", "mass"))
    gen_jets = _Objects(_events_of(arrays["GenJet_pt"]), eta, phi)
    match = nearest(jets, gen_jets, events=jets.events, radius=GEN_MATCH)
    columns = {
        "genJetPt": ragged.take(pt, match, 0),
        "genJetEta": ragged.take(eta, match, 0),
        "genJetPhi": ragged.take(phi, match, 0),
        "genJetMass": ragged.take(mass, match, 0),
    }
    particles = _generator_particles(arrays, match, columns["genJetEta"], columns["genJetPhi"])
    return {"jetGenMatch": match >= 0, **columns, **particles}


def _generator_particles(
    arrays: Arrays, match: np.ndarray, axis_eta: np.ndarray, axis_phi: np.ndarray
) -> Columns:
    """Return the particles of the matched generator jets by falling pT, none for jets without one.

    match: (J,) index of the generator jet, -1 for none; axis_eta, axis_phi: its axis, (J,).
    """
    if not set(arrays) >= {*GEN_CANDIDATES, *GEN_LINKS}:
        return {"nGenJetPF": np.zeros(len(match)), **_empty("nGenJetPF")}
    total = int(_number(arrays["GenJet_pt"]).sum())
    of_gen, particle = _links(arrays, GEN_LINKS, ("GenJet_pt", "GenCands_pt"), np.arange(total))
    # Two jets may match the same generator jet, so links are taken from the jets' side.
    counts = ragged.counts_of(of_gen, total)
    number = ragged.take(counts, match, 0)
    first = ragged.take(ragged.starts(counts), match, 0)
    jet = np.repeat(np.arange(len(match)), number)
    index = particle[ragged.ranges(first, number)]
    pt, eta, phi, mass, kind = (_flat(arrays[name])[index] for name in GEN_CANDIDATES)
    order = np.lexsort((-pt, jet))
    jet = jet[order]
    return {
        "nGenJetPF": number,
        "genJetPF_pT": pt[order],
        "genJetPF_mass": mass[order],
        "genJetPF_id": kind[order],
        **jet_columns.generator_angles(eta[order], phi[order], axis_eta[jet], axis_phi[jet]),
    }


def _event(arrays: Arrays, jets: _Jets) -> Columns:
    """Return per-event values, repeated for each jet of the event."""

    def value(name: str | None, default: float) -> np.ndarray:
        if name is None or name not in arrays:
            return np.full(jets.events, default)
        return np.asarray(arrays[name])

    per_event = {
        **jets.per_event,
        "event": value("event", 0),
        "run": value("run", 0),
        "lumi": value("luminosityBlock", 0),
        "pthat": value("Generator_binvar", 0.0),
        "eventWeight": value("genWeight", 1.0),
        "PV_npvsGood": value("PV_npvsGood", 0),
        "Pileup_nPU": value("Pileup_nPU", 0),
        "Pileup_nTrueInt": value("Pileup_nTrueInt", 0.0),
    }
    for branch, names in DENSITIES.items():
        per_event[branch] = value(_first_of(names, arrays), 0.0)
    return {name: values[jets.event] for name, values in per_event.items()}


# ----------------------------------------------------------------------------------- command line


def main(argv: list[str] | None = None) -> int:
    """Return the command `python -m data.from_nanoaod`."""
    parser = Parser(prog="python -m data.from_nanoaod", description=__doc__)
    parser.add_argument(
        "files",
        type=str,  # patterns, which line breaks may separate
        nargs="+",
        metavar="FILE",
        help="NanoAOD or PFNano files: paths, addresses or patterns",
    )
    parser.add_argument(
        "--output",
        required=True,
        type=output_folder,
        metavar="DIR",
        help="folder for the JetNtuple files",
    )
    parser.add_argument(
        "--all-events",
        action="store_true",
        help="write the jets of all events, not only of those whose two leading jets pass",
    )
    parser.add_argument(
        "--events-per-file",
        type=int,
        default=EVENTS_PER_FILE,
        metavar="N",
        help="events for each output file (default: %(default)s)",
    )
    options = parser.parse_args(argv)
    return run_main(lambda: _convert_all(options))


def _convert_all(options: Namespace) -> None:
    require(
        options.events_per_file > 0, f"--events-per-file {options.events_per_file}: give at least 1"
    )
    lacking: set[str] = set()
    jets = events = files = 0
    names = output_names(find_files(options.files, TREE))
    check_output(options.output, names)
    for uri, name in names.items():
        result = convert(
            uri,
            options.output,
            name=name,
            all_events=options.all_events,
            events_per_file=options.events_per_file,
        )
        lacking.update(result.lacking)
        jets += result.jets
        events += result.events
        files += len(result.files)
    for line in sorted(lacking):
        print(f"not in the file: {line}")
    require(
        jets > 0,
        f"none of {events:,} events has jets that pass; --all-events keeps the jets of every event",
    )
    print(f"{jets:,} jets of {events:,} events in {files} files in {options.output}")
    print(f"next: python -m data.validate '{options.output}/*.root'")


if __name__ == "__main__":
    sys.exit(main())
