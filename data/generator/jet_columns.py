"""The columns of the JetNtuple (data.jetntuple) of a reconstructed block of events."""

from __future__ import annotations

import dataclasses

import numpy as np

from data import ragged
from data.generator import clustering, detector, quark_gluon, reconstruction
from data.generator.detector import Candidates
from data.generator.jec import StandardJEC
from data.generator.quark_gluon import Likelihood
from data.generator.reconstruction import Reconstructed
from data.jetntuple import Columns

MIN_PT, MAX_ETA = 30.0, 2.5
"""GeV. Events are kept when the two leading jets pass, and of these events every jet
that passes.
"""
BOX = 1.0  # half the side in (eta, phi) of the square of candidates stored with a jet


@dataclasses.dataclass(frozen=True)
class Selected:
    """The stored jets. `jets` (sorted by event, then by falling corrected pT), corrected `pt`,
    `factor` = corrected / raw pT.

    `source` is each jet's index among all reconstructed jets; `per_event` holds one value an event
    of the leading-jet variables.
    """

    jets: clustering.Jets
    source: np.ndarray
    pt: np.ndarray
    factor: np.ndarray
    per_event: Columns


def columns(
    block: Reconstructed, jec: StandardJEC, likelihood: Likelihood, *, first_event: int, lumi: int
) -> Columns:
    """All 66 columns. `first_event` numbers the block's first event;

    `lumi` is the block's own number, from 1.
    """
    kept = select(block, jec)
    return {
        **_jet_columns(block, kept),
        **_shape_columns(block, kept, likelihood),
        **_identification_columns(block, kept),
        **_flavour_columns(block, kept),
        **_candidate_columns(block, kept),
        **_generator_columns(block, kept),
        **_event_columns(block, kept, first_event, lumi),
    }


def select(block: Reconstructed, jec: StandardJEC) -> Selected:
    """Correct all jets, keep the events whose two leading jets pass, and of them the jets that
    pass.
    """
    jets, events = block.jets, len(block.hard)
    factor = jec.correction(jets.pt, jets.eta, block.area, block.densities.all[jets.event])
    pt = jets.pt * factor
    rank = ragged.rank_in_group(jets.event, -pt)
    passes = (pt > MIN_PT) & (np.abs(jets.eta) < MAX_ETA)
    both = ragged.total(jets.event, passes & (rank < 2), events) == 2
    chosen = np.flatnonzero(passes & both[jets.event])
    chosen = chosen[np.lexsort((-pt[chosen], jets.event[chosen]))]
    return Selected(
        jets=clustering.ordered(jets, chosen),
        source=chosen,
        pt=pt[chosen],
        factor=factor[chosen],
        per_event=_leading_jets(jets, pt, rank, events),
    )


def _leading_jets(jets: clustering.Jets, pt: np.ndarray, rank: np.ndarray, events: int) -> Columns:
    """Angles between the two leading jets and alpha = pT of the third / mean pT of the two:

    (events,) each, 0 where undefined.
    """
    lead_pt, eta, phi = (np.zeros((3, events)) for _ in range(3))
    top = rank < 3
    for into, values in ((lead_pt, pt), (eta, jets.eta), (phi, jets.phi)):
        into[rank[top], jets.event[top]] = values[top]
    mean = (lead_pt[0] + lead_pt[1]) / 2
    return {
        "dPhiJetsLO": ragged.delta_phi(phi[0], phi[1]),
        "dEtaJetsLO": eta[0] - eta[1],
        "alpha": np.divide(lead_pt[2], mean, out=np.zeros(events), where=mean > 0),
    }


# ---------------------------------------------------------------------------------------- one jet


def _jet_columns(block: Reconstructed, kept: Selected) -> Columns:
    jets = kept.jets
    members = block.candidates[jets.member]
    d_eta, d_phi = (
        members.eta - jets.eta[jets.member_jet],
        ragged.delta_phi(members.phi, jets.phi[jets.member_jet]),
    )
    girth = ragged.total(jets.member_jet, members.pt * np.hypot(d_eta, d_phi), len(jets)) / jets.pt
    return {
        "jetPt": kept.pt,
        "jetEta": jets.eta,
        "jetPhi": jets.phi,
        "jetMass": jets.mass * kept.factor,
        "jetGirth": girth,
        "jetArea": block.area[kept.source],
        "jetRawPt": jets.pt,
        "jetRawMass": jets.mass,
    }


def _shape_columns(block: Reconstructed, kept: Selected, likelihood: Likelihood) -> Columns:
    jets = kept.jets
    shape = quark_gluon.shape(jets.member_jet, block.candidates[jets.member], jets.eta, jets.phi)
    return {
        "jetQGl": likelihood(kept.pt, jets.eta, shape),
        "QG_ptD": shape.pt_d,
        "QG_axis2": shape.axis2,
        "QG_mult": shape.multiplicity,
    }


