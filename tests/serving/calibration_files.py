"""A small model and files for it, in the form of those of the pipeline.

The model's answer can be computed by hand (`expected`): the correction is 1 + 0.001 times the sum
of a jet's own PF_pT + 0.0001 times QG_mult.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import awkward as ak
import numpy as np
import onnx
import uproot
from onnx import TensorProto, helper

TREE = "AK4jets/jetTree"
RANGE = {
    "min_pt": 15.0,
    "max_pt": 1e6,
    "max_abs_eta": None,
    "jets": "training",
    "pt": "jetPt",
    "eta": None,
    "counters": {"nPF": ["PF_pT"]},
}


def write_model(
    path: Path,
    *,
    facts: Mapping[str, str] | None = None,
    factor: float = 0.001,
    valid: bool = True,
    treename: str = TREE,
) -> Path:
    """Write a model of columns as ONNX; returns the path."""
    places = ["batch", "places of nPF"]
    inputs = [
        helper.make_tensor_value_info("PF_pT", TensorProto.FLOAT, places),
        helper.make_tensor_value_info("jetPt", TensorProto.FLOAT, ["batch", 1]),
        helper.make_tensor_value_info("QG_mult", TensorProto.INT32, ["batch", 1]),
        helper.make_tensor_value_info("nPF", TensorProto.INT32, ["batch", 1]),
    ]
    names = ["calibrated_pt", "correction", "calibrated_pt_q16", "calibrated_pt_q84"]
    outputs = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["batch", 1]) for n in names]
    if valid:
        outputs.append(helper.make_tensor_value_info("valid", TensorProto.BOOL, ["batch", 1]))
    constants = {
        "zero_int": np.array(0, np.int64),
        "one_int": np.array(1, np.int64),
        "axis": np.array([1], np.int64),
        "zero": np.array(0, np.float32),
        "zero_count": np.array(0, np.int32),
        "one": np.array(1, np.float32),
        "factor": np.array(factor, np.float32),
        "small": np.array(0.0001, np.float32),
        "low": np.array(RANGE["min_pt"], np.float32),
        "q16": np.array(0.9, np.float32),
        "q84": np.array(1.1, np.float32),
    }
    node = helper.make_node
    nodes = [
        node("Shape", ["PF_pT"], ["shape"]),
        node("Gather", ["shape", "one_int"], ["places"]),
        node("Range", ["zero_int", "places", "one_int"], ["index"]),
        node("Cast", ["nPF"], ["count"], to=TensorProto.INT64),
        node("Less", ["index", "count"], ["is_real"]),
        node("Where", ["is_real", "PF_pT", "zero"], ["own"]),
        node("ReduceSum", ["own", "axis"], ["sum"], keepdims=1),
        node("Mul", ["sum", "factor"], ["of_sum"]),
        node("Cast", ["QG_mult"], ["mult"], to=TensorProto.FLOAT),
        node("Mul", ["mult", "small"], ["of_mult"]),
        node("Add", ["of_sum", "of_mult"], ["more"]),
        node("Add", ["more", "one"], ["raw_correction"]),
        node("GreaterOrEqual", ["jetPt", "low"], ["is_hard"]),
        node("Greater", ["nPF", "zero_count"], ["is_full"]),
        node("And", ["is_hard", "is_full"], ["valid"]),
        node("Where", ["valid", "raw_correction", "one"], ["correction"]),
        node("Mul", ["jetPt", "correction"], ["calibrated_pt"]),
        node("Mul", ["calibrated_pt", "q16"], ["calibrated_pt_q16"]),
        node("Mul", ["calibrated_pt", "q84"], ["calibrated_pt_q84"]),
    ]
    tensors = [onnx.numpy_helper.from_array(array, name) for name, array in constants.items()]
    graph = helper.make_graph(nodes, "raw", inputs, outputs, tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    metadata = {
        "model": "small-raw",
        "run_id": "small",
        "label": json.dumps({"target": "np.log(genJetPt / jetPt)"}),
        "treename": treename,
        "trained_on": json.dumps(dict(facts or {})),
        "valid_range": json.dumps(RANGE),
    }
    helper.set_model_props(model, metadata)
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save_model(model, str(path))
    return path


def jets(count: int, seed: int = 1) -> dict[str, np.ndarray | ak.Array]:
    """Columns of JetNtuple files that the model takes, and some that say which jet is which."""
    rng = np.random.default_rng(seed)
    number = rng.integers(0, 40, count)
    return {
        "jetPt": np.float32(rng.uniform(10, 200, count)),
        "QG_mult": rng.integers(0, 30, count).astype(np.int32),
        "PF_pT": ak.unflatten(np.float32(rng.exponential(3, number.sum())), number),
        "run": np.ones(count, np.int32),
        "lumi": np.arange(count, dtype=np.int32) // 100,
        "event": np.arange(count, dtype=np.uint64) + 1000 * seed,
        "jetPtOrder": np.zeros(count, np.int32),
    }


def write_jets(path: Path, columns: Mapping, *, tree: str = TREE, basket: int = 100) -> Path:
    """Write columns as a ROOT file, lists with the counter nPF; returns the path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    data = dict(columns)
    types = {}
    for name, values in data.items():
        types[name] = values.dtype if isinstance(values, np.ndarray) else values.type.content
    with uproot.recreate(path) as file:
        tree_of_file = file.mktree(tree, types, counter_name=lambda name: "nPF")
        count = len(data["jetPt"])
        for first in range(0, count, basket):
            tree_of_file.extend({name: v[first : first + basket] for name, v in data.items()})
    return path


def expected(columns: Mapping, *, factor: float = 0.001) -> dict[str, np.ndarray]:
    """The answers to these jets, (N,) each."""
    pt = columns["jetPt"]
    total = ak.to_numpy(ak.sum(columns["PF_pT"], axis=1))
    valid = (pt >= RANGE["min_pt"]) & (ak.to_numpy(ak.num(columns["PF_pT"])) > 0)
    correction = np.where(valid, 1 + factor * total + 0.0001 * columns["QG_mult"], 1)
    return {
        "jetPt_calibrated": pt * correction,
        "jetPt_correction": correction,
        "jetPt_calibrated_q16": 0.9 * pt * correction,
        "jetPt_calibrated_q84": 1.1 * pt * correction,
        "jet_valid": valid,
    }
