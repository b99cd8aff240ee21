"""Small NanoAOD files whose jets and candidates can be checked by hand."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import awkward as ak
import numpy as np
import uproot


def events() -> dict[str, list]:
    """Three events: two jets that pass; one jet only; two jets of which the second is too soft.

    Jets are not sorted by pT.
    """
    return {
        "Jet_pt": [[60.0, 100.0], [80.0], [90.0, 20.0]],
        "Jet_eta": [[-0.5, 0.5], [1.0], [0.0, 0.2]],
        "Jet_phi": [[3.1, 0.0], [1.0], [-3.1, 0.0]],
        "Jet_mass": [[6.0, 10.0], [8.0], [9.0, 2.0]],
        "Jet_rawFactor": [[0.1, 0.2], [0.0], [0.05, 0.0]],
        "Jet_area": [[0.5, 0.5], [0.5], [0.5, 0.5]],
        "Jet_partonFlavour": [[21, 2], [5], [0, 0]],
        "Jet_hadronFlavour": [[0, 0], [5], [0, 0]],
        "Jet_jetId": [[6, 2], [0], [1, 0]],
        "GenJet_pt": [[95.0, 55.0], [79.0], [88.0]],
        "GenJet_eta": [[0.51, -0.5], [1.5], [0.0]],
        "GenJet_phi": [[0.0, -3.1], [1.0], [-3.1]],
        "GenJet_mass": [[9.0, 5.0], [7.0], [8.0]],
        "PFCands_pt": [[50.0, 30.0, 20.0, 5.0], [80.0], [40.0]],
        "PFCands_eta": [[0.5, 0.6, -0.5, 4.0], [1.0], [0.0]],
        "PFCands_phi": [[0.0, 0.1, -3.12, 0.0], [1.0], [-3.1]],
        "PFCands_mass": [[0.14, 0.0, 0.5, 0.0], [0.14], [0.0]],
        "PFCands_pdgId": [[211, 22, 130, 1], [-211], [22]],
        "PFCands_charge": [[1, 0, 0, 0], [-1], [0]],
        "PFCands_pvAssocQuality": [[7, 7, 7, 7], [0], [7]],
        "PFCands_dz": [[0.01, 1.0, 1.0, 1.0], [3.0], [1.0]],
        "JetPFCands_jetIdx": [[1, 1, 0], [0], [0]],
        "JetPFCands_pFCandsIdx": [[0, 1, 2], [0], [0]],
    }


FLAT = {
    "run": [1, 1, 1],
    "luminosityBlock": [7, 7, 7],
    "event": [11, 12, 13],
    "PV_npvsGood": [20, 21, 22],
    "Rho_fixedGridRhoFastjetAll": [10.0, 11.0, 12.0],
}


def write(
    path: Path,
    drop: tuple[str, ...] = (),
    more: Mapping[str, list] = MappingProxyType({}),
    *,
    as_ttree: bool = False,
) -> Path:
    """Write the events, without the branches that begin with one of `drop`; returns the path.

    As an RNTuple, which is uproot's default, or as a TTree.
    """
    data = {
        name: ak.values_astype(ak.Array(values), np.int32 if _is_int(values) else np.float32)
        for name, values in (events() | dict(more)).items()
    }
    data |= {name: np.array(values) for name, values in FLAT.items()}
    selected = (
        {name: values for name, values in data.items() if not name.startswith(drop)}
        if drop
        else data
    )
    with uproot.recreate(path) as file:
        if as_ttree:
            types = {
                name: getattr(values, "dtype", None) or values.type.content
                for name, values in selected.items()
            }
            file.mktree("Events", types).extend(selected)
        else:
            file["Events"] = selected
    return path


def _is_int(values: list) -> bool:
    return all(isinstance(value, int) for event in values for value in event)
