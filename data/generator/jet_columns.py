"""The columns of the JetNtuple (data.jetntuple) of a reconstructed block of events."""

from __future__ import annotations

import dataclasses

import numpy as np

from data import ragged
from data.generator import clustering, detector, quark_gluon, reconstruction
from data.generator.detector import Candidates
from data.generator.jec import StandardJEC
from data.generator.quark_gluon import Likelihood
from data.generator.reconstruction import ReconstructedBlock
from data.jetntuple import Columns

MIN_PT, MAX_ETA = 30.0, 2.5
"""GeV; |eta|.

Events are kept when the two leading jets pass, and of these events every jet that passes.
"""
BOX = 1.0  # half the side in (eta, phi) of the square of candidates stored with a jet


@dataclasses.dataclass(frozen=True)
class JetSelection:
    """The stored jets, (J,), sorted by event, then by falling corrected pT."""

    jets: clustering.Jets
    """With raw pT (GeV)."""
    source: np.ndarray
    """Index of each jet among all reconstructed jets of the block."""
    pt: np.ndarray
    """Corrected pT (GeV)."""
    factor: np.ndarray
    """Corrected / raw pT."""
    per_event: Columns
    """The leading-jet variables, (events,) each."""


def columns(
    block: ReconstructedBlock,
    jec: StandardJEC,
    likelihood: Likelihood,
    *,
    first_event: int,
    lumi: int,
) -> Columns:
    """Return all 66 columns.

    `first_event` numbers the block's first event; `lumi` is the block's own number, from 1.
    """
    selection = select(block, jec)
    jets = selection.jets

    hadron = reconstruction.hadron_flavour(block.hard, block.heavy, len(block.jets))
    parton = reconstruction.parton_flavour(block.hard, block.parton, hadron)
    physics = reconstruction.physics_flavour(block.hard, jets)

    owner = np.full(len(block.candidates), -1)
    owner[jets.member] = jets.member_jet
    around = candidates_around(
        jets.event, jets.eta, jets.phi, block.candidates, owner, len(block.hard)
    )
    return {
        **_jet_columns(block, selection, likelihood),
        **_identification_columns(block, selection),
        **flavour_columns(parton[selection.source], hadron[selection.source], physics),
        **around,
        **_generator_columns(block, selection),
        **_event_columns(block, selection, first_event, lumi),
    }


def select(block: ReconstructedBlock, jec: StandardJEC) -> JetSelection:
    """Correct all jets; keep the events whose two leading jets pass, and of them all that pass."""
    jets, events = block.jets, len(block.hard)
    factor = jec.correction(jets.pt, jets.eta, block.area, block.densities.all[jets.event])
    pt = jets.pt * factor
    rank = ragged.rank_in_group(jets.event, -pt)
    passes = passing(jets.event, pt, jets.eta, rank, events)
    passing_jets = np.flatnonzero(passes)
    passing_jets = passing_jets[np.lexsort((-pt[passing_jets], jets.event[passing_jets]))]
    return JetSelection(
        jets=clustering.select(jets, passing_jets),
        source=passing_jets,
        pt=pt[passing_jets],
        factor=factor[passing_jets],
        per_event=leading_jets(jets.event, pt, jets.eta, jets.phi, rank, events),
    )


def passing(
    event: np.ndarray,
    pt: np.ndarray,
    eta: np.ndarray,
    rank: np.ndarray,
    events: int,
    *,
    all_events: bool = False,
) -> np.ndarray:
    """Return which jets are stored: (N,) bool.

    Those above MIN_PT and within MAX_ETA, of events whose two leading jets are; of `all_events`
    where that is set. event, pt (GeV), eta, rank (by falling pT in the event, from 0): (N,) each.
    """
    passes = (pt > MIN_PT) & (np.abs(eta) < MAX_ETA)
    both = ragged.total(event, passes & (rank < 2), events) == 2
    return passes & (both[event] | all_events)


def leading_jets(
    event: np.ndarray,
    pt: np.ndarray,
    eta: np.ndarray,
    phi: np.ndarray,
    rank: np.ndarray,
    events: int,
) -> Columns:
    """Return angles between the two leading jets, and alpha = pT of the third / mean pT of the two.

    Args:
        event: (J,), event of each jet.
        pt: (J,) in GeV.
        eta: (J,).
        phi: (J,) in radians.
        rank: (J,), 0 for the jet of highest pT in its event.
        events: number of events.

    Returns:
        Name -> (events,), 0 in events without two jets.
    """
    # (3, events): the three leading jets of each event, 0 where there are fewer
    lead_pt = np.zeros((3, events))
    lead_eta = np.zeros((3, events))
    lead_phi = np.zeros((3, events))
    top = rank < 3
    for lead, values in ((lead_pt, pt), (lead_eta, eta), (lead_phi, phi)):
        lead[rank[top], event[top]] = values[top]
    two = lead_pt[1] > 0
    mean = (lead_pt[0] + lead_pt[1]) / 2
    return {
        "dPhiJetsLO": np.where(two, ragged.delta_phi(lead_phi[0], lead_phi[1]), 0.0),
        "dEtaJetsLO": np.where(two, lead_eta[0] - lead_eta[1], 0.0),
        "alpha": np.divide(lead_pt[2], mean, out=np.zeros(events), where=two),
    }


