"""Layers are exported in the forms that ONNX Runtime computes fastest; the outputs are the same."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch

from benchmarks.published import settle
from networks import particle_net_regressor_open, pfn_regressor_open
from tests.networks.jets import config, jets
from weaver.onnx.onnx_export import export_onnx
from weaver.onnx.parity import session

PFN = ("pf_features", "pf_mask", "jet_features")
PARTICLE_NET = ("pf_points", *PFN)


@pytest.mark.parametrize("num_conv_layers", [1, 3])
@pytest.mark.parametrize("norm", ["batch", "none", "layer"])
def test_the_graph_of_a_particle_flow_network_adds_nothing_per_particle(
    tmp_path, norm, num_conv_layers
):
    options = {"num_conv_layers": num_conv_layers, "conv_dim": 12, "fc_dim": 16, "norm": norm}
    operations, graph = exported_alike(tmp_path, pfn_regressor_open, PFN, options)
    if norm != "layer":  # which needs passes of its own
        assert on_axes(graph, 3).count("Add") == 0
        # and the sum over particles
        assert on_axes(graph, 3).count("MatMul") == num_conv_layers + 1
        assert operations.count("Shape") == 1  # of the mask, for the feature that is one


@pytest.mark.parametrize("num_conv_layers", [1, 3])
@pytest.mark.parametrize("norm", ["batch", "none", "layer"])
def test_the_graph_of_edges_has_one_addition_and_one_shape(tmp_path, norm, num_conv_layers):
    options = {
        "num_edge_conv_blocks": 1,
        "k": 4,
        "num_conv_layers": num_conv_layers,
        "conv_dim": 12,
        "fc_dim": 16,
        "norm": norm,
    }
    operations, graph = exported_alike(tmp_path, particle_net_regressor_open, PARTICLE_NET, options)
    if norm != "layer":
        assert on_axes(graph, 4).count("Add") == 1
        assert on_axes(graph, 4).count("MatMul") == num_conv_layers - 1
        assert operations.count("Shape") == 1


def exported_alike(folder, network, groups, options):
    """The operations and the graph of a network's file, which gives PyTorch's answers."""
    data_config, feed = (
        config(*groups),
        {name: x.numpy() for name, x in jets([30, 4, 1, 0]).items() if name in groups},
    )
    model, info = network.get_model(data_config, **options)
    path = export_onnx(settle(model), info, data_config, folder / "model.onnx")
    with torch.no_grad():
        expected = model(*(torch.from_numpy(feed[name]) for name in groups)).numpy()
    np.testing.assert_allclose(session(path).run(None, feed)[0], expected, atol=2e-6)
    graph = onnx.shape_inference.infer_shapes(onnx.load(path)).graph
    return [node.op_type for node in graph.node], graph


def on_axes(graph, number: int) -> list[str]:
    """The operations whose first output has so many axes."""
    axes = {value.name: len(value.type.tensor_type.shape.dim) for value in graph.value_info}
    return [node.op_type for node in graph.node if axes.get(node.output[0]) == number]


@pytest.mark.parametrize("junk", [np.nan, np.inf, 1e30])
@pytest.mark.parametrize("level", [0, 2], ids=["optimised", "as exported"])
def test_values_in_padding_change_no_output(exported_model, junk, level):
    groups, path = exported_model
    batch = {name: x.numpy() for name, x in jets([30, 4, 1, 0]).items() if name in groups}
    places = {name: x for name, x in batch.items() if name in ("pf_points", "pf_features")}
    dirty = {
        **batch,
        **{
            name: np.where(batch["pf_mask"] == 0, np.float32(junk), x) for name, x in places.items()
        },
    }
    runtime = session(path, level)
    np.testing.assert_array_equal(runtime.run(None, dirty)[0], runtime.run(None, batch)[0])


@pytest.fixture(scope="module", params=["pfn", "particle_net", "particle_net_as_published"])
def exported_model(request, tmp_path_factory):
    """Input groups and ONNX file of a network."""
    if request.param == "pfn":
        groups, network, options = PFN, pfn_regressor_open, {}
    else:
        groups, network = PARTICLE_NET, particle_net_regressor_open
        options = {
            "num_edge_conv_blocks": 2,
            "k": 4,
            "use_counts": not request.param.endswith("published"),
        }
    data_config = config(*groups)
    model, info = network.get_model(data_config, conv_dim=12, fc_dim=16, **options)
    return groups, export_onnx(
        settle(model), info, data_config, tmp_path_factory.mktemp("exported") / "model.onnx"
    )
