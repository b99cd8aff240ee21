"""serving.calibrate on PFNano: a friend of the events, whose lists are those of the file's jets."""

from __future__ import annotations

import json
from pathlib import Path

import awkward as ak
import numpy as np
import pytest
import uproot

from data import from_nanoaod
from serving import calibrate
from serving.calibration import sources
from tests.data import nanoaod
from tests.serving.calibration_files import write_model

REAL = Path(__file__).parents[3] / "shared" / "data"
# Of the jets in the file's order: pT of the candidates around each, and its tracks and hard
# neutral candidates. The last jet has none.
SUMS = [[20.0, 80.0], [80.0], [40.0, 0.0]]
MULT = [[1, 2], [1], [1, 0]]


@pytest.fixture(scope="session")
def onnx(tmp_path_factory) -> Path:
    return write_model(tmp_path_factory.mktemp("model") / "model.onnx")


@pytest.fixture
def run(tmp_path, onnx, capsys):
    """Run the command; returns (exit code, stdout, stderr)."""

    def command(*arguments: object, model: Path = onnx):
        place = ["--model", str(model), "--output", str(tmp_path / "out")]
        code = calibrate.main([*map(str, arguments), *place])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return command


def assert_answers(path: Path) -> None:
    """The friend of the three events of tests/data/nanoaod.py."""
    pt = ak.Array(nanoaod.events()["Jet_pt"])
    correction = 1 + 0.001 * ak.Array(SUMS) + 0.0001 * ak.Array(MULT)
    with uproot.open(path) as file:
        friend = file["calibration"].arrays()
    assert friend["event"].tolist() == nanoaod.FLAT["event"]
    assert friend["nJet"].tolist() == [2, 1, 2]
    assert ak.num(friend["Jet_valid"]).tolist() == [2, 1, 2]
    assert friend["Jet_valid"].tolist() == [[True, True], [True], [True, False]]
    correction = ak.where(friend["Jet_valid"], correction, 1)
    for name, values in {
        "Jet_pt_correction": correction,
        "Jet_pt_calibrated": pt * correction,
        "Jet_pt_calibrated_q16": 0.9 * pt * correction,
        "Jet_pt_calibrated_q84": 1.1 * pt * correction,
    }.items():
        np.testing.assert_allclose(ak.flatten(friend[name]), ak.flatten(values), rtol=1e-5)


@pytest.mark.parametrize("as_ttree", [True, False])
def test_every_jet_has_its_answer_beside_it(tmp_path, run, as_ttree):
    """Also the soft one, which no training has, and in the file's order, not by pT."""
    code, out, err = run(nanoaod.write(tmp_path / "nano.root", as_ttree=as_ttree))
    assert code == 0
    assert "3/3 events" in err
    assert "jets/s" in err
    assert_answers(tmp_path / "out" / "nano.root")
    assert "Jet_pt_calibrated = Jet_pt * Jet_pt_correction (GeV)" in out


def test_collision_data_needs_no_generator(tmp_path, run):
    without = ("Gen", "genWeight", "Jet_partonFlavour", "Jet_hadronFlavour", "Pileup")
    code, _, _ = run(nanoaod.write(tmp_path / "data.root", without))
    assert code == 0
    assert_answers(tmp_path / "out" / "data.root")


def test_events_without_jets(tmp_path, run):
    """The friend has an entry for each of them, with an empty list."""
    none = {}
    for name, values in nanoaod.events().items():
        kind = np.int32 if isinstance(values[0][0], int) else np.float32
        none[name] = ak.unflatten(np.zeros(0, kind), np.zeros(3, np.int64))
    with uproot.recreate(tmp_path / "nano.root") as file:
        file["Events"] = none | {n: np.array(v) for n, v in nanoaod.FLAT.items()}
    code, _, _ = run(tmp_path / "nano.root")
    assert code == 0
    with uproot.open(tmp_path / "out" / "nano.root") as file:
        friend = file["calibration"].arrays()
    assert friend["Jet_pt_calibrated"].tolist() == [[], [], []]
    assert friend["event"].tolist() == nanoaod.FLAT["event"]


def test_pfnano_gives_the_same_answers_as_its_jetntuple(tmp_path, run):
    """What from_nanoaod makes for the training, calibrated, is what the PFNano's jets get."""
    path = nanoaod.write(tmp_path / "nano.root")
    (ntuple,) = from_nanoaod.convert(str(path), tmp_path / "ntuple", all_events=True).files
    run(path, ntuple)
    with uproot.open(tmp_path / "out" / ntuple.name) as file:
        of_ntuple = file["calibration"].arrays(library="np")
    with uproot.open(tmp_path / "out" / "nano.root") as file:
        of_events = file["calibration"].arrays()
    order = [(0, 1), (0, 0), (1, 0), (2, 0)]  # the ntuple has jets above 30 GeV, by pT
    assert of_ntuple["event"].tolist() == [11, 11, 12, 13]
    for name in ("calibrated", "correction"):
        values = [of_events[f"Jet_pt_{name}"][event, jet] for event, jet in order]
        assert of_ntuple[f"jetPt_{name}"].tolist() == values