# ---------------------------------------------------------------------------------------- one jet


def _jet_columns(
    block: ReconstructedBlock, selection: JetSelection, likelihood: Likelihood
) -> Columns:
    jets = selection.jets
    members = block.candidates[jets.member]
    shape = quark_gluon.shape(jets.member_jet, members, jets.eta, jets.phi)
    return {
        "jetPt": selection.pt,
        "jetEta": jets.eta,
        "jetPhi": jets.phi,
        "jetMass": jets.mass * selection.factor,
        "jetGirth": girth(jets.member_jet, members, jets.pt, jets.eta, jets.phi),
        "jetArea": block.area[selection.source],
        "jetRawPt": jets.pt,
        "jetRawMass": jets.mass,
        "jetQGl": likelihood(selection.pt, jets.eta, shape),
        "QG_ptD": shape.pt_d,
        "QG_axis2": shape.axis2,
        "QG_mult": shape.multiplicity,
    }


def girth(
    jet: np.ndarray,
    members: Candidates,
    raw_pt: np.ndarray,
    eta: np.ndarray,
    phi: np.ndarray,
) -> np.ndarray:
    """Return the pT-weighted mean distance dR of the members from the axis: (J,).

    `jet` is the jet of each member. raw_pt (GeV), eta, phi: of the jets, (J,) each. Source: J.
    Gallicchio, M. Schwartz, PRL 107 (2011) 172001, arXiv:1106.3076.
    """
    distance = np.hypot(members.eta - eta[jet], ragged.delta_phi(members.phi, phi[jet]))
    return ragged.total(jet, members.pt * distance, len(eta)) / raw_pt


def _identification_columns(block: ReconstructedBlock, selection: JetSelection) -> Columns:
    """Return the multiplicities by type, and the jet identification of 2016.

    It requires energy fractions that jets have, unlike noise.
    """
    jets = selection.jets
    members = block.candidates[jets.member]
    kind = np.abs(members.id)
    energy = members.pt * np.cosh(members.eta)

    def number(which: np.ndarray) -> np.ndarray:
        return ragged.counts_of(jets.member_jet[which], len(jets))

    def fraction(which: np.ndarray) -> np.ndarray:
        return ragged.total(jets.member_jet, energy * which, len(jets)) / whole

    whole = np.maximum(ragged.total(jets.member_jet, energy, len(jets)), 1e-12)
    charged_hadron = kind == detector.CHARGED_HADRON
    neutral_hadron = np.isin(kind, (detector.NEUTRAL_HADRON, detector.FORWARD_HADRON))
    photon = np.isin(kind, (detector.PHOTON, detector.FORWARD_PHOTON))
    electron = kind == detector.ELECTRON
    size = ragged.counts_of(jets.member_jet, len(jets))
    charged = number(~members.is_neutral)
    # Tracks are required only where the tracker covers the whole jet.
    has_tracks = (fraction(charged_hadron) > 0) & (charged > 0) & (fraction(electron) < 0.99)
    common = (size > 1) & (has_tracks | (np.abs(jets.eta) > 2.4))

    def passes(most: float) -> np.ndarray:
        return common & (fraction(neutral_hadron) < most) & (fraction(photon) < most)

    return {
        "jetLooseID": passes(0.99),
        "jetTightID": passes(0.90),
        "jetChargedHadronMult": number(charged_hadron),
        "jetNeutralHadronMult": number(neutral_hadron),
        "jetChargedMult": charged,
        "jetNeutralMult": size - charged,
        "jetMult": size,
    }


def flavour_columns(parton: np.ndarray, hadron: np.ndarray, physics: np.ndarray) -> Columns:
    """Return the flavours (J,) as signed PDG numbers, and the flags made of them.

    parton: of the clustered partons; hadron: 5, 4 or 0; physics: of the hard process.
    """
    columns = {"hadronFlav": hadron, "partonFlav": parton, "physFlav": physics}
    for name, flavour in (("Phys", np.abs(physics)), ("Parton", np.abs(parton))):
        light = (flavour >= 1) & (flavour <= 3)
        gluon = flavour == 21
        columns[f"is{name}UDS"] = light
        columns[f"is{name}G"] = gluon
        columns[f"is{name}Other"] = ~(light | gluon)
    return columns


