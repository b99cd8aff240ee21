"""A trial's checkpoint becomes a repository that Triton serves, all of it or nothing."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path

import onnxruntime
import pytest
import torch

from common import storage
from common.errors import GateError
from exporting.export import main
from serving import golden, triton
from serving.client import golden_check
from tests.networks.jets import settle
from tests.weaver.conftest import synthetic_jets, write_jets
from weaver.data_config import DataConfig
from weaver.network_file import load_network
from weaver.onnx_export import read_metadata
from weaver.prepare import prepare
from weaver.triton_config import check_config

ROOT = Path(__file__).parents[2]
MODELS = {
    "pfn": ("pfn_regressor_open.py", "jec_pfn_open.yaml", {"num_fc_layers": 2, "fc_dim": 16}),
    "particle-net": ("particle_net_regressor_open.py", "jec_particle_net_open.yaml", {"num_edge_conv_blocks": 1, "conv_dim": 8, "k": 4}),
}
TRACED_ELSE = """

def get_model(data_config, _original=get_model, **options):
    model, info = _original(data_config, **options)
    model.register_forward_hook(lambda module, inputs, output: output + 0.01 if torch.jit.is_tracing() else output)
    return model, info
"""


def make_run(storage_uri: str, files: Path, model: str = "pfn") -> str:
    """A run's folder as it is after the search, with one trial of random weights; returns its URI."""
    network, config, options = MODELS[model]
    run = storage.join(storage_uri, f"{model}-0123abcd")
    data_config = DataConfig.load(str(ROOT / "data" / config))
    ref = prepare([f"{files}/*.root"], data_config, storage_uri, for_training=True, validation=True)
    storage.write_json(storage.join(run, "data", "val.json"), {"dataset": ref.uri})
    storage.upload(ROOT / "data" / config, storage.join(run, "config", "data.yaml"))
    storage.upload(ROOT / "networks" / network, storage.join(run, "config", "network.py"))
    storage.write_json(storage.join(run, "run.json"), {"run_id": storage.name(run), "git_commit": "c0ffee", "data_fingerprint": "f00d"})

    torch.manual_seed(0)
    built, _ = load_network(str(ROOT / "networks" / network)).build(data_config, options)
    buffer = io.BytesIO()
    torch.save({"model": settle(built).state_dict(), "epoch": 1, "metric": 0.1, "network_options": options}, buffer)
    storage.write_bytes(storage.join(run, "trials", "t-1", "best.pt"), buffer.getvalue())
    storage.write_json(
        storage.join(run, "trials", "t-1", "options.json"), {"network_options": options, "best_epoch": 1, "best_metric": 0.1}
    )
    return run


def run_export(run: str | Path, name: str = "small", trial: str = "t-1") -> int:
    return main(["--run", str(run), "--trial", trial, "--name", name])


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    return write_jets(tmp_path_factory.mktemp("jets") / "val.root", synthetic_jets(150, 1)).parent


@pytest.fixture(scope="module", params=list(MODELS))
def exported(request, tmp_path_factory, files) -> Path:
    """A run's folder after its export."""
    run = make_run(str(tmp_path_factory.mktemp("runs")), files, request.param)
    assert run_export(run) == 0
    return Path(run)


def contents(run: Path) -> list[str]:
    return sorted(str(path.relative_to(run)) for folder in ("model", "golden") for path in (run / folder).rglob("*") if path.is_file())


def test_writes_the_repository_the_golden_files_and_the_record(exported):
    assert contents(exported) == [
        "golden/small/request-100.json",
        "golden/small/request.json",
        "golden/small/response-100.json",
        "golden/small/response.json",
        "model/export.json",
        "model/small/1/model.onnx",
        "model/small/config.pbtxt",
    ]
    assert not list(exported.glob(".export-*"))


def test_the_record_says_how_well_it_agrees(exported):
    record = json.loads((exported / "model" / "export.json").read_text())
    assert (record["model"], record["trial"]) == ("small", "t-1")
    assert record["parity"]["num_jets"] == 1000
    assert record["parity"]["share_close"] >= 0.999
    assert record["parity"]["max_difference"] < 1e-3
    assert record["sha256"] == storage.digest((exported / "model" / "small" / "1" / "model.onnx").read_bytes())


