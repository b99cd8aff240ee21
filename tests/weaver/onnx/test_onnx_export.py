"""The exported file: a single file, readable by Triton 23.05, dynamic in the batch axis only, with
its provenance inside.
"""

from __future__ import annotations

import types

import onnx
import pytest
import torch

from common.errors import InputError
from tests.exporting.small import INFO, Network, network
from weaver.onnx.onnx_export import export_onnx, input_shapes


@pytest.fixture(scope="module")
def exported_model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported")
    return export_onnx(
        network(),
        INFO,
        None,
        folder / "model.onnx",
        metadata={"run_id": "small-1", "best_epoch": 3},
    )


def test_the_model_is_one_file_that_onnx_runtime_1_15_reads(exported_model):
    model = onnx.load(exported_model, load_external_data=False)
    assert [path.name for path in exported_model.parent.iterdir()] == ["model.onnx"]
    assert model.ir_version == 8
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 17)]


def test_only_the_batch_axis_is_dynamic(exported_model):
    graph = onnx.load(exported_model).graph
    for value in [*graph.input, *graph.output]:
        first, *rest = value.type.tensor_type.shape.dim
        assert first.dim_param
        assert not any(dim.dim_param for dim in rest)
    assert [value.name for value in graph.input] == INFO["input_names"]
    assert [dim.dim_value for dim in graph.input[0].type.tensor_type.shape.dim[1:]] == [4, 20]


def test_metadata_is_stored_in_the_file(exported_model):
    properties = onnx.load(exported_model).metadata_props
    assert {entry.key: entry.value for entry in properties} == {
        "run_id": "small-1",
        "best_epoch": "3",
    }


def test_a_network_in_training_mode_is_exported_in_evaluation_mode_and_stays_in_training(tmp_path):
    model = Network().train()
    path = export_onnx(model, INFO, None, tmp_path / "model.onnx")
    assert model.training
    assert model.head[2].training
    assert "Dropout" not in {node.op_type for node in onnx.load(path).graph.node}


def test_shapes_come_from_the_data_config_where_it_has_them():
    config = types.SimpleNamespace(
        input_shapes={"pf_features": (-1, 4, 50), "pf_mask": (-1, 1, 50)}
    )
    assert input_shapes(INFO, config) == {
        "pf_features": (4, 50),
        "pf_mask": (1, 50),
        "jet_features": (3,),
    }


@pytest.mark.parametrize("shape", [(1,), (1, 4, -1)], ids=["one value a jet", "no length"])
def test_an_input_without_fixed_size_is_refused_by_name(tmp_path, shape):
    info = {**INFO, "input_shapes": {**INFO["input_shapes"], "jet_features": shape}}
    with pytest.raises(InputError, match="'jet_features' cannot be exported"):
        export_onnx(network(), info, None, tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


def test_a_newer_opset_can_be_exported(tmp_path):
    path = export_onnx(
        torch.nn.Linear(3, 1),
        {**INFO, "input_names": ["jet_features"]},
        None,
        tmp_path / "model.onnx",
        opset=18,
    )
    assert onnx.load(path).opset_import[0].version == 18
