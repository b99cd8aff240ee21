"""Small synthetic JetNtuple files with a learnable target, and the prepared data made of them."""

from __future__ import annotations

import json
import types
from pathlib import Path

import awkward as ak
import numpy as np
import pytest
import uproot

DATA = Path(__file__).parents[2] / "data"
SCALARS = (
    "jetPt",
    "jetEta",
    "jetPhi",
    "jetMass",
    "jetArea",
    "QG_ptD",
    "QG_axis2",
    "genJetPt",
    "genJetEta",
)
INTEGERS = ("QG_mult", "partonFlav", "hadronFlav")


def synthetic_jets(count: int, seed: int) -> dict[str, np.ndarray | ak.Array]:
    """Branch name -> column, as uproot writes them; the record `PF` becomes the branches nPF,
    PF_pT, PF_dEta, ...

    The true pT depends on the jet's eta, on the share of its pT that its candidates sum to and on
    the multiplicity of quark-gluon tagging, with 3 % of noise. One jet in ten is unmatched
    (genJetPt 0), one has no candidates, and some have more than the 100 that the configs keep.
    """
    rng = np.random.default_rng(seed)
    multiplicity = np.where(
        rng.random(count) < 0.1, rng.integers(101, 150, count), rng.integers(5, 60, count)
    )
    multiplicity[count // 2] = 0
    particles = int(multiplicity.sum())
    jet = np.repeat(np.arange(count), multiplicity)

    columns = {name: rng.random(count, dtype=np.float32) for name in SCALARS}
    columns |= {name: rng.integers(0, 5, count, dtype=np.int32) for name in INTEGERS}
    columns["jetPt"] = np.float32(30 * (1 + rng.pareto(2.5, count)))
    columns["jetEta"] = np.float32(rng.uniform(-2.4, 2.4, count))
    columns["QG_mult"] = rng.integers(5, 40, count, dtype=np.int32)

    fraction = rng.exponential(1.0, particles)
    share = rng.uniform(0.7, 1.1, count)
    fraction *= (share / np.maximum(np.bincount(jet, fraction, count), 1e-9))[jet]
    d_eta, d_phi = rng.normal(0, 0.25, (2, particles)).clip(-1, 1)
    pf = {
        "pT": fraction * columns["jetPt"][jet],
        "dEta": d_eta,
        "dPhi": d_phi,
        "dTheta": np.arctan2(d_phi, d_eta),
    }
    pf["dR"] = np.hypot(d_eta, d_phi)

    log_ratio = (
        0.1 * np.tanh(columns["jetEta"]) - 0.5 * np.log(share) + 0.005 * (columns["QG_mult"] - 20.0)
    )
    matched = rng.random(count) > 0.1
    columns["genJetPt"] = np.float32(
        columns["jetPt"] * np.exp(log_ratio + rng.normal(0, 0.03, count)) * matched
    )
    columns["genJetEta"] = columns["jetEta"]
    columns["PF"] = ak.zip(
        {name: ak.unflatten(np.float32(values), multiplicity) for name, values in pf.items()}
    )
    return columns


def write_jets(path: Path, columns: dict, tree: str = "AK4jets/jetTree", basket: int = 100) -> Path:
    """Write columns to a ROOT file in baskets of `basket` jets; returns its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with uproot.recreate(path) as file:
        ttree = file.mktree(tree, {name: _branch_type(values) for name, values in columns.items()})
        count = len(columns["jetPt"])
        for start in range(0, count, basket):
            ttree.extend({name: values[start : start + basket] for name, values in columns.items()})
    return path


def _branch_type(values):
    return values.dtype if isinstance(values, np.ndarray) else values.type.content


@pytest.fixture(scope="session")
def jet_files(tmp_path_factory) -> Path:
    """A folder with train/a.root, train/b.root (300 jets each), val/a.root and test/a.root (200
    each).
    """
    folder = tmp_path_factory.mktemp("jets")
    for seed, (name, count) in enumerate(
        {"train/a": 300, "train/b": 300, "val/a": 200, "test/a": 200}.items(), start=1
    ):
        write_jets(folder / f"{name}.root", synthetic_jets(count, seed))
    return folder


def _prepare(folder: Path, config: Path, files: Path) -> types.SimpleNamespace:
    """Prepare train, val and test; the namespace holds data_config (path) and train, val, test
    (paths of the references).
    """
    from weaver.config.data_config import DataConfig
    from weaver.prepared.prepare import prepare

    result = types.SimpleNamespace(data_config=config)
    for sample in ("train", "val", "test"):
        prepared = prepare(
            [f"{files}/{sample}/*.root"],
            DataConfig.load(str(config)),
            str(folder),
            for_training=sample != "test",
            validation=sample == "val",
        )
        reference = folder / "data" / f"{sample}.json"
        reference.parent.mkdir(exist_ok=True)
        reference.write_text(json.dumps({"dataset": prepared.uri}))
        setattr(result, sample, reference)
    return result


@pytest.fixture(scope="session")
def prepared(tmp_path_factory, jet_files) -> types.SimpleNamespace:
    """Prepared data for the PFN:

    `.train`, `.val`, `.test` (reference files, Path) and `.data_config` (Path).
    """
    return _prepare(tmp_path_factory.mktemp("pfn"), DATA / "jec_pfn_open.yaml", jet_files)


@pytest.fixture(scope="session")
def prepared_particle_net(tmp_path_factory, jet_files) -> types.SimpleNamespace:
    """The same for ParticleNet."""
    return _prepare(
        tmp_path_factory.mktemp("particle_net"), DATA / "jec_particle_net_open.yaml", jet_files
    )
