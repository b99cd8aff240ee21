"""The schema, compared with the list of the open data record; written files are read by uproot."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import uproot

from data import jetntuple

FLOAT, INT, UINT64, FLOATS, INTS = "float", "int32_t", "uint64_t", "float[]", "int32_t[]"
RECORD = {
    FLOAT: (
        "jetPt jetEta jetPhi jetMass jetGirth jetArea jetRawPt jetRawMass jetQGl QG_ptD QG_axis2"
        " genJetPt genJetEta genJetPhi genJetMass dPhiJetsLO dEtaJetsLO alpha pthat eventWeight"
        " rhoAll rhoCentral rhoCentralNeutral rhoCentralChargedPileUp Pileup_nTrueInt"
    ),
    INT: (
        "jetLooseID jetTightID jetGenMatch QG_mult partonFlav hadronFlav physFlav isPhysUDS isPhysG"
        " isPhysOther isPartonUDS isPartonG isPartonOther jetChargedHadronMult jetNeutralHadronMult"
        " jetChargedMult jetNeutralMult jetMult nPF nGenJetPF eventJetMult jetPtOrder run lumi"
        " PV_npvsGood Pileup_nPU"
    ),
    UINT64: "event",
    FLOATS: (
        "PF_pT PF_dR PF_dTheta PF_dPhi PF_dEta PF_mass genJetPF_pT genJetPF_dR genJetPF_dTheta"
        " genJetPF_mass"
    ),
    INTS: "PF_id PF_fromPV PF_fromAK4Jet genJetPF_id",
}
EXPECTED = {name: kind for kind, names in RECORD.items() for name in names.split()}
REFERENCE = Path(__file__).parents[3] / "shared" / "data" / "jetntuple_8k.root"


def types(path: Path) -> dict[str, str]:
    with uproot.open(path) as file:
        return {branch.name: branch.typename for branch in file[jetntuple.TREE].branches}


def small_sample(rng: np.random.Generator, counts: dict[str, list[int]]) -> jetntuple.Columns:
    jets = len(counts["nPF"])
    sizes = {
        branch.name: sum(counts[branch.counter]) if branch.counter else jets
        for branch in jetntuple.BRANCHES
    }
    columns = {
        b.name: rng.integers(-100, 100, sizes[b.name]).astype(b.dtype) for b in jetntuple.BRANCHES
    }
    return columns | {name: np.array(values, dtype=np.int32) for name, values in counts.items()}


@pytest.fixture
def sample() -> jetntuple.Columns:
    return small_sample(np.random.default_rng(1), {"nPF": [3, 0, 2, 4], "nGenJetPF": [0, 1, 2, 1]})


def test_the_schema_has_the_66_branches_of_the_record():
    assert len(EXPECTED) == 66
    assert set(jetntuple.BY_NAME) == set(EXPECTED)


def test_a_generated_file_has_the_branches_and_types_of_the_record(generated):
    assert types(generated) == EXPECTED


@pytest.mark.skipif(
    not REFERENCE.exists(), reason="the reference file lies beside some checkouts only"
)
def test_a_generated_file_has_the_branches_and_types_of_the_reference_file(generated):
    assert types(generated) == types(REFERENCE)


def test_uproot_reads_the_columns_that_were_written(tmp_path, sample):
    jetntuple.write(tmp_path / "a.root", sample)
    with uproot.open(tmp_path / "a.root") as file:
        tree = file["AK4jets/jetTree"]
        for branch in jetntuple.BRANCHES:
            values = tree[branch.name].array(library="np")
            flat = np.concatenate(list(values)) if branch.counter else values
            assert flat.dtype == branch.dtype
            np.testing.assert_array_equal(flat, sample[branch.name], err_msg=branch.name)
        assert [len(v) for v in tree["PF_pT"].array(library="np")] == [3, 0, 2, 4]


@pytest.mark.parametrize("position", range(5))
def test_concatenated_slices_equal_the_whole(sample, position):
    parts = [
        jetntuple.slice_jets(sample, 0, position),
        jetntuple.slice_jets(sample, position, 4),
    ]
    joined = jetntuple.concatenate(parts)
    assert jetntuple.length(parts[0]) == position
    for name, values in sample.items():
        np.testing.assert_array_equal(joined[name], values, err_msg=name)


def test_columns_outside_the_schema_are_refused(sample):
    with pytest.raises(ValueError, match="jetPtt"):
        jetntuple.in_schema(sample | {"jetPtt": sample["jetPt"]})
    with pytest.raises(KeyError, match="jetPt"):
        jetntuple.in_schema({name: values for name, values in sample.items() if name != "jetPt"})
