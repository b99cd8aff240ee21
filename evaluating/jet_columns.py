"""Jet-level columns for the evaluation, as far as the input files have them.

Boosted trees, with which the report compares the network, take the properties of each jet and the
fractions of its pT by kind of particle. The response is shown against a pile-up column. Both are
stored in prepared data of their own, so that the tensors and the prepared data of the data config
stay as weaver-core defines them.

The inputs are only what a calibration may use: no generator truth (flavours, pile-up interactions),
and of the event only its pile-up density and number of vertices.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from typing import Any

from weaver.config.data_config import DataConfig

JET = (
    "jetPt",
    "jetEta",
    "jetMass",
    "jetGirth",
    "jetArea",
    "jetRawPt",
    "jetRawMass",
    "jetQGl",
    "QG_ptD",
    "QG_axis2",
    "QG_mult",
    "jetChargedHadronMult",
    "jetNeutralHadronMult",
    "jetChargedMult",
    "jetNeutralMult",
    "jetMult",
    "rhoAll",
    "rhoCentral",
    "rhoCentralNeutral",
    "rhoCentralChargedPileUp",
    "PV_npvsGood",
)
"""Properties of a jet and of the pile-up around it, named as in the JetNtuple."""

OWN_PT = "PF_pT * (PF_fromAK4Jet == 1)"
KINDS = {"ChargedHadron": 211, "NeutralHadron": 130, "Photon": 22, "Electron": 11, "Muon": 13}
FRACTIONS = {}
"""Expression for the fraction of the pT of the jet's own candidates, by kind of particle.

They correspond to the energy fractions of CMS, with pT in place of energy.
"""
for _kind, _code in KINDS.items():
    FRACTIONS[f"fraction{_kind}"] = (
        f"ak.sum({OWN_PT} * (np.abs(PF_id) == {_code}), axis=1) / ak.sum({OWN_PT}, axis=1)"
    )

PILEUP = ("Pileup_nTrueInt", "rhoAll", "PV_npvsGood")
"""Pile-up columns of the JetNtuple, in the order in which the report prefers them."""

GROUP = "jet"
"""Name of the single group of inputs with these columns, (N, C)."""

REQUIRED = ("jetPt", "jetEta")
"""Columns without which no trees are trained."""

KEY_OBSERVERS = ("jetPt", "genJetPt")
"""Observers with which the evaluation checks that these columns belong to the same jets."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class JetColumns:
    """The available columns as a data config that decodes them."""

    options: dict[str, Any]
    """Options of the data config, as in its YAML file; empty where there is nothing to decode."""
    reason: str = ""
    """Why there is nothing to decode, as a sentence without full stop; else empty."""


def of_files(config: DataConfig, branches: Collection[str]) -> JetColumns:
    """Return a data config of the jet-level columns that these branches allow.

    Args:
        config: Data config of the run, whose selection, labels and new variables also hold here. A
            column is the branch of its name, or the new variable of that name.
        branches: Branches of the files.
    """
    if config.label_type != "custom" or len(config.label_names) != 1:
        return JetColumns(options={}, reason="the data config has no single label to regress")
    own = config.options.get("new_variables") or {}
    options: dict[str, Any] = {
        "treename": config.treename,
        "selection": config.options.get("selection"),
        "test_time_selection": config.options.get("test_time_selection"),
        "branch_magic": config.options.get("branch_magic"),
        "file_magic": config.options.get("file_magic"),
        "new_variables": {**FRACTIONS, **own},
        "inputs": {GROUP: {"length": None, "vars": [*JET, *FRACTIONS]}},
        "labels": config.options["labels"],
        "weights": config.options.get("weights"),
        "observers": list(dict.fromkeys([*KEY_OBSERVERS, *PILEUP])),
    }
    options = {name: value for name, value in options.items() if value is not None}
    all_columns = DataConfig.from_options(options, "jet columns")

    def is_available(name: str) -> bool:
        return set(all_columns.plan_for([name]).branches.values()) <= set(branches)

    inputs = [name for name in (*JET, *FRACTIONS) if is_available(name)]
    missing = [name for name in (*REQUIRED, *KEY_OBSERVERS) if not is_available(name)]
    if missing:
        return JetColumns(options={}, reason=f"the files have no column {missing[0]}")
    options["inputs"] = {GROUP: {"length": None, "vars": inputs}}
    options["observers"] = [name for name in options["observers"] if is_available(name)]
    options["new_variables"] = {
        **{name: text for name, text in FRACTIONS.items() if name in inputs},
        **own,
    }
    return JetColumns(options=options)
