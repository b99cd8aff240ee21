"""The raw model reports which jets are in its valid range, and returns the standard correction of
the others unchanged.
"""

from __future__ import annotations

import ast
import json
import shutil
import urllib.request
from pathlib import Path

import awkward as ak
import numpy as np
import onnxruntime
import pytest

from common import storage
from common.records import ExportRecord
from serving import golden, serve, triton, validity
from serving.client import Client, golden_check
from tests.docs.printed import python_block
from tests.exporting.test_export import ROOT, make_run, run_export
from tests.weaver.conftest import synthetic_jets, write_jets
from weaver.config.data_config import DataConfig
from weaver.onnx.valid_range import QUANTILES, selection_eta_limit, valid_range
from weaver.prepared.prepare import prepare

RAW = ("--raw-model", "required", "--max-batch-size", "1024")


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    return write_jets(tmp_path_factory.mktemp("jets") / "val.root", synthetic_jets(150, 1)).parent


@pytest.fixture(scope="module")
def exported_run(tmp_path_factory, files) -> Path:
    """A run's folder after its export, with training jets beside it."""
    folder = tmp_path_factory.mktemp("runs")
    run = make_run(str(folder), files)
    training = write_jets(folder / "train.root", synthetic_jets(400, 2))
    data_config = DataConfig.load(str(ROOT / "data" / "jec_pfn_open.yaml"))
    ref = prepare([str(training)], data_config, str(folder), for_training=True)
    storage.write_json(storage.join(run, "data", "train.json"), {"dataset": ref.uri})
    assert run_export(run, more=RAW) == 0
    return Path(run)


@pytest.fixture(scope="module")
def session(exported_run):
    path = exported_run / "model" / "small-raw" / "1" / "model.onnx"
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


@pytest.fixture
def jets(exported_run) -> dict[str, np.ndarray]:
    """A hundred valid jets, each of three particles and places for five."""
    request = storage.read_json(str(exported_run / "golden" / "small-raw" / "request-100.json"))
    limits = ExportRecord.load(str(exported_run / "model" / "export.json")).valid_range
    arrays = {name: x.copy() for name, x in golden.arrays(request["inputs"]).items()}
    for name, x in arrays.items():
        if name.startswith("PF_"):
            arrays[name] = np.full((100, 5), 0.3, np.float32)
            arrays[name][:, :3] = np.nan_to_num(x[:, :3]) + np.float32(0.01)
    arrays["nPF"][:] = 3
    arrays["jetPt"][:] = (limits.min_pt + limits.max_pt) / 2
    arrays["jetEta"][:] = 1
    return arrays