def _identification_columns(block: Reconstructed, kept: Selected) -> Columns:
    """Multiplicities by type, and the jet identification of 2016: energy fractions that real jets
    have and noise has not.
    """
    jets = kept.jets
    members = block.candidates[jets.member]
    kind = np.abs(members.id)
    energy = members.pt * np.cosh(members.eta)

    def number(which: np.ndarray) -> np.ndarray:
        return ragged.counts_of(jets.member_jet[which], len(jets))

    def fraction(which: np.ndarray) -> np.ndarray:
        return ragged.total(jets.member_jet, energy * which, len(jets)) / whole

    whole = np.maximum(ragged.total(jets.member_jet, energy, len(jets)), 1e-12)
    charged_hadron, neutral_hadron = (
        kind == detector.CHARGED_HADRON,
        np.isin(kind, (detector.NEUTRAL_HADRON, detector.FORWARD_HADRON)),
    )
    photon, electron = (
        np.isin(kind, (detector.PHOTON, detector.FORWARD_PHOTON)),
        kind == detector.ELECTRON,
    )
    size, charged = ragged.counts_of(jets.member_jet, len(jets)), number(~members.is_neutral)
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


def _flavour_columns(block: Reconstructed, kept: Selected) -> Columns:
    hadron = reconstruction.hadron_flavour(block.hard, block.heavy, len(block.jets))
    parton = reconstruction.parton_flavour(block.hard, block.parton, hadron)[kept.source]
    physics = reconstruction.physics_flavour(block.hard, kept.jets)
    out = {"hadronFlav": hadron[kept.source], "partonFlav": parton, "physFlav": physics}
    for name, flavour in (("Phys", np.abs(physics)), ("Parton", np.abs(parton))):
        light, gluon = (flavour >= 1) & (flavour <= 3), flavour == 21
        out |= {f"is{name}UDS": light, f"is{name}G": gluon, f"is{name}Other": ~(light | gluon)}
    return out


def _candidate_columns(block: Reconstructed, kept: Selected) -> Columns:
    jets, candidates = kept.jets, block.candidates
    owner = np.full(len(candidates), -1)
    owner[jets.member] = jets.member_jet
    return candidates_around(jets.event, jets.eta, jets.phi, candidates, owner, len(block.hard))


def candidates_around(
    event: np.ndarray,
    eta: np.ndarray,
    phi: np.ndarray,
    candidates: Candidates,
    owner: np.ndarray,
    events: int,
) -> Columns:
    """The candidates in the box around each jet, in the event's order: nPF and the PF_ columns.

    event, eta, phi: of the jets, (J,) each. owner: the jet that a candidate is part of, -1 for
    none, one for each candidate.
    """
    jet, index = ragged.pairs(event, candidates.event, events)
    d_eta, d_phi = (
        candidates.eta[index] - eta[jet],
        ragged.delta_phi(candidates.phi[index], phi[jet]),
    )
    near = (np.abs(d_eta) < BOX) & (np.abs(d_phi) < BOX)
    jet, index, d_eta, d_phi = jet[near], index[near], d_eta[near], d_phi[near]
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


def _generator_columns(block: Reconstructed, kept: Selected) -> Columns:
    """The matched generator jets, zero for jets without one, and their particles by falling pT."""
    gen = block.gen_match[kept.source]
    matched = gen >= 0
    jet = np.flatnonzero(matched)
    found = clustering.ordered(block.gen_jets, gen[matched])
    order = np.lexsort((-block.hard.final.pt[found.member], found.member_jet))
    of, particles = found.member_jet[order], block.hard.final[found.member[order]]
    d_eta, d_phi = particles.eta - found.eta[of], ragged.delta_phi(particles.phi, found.phi[of])

    def spread(values: np.ndarray) -> np.ndarray:
        full = np.zeros(len(gen))
        full[jet] = values
        return full

    return {
        "jetGenMatch": matched,
        "genJetPt": spread(found.pt),
        "genJetEta": spread(found.eta),
        "genJetPhi": spread(found.phi),
        "genJetMass": spread(found.mass),
        "nGenJetPF": spread(ragged.counts_of(of, len(found))),
        "genJetPF_pT": particles.pt,
        "genJetPF_dR": np.hypot(d_eta, d_phi),
        "genJetPF_dTheta": np.arctan2(d_phi, d_eta),
        "genJetPF_mass": particles.mass,
        "genJetPF_id": particles.id,
    }


# -------------------------------------------------------------------------------------- the event


def _event_columns(block: Reconstructed, kept: Selected, first_event: int, lumi: int) -> Columns:
    """Per-event values, repeated for each jet of the event."""
    event, events = kept.jets.event, len(block.hard)
    per_event = {
        **kept.per_event,
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
        "jetPtOrder": ragged.rank_in_group(event, -kept.pt),
        **{name: values[event] for name, values in per_event.items()},
    }
