"""config.pbtxt describes the ONNX file, and a difference between them is reported by name."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from common.errors import InputError
from tests.exporting.small import write_repository
from weaver.onnx.triton_config import check_config, messages, parse_config, triton_config

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def onnx_path(tmp_path_factory):
    return (
        write_repository(tmp_path_factory.mktemp("repository"), "small")[0]
        / "small"
        / "1"
        / "model.onnx"
    )


def identity_model(path, element: int, shape: list):
    """An ONNX file that returns its input `x`."""
    x, y = (helper.make_tensor_value_info(name, element, shape) for name in "xy")
    onnx.save(
        helper.make_model(
            helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "identity", [x], [y])
        ),
        path,
    )
    return path


def test_the_config_lists_the_inputs_and_outputs_of_the_graph(onnx_path):
    config = parse_config(triton_config(onnx_path, "small"))
    kind = messages().DataType.Name
    assert (config.name, config.backend, config.max_batch_size) == ("small", "onnxruntime", 1024)
    assert [(entry.name, kind(entry.data_type), list(entry.dims)) for entry in config.input] == [
        ("pf_features", "TYPE_FP32", [4, 20]),
        ("pf_mask", "TYPE_FP32", [1, 20]),
        ("jet_features", "TYPE_FP32", [3]),
    ]
    assert [(entry.name, kind(entry.data_type), list(entry.dims)) for entry in config.output] == [
        ("output", "TYPE_FP32", [1])
    ]


def test_the_config_has_dynamic_batching_warmup_and_an_automatic_device(onnx_path):
    config = parse_config(triton_config(onnx_path, "small"))
    assert config.HasField("dynamic_batching")
    assert not config.dynamic_batching.preferred_batch_size
    assert [sample.batch_size for sample in config.model_warmup] == [1, 1024]
    assert {name: list(tensor.dims) for name, tensor in config.model_warmup[1].inputs.items()} == {
        "pf_features": [4, 20],
        "pf_mask": [1, 20],
        "jet_features": [3],
    }
    assert [group.kind for group in config.instance_group] == [
        messages().ModelInstanceGroup.KIND_AUTO
    ]
    assert config.version_policy.latest.num_versions == 1


def test_options_reach_the_config(onnx_path):
    text = triton_config(
        onnx_path,
        "small",
        max_batch_size=8,
        graph_level=-1,
        parameters={"intra_op_thread_count": 2},
    )
    config = parse_config(text)
    assert config.max_batch_size == 8
    assert [sample.batch_size for sample in config.model_warmup] == [1, 8]
    assert config.optimization.graph.level == -1
    assert config.parameters["intra_op_thread_count"].string_value == "2"


def test_without_batching_the_dims_include_the_batch_axis(onnx_path):
    config = parse_config(triton_config(onnx_path, "small", max_batch_size=0))
    assert list(config.input[0].dims) == [-1, 4, 20]
    assert not config.HasField("dynamic_batching")
    check_config(triton_config(onnx_path, "small", max_batch_size=0), onnx_path)


def test_an_unknown_graph_level_is_refused(onnx_path):
    with pytest.raises(InputError, match="unknown graph optimisation level '3'"):
        triton_config(onnx_path, "small", graph_level=3)


@pytest.mark.parametrize(
    ("element", "shape", "words"),
    [
        (TensorProto.FLOAT, [1, 3], "needs a dynamic first axis"),
        (TensorProto.FLOAT, ["N"], r"make it \(N, 1\)"),
        (TensorProto.COMPLEX64, ["N", 3], "COMPLEX64, which Triton cannot pass on"),
    ],
    ids=["fixed batch axis", "no axis beside the batch", "type"],
)
def test_a_graph_that_triton_cannot_batch_is_refused(tmp_path, element, shape, words):
    with pytest.raises(InputError, match=words):
        triton_config(identity_model(tmp_path / "model.onnx", element, shape), "small")


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        (
            "dims: [4, 20]",
            "dims: [4, 19]",
            r"input 'pf_features' has dims \[4, 19\].*has \[-1, 4, 20\]",
        ),
        ("dims: [3]", "dims: [1, 3]", "input 'jet_features' has dims"),
        ("TYPE_FP32", "TYPE_FP16", "input 'pf_features' is TYPE_FP16, the ONNX file has TYPE_FP32"),
        ('"pf_mask"', '"pf_maks"', "input 'pf_mask' of the ONNX file is not listed"),
        ('"output"', '"outptu"', "unknown output 'outptu'; did you mean 'output'?"),
        ("max_batch_size", "max_batch_sise", "not a Triton model configuration: 8:1"),
    ],
    ids=["dim", "rank", "type", "input name", "output name", "field"],
)
def test_a_config_that_differs_from_the_graph_is_refused(onnx_path, old, new, words):
    text = triton_config(onnx_path, "small")
    assert old in text
    with pytest.raises(InputError, match=words):
        check_config(text.replace(old, new), onnx_path)


def test_the_protobuf_messages_do_not_conflict_with_kserve():
    code = (
        "from weaver.onnx.triton_config import messages; messages(); import kserve, sys; assert"
        " 'tritonclient.grpc' not in sys.modules"
    )
    process = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert process.returncode == 0, process.stderr
