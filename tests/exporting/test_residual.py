"""An exported model's residual correction: in the graph, the golden files and residual.json."""

from __future__ import annotations

import json
from pathlib import Path

import correctionlib
import correctionlib.schemav2
import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from common import storage
from common.errors import GateError
from common.layout import RunFolder
from common.records import ExportRecord
from evaluating.inference import load_session, predict
from exporting import residual as exported_residual
from physics.residual import IDENTITY, Curve, Residual, from_json
from serving import golden, triton
from serving.client import golden_check
from tests.docs.printed import python_block
from tests.exporting import test_export as base
from tests.weaver.conftest import synthetic_jets, write_jets
from weaver.config.data_config import DataConfig
from weaver.feed.dataset import Dataset
from weaver.onnx import raw_jets
from weaver.onnx.parity import torch_answers
from weaver.onnx.raw_program import raw_program
from weaver.onnx.residual import ResidualLayer
from weaver.onnx.residual_features import FEATURES, residual_features
from weaver.onnx.triton_config import parse_config
from weaver.predict import load_model
from weaver.prepared.prepare import prepare

BIASED = """

def get_model(data_config, _original=get_model, **options):
    model, info = _original(data_config, **options)
    model.register_forward_hook(lambda module, inputs, output: 0.05 * output + 0.06)
    return model, info
"""
QUICK = ("--max-batch-size", "128")
JETS = 3000


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    columns = synthetic_jets(JETS, 1)
    return write_jets(tmp_path_factory.mktemp("jets") / "val.root", columns, basket=JETS).parent


def make_run(folder: Path, files: Path) -> Path:
    """A run whose network is off by some per cent for all jets."""
    run = Path(base.make_run(str(folder), files))
    network = run / "config" / "network.py"
    network.write_text(network.read_text() + BIASED)
    return run


@pytest.fixture(scope="module")
def exported_run(tmp_path_factory, files) -> Path:
    run = make_run(tmp_path_factory.mktemp("runs"), files)
    assert base.run_export(run, more=QUICK) == 0
    return run


def open_session(run: Path, name: str) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(
        run / "model" / name / "1" / "model.onnx", providers=["CPUExecutionProvider"]
    )


def validation(run: Path) -> Dataset:
    config = DataConfig.load(str(run / "config" / "data.yaml"))
    return Dataset.open(str(run / "data" / "val.json"), config)


Answers = tuple[np.ndarray, np.ndarray, np.ndarray]
"""The network's outputs in PyTorch, those of the exported graph, and the features."""


def of_graph(run: Path) -> Answers:
    dataset = validation(run)
    model, info, config = load_model(str(run / "trials" / "t-1"), str(run / "config"))
    batch = dataset.batch(np.arange(len(dataset)))
    inputs = {name: tensor.numpy() for name, tensor in batch.inputs.items()}
    network = torch_answers(model, info["input_names"], inputs)
    features = residual_features(config, batch)
    (output,) = open_session(run, "small").run(None, {**inputs, FEATURES: features})
    return network, output, features


@pytest.fixture(scope="module")
def answers(exported_run) -> Answers:
    return of_graph(exported_run)


def test_the_graph_multiplies_by_the_correction_of_residual_json(exported_run, answers):
    network, output, features = answers
    log_r = output - network
    assert np.abs(log_r).max() > 0.01
    reference_pt, eta = features.T.astype(np.float64)
    text = (exported_run / "residual.json").read_text()
    correctionlib.schemav2.CorrectionSet.model_validate_json(text)
    (correction,) = correctionlib.CorrectionSet.from_string(text).values()
    r = correction.evaluate(reference_pt * np.exp(network[:, 0].astype(np.float64)), eta)
    np.testing.assert_allclose(np.exp(log_r[:, 0].astype(np.float64)), r, atol=1e-6)


def test_the_documented_lines_for_correctionlib_run(exported_run, monkeypatch, capsys):
    monkeypatch.chdir(exported_run)
    names: dict = {}
    exec(python_block("docs/using-the-model.md", "correctionlib"), names)
    assert float(capsys.readouterr().out) == names["residual"].evaluate(45.0, 1.2)


def test_the_correction_reduces_the_bias_of_the_jets_of_its_fit(exported_run, answers):
    network, output, features = answers
    label = validation(exported_run).label("target")
    hard = features[:, 0] * np.exp(label) > 60
    before, after = (np.median((answer[:, 0] - label)[hard]) for answer in (network, output))
    assert abs(before) > 0.02
    # Few jets: the fit is shrunk towards no correction.
    assert abs(after) < abs(before) / 2


def test_both_models_give_the_same_pt(exported_run):
    dataset = validation(exported_run)
    config = dataset.data_config
    entry = storage.entries(str(exported_run.parent / "source"))[0]
    program = raw_program(config, raw_jets.raw_columns(entry, config))
    jets = raw_jets.read_raw([entry], config, program, 200)
    inputs = raw_jets.reference_inputs(jets, config, program)
    feed = {name: inputs[name] for name in (*config.input_names, FEATURES)}
    (output,) = open_session(exported_run, "small").run(None, feed)
    (pt,) = open_session(exported_run, "small-raw").run(["calibrated_pt"], jets)
    np.testing.assert_allclose(pt, jets["jetPt"] * np.exp(output), rtol=1e-5)
    raw_inputs = {entry.name for entry in open_session(exported_run, "small-raw").get_inputs()}
    assert raw_inputs == set(program.inputs) | set(program.counters)


