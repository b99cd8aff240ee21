"""The evaluation of a model that ends with a residual correction: closure and gain without it."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest

from evaluating import inference, inputs
from physics.residual import IDENTITY, Curve, Residual
from tests.evaluating.test_evaluate import (
    TestJets,
    command,
    linear_model,
    put_model,
    read_strictly,
    run,  # noqa: F401 (fixture)
)
from tests.physics.jets import make_jets

LOG_R = 0.02
ENDCAP = Curve(knots=(3.0, 8.0), pieces=((LOG_R, 0.0, 0.0, 0.0),))


class JetsWithEta(TestJets):
    """Test jets whose batches include their index."""

    __test__ = False

    def batch(self, index):
        batch = super().batch(index)
        batch.index = index
        return batch


def test_metrics_and_report_have_results_with_and_without_the_residual(run, monkeypatch):  # noqa: F811 (fixture)
    jets = make_jets(6000)
    features = np.stack([jets["jetPt"], jets["genJetEta"]], axis=1)
    monkeypatch.setattr(inputs, "open_prepared_test_set", lambda _: JetsWithEta(jets))
    monkeypatch.setattr(inference, "residual_features", lambda _, batch: features[batch.index])
    residual = Residual(curves={"barrel": IDENTITY, "endcap": ENDCAP})
    model = onnx.load_from_string(linear_model(0.1))
    limits = {"min_pt": 50.0, "max_pt": 1000.0, "max_abs_eta": 2.0, "jets": "training"}
    facts = {"residual": json.dumps(residual.as_json()), "valid_range": json.dumps(limits)}
    onnx.helper.set_model_props(model, facts)
    put_model(run, model.SerializeToString())

    assert command(run) == 0
    effect = read_strictly(run / "metrics.json")["residual"]
    whole = {entry["region"]: entry for entry in effect["bins"] if entry["pt_high"] is None}
    for region, log_r in (("barrel", 0.0), ("endcap", LOG_R)):
        entry = whole[region]
        ratio = (1 + entry["with_residual"]["value"]) / (1 + entry["without"]["value"])
        assert ratio == pytest.approx(np.exp(log_r), abs=1e-4)
    low, high, eta = read_strictly(run / "metrics.json")["edges"]
    pt, abs_eta = features[:, 0], np.abs(features[:, 1])
    assert low["num_inside"] == ((pt >= 50) & (pt <= 55) & (abs_eta <= 2)).sum()
    assert low["num_outside"] == ((pt >= 45) & (pt < 50)).sum()
    beyond = (abs_eta > 2) & (abs_eta <= 2.1)
    assert eta["num_outside"] == beyond.sum()
    response = (pt / jets["genJetPt"])[beyond]
    assert eta["standard_outside"]["value"] == pytest.approx(np.median(response), rel=1e-5)
    assert high["edge"] == "pT = 1000 GeV"
    gain = effect["gain"]
    assert gain["difference"]["value"] == pytest.approx(
        gain["with_residual"]["value"] - gain["without"]["value"], abs=1e-4
    )
    assert "With and without the residual correction" in (run / "report.html").read_text()
