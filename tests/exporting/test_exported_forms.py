"""The forms that layers take in the file, since ONNX Runtime is quickest on them; the answers are the same."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from benchmarks.published import settle
from networks import particle_net_regressor_open, pfn_regressor_open
from networks.fast import sum_of_particles
from networks.layers import LinearNorm
from tests.networks.jets import config, jets
from weaver.onnx_export import export_onnx
from weaver.parity import session

PFN = ("pf_features", "pf_mask", "jet_features")
PARTICLE_NET = ("pf_points", *PFN)
INFO = {"input_names": ["x", "mask"], "input_shapes": {"x": (1, 4, 5), "mask": (1, 1, 5)}, "output_names": ["y"]}


class Chain(torch.nn.Module):
    """x (N, 4, 5), mask (N, 1, 5) -> (N, 2)."""

    def __init__(self, norm: str) -> None:
        super().__init__()
        self.layers = torch.nn.ModuleList(LinearNorm(a, b, norm) for a, b in ((4, 6), (6, 6), (6, 3)))
        self.head = torch.nn.Linear(3, 2)

    def forward(self, x, mask):
        x = x.transpose(1, 2)
        for layer in self.layers:
            x = layer(x, relu=True, chained=True)
        return self.head(sum_of_particles(x, mask))


@pytest.mark.parametrize(("norm", "left"), [("none", 0), ("batch", 0), ("layer", 5)])
@pytest.mark.parametrize("count", [1, 7])
def test_a_chain_of_layers_is_a_chain_of_convolutions_with_the_same_answer(tmp_path, norm, left, count):
    torch.manual_seed(0)
    model = settle(Chain(norm))
    path = export_onnx(model, INFO, None, tmp_path / "model.onnx")
    operations = [node.op_type for node in onnx.load(path).graph.node]
    assert operations.count("Conv") == 3
    assert (operations.count("Gemm"), operations.count("MatMul")) == (1, 1)  # the head, the sum over particles
    assert optimised(path, tmp_path).count("Transpose") == left  # layer normalisation needs the features last
    rng = np.random.default_rng(1)
    feed = {"x": rng.normal(size=(count, 4, 5)).astype(np.float32), "mask": rng.integers(0, 2, (count, 1, 5)).astype(np.float32)}
    with torch.no_grad():
        expected = model(*map(torch.from_numpy, feed.values())).numpy()
    np.testing.assert_allclose(session(path).run(None, feed)[0], expected, atol=1e-6)


def optimised(path, folder) -> list[str]:
    """The operations that ONNX Runtime makes of the file."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(folder / "optimised.onnx")
    onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return [node.op_type for node in onnx.load(options.optimized_model_filepath).graph.node]


@pytest.mark.parametrize("num_conv_layers", [1, 3])
@pytest.mark.parametrize("norm", ["batch", "none", "layer"])
def test_nothing_is_added_on_edges_but_their_two_ends_and_no_shape_is_asked_for_but_the_number_of_jets(tmp_path, norm, num_conv_layers):
    made, feed = config(*PARTICLE_NET), {name: x.numpy() for name, x in jets([30, 4, 1, 0]).items() if name in PARTICLE_NET}
    options = {"num_edge_conv_blocks": 1, "k": 4, "num_conv_layers": num_conv_layers, "conv_dim": 12, "fc_dim": 16, "norm": norm}
    model, info = particle_net_regressor_open.get_model(made, **options)
    path = export_onnx(settle(model), info, made, tmp_path / "model.onnx")
    graph = onnx.shape_inference.infer_shapes(onnx.load(path)).graph
    sizes = {value.name: len(value.type.tensor_type.shape.dim) for value in graph.value_info}
    operations = [node.op_type for node in graph.node]
    if norm != "layer":  # which needs passes of its own
        assert [node.op_type for node in graph.node if sizes.get(node.output[0]) == 4].count("Add") == 1
        assert operations.count("Shape") == 1
    with torch.no_grad():
        expected = model(*(torch.from_numpy(feed[name]) for name in PARTICLE_NET)).numpy()
    np.testing.assert_allclose(session(path).run(None, feed)[0], expected, atol=2e-6)


@pytest.mark.parametrize("junk", [np.nan, np.inf, 1e30])
@pytest.mark.parametrize("level", [0, 2], ids=["optimised", "as exported"])
def test_what_lies_in_padding_reaches_no_answer(exported, junk, level):
    groups, path = exported
    batch = {name: x.numpy() for name, x in jets([30, 4, 1, 0]).items() if name in groups}
    places = {name: x for name, x in batch.items() if name in ("pf_points", "pf_features")}
    dirty = {**batch, **{name: np.where(batch["pf_mask"] == 0, np.float32(junk), x) for name, x in places.items()}}
    runtime = session(path, level)
    np.testing.assert_array_equal(runtime.run(None, dirty)[0], runtime.run(None, batch)[0])


@pytest.fixture(scope="module", params=["pfn", "particle_net", "particle_net_as_published"])
def exported(request, tmp_path_factory):
    """Input groups and ONNX file of a network."""
    if request.param == "pfn":
        groups, network, options = PFN, pfn_regressor_open, {}
    else:
        groups, network = PARTICLE_NET, particle_net_regressor_open
        options = {"num_edge_conv_blocks": 2, "k": 4, "use_counts": not request.param.endswith("published")}
    made = config(*groups)
    model, info = network.get_model(made, conv_dim=12, fc_dim=16, **options)
    return groups, export_onnx(settle(model), info, made, tmp_path_factory.mktemp("exported") / "model.onnx")
