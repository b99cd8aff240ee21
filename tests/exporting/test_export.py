"""A trial's checkpoint becomes a repository that Triton serves, completely or not at all."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import urllib.request
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import uproot

from benchmarks.published import settle
from common import storage
from common.errors import GateError
from common.records import ExportRecord
from exporting.export import main
from serving import calibrate, golden, triton
from serving.client import golden_check
from tests.exporting import onnxruntime_1_15
from tests.weaver.conftest import synthetic_jets, write_jets
from weaver.config.data_config import DataConfig
from weaver.feed.dataset import Dataset
from weaver.network.network_file import load_network
from weaver.onnx import raw_jets, raw_model
from weaver.onnx.raw_program import raw_program
from weaver.onnx.residual_features import FEATURES
from weaver.onnx.triton_config import check_config, messages, parse_config
from weaver.onnx.valid_range import ValidRange, valid_jets
from weaver.prepared.prepare import prepare

ROOT = Path(__file__).parents[2]
BOTH = ("small", "small-raw")
MODELS = {
    "pfn": ("pfn_regressor_open.py", "jec_pfn_open.yaml", {"num_fc_layers": 2, "fc_dim": 16}),
    "particle-net": (
        "particle_net_regressor_open.py",
        "jec_particle_net_open.yaml",
        {"num_edge_conv_blocks": 1, "conv_dim": 8, "k": 4},
    ),
}
TRACED_ELSE = """

def get_model(data_config, _original=get_model, **options):
    model, info = _original(data_config, **options)
    model.register_forward_hook(
        lambda module, inputs, output: output + 0.01 if torch.jit.is_tracing() else output
    )
    return model, info
"""
IGNORES_THE_JET = """

def get_model(data_config, _original=get_model, **options):
    model, info = _original(data_config, **options)
    count = info["input_shapes"]["jet_features"][1]
    model.register_forward_pre_hook(
        lambda module, inputs: (*inputs[:2], inputs[1][:, :, 0].expand(-1, count))
    )
    return model, info
"""
FREE_AXES = """

def get_model(data_config, _free=get_model, **options):
    model, info = _free(data_config, **options)
    axes = {name: {0: "N", 2: "n_pf"} for name in ("pf_features", "pf_mask")}
    return model, {**info, "dynamic_axes": axes}
"""
TRACED_LENGTH = """

def get_model(data_config, _constant=get_model, **options):
    model, info = _constant(data_config, **options)
    model.register_forward_hook(
        lambda module, inputs, output: output + int(inputs[0].shape[2]) / 100
    )
    return model, info
"""


def make_run(storage_uri: str, files: Path, model: str = "pfn") -> str:
    """A run's folder as it is after the search, with one trial of random weights;
    returns its URI.
    """
    network, config, options = MODELS[model]
    run = storage.join(storage_uri, f"{model}-0123abcd")
    data_config = DataConfig.load(str(ROOT / "data" / config))
    if not storage.is_s3(storage_uri):
        shutil.copytree(files, Path(storage_uri) / "source", dirs_exist_ok=True)
    ref = prepare([f"{files}/*.root"], data_config, storage_uri, for_training=True, validation=True)
    storage.write_json(storage.join(run, "data", "val.json"), {"dataset": ref.uri})
    storage.upload(ROOT / "data" / config, storage.join(run, "config", "data.yaml"))
    storage.upload(ROOT / "networks" / network, storage.join(run, "config", "network.py"))
    storage.write_json(
        storage.join(run, "run.json"),
        {"run_id": storage.name(run), "git_commit": "c0ffee", "data_fingerprint": "f00d"},
    )

    torch.manual_seed(0)
    network_module, _ = load_network(str(ROOT / "networks" / network)).build(data_config, options)
    buffer = io.BytesIO()
    torch.save(
        {
            "model": settle(network_module).state_dict(),
            "epoch": 1,
            "metric": 0.1,
            "network_options": options,
        },
        buffer,
    )
    storage.write_bytes(storage.join(run, "trials", "t-1", "best.pt"), buffer.getvalue())
    storage.write_json(
        storage.join(run, "trials", "t-1", "options.json"),
        {"network_options": options, "best_epoch": 1, "best_metric": 0.1},
    )
    storage.write_json(
        storage.join(run, "trials", "t-1", "history.json"),
        [{"epoch": 0, "val_loss": 0.2}, {"epoch": 1, "val_loss": 0.1}],
    )
    return run


QUICK = ("--raw-model", "none", "--max-batch-size", "8")  # for tests of something else


def run_export(
    run: str | Path, name: str = "small", trial: str = "t-1", more: tuple[str, ...] = QUICK
) -> int:
    return main(["--run", str(run), "--trial", trial, "--name", name, *more])


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    return write_jets(tmp_path_factory.mktemp("jets") / "val.root", synthetic_jets(150, 1)).parent


@pytest.fixture(
    scope="module", params=["pfn", pytest.param("particle-net", marks=pytest.mark.slow)]
)
def exported_run(request, tmp_path_factory, files) -> Path:
    """A run's folder after its export."""
    run = make_run(str(tmp_path_factory.mktemp("runs")), files, request.param)
    assert run_export(run, more=()) == 0
    return Path(run)


