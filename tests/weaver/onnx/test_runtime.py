"""ONNX Runtime in our programs."""

import os
import subprocess
import sys

import onnx
import pytest

from common.project import ROOT

SESSION = """
import sys
from weaver.onnx.runtime import session
session(sys.argv[1])
"""


@pytest.mark.faults
def test_no_report_of_its_use_is_prepared(tmp_path):
    """By itself version 1.32 writes an identifier below ~/.cache, and a file `.ses`."""
    x = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [None, 2])
    y = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [None, 2])
    graph = onnx.helper.make_graph([onnx.helper.make_node("Identity", ["x"], ["y"])], "g", [x], [y])
    opset = [onnx.helper.make_opsetid("", 17)]
    model = tmp_path / "model.onnx"
    onnx.save_model(onnx.helper.make_model(graph, opset_imports=opset, ir_version=8), model)
    places = {"HOME": tmp_path / "home", "TMPDIR": tmp_path / "tmp"}
    for folder in places.values():
        folder.mkdir()
    # on a machine for continuous integration it reports nothing by itself
    hidden = ("ORT_DISABLE_TELEMETRY", "XDG_CACHE_HOME", "CI")
    environment = {name: value for name, value in os.environ.items() if name not in hidden}
    subprocess.run(
        [sys.executable, "-c", SESSION, str(model)],
        cwd=ROOT,
        env={**environment, **{name: str(folder) for name, folder in places.items()}},
        timeout=60,
        check=True,
    )
    for folder in places.values():
        assert list(folder.rglob("*")) == []