def test_record_golden_files_and_config_have_the_residual_s_input(exported_run):
    record = ExportRecord.load(str(exported_run / "model" / "export.json"))
    assert record.inputs[FEATURES] == [2]
    assert record.residual is not None
    assert record.residual_reason is None
    assert record.residual.num_jets == len(validation(exported_run))
    assert {point.region for point in record.residual.points} == {"barrel", "endcap"}
    config = parse_config((exported_run / "model" / "small" / "config.pbtxt").read_text())
    assert {entry.name: list(entry.dims) for entry in config.input}[FEATURES] == [2]
    for size in golden.SIZES:
        request, response = (
            json.loads((exported_run / "golden" / "small" / file).read_text())
            for file in golden.file_names(size)
        )
        inputs = golden.arrays(request["inputs"])
        assert inputs[FEATURES].shape == (size, 2)
        (output,) = open_session(exported_run, "small").run(None, inputs)
        body = golden.response_body("small", {"output": output})
        assert golden.max_difference(body, response) < 1e-5


def test_the_evaluation_computes_outputs_with_and_without_the_residual(exported_run, answers):
    network, output, _ = answers
    predictions = predict(load_session(str(exported_run), "small"), validation(exported_run))
    np.testing.assert_allclose(predictions.output, output, atol=1e-5)
    np.testing.assert_allclose(predictions.without_residual, network, atol=1e-5)


def test_triton_serves_a_model_with_a_residual(exported_run, tmp_path):
    if reason := triton.triton_unusable(tmp_path):
        pytest.skip(f"Triton: {reason}")
    server = triton.start(exported_run / "model", model_name="small", log=tmp_path / "server.log")
    try:
        for name in base.BOTH:
            check = golden_check(server.url, name, str(exported_run / "golden" / name), 30)
            assert max(check.max_difference.values()) < 1e-5
    finally:
        triton.stop(server.pid, seconds=0.2)


# ------------------------------------------------------------------------- source of the correction


def graph_of(run: Path) -> bytes:
    return onnx.load(run / "model" / "small" / "1" / "model.onnx").graph.SerializeToString()


def prepare_split(run: Path, split: str, columns: dict) -> None:
    """Make jets the prepared data of a split."""
    folder = run.parent / f"{split}-files"
    write_jets(folder / "jets.root", columns, basket=JETS)
    config = DataConfig.load(str(run / "config" / "data.yaml"))
    is_validation = split == "val"
    ref = prepare(
        [f"{folder}/*.root"],
        config,
        str(run.parent),
        for_training=is_validation,
        validation=is_validation,
    )
    storage.write_json(str(run / "data" / f"{split}.json"), {"dataset": ref.uri})


def with_labels_times(factor: float) -> dict:
    columns = synthetic_jets(JETS, 1)
    columns["genJetPt"] = columns["genJetPt"] * np.float32(factor)
    return columns


def test_the_correction_depends_on_labels_of_validation_jets_only(tmp_path, files):
    run = make_run(tmp_path, files)
    graphs = []
    for split, factor in (("test", 1.0), ("test", 1.05), ("val", 1.05)):
        prepare_split(run, split, with_labels_times(factor))
        assert base.run_export(run) == 0
        graphs.append(graph_of(run))
    assert graphs[0] == graphs[1]
    assert graphs[2] != graphs[0]


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("np.log(genJetPt / jetPt)", "genJetPt / jetPt", "the label is not np.log"),
        ("      - jetEta\n", "      - jetPhi\n", "jetEta is not among the network's inputs"),
        ("  - jetPt\n  - genJetPt", "  - genJetPt", "jetPt, which the label divides by, is not"),
    ],
    ids=["label", "eta", "observer"],
)
def test_without_the_label_or_eta_there_is_no_correction_with_a_reason(
    tmp_path, files, capsys, old, new, reason
):
    run = make_run(tmp_path, files)
    storage.write_text(str(run / "residual.json"), "of an earlier export")
    config = run / "config" / "data.yaml"
    assert old in config.read_text()
    config.write_text(config.read_text().replace(old, new))
    prepare_split(run, "val", synthetic_jets(300, 1))
    assert base.run_export(run) == 0
    record = ExportRecord.load(str(run / "model" / "export.json"))
    assert record.residual is None
    assert reason in str(record.residual_reason)
    assert reason in capsys.readouterr().out
    assert FEATURES not in record.inputs
    assert not Path(RunFolder(str(run)).residual).exists()