def contents(run: Path) -> list[str]:
    return sorted(
        str(path.relative_to(run))
        for folder in ("model", "golden")
        for path in (run / folder).rglob("*")
        if path.is_file()
    )


def test_export_writes_the_repository_golden_files_and_record(exported_run):
    assert contents(exported_run) == sorted(
        [
            f"golden/{name}/{file}"
            for name in BOTH
            for pair in map(golden.file_names, golden.SIZES)
            for file in pair
        ]
        + [
            f"model/{name}/{file}"
            for name in BOTH
            for file in ("1/model.onnx", "config.pbtxt", "configs/local.pbtxt")
        ]
        + ["model/export.json"]
    )
    assert not list(exported_run.glob(".export-*"))


def test_the_record_has_the_parity_of_both_models(exported_run):
    record = json.loads((exported_run / "model" / "export.json").read_text())
    assert record["trial"] == "t-1"
    for name, model_record in zip(BOTH, (record, record["raw"]), strict=True):
        assert model_record["model"] == name
        assert model_record["parity"]["num_jets"] == 1000
        assert model_record["parity"]["batch_sizes"] == [1, 2, 17, 1000]
        assert model_record["parity"]["share_close"] >= 0.999
        assert model_record["parity"]["max_difference"] < 1e-3
        assert model_record["sha256"] == storage.digest(
            (exported_run / "model" / name / "1" / "model.onnx").read_bytes()
        )


def test_the_largest_batch_fits_the_measured_memory(exported_run):
    record = json.loads((exported_run / "model" / "export.json").read_text())
    for name, model_record in zip(BOTH, (record, record["raw"]), strict=True):
        memory, size = model_record["memory"], model_record["max_batch_size"]
        assert memory["growth"] == sorted(memory["growth"])
        assert size * memory["bytes_per_jet"] <= memory["budget"] == 2**30
        config = parse_config((exported_run / "model" / name / "config.pbtxt").read_text())
        assert config.max_batch_size == size
        assert [sample.batch_size for sample in config.model_warmup] == [1, size]


def test_the_cluster_s_config_names_the_device_and_the_local_one_needs_no_gpu(exported_run, run):
    cluster_config, local_config = (
        parse_config((exported_run / "model" / "small" / p).read_text())
        for p in ("config.pbtxt", "configs/local.pbtxt")
    )
    kinds = messages().ModelInstanceGroup
    assert (
        cluster_config.instance_group[0].kind
        == local_config.instance_group[0].kind
        == kinds.KIND_CPU
    )
    assert (cluster_config.instance_group[0].count, local_config.instance_group[0].count) == (1, 2)
    assert cluster_config.parameters["intra_op_thread_count"].string_value == "2"
    storage.write_json(
        str(run / "run.json"),
        {"config": {"num_gpus": 1, "serving_gpus": 0, "serving_cpus": "2500m"}},
    )
    assert run_export(run) == 0
    config_on_cpus = parse_config((run / "model" / "small" / "config.pbtxt").read_text())
    assert config_on_cpus.instance_group[0].kind == kinds.KIND_CPU
    assert config_on_cpus.parameters["intra_op_thread_count"].string_value == "3"
    storage.write_json(str(run / "run.json"), {"config": {"serving_gpus": 1}})
    assert run_export(run) == 0
    cluster_config, local_config = (
        parse_config((run / "model" / "small" / p).read_text())
        for p in ("config.pbtxt", "configs/local.pbtxt")
    )
    assert (cluster_config.instance_group[0].kind, local_config.instance_group[0].kind) == (
        kinds.KIND_GPU,
        kinds.KIND_CPU,
    )


