"""Faulty models of generated jets are refused: from a ROOT file and an exported network to the
verdict of the gate.
"""

from __future__ import annotations

import json
import math

import pytest
import torch

from common.config import RunConfig
from common.run import Run
from evaluating import evaluate, results
from weaver.config.data_config import DataConfig
from weaver.feed.dataset import Dataset
from weaver.onnx.onnx_export import export_onnx
from weaver.prepared.prepare import prepare

CONFIG = """
treename: AK4jets/jetTree
selection: (genJetPt > 20) & (np.abs(genJetEta) < 2.5)
new_variables:
  logTrue: np.log(genJetPt)
  logSeen: np.log(jetPt)
preprocess: {method: manual}
inputs:
  jet_features: {length: null, vars: [logTrue, logSeen]}
labels: {type: custom, value: {target: np.log(genJetPt / jetPt)}}
observers: [jetPt, genJetPt, genJetEta, partonFlav, hadronFlav]
weights: null
"""
"""The inputs determine the target, so that a good model needs no training."""

INFO = {
    "input_names": ["jet_features"],
    "input_shapes": {"jet_features": (1, 2)},
    "output_names": ["output"],
}


class Sound(torch.nn.Module):
    """Removes nine tenths of each jet's error."""

    def forward(self, features):
        return 0.9 * (features[:, :1] - features[:, 1:])


class Scaled(Sound):
    """The same, with every pT 5 per cent too high."""

    def forward(self, features):
        return super().forward(features) + math.log(1.05)


class Shuffled(Sound):
    """The correct outputs, for other jets."""

    def forward(self, features):
        return super().forward(features).flip(0)


@pytest.fixture(scope="module")
def run(generated, tmp_path_factory):
    """A run's folder with the generated jets as its test set, decoded as the prepare
    step does it.
    """
    folder = tmp_path_factory.mktemp("runs") / "oracle-0123abcd"
    (folder / "config").mkdir(parents=True)
    (folder / "config" / "data.yaml").write_text(CONFIG)
    config = DataConfig.load(str(folder / "config" / "data.yaml"))
    reference = prepare(
        str(generated), config, str(folder.parent), for_training=False, report=lambda line: None
    )
    (folder / "data").mkdir()
    (folder / "data" / "test.json").write_text(json.dumps({"dataset": reference.uri}))
    Run(config=RunConfig(s3_bucket=str(folder.parent), run_id=folder.name)).save()
    return folder


def evaluate_model(run, monkeypatch, model: torch.nn.Module) -> dict:
    """metrics.json of an evaluation of this model, exported; the report must agree with it."""
    monkeypatch.setattr(results, "figures_of", lambda _: [])  # they take seconds
    path = run / "model" / "oracle" / "1" / "model.onnx"
    path.parent.mkdir(parents=True, exist_ok=True)
    export_onnx(model, INFO, None, path)
    assert evaluate.main(["--run", str(run), "--name", "oracle", "--replicates", "60"]) == 0
    metrics = json.loads((run / "metrics.json").read_text())
    text = (run / "report.html").read_text()
    assert ("Gate passed" in text) == metrics["passed"]
    assert ("Gate not passed" in text) == (not metrics["passed"])
    return metrics


def test_a_sound_model_passes(run, monkeypatch):
    metrics = evaluate_model(run, monkeypatch, Sound())
    assert metrics["reasons"] == []
    assert metrics["passed"] is True
    assert metrics["gain"]["low"] > 50


def test_a_model_scaled_by_5_percent_fails_closure(run, monkeypatch):
    metrics = evaluate_model(run, monkeypatch, Scaled())
    assert metrics["passed"] is False
    assert {reason.split(" for ")[0] for reason in metrics["reasons"]} == {"closure fails"}
    assert metrics["gain"]["low"] > 50  # a scale does not change the gain


def test_shuffled_answers_fail_the_gain(run, monkeypatch):
    metrics = evaluate_model(run, monkeypatch, Shuffled())
    assert metrics["passed"] is False
    assert any(
        "the resolution gain over the standard JEC" in reason for reason in metrics["reasons"]
    )
    assert metrics["gain"]["high"] < 0


def test_each_test_jet_is_evaluated_once(run, monkeypatch):
    indices = []
    batch = Dataset.batch
    monkeypatch.setattr(
        Dataset, "batch", lambda self, index: indices.extend(index) or batch(self, index)
    )
    metrics = evaluate_model(run, monkeypatch, Sound())
    assert indices == list(range(metrics["num_jets"]))