def test_too_few_validation_jets_give_no_correction_with_a_reason(tmp_path):
    folder = tmp_path / "files"
    write_jets(folder / "val.root", synthetic_jets(150, 1))
    run = Path(base.make_run(str(tmp_path / "runs"), folder))
    assert base.run_export(run) == 0
    record = ExportRecord.load(str(run / "model" / "export.json"))
    assert "validation jets are too few" in str(record.residual_reason)


# ---------------------------------------------------------------------------- the layer by itself


def uneven_residual() -> Residual:
    """Regions with different numbers of pieces."""
    barrel = Curve(
        knots=(4.0, 4.5, 5.5, 7.0),
        pieces=(
            (0.02, -0.01, 0.004, -0.001),
            (0.015875, -0.00675, 0.001, 0.0005),
            (0.010625, -0.00325, 0.0, 0.001),
        ),
    )
    return Residual(curves={"barrel": barrel, "endcap": IDENTITY})


@pytest.mark.parametrize("region", ["barrel", "endcap"])
def test_the_layer_equals_the_curve_everywhere(region):
    residual = uneven_residual()
    layer = ResidualLayer(residual)
    log_pt = np.concatenate([np.linspace(-5, 12, 4001), [4.0, 4.5, 5.5, 7.0, -np.inf, np.inf]])
    eta = np.full(len(log_pt), {"barrel": -0.3, "endcap": 1.9}[region])
    tensors = (torch.from_numpy(array.astype(np.float32)) for array in (log_pt, eta))
    expected = residual.log_r(log_pt, eta)
    np.testing.assert_allclose(layer(*tensors).numpy(), expected, atol=1e-6)
    assert (np.abs(expected).max() > 0.01) == (region == "barrel")


def test_graph_numpy_and_correctionlib_have_the_same_edge_in_eta():
    residual = uneven_residual()
    layer = ResidualLayer(residual)
    (correction,) = correctionlib.CorrectionSet.from_string(
        exported_residual.correctionlib_text(residual, "small")
    ).values()
    edge = np.float32(1.3)
    eta = np.array([np.nextafter(edge, np.float32(0)), edge, np.nextafter(edge, np.float32(2))])
    eta = np.concatenate([eta, -eta, np.float32([2.5, 3.1, -4.0])])
    log_pt = np.full(len(eta), 4.2)
    expected = [True, False, False, True, False, False, False, False, False]
    assert (residual.log_r(log_pt, eta) > 0.01).tolist() == expected
    log_r_of_layer = layer(torch.from_numpy(log_pt.astype(np.float32)), torch.from_numpy(eta))
    assert (log_r_of_layer.numpy() > 0.01).tolist() == expected
    factors = correction.evaluate(np.exp(log_pt), eta.astype(np.float64))
    assert (np.asarray(factors) > 1.01).tolist() == expected


def test_a_residual_json_that_differs_from_the_graph_is_refused(monkeypatch):
    residual = uneven_residual()
    original = exported_residual._pt_binning

    def shifted_binning(curve):
        binning = original(curve)
        binning["content"][-1] += 2e-6
        return binning

    monkeypatch.setattr(exported_residual, "_pt_binning", shifted_binning)
    with pytest.raises(GateError, match=r"residual\.json: at eta"):
        exported_residual.correctionlib_text(residual, "small")


def test_the_metadata_have_the_residual_of_the_graph(exported_run, answers):
    metadata = base.read_metadata(exported_run / "model" / "small" / "1" / "model.onnx")
    residual = from_json(json.loads(metadata["residual"]))
    network, output, features = answers
    reference_pt, eta = features.T
    np.testing.assert_allclose(residual.apply(network, reference_pt, eta), output, atol=1e-6)


def test_a_network_with_free_axes_is_checked_at_other_lengths_with_the_residual(tmp_path, files):
    run = make_run(tmp_path, files)
    network = run / "config" / "network.py"
    network.write_text(network.read_text() + base.FREE_AXES)
    assert base.run_export(run) == 0
    model = onnx.load(run / "model" / "small" / "1" / "model.onnx")
    sizes = {value.name: value.type.tensor_type.shape.dim for value in model.graph.input}
    assert sizes["pf_features"][2].dim_param
    assert sizes[FEATURES][1].dim_value == 2


@pytest.mark.slow
def test_particle_net_is_exported_with_a_residual(tmp_path, files):
    run = Path(base.make_run(str(tmp_path), files, "particle-net"))
    assert base.run_export(run, more=QUICK) == 0
    network, output, _ = of_graph(run)
    assert np.abs(output - network).max() > 0.001


def test_quantiles_get_the_same_r(tmp_path, files):
    model = ("pfn_regressor_open.py", "jec_pfn_open.yaml", {"loss": "quantile", "fc_dim": 16})
    base.MODELS["quantile"] = model
    try:
        run = Path(base.make_run(str(tmp_path), files, "quantile"))
    finally:
        del base.MODELS["quantile"]
    assert base.run_export(run) == 0
    network, output, _ = of_graph(run)
    assert output.shape[1] == 3
    log_r = output - network
    assert np.abs(log_r).max() > 0.001
    np.testing.assert_allclose(log_r, np.repeat(log_r[:, :1], 3, axis=1), atol=1e-6)