@pytest.mark.parametrize("name", BOTH)
def test_onnx_runtime_1_15_gives_the_golden_answers(exported_run, tmp_path, name):
    folder = exported_run / "golden" / name
    request, response = (json.loads((folder / file).read_text()) for file in golden.file_names(100))
    answers = onnxruntime_1_15.answers(
        exported_run / "model" / name / "1" / "model.onnx",
        golden.arrays(request["inputs"]),
        tmp_path,
    )
    assert golden.max_difference(golden.response_body(name, answers), response) < 1e-5


def test_the_raw_model_corrects_pt_like_the_model_of_prepared_jets(exported_run):
    """Both models on the same jets: the raw model returns jetPt times exp of the other's output."""
    data_config = DataConfig.load(str(exported_run / "config" / "data.yaml"))
    entry = storage.entries(str(exported_run.parent / "source"))[0]
    program = raw_program(data_config, raw_jets.raw_columns(entry, data_config))
    jets = raw_jets.read_raw([entry], data_config, program, 150)
    assert {int(n > 100) + 2 * int(n == 0) for n in jets["nPF"].ravel()} == {
        0,
        1,
        2,
    }, "none, few, more than the length"
    inputs = raw_jets.reference_inputs(jets, data_config, program)
    sessions = [
        onnxruntime.InferenceSession(
            exported_run / "model" / n / "1" / "model.onnx", providers=["CPUExecutionProvider"]
        )
        for n in BOTH
    ]
    (output,) = sessions[0].run(None, {name: inputs[name] for name in data_config.input_names})
    calibrated, correction, valid = sessions[1].run(["calibrated_pt", "correction", "valid"], jets)
    assert valid.dtype == bool
    limits = ValidRange(
        **json.loads(sessions[0].get_modelmeta().custom_metadata_map["valid_range"])
    )
    eta = inputs[FEATURES][:, 1]
    expected = valid_jets(jets, program, inputs[""], eta, limits)
    np.testing.assert_array_equal(valid[:, 0], expected)
    assert 100 < valid.sum() < len(valid), "jets of both kinds"
    factors = np.where(valid, np.exp(output), 1)
    np.testing.assert_allclose(correction, factors, rtol=1e-5)
    np.testing.assert_allclose(calibrated, jets["jetPt"] * factors, rtol=1e-5)
    assert np.std(output) > 0.01


def test_calibrated_files_equal_the_raw_model_s_answers(exported_run, files, tmp_path):
    """Each jet of the file has the raw model's answer, although it is sorted and padded
    otherwise.
    """
    words = [str(files / "val.root"), "--model", str(exported_run), "--output", str(tmp_path)]
    assert calibrate.main(words) == 0
    data_config = DataConfig.load(str(exported_run / "config" / "data.yaml"))
    (entry,) = storage.entries(str(files / "val.root"))
    program = raw_program(data_config, raw_jets.raw_columns(entry, data_config))
    jets = raw_jets.read_raw([entry], data_config, program, 10**6)
    onnx_path = exported_run / "model" / "small-raw" / "1" / "model.onnx"
    runtime = onnxruntime.InferenceSession(str(onnx_path))
    inputs = {entry_.name: jets[entry_.name] for entry_ in runtime.get_inputs()}
    calibrated_pt, correction, valid = runtime.run(None, inputs)
    with uproot.open(tmp_path / "val.root") as file:
        friend = file["calibration"].arrays(library="np")
    assert friend["jet_valid"].tolist() == valid[:, 0].tolist()
    np.testing.assert_allclose(friend["jetPt_correction"], correction[:, 0], rtol=1e-5)
    np.testing.assert_allclose(friend["jetPt_calibrated"], calibrated_pt[:, 0], rtol=1e-5)
    assert not friend["jet_valid"].all()