def ask(session, jets: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    names = [entry.name for entry in session.get_outputs()]
    return dict(zip(names, session.run(None, jets), strict=True))


# fault -> (input, value, reason)
FAULTS = {
    "pT is NaN": ("jetPt", np.nan, validity.NOT_FINITE),
    "pT is infinite": ("jetPt", np.inf, validity.NOT_FINITE),
    "pT is negative": ("jetPt", -5, validity.NEGATIVE_PT),
    "pT below the range": ("jetPt", "below", validity.PT_RANGE),
    "pT above the range": ("jetPt", "above", validity.PT_RANGE),
    "eta beyond": ("jetEta", 2.51, validity.ETA_RANGE),
    "eta beyond on the other side": ("jetEta", -4.5, validity.ETA_RANGE),
    "mass is NaN": ("jetMass", np.nan, validity.NOT_FINITE),
    "no particles": ("nPF", 0, validity.NO_PARTICLES),
    "more particles than places": ("nPF", 6, validity.COUNTER),
    "a negative number of particles": ("nPF", -1, validity.COUNTER),
    "a particle's pT is infinite": ("PF_pT", np.inf, validity.NOT_FINITE),
    "a particle's angle is NaN": ("PF_dPhi", np.nan, validity.NOT_FINITE),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_an_invalid_jet_gets_the_standard_correction(exported_run, session, jets, fault):
    before = ask(session, jets)
    assert before["valid"].dtype == bool
    assert before["valid"].all()
    assert np.abs(before["correction"] - 1).max() > 1e-3

    name, value, reason = FAULTS[fault]
    limits = ExportRecord.load(str(exported_run / "model" / "export.json")).valid_range
    value = {"below": limits.min_pt * 0.999, "above": limits.max_pt * 1.001}.get(value, value)
    jets[name][7, -1 if name == "nPF" or jets[name].shape[1] == 1 else 2] = value
    after = ask(session, jets)
    assert not after["valid"][7]
    assert after["correction"][7] == 1
    np.testing.assert_array_equal(after["calibrated_pt"][7], jets["jetPt"][7])
    others = np.arange(100) != 7
    for output, values in after.items():
        np.testing.assert_array_equal(values[others], before[output][others])

    text = session.get_modelmeta().custom_metadata_map[validity.KEY]
    reasons = validity.invalid_reasons(jets, validity.model_range(text))
    assert reasons[7] == reason
    assert (reasons[others] == "").all()
    counts = validity.count_invalid(jets, validity.model_range(text), valid=after["valid"])
    assert counts == {reason: 1}


def test_particles_whose_sum_overflows_are_invalid_for_a_reason(session, jets):
    jets["PF_pT"][7, :3] = 2e38
    jets["PF_pT"][8, 2] = 2e38  # its sum does not
    jets["PF_pT"][9, 3:] = 2e38  # no particles
    answers = ask(session, jets)
    assert np.flatnonzero(~answers["valid"][:, 0]).tolist() == [7]
    text = session.get_modelmeta().custom_metadata_map[validity.KEY]
    counts = validity.count_invalid(jets, validity.model_range(text), valid=answers["valid"])
    assert counts == {validity.NOT_FINITE: 1}


def test_jets_at_the_edges_of_the_range_and_any_padding_are_valid(exported_run, session, jets):
    limits = ExportRecord.load(str(exported_run / "model" / "export.json")).valid_range
    before = ask(session, jets)
    jets["jetPt"][0], jets["jetPt"][1] = limits.min_pt, limits.max_pt
    jets["jetEta"][2], jets["jetEta"][3] = 2.5, -2.5
    jets["PF_pT"][4:, 3:] = np.nan
    after = ask(session, jets)
    assert after["valid"].all()
    text = session.get_modelmeta().custom_metadata_map[validity.KEY]
    assert (validity.invalid_reasons(jets, validity.model_range(text)) == "").all()
    np.testing.assert_array_equal(after["correction"][4:], before["correction"][4:])


def test_the_range_comes_from_the_training_jets_if_they_exist(exported_run):
    folder = storage.read_json(str(exported_run / "data" / "train.json"))["dataset"]
    from weaver.feed.dataset import Dataset

    data_config = DataConfig.load(str(exported_run / "config" / "data.yaml"))
    pt = Dataset.open(folder, data_config).observers()["jetPt"]
    record = ExportRecord.load(str(exported_run / "model" / "export.json")).valid_range
    assert record.jets == "training"
    assert record.min_pt == float(pt.min())
    assert record.max_pt == float(pt.max())
    assert record.max_abs_eta == 2.5
    path = exported_run / "model" / "small-raw" / "1" / "model.onnx"
    metadata = onnxruntime.InferenceSession(path).get_modelmeta().custom_metadata_map
    assert json.loads(metadata["valid_range"])["jets"] == "training"


def test_the_range_of_many_jets_excludes_one_in_a_thousand_at_each_end():
    data_config = DataConfig.load(str(ROOT / "data" / "jec_pfn_open.yaml"))
    pt = np.arange(10_000, dtype=np.float32)
    limits = valid_range(data_config, pt, None, "training")
    assert QUANTILES == (0.001, 0.999)
    assert (limits.min_pt, limits.max_pt) == (9, 9990)
    assert limits.max_abs_eta is None


@pytest.mark.parametrize(
    ("selection", "limit"),
    [
        ("(genJetPt > 20) & (np.abs(genJetEta) < 2.5)", 2.5),
        ("(np.abs(jetEta) <= 2) & (np.abs(genJetEta) < 2.5)", 2.0),
        ("(genJetPt > 20) | (np.abs(jetEta) < 2.5)", None),
        ("np.abs(jetPhi) < 2", None),
        ("genJetPt > 20", None),
    ],
)
def test_the_limit_of_eta_comes_from_the_selection(selection, limit):
    options = {
        "selection": selection,
        "inputs": {"jet": {"length": None, "vars": ["jetPt", "jetEta"]}},
        "labels": {"type": "custom", "value": {"t": "np.log(genJetPt / jetPt)"}},
    }
    data_config = DataConfig.from_options(options, "jec.yaml")
    assert selection_eta_limit(data_config) == limit
    largest = valid_range(data_config, np.ones(3), np.array([0.5, -1.5, 1]), "training")
    assert largest.max_abs_eta == (limit or 1.5)


@pytest.fixture(scope="module", params=["triton", "kserve-server"])
def url(request, exported_run, tmp_path_factory) -> str:
    """Each kind of server over the run's models, with a copy of the raw model by README's name."""
    folder = tmp_path_factory.mktemp("served")
    if request.param == "triton" and (reason := triton.triton_unusable(folder)):
        pytest.skip(f"Triton: {reason}")
    repository = folder / "model"
    shutil.copytree(exported_run / "model", repository)
    shutil.copytree(repository / "small-raw", repository / "NAME-raw")
    for config in (repository / "NAME-raw").rglob("*.pbtxt"):
        config.write_text(config.read_text().replace('"small-raw"', '"NAME-raw"'))
    server = triton.start(
        repository, model_name="small-raw", log=folder / "server.log", kind=request.param
    )
    yield server.url
    triton.stop(server.pid)


def test_the_lines_that_serve_prints_calibrate_one_jet(exported_run, url, tmp_path, capsys):
    server = triton.Server(pid=1, url=url, kind="triton", log="")
    text = serve._usage(server, serve.models_at(str(exported_run)), serve.Ports(), tmp_path)
    lines = text.partition("calibrate jets")[2].splitlines()
    exec("\n".join(line.strip() for line in lines if line.startswith("  ")), {})
    (jet,) = ast.literal_eval(capsys.readouterr().out)
    response = storage.read_json(str(exported_run / "golden" / "small-raw" / "response.json"))
    answers = golden.arrays(response["outputs"])
    for name, value in jet.items():
        assert value == pytest.approx(answers[name].item(), rel=1e-5)


def test_both_servers_return_valid_and_the_range(exported_run, jets, url):
    golden_folder = str(exported_run / "golden" / "small-raw")
    check = golden_check(url, "small-raw", golden_folder, 60)
    assert max(check.max_difference.values()) < 1e-5
    jets["jetPt"][3] = -5
    client = Client(url, "small-raw")
    answer = client.ask(jets)
    assert answer["valid"].dtype == bool
    assert answer["valid"][:, 0].tolist() == [index != 3 for index in range(100)]
    assert answer["calibrated_pt"][3] == -5
    with urllib.request.urlopen(f"{url}/v2/models/small-raw/config") as reply:
        limits = validity.range_of_config(json.load(reply))
    assert (limits.pt, limits.eta, limits.max_abs_eta) == ("jetPt", "jetEta", 2.5)
    counts = validity.count_invalid(jets, limits, valid=answer["valid"])
    assert counts == {validity.NEGATIVE_PT: 1}
    datatypes = {entry["name"]: entry["datatype"] for entry in client.metadata()["outputs"]}
    assert datatypes["valid"] == "BOOL"


def test_the_calibration_of_the_readme_runs(files, session, url, tmp_path, monkeypatch, capsys):
    shutil.copy(files / "val.root", tmp_path / "jets.root")
    monkeypatch.chdir(tmp_path)
    address = "http://127.0.0.1:8000"
    snippet = python_block("README.md", ".calibrate(")
    assert address in snippet
    snippet = snippet.replace(address, url).replace("pfn-regressor-open-raw", "NAME-raw")
    names = {}
    exec(snippet, names)
    jets = names["jets"]
    inputs = {}
    for entry in session.get_inputs():
        column = jets[entry.name]
        if column.ndim == 2:
            column = ak.fill_none(ak.pad_none(column, int(ak.max(jets.nPF)), clip=True), 0)
        dtype = {"float": np.float32, "int32": np.int32}[entry.type[7:-1]]
        inputs[entry.name] = ak.to_numpy(column).reshape(len(jets), -1).astype(dtype)
    expected = ask(session, inputs)["calibrated_pt"][:, 0]
    answers = names["client"].calibrate(jets)
    np.testing.assert_allclose(answers.calibrated_pt, expected, rtol=1e-5)
    assert str(answers.calibrated_pt) in capsys.readouterr().out
    invalid = answers.attrs["invalid"]
    assert sum(invalid.values()) == int(ak.sum(~answers.valid))
    assert validity.OTHER not in invalid


def test_the_documented_lines_for_onnxruntime_run(
    exported_run, files, tmp_path, monkeypatch, capsys
):
    shutil.copy(files / "val.root", tmp_path / "jets.root")
    shutil.copy(exported_run / "model" / "small-raw" / "1" / "model.onnx", tmp_path)
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(python_block("docs/using-the-model.md", "InferenceSession"), names)
    answers = names["answers"]
    corrected = names["jets"].jetPt * answers["correction"][:, 0]
    np.testing.assert_allclose(answers["calibrated_pt"][:, 0], corrected, rtol=1e-5)
    assert 0.5 < answers["valid"].mean() < 1
    assert capsys.readouterr().out.startswith("[")