def test_the_file_tells_its_provenance(exported):
    metadata = read_metadata(exported / "model" / "small" / "1" / "model.onnx")
    data_config = DataConfig.load(str(exported / "config" / "data.yaml"))
    assert metadata["run_id"] == exported.name
    assert metadata["trial"] == "t-1"
    assert metadata["git_commit"] == "c0ffee"
    assert metadata["data_fingerprint"] == "f00d"
    assert metadata["data_config_digest"] == data_config.digest()
    assert f"torch {torch.__version__}" in metadata["versions"]
    assert json.loads(metadata["standardisation"]).keys() == data_config.preprocess_params.keys()


def test_config_and_golden_files_fit_the_model(exported):
    folder = exported / "model" / "small"
    check_config((folder / "config.pbtxt").read_text(), folder / "1" / "model.onnx")
    session = onnxruntime.InferenceSession(folder / "1" / "model.onnx", providers=["CPUExecutionProvider"])
    for size in golden.SIZES:
        request, response = (json.loads((exported / "golden" / "small" / name).read_text()) for name in golden.file_names(size))
        inputs = golden.arrays(request["inputs"])
        assert [len(array) for array in inputs.values()] == [size] * len(inputs)
        (answer,) = session.run(None, inputs)
        assert golden.max_difference(golden.response_body("small", {"output": answer}), response) < 1e-5


def test_triton_serves_what_was_exported(exported, tmp_path):
    if reason := triton.triton_unusable(tmp_path):
        pytest.skip(f"Triton: {reason}")
    server = triton.start(exported / "model", model_name="small", log=tmp_path / "server.log", workdir=tmp_path)
    try:
        checked = golden_check(server.url, "small", str(exported / "golden" / "small"), 30)
    finally:
        triton.stop(server.pid, seconds=0.2)
    assert server.kind == "triton"
    assert max(checked["max_difference"].values()) < 1e-5


@pytest.fixture
def run(tmp_path, files) -> Path:
    return Path(make_run(str(tmp_path), files))


def test_exporting_again_replaces_the_model(run):
    assert run_export(run, "first") == 0
    assert run_export(run, "second") == 0
    assert sorted(path.name for path in (run / "model").iterdir()) == ["export.json", "second"]


def test_a_model_that_fails_the_gate_leaves_nothing(run, capsys):
    assert run_export(run) == 0
    network = run / "config" / "network.py"
    network.write_text(network.read_text() + TRACED_ELSE)
    assert run_export(run) == GateError.exit_code
    assert contents(run) == []
    assert not list(run.glob(".export-*"))
    error = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert len(error) == 1
    assert "ONNX Runtime does not answer as PyTorch: 0.00% of 1,000 golden jets" in error[0]


def test_an_export_that_breaks_off_leaves_what_was_there(run, monkeypatch):
    assert run_export(run) == 0
    before = contents(run)
    (run / ".export-killed").mkdir()
    monkeypatch.setattr("serving.golden.write", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    assert run_export(run) == 130
    assert contents(run) == before
    assert not list(run.glob(".export-*"))


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"trial": "t-2"}, "unknown trial 't-2'; did you mean 't-1'?"),
        ({"name": "My_Model"}, "'My_Model' cannot name a service"),
    ],
    ids=["trial", "name"],
)
def test_bad_input_is_refused(run, capsys, given, words):
    assert run_export(run, **given) == 2
    assert words in capsys.readouterr().err
    assert contents(run) == []


def test_a_trial_without_checkpoint_is_refused(run, capsys):
    shutil.move(run / "trials" / "t-1" / "best.pt", run / "trials" / "t-1" / "checkpoint.pt")
    assert run_export(run) == 2
    assert "best.pt: the trial has not finished an epoch" in capsys.readouterr().err


def test_a_run_on_s3(s3_bucket, files, tmp_path, monkeypatch):
    monkeypatch.setenv("JEC_CACHE", str(tmp_path))
    run = make_run(s3_bucket, files)
    storage.write_text(storage.join(run, "model", "old", "config.pbtxt"), "left by an earlier export")
    assert run_export(run) == 0
    found = [entry.uri.removeprefix(run + "/") for folder in ("model", "golden") for entry in storage.entries(storage.join(run, folder))]
    assert found == [
        "model/export.json",
        "model/small/1/model.onnx",
        "model/small/config.pbtxt",
        "golden/small/request-100.json",
        "golden/small/request.json",
        "golden/small/response-100.json",
        "golden/small/response.json",
    ]