def read_metadata(path: Path) -> dict[str, str]:
    return {entry.key: entry.value for entry in onnx.load(path).metadata_props}


def test_the_metadata_have_the_provenance_and_the_valid_range(exported_run):
    metadata = read_metadata(exported_run / "model" / "small" / "1" / "model.onnx")
    assert json.loads(metadata["metrics"])["val_loss"] == 0.1
    assert json.loads(metadata["output_columns"]) == ["output"]
    assert json.loads(metadata["label"]) == {"target": "np.log(genJetPt / jetPt)"}
    assert metadata["treename"] == "AK4jets/jetTree"
    assert json.loads(metadata["trained_on"]) == {}
    raw = read_metadata(exported_run / "model" / "small-raw" / "1" / "model.onnx")
    own = {"inputs", "outputs", "model", "valid_range"}
    assert raw.keys() == metadata.keys()
    assert {name for name in raw if raw[name] != metadata[name]} == own
    assert json.loads(metadata["inputs"])["pf_mask"] == ["N", 1, 100]
    assert json.loads(raw["inputs"])["PF_pT"] == ["N", -1]
    assert list(json.loads(raw["outputs"])) == ["calibrated_pt", "correction", "valid"]
    assert "GeV" in json.loads(raw["outputs"])["calibrated_pt"]
    # No training data lie beside this run.
    observers = Dataset.open(
        str(exported_run / "data" / "val.json"),
        DataConfig.load(str(exported_run / "config" / "data.yaml")),
    ).observers()
    limits = json.loads(metadata["valid_range"])
    assert limits == {
        "min_pt": float(observers["jetPt"].min()),
        "max_pt": float(observers["jetPt"].max()),
        "max_abs_eta": 2.5,
        "jets": "validation",
    }
    particles = [name for name in json.loads(raw["inputs"]) if name.startswith("PF_")]
    assert json.loads(raw["valid_range"]) == {
        **limits,
        "pt": "jetPt",
        "eta": "jetEta",
        "counters": {"nPF": particles},
    }
    for name, text in (("small", metadata), ("small-raw", raw)):
        for file in ("config.pbtxt", "configs/local.pbtxt"):
            config = parse_config((exported_run / "model" / name / file).read_text())
            for key in ("valid_range", "label", "treename", "trained_on", "run_id"):
                assert config.parameters[key].string_value == text[key]
            digest = hashlib.sha256(
                (exported_run / "model" / name / "1" / "model.onnx").read_bytes()
            )
            assert config.parameters["sha256"].string_value == digest.hexdigest()
    assert ExportRecord.load(str(exported_run / "model" / "export.json")).valid_range is not None
    assert "2.5" in metadata["range"]
    data_config = DataConfig.load(str(exported_run / "config" / "data.yaml"))
    assert metadata["run_id"] == exported_run.name
    assert metadata["trial"] == "t-1"
    assert metadata["git_commit"] == "c0ffee"
    assert metadata["data_fingerprint"] == "f00d"
    assert metadata["data_config_digest"] == data_config.digest()
    assert f"torch {torch.__version__}" in metadata["versions"]
    assert json.loads(metadata["standardisation"]).keys() == data_config.preprocess_params.keys()