def test_parquet_has_lists(tmp_path, run):
    code, _, _ = run(nanoaod.write(tmp_path / "nano.root"), "--format", "parquet")
    assert code == 0
    output = ak.from_parquet(tmp_path / "out" / "nano.parquet")
    assert output["Jet_valid"].tolist() == [[True, True], [True], [True, False]]
    assert output["event"].tolist() == nanoaod.FLAT["event"]


def test_plain_nanoaod_is_refused(tmp_path, run):
    code, _, err = run(nanoaod.write(tmp_path / "nano.root", ("PFCands", "JetPFCands")))
    assert code == 2
    assert "nano.root is NanoAOD without particle-flow candidates" in err
    assert not (tmp_path / "out").exists()


def test_a_column_that_cannot_be_computed_is_named():
    """A model's column is never filled with a constant that the training did not have."""
    present = {*from_nanoaod.JETS, *from_nanoaod.CANDIDATES, *from_nanoaod.LINKS}
    branches, lacking = from_nanoaod.branches_for(["jetPt", "PF_pT"], present)
    assert set(branches) == present
    assert not lacking
    _, lacking = from_nanoaod.branches_for(["PF_fromPV", "rhoAll", "jetQGl", "pthat"], present)
    assert set(lacking) == {"PF_fromPV", "rhoAll", "jetQGl", "pthat"}
    assert "PFCands_pvAssocQuality" in lacking["PF_fromPV"]
    _, lacking = from_nanoaod.branches_for(["rhoAll"], {*present, "Rho_fixedGridRhoFastjetAll"})
    assert not lacking


def test_jets_of_another_era_are_refused(tmp_path, onnx, run):
    """Run 316110 is of 2018."""
    with uproot.open(nanoaod.write(tmp_path / "all.root")) as file:
        events = file["Events"].arrays(how=dict)
    events = {name: values for name, values in events.items() if not name.startswith("n")}
    events["run"] = np.full(3, 316110, np.uint32)
    with uproot.recreate(tmp_path / "nano.root") as file:
        file["Events"] = events
    right = write_model(tmp_path / "right.onnx", facts={"era": "2017-2018"})
    wrong = write_model(tmp_path / "wrong.onnx", facts={"era": "2016"})
    code, _, err = run(tmp_path / "nano.root", model=wrong)
    assert code == 2
    assert "nano.root: it is of 2018 (run 316110), the training of 2016" in err
    assert not (tmp_path / "out").exists()
    code, _, err = run(tmp_path / "nano.root", "--force", model=wrong)
    assert code == 0
    assert "warning" in err
    with uproot.open(tmp_path / "out" / "nano.root") as file:
        (forced,) = json.loads(str(file["calibration_info"]))["forced"]
    assert "2016" in forced
    (tmp_path / "out").rename(tmp_path / "forced")
    code, out, _ = run(tmp_path / "nano.root", model=right)
    assert code == 0
    assert "not compared with the training (radius, CHS or PUPPI)" in out


def test_jets_of_another_kind_are_refused(tmp_path, run, monkeypatch):
    """CMS says in the title of nJet which jets they are."""
    model = write_model(tmp_path / "chs.onnx", facts={"jet type": "AK4 PFCHS"})
    path = nanoaod.write(tmp_path / "nano.root")
    look = sources._events_tree

    def titled(entry):
        branches, _ = look(entry)
        return branches, "slimmedJetsPuppi, i.e. ak4 PFJets Puppi with JECs applied"

    monkeypatch.setattr(sources, "_events_tree", titled)
    code, _, err = run(path, model=model)
    assert code == 2
    assert "its jets are PUPPI jets, those of the training CHS" in err
    assert "--force" in err


def test_real_pfnano(tmp_path, run):
    """Each jet of a CMS file has an answer, and the friend is as long as the file's collection."""
    path = REAL / "cms_pfnano_10ev.root"
    if not path.exists():
        pytest.skip("no CMS file at hand")
    puppi = write_model(tmp_path / "puppi.onnx", facts={"jet type": "AK4 PUPPI"})
    code, _, err = run(path, model=puppi)
    assert code == 2
    assert "its jets are CHS jets" in err
    code, _, _ = run(path)
    assert code == 0
    with uproot.open(path) as file, uproot.open(tmp_path / "out" / path.name) as other:
        events = file["Events"].arrays(["event", "Jet_pt"])
        friend = other["calibration"].arrays()
    assert friend["event"].tolist() == events["event"].tolist()
    assert ak.num(friend["Jet_valid"]).tolist() == ak.num(events["Jet_pt"]).tolist()
    ratio = friend["Jet_pt_calibrated"] / (events["Jet_pt"] * friend["Jet_pt_correction"])
    np.testing.assert_allclose(ak.flatten(ratio), 1, rtol=1e-5)
    assert ak.sum(friend["Jet_pt_correction"] > 1) > 50