def candidates_around(
    event: np.ndarray,
    eta: np.ndarray,
    phi: np.ndarray,
    candidates: Candidates,
    owner: np.ndarray,
    events: int,
) -> Columns:
    """Return the candidates in the box around each jet, in the event's order: nPF, PF_ columns.

    event, eta, phi (radians): of the jets, (J,) each. owner: the jet that a candidate is part of,
    -1 for none, one for each candidate.
    """
    # All pairs of a jet and a candidate of its event; `near` keeps those within the box.
    jet, index = ragged.pairs(event, candidates.event, events)
    d_eta = candidates.eta[index] - eta[jet]
    d_phi = ragged.delta_phi(candidates.phi[index], phi[jet])
    near = (np.abs(d_eta) < BOX) & (np.abs(d_phi) < BOX)
    jet = jet[near]
    index = index[near]
    d_eta = d_eta[near]
    d_phi = d_phi[near]
    return {
        "nPF": ragged.counts_of(jet, len(event)),
        "PF_pT": candidates.pt[index],
        "PF_dR": np.hypot(d_eta, d_phi),
        "PF_dTheta": np.arctan2(d_phi, d_eta),
        "PF_dPhi": d_phi,
        "PF_dEta": d_eta,
        "PF_mass": candidates.mass[index],
        "PF_id": candidates.id[index],
        "PF_fromPV": candidates.from_pv[index],
        "PF_fromAK4Jet": owner[index] == jet,
    }


def _generator_columns(block: ReconstructedBlock, selection: JetSelection) -> Columns:
    """Return the matched generator jets (zero without one) and their particles by falling pT."""
    match = block.gen_match[selection.source]
    matched = match >= 0
    gen_jets = clustering.select(block.gen_jets, match[matched])
    order = np.lexsort((-block.hard.final.pt[gen_jets.member], gen_jets.member_jet))
    gen_jet = gen_jets.member_jet[order]
    particles = block.hard.final[gen_jets.member[order]]

    def of_all_jets(values: np.ndarray) -> np.ndarray:
        full = np.zeros(len(match))  # (matched jets,) -> (J,)
        full[matched] = values
        return full

    return {
        "jetGenMatch": matched,
        "genJetPt": of_all_jets(gen_jets.pt),
        "genJetEta": of_all_jets(gen_jets.eta),
        "genJetPhi": of_all_jets(gen_jets.phi),
        "genJetMass": of_all_jets(gen_jets.mass),
        "nGenJetPF": of_all_jets(ragged.counts_of(gen_jet, len(gen_jets))),
        "genJetPF_pT": particles.pt,
        "genJetPF_mass": particles.mass,
        "genJetPF_id": particles.id,
        **generator_angles(
            particles.eta, particles.phi, gen_jets.eta[gen_jet], gen_jets.phi[gen_jet]
        ),
    }


def generator_angles(
    eta: np.ndarray, phi: np.ndarray, axis_eta: np.ndarray, axis_phi: np.ndarray
) -> Columns:
    """Return positions of particles relative to their generator jet's axis: genJetPF_dR, _dTheta.

    eta and phi (radians) of the particles and of their axes, (N,) each. dTheta is the angle of
    (particle - axis) in the (eta, phi) plane, from the eta axis, in (-pi, pi].
    """
    d_eta = eta - axis_eta
    d_phi = ragged.delta_phi(phi, axis_phi)
    return {"genJetPF_dR": np.hypot(d_eta, d_phi), "genJetPF_dTheta": np.arctan2(d_phi, d_eta)}


# -------------------------------------------------------------------------------------- the event


def _event_columns(
    block: ReconstructedBlock, selection: JetSelection, first_event: int, lumi: int
) -> Columns:
    """Return per-event values, repeated for each jet of the event."""
    event = selection.jets.event
    events = len(block.hard)
    per_event = {
        **selection.per_event,
        "eventJetMult": ragged.counts_of(event, events),
        "event": np.uint64(first_event) + np.arange(events, dtype=np.uint64),
        "run": np.ones(events),  # as in simulation
        "lumi": np.full(events, lumi),
        "pthat": block.hard.pt_hat,
        "eventWeight": block.hard.weight,
        "rhoAll": block.densities.all,
        "rhoCentral": block.densities.central,
        "rhoCentralNeutral": block.densities.central_neutral,
        "rhoCentralChargedPileUp": block.densities.central_charged_pileup,
        "PV_npvsGood": block.pileup.vertices,
        "Pileup_nPU": block.pileup.collisions,
        "Pileup_nTrueInt": block.pileup.mean,
    }
    return {
        "jetPtOrder": ragged.rank_in_group(event, -selection.pt),
        **{name: values[event] for name, values in per_event.items()},
    }