@pytest.mark.parametrize("name", BOTH)
def test_config_and_golden_files_match_the_model(exported_run, name):
    folder = exported_run / "model" / name
    check_config((folder / "config.pbtxt").read_text(), folder / "1" / "model.onnx")
    check_config((folder / "configs" / "local.pbtxt").read_text(), folder / "1" / "model.onnx")
    session = onnxruntime.InferenceSession(
        folder / "1" / "model.onnx", providers=["CPUExecutionProvider"]
    )
    for size in golden.SIZES:
        request, response = (
            json.loads((exported_run / "golden" / name / file).read_text())
            for file in golden.file_names(size)
        )
        inputs = golden.arrays(request["inputs"])
        assert [len(array) for array in inputs.values()] == [size] * len(inputs)
        outputs = dict(
            zip(
                (output.name for output in session.get_outputs()),
                session.run(None, inputs),
                strict=True,
            )
        )
        assert golden.max_difference(golden.response_body(name, outputs), response) < 1e-5


def test_triton_serves_both_models_with_the_local_config(exported_run, tmp_path):
    if reason := triton.triton_unusable(tmp_path):
        pytest.skip(f"Triton: {reason}")
    server = triton.start(exported_run / "model", model_name="small", log=tmp_path / "server.log")
    try:
        checks = [
            golden_check(server.url, name, str(exported_run / "golden" / name), 30) for name in BOTH
        ]
        with urllib.request.urlopen(f"{server.url}/v2/models/small/config", timeout=10) as response:
            config = json.load(response)
    finally:
        triton.stop(server.pid, seconds=0.2)
    assert server.kind == "triton"
    assert (
        max(difference for check in checks for difference in check.max_difference.values()) < 1e-5
    )
    assert [sample["batch_size"] for sample in config["model_warmup"]] == [
        1,
        100,
    ], "the cluster's goes up to the largest batch"


@pytest.fixture
def run(tmp_path, files) -> Path:
    return Path(make_run(str(tmp_path), files))


def test_exporting_again_replaces_the_model(run):
    assert run_export(run, "first") == 0
    assert run_export(run, "second") == 0
    assert sorted(path.name for path in (run / "model").iterdir()) == ["export.json", "second"]


def test_a_model_that_fails_parity_is_not_exported(run, capsys):
    assert run_export(run) == 0
    network = run / "config" / "network.py"
    network.write_text(network.read_text() + TRACED_ELSE)
    assert run_export(run) == GateError.exit_code
    assert contents(run) == []
    assert not list(run.glob(".export-*"))
    error = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert len(error) == 1
    assert (
        "model small: ONNX Runtime does not answer as PyTorch: 0.00% of 1,000 golden jets"
        in error[0]
    )


def test_a_raw_column_has_the_common_type_of_all_files(tmp_path):
    """Whole numbers in the first file, fractions in the second."""
    folder = tmp_path / "files"
    write_jets(folder / "val.root", synthetic_jets(80, 1))
    columns = synthetic_jets(80, 2)
    columns["QG_mult"] = columns["QG_mult"].astype(np.float32) + np.float32(0.5)
    write_jets(folder / "b.root", columns)
    run = Path(make_run(str(tmp_path / "runs"), folder))
    assert run_export(run, more=("--raw-model", "required", "--max-batch-size", "8")) == 0
    graph = onnx.load(run / "model" / "small-raw" / "1" / "model.onnx").graph
    types = {value.name: value.type.tensor_type.elem_type for value in graph.input}
    assert types["QG_mult"] == onnx.TensorProto.DOUBLE


def test_a_published_network_with_free_axes_is_checked_at_other_lengths(run, capsys):
    network = run / "config" / "network.py"
    text = network.read_text()
    network.write_text(text + FREE_AXES)
    assert run_export(run) == 0
    model = onnx.load(run / "model" / "small" / "1" / "model.onnx")
    assert all(value.type.tensor_type.shape.dim[2].dim_param for value in model.graph.input[:2])
    network.write_text(text + FREE_AXES + TRACED_LENGTH)
    assert run_export(run) == GateError.exit_code
    assert contents(run) == []
    assert "model small: the ONNX file differs from PyTorch" in capsys.readouterr().err


