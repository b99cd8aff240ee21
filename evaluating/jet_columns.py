"""The jet-level columns that evaluate needs, where the files have them.

Boosted trees, with which the report compares the network, take the properties of each jet and the
shares of its pT by kind of particle. The response is shown against a pile-up column. Both are kept
in prepared data of their own: the tensors of the data config, which are weaver-core's, do not
change, and neither does the folder of its prepared data.

Only what a calibration may use is among the inputs: no generator truth (flavours, pile-up
interactions), and nothing of the event but its pile-up density and vertices.
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
"""Properties of a jet and of the pile-up around it, in the JetNtuple's names."""

OWN_PT = "PF_pT * (PF_fromAK4Jet == 1)"
KINDS = {"ChargedHadron": 211, "NeutralHadron": 130, "Photon": 22, "Electron": 11, "Muon": 13}
FRACTIONS = {}
"""Share of the pT of the jet's own candidates by kind of particle: name -> expression.

CMS's energy fractions, by pT in place of energy.
"""
for _kind, _code in KINDS.items():
    FRACTIONS[f"fraction{_kind}"] = (
        f"ak.sum({OWN_PT} * (np.abs(PF_id) == {_code}), axis=1) / ak.sum({OWN_PT}, axis=1)"
    )

PILEUP = ("Pileup_nTrueInt", "rhoAll", "PV_npvsGood")
"""Pile-up columns of the JetNtuple, the one that the report prefers first."""

GROUP = "jet"
"""The one group of inputs of these columns: (N, C)."""

NEEDED = ("jetPt", "jetEta")
"""Without these two there is nothing to train trees on."""

ALIGNED = ("jetPt", "genJetPt")
"""Observers by which these columns are known to be those of the same jets."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class JetColumns:
    """Which of the columns files have, and the data config that decodes them."""

    options: dict[str, Any]
    """Of the data config, as YAML holds it; empty where there is nothing to decode."""
    reason: str = ""
    """Why there is nothing to decode, as a sentence without its full stop."""


def of_files(config: DataConfig, branches: Collection[str]) -> JetColumns:
    """The columns that can be made of these branches.

    config: the run's data config, whose selection, labels and new variables hold here too: a column
    is the branch of its name, or the new variable of that name.
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
        "observers": list(dict.fromkeys([*ALIGNED, *PILEUP])),
    }
    options = {name: value for name, value in options.items() if value is not None}
    every = DataConfig.from_options(options, "jet columns")

    def can_be_made(name: str) -> bool:
        return set(every.plan_for([name]).branches.values()) <= set(branches)

    inputs = [name for name in (*JET, *FRACTIONS) if can_be_made(name)]
    missing = [name for name in (*NEEDED, *ALIGNED) if not can_be_made(name)]
    if missing:
        return JetColumns(options={}, reason=f"the files have no column {missing[0]}")
    options["inputs"] = {GROUP: {"length": None, "vars": inputs}}
    options["observers"] = [name for name in options["observers"] if can_be_made(name)]
    options["new_variables"] = {
        **{name: text for name, text in FRACTIONS.items() if name in inputs},
        **own,
    }
    return JetColumns(options=options)