def test_inputs_that_the_network_ignores_are_not_in_the_request(run):
    network = run / "config" / "network.py"
    network.write_text(network.read_text() + IGNORES_THE_JET)
    assert run_export(run, more=()) == 0
    record = ExportRecord.load(str(run / "model" / "export.json"))
    assert list(record.inputs) == ["pf_features", "pf_mask"]
    for name in BOTH:
        model = onnx.load(run / "model" / name / "1" / "model.onnx")
        request = storage.read_json(str(run / "golden" / name / "request.json"))
        request_names = {entry["name"] for entry in request["inputs"]}
        assert request_names == {value.name for value in model.graph.input}
    # The raw model needs each of the jet's numbers to decide whether the jet is valid.
    assert {"jetArea", "PF_pT", "nPF"} <= request_names


def test_a_raw_model_that_fails_parity_is_not_exported(run, capsys, monkeypatch):
    """A drift between the graph and the preparation, as if one of the two had been
    changed alone.
    """
    monkeypatch.setitem(raw_model.OPERATIONS, "log", lambda x: torch.log(x) + 0.25)
    assert run_export(run, more=("--max-batch-size", "8")) == GateError.exit_code
    assert contents(run) == []
    error = capsys.readouterr().err
    assert "model small-raw: ONNX Runtime does not answer as PyTorch" in error
    assert "PF_logPt differs by 0.25 from the one that prepare computes" in error


@pytest.mark.parametrize(("choice", "code"), [("auto", 0), ("required", 2), ("none", 0)])
def test_a_data_config_without_a_form_in_a_graph_gets_no_raw_model(run, capsys, choice, code):
    config = run / "config" / "data.yaml"
    config.write_text(
        config.read_text().replace("target: np.log(genJetPt / jetPt)", "target: genJetPt / jetPt")
    )
    files = str(run.parent / "source" / "*.root")
    ref = prepare(
        [files], DataConfig.load(str(config)), str(run.parent), for_training=True, validation=True
    )
    storage.write_json(str(run / "data" / "val.json"), {"dataset": ref.uri})
    assert run_export(run, more=("--raw-model", choice, "--max-batch-size", "8")) == code
    output = capsys.readouterr()
    reason = (
        "labels: a model that takes raw jets answers with a corrected pT, for which the label must"
        " be one np.log"
    )
    assert (reason in output.out, reason in output.err) == (choice == "auto", choice == "required")
    assert ("model/small/config.pbtxt" in contents(run)) == (code == 0)


def test_an_interrupted_export_keeps_the_earlier_files(run, monkeypatch):
    assert run_export(run) == 0
    before = contents(run)
    (run / ".export-killed").mkdir()
    monkeypatch.setattr("serving.golden.write", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    assert run_export(run) == 130
    assert contents(run) == before
    assert not list(run.glob(".export-*"))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"trial": "t-2"}, "unknown trial 't-2'; did you mean 't-1'?"),
        ({"name": "My_Model"}, "'My_Model' cannot name a service"),
    ],
    ids=["trial", "name"],
)
def test_bad_input_is_refused(run, capsys, arguments, words):
    assert run_export(run, **arguments) == 2
    assert words in capsys.readouterr().err
    assert contents(run) == []


def test_a_trial_without_checkpoint_is_refused(run, capsys):
    shutil.move(run / "trials" / "t-1" / "best.pt", run / "trials" / "t-1" / "checkpoint.pt")
    assert run_export(run) == 2
    assert "best.pt: the trial has not finished an epoch" in capsys.readouterr().err


def test_a_run_on_s3_is_exported(s3_bucket, files, tmp_path, monkeypatch):
    monkeypatch.setenv("JEC_CACHE", str(tmp_path))
    run = make_run(s3_bucket, files)
    storage.write_text(
        storage.join(run, "model", "old", "config.pbtxt"), "left by an earlier export"
    )
    assert run_export(run) == 0
    messages = [
        entry.uri.removeprefix(run + "/")
        for folder in ("model", "golden")
        for entry in storage.entries(storage.join(run, folder))
    ]
    assert messages == [
        "model/export.json",
        "model/small/1/model.onnx",
        "model/small/config.pbtxt",
        "model/small/configs/local.pbtxt",
        "golden/small/request-100.json",
        "golden/small/request.json",
        "golden/small/response-100.json",
        "golden/small/response.json",
    ]
