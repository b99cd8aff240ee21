"""The networks are the published functions; with use_counts, padding and order do not change the
output; every jet has a finite output.
"""

from __future__ import annotations

import copy
import io

import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.published import plain_form, settle
from common.errors import InputError
from networks import particle_net_regressor_open, pfn_regressor_open
from networks.layers import nearest_neighbours
from tests.networks.jets import config, jets

PFN = ("pf_features", "pf_mask", "jet_features")
PARTICLE_NET = ("pf_points", *PFN)
SMALL = {
    "num_edge_conv_blocks": 2,
    "k": 5,
    "num_conv_layers": 2,
    "conv_dim": 12,
    "num_fc_layers": 2,
    "fc_dim": 16,
}


def particle_net_model(**options):
    torch.manual_seed(0)
    return settle(
        particle_net_regressor_open.get_model(config(*PARTICLE_NET), **{**SMALL, **options})[0]
    )


def pfn_model(**options):
    torch.manual_seed(0)
    return settle(
        pfn_regressor_open.get_model(
            config(*PFN), num_conv_layers=2, conv_dim=12, fc_dim=16, **options
        )[0]
    )


def answer(model, batch: dict, groups=PARTICLE_NET) -> torch.Tensor:
    return model(*(batch[group] for group in groups))


def gradients(model, output: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    output.square().sum().backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


def assert_same(model, batch: dict, groups=PARTICLE_NET) -> None:
    """Answers, gradients and running statistics are those of the plain form, within 1e-5 of their
    size.
    """
    plain = plain_form(model)
    ours, theirs = answer(model, batch, groups), answer(plain, batch, groups)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    reference = gradients(plain, theirs).values()
    for (name, gradient), other in zip(gradients(model, ours).items(), reference, strict=True):
        scale = other.abs().max().item() + 1.0
        difference = (gradient - other.view_as(gradient)).abs().max().item()
        assert difference < 1e-5 * scale, (
            f"gradient of {name} is off by {difference:.1e} of {scale:.1e}"
        )
    for mine, buffer in zip(model.buffers(), plain.buffers(), strict=True):
        torch.testing.assert_close(mine, buffer, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("multiplicity", [[30] * 6, [30, 12, 7, 3, 1, 20]], ids=["full", "padded"])
@pytest.mark.parametrize("use_fts_bn", [False, True])
def test_particle_net_without_counts_is_the_published_function(multiplicity, use_fts_bn):
    model = particle_net_model(use_counts=False, use_fts_bn=use_fts_bn)
    batch = jets(multiplicity)
    assert_same(model, batch)


def test_particle_net_in_training_uses_the_statistics_of_the_batch_as_published():
    model = particle_net_model(use_counts=False).train()
    # more padding than k, or none: then ties among padding do not reach the statistics
    batch = jets([30, 20, 15, 30] * 4)
    assert_same(model, batch)


def test_pfn_is_the_published_function():
    model = pfn_model()
    batch = jets([30, 12, 1, 0])
    assert_same(model, batch, PFN)


def test_a_block_as_wide_as_its_input_has_a_plain_shortcut():
    model = particle_net_model(conv_dim=32, use_counts=False)
    batch = jets([30, 9])
    assert [type(block.shortcut) for block in model.blocks] == [torch.nn.Identity] * 2
    assert_same(model, batch)


def assert_nearly_equal(before: torch.Tensor, after: torch.Tensor) -> None:
    """At most one answer in a thousand moves by more than 1e-5 (a tie between neighbours), none by
    more than 1e-3.
    """
    difference = (before - after).abs().flatten()
    assert (difference > 1e-5).sum() <= max(1, len(difference) // 1000)
    assert difference.max() < 1e-3


MODELS = {
    "particle_net": particle_net_model(),
    "particle_net_layer": particle_net_model(norm="layer"),
    "pfn": pfn_model(),
    "pfn_bn": pfn_model(use_bn=True),
}
# The normalisation of an edge convolution, or of the inputs, hardly affects these tests.
ONE_OF_EACH = [
    "particle_net",
    pytest.param("particle_net_layer", marks=pytest.mark.slow),
    "pfn",
    pytest.param("pfn_bn", marks=pytest.mark.slow),
]
MULTIPLICITIES = st.lists(st.integers(0, 30), min_size=1, max_size=8)


@pytest.mark.parametrize("name", ONE_OF_EACH)
@given(multiplicity=MULTIPLICITIES, extra=st.integers(1, 40), seed=st.integers(0, 10**6))
@settings(max_examples=25, deadline=None)
@torch.no_grad()
def test_padding_does_not_change_the_output(name, multiplicity, extra, seed):
    groups = PFN if name.startswith("pfn") else PARTICLE_NET
    batch = jets(multiplicity, seed=seed)
    longer = {
        g: x if not g.startswith("pf_") else torch.nn.functional.pad(x, (0, extra))
        for g, x in batch.items()
    }
    assert_nearly_equal(answer(MODELS[name], batch, groups), answer(MODELS[name], longer, groups))


@pytest.mark.parametrize("name", ONE_OF_EACH)
@given(multiplicity=MULTIPLICITIES, seed=st.integers(0, 10**6))
@settings(max_examples=25, deadline=None)
@torch.no_grad()
def test_the_order_of_particles_does_not_change_the_output(name, multiplicity, seed):
    groups = PFN if name.startswith("pfn") else PARTICLE_NET
    batch = jets(multiplicity, seed=seed)
    order = torch.randperm(30, generator=torch.Generator().manual_seed(seed))
    shuffled = {g: x if not g.startswith("pf_") else x[:, :, order] for g, x in batch.items()}
    assert_nearly_equal(answer(MODELS[name], batch, groups), answer(MODELS[name], shuffled, groups))


@pytest.mark.parametrize("length", [1, 3, 5, 6])
def test_padding_does_not_change_jets_with_fewer_than_k_places(length):
    model, batch = MODELS["particle_net"], jets([length, 1, 0], length=length)
    longer = {
        g: x if not g.startswith("pf_") else torch.nn.functional.pad(x, (0, 30 - length))
        for g, x in batch.items()
    }
    with torch.no_grad():
        assert_nearly_equal(answer(model, batch), answer(model, longer))


@pytest.mark.parametrize("use_counts", [True, False])
def test_jets_with_one_or_no_particle_have_finite_outputs_and_gradients(use_counts):
    model = particle_net_model(use_counts=use_counts)
    output = answer(model, jets([0, 1, 2]))
    assert output.shape == (3, 1)
    assert torch.isfinite(output).all()
    assert all(torch.isfinite(g).all() for g in gradients(model, output).values())


def test_values_in_padding_are_not_read():
    batch = jets([7, 30, 2])
    dirty = {
        **batch,
        **{
            key: batch[key].masked_fill(batch["pf_mask"] == 0, torch.nan)
            for key in ("pf_points", "pf_features")
        },
    }
    for name, groups in (("particle_net", PARTICLE_NET), ("pfn", PFN)):
        torch.testing.assert_close(
            answer(MODELS[name], dirty, groups), answer(MODELS[name], batch, groups)
        )


def test_neighbours_of_few_particles_are_filled_with_the_particle_itself():
    points = torch.tensor([[[0.0, 0.0], [1.0, 0.0], [0.1, 0.0], [9.0, 9.0], [9.0, 9.0]]])
    real = torch.tensor([[True, True, True, False, False]])
    indices = nearest_neighbours(points, real, k=4, use_counts=True)[0, :3]  # in any order
    assert indices.sort(dim=-1)[0].tolist() == [[0, 0, 1, 2], [0, 1, 1, 2], [0, 1, 2, 2]]
    assert set(nearest_neighbours(points, real, k=4, use_counts=False)[0, 0].tolist()) == {
        1,
        2,
        3,
        4,
    }


def test_neighbours_are_computed_in_float32_under_autocast():
    # bf16 steps are 4 at 1000
    points = torch.tensor([[[1000.0] * 4, [1001.0] * 4, [1002.0] * 4, [1000.1] * 4]])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        indices = nearest_neighbours(
            points, torch.ones(1, 4, dtype=torch.bool), k=1, use_counts=True
        )
    assert indices[0, :, 0].tolist() == [3, 3, 1, 0]


def test_bf16_autocast_trains_close_to_float32():
    model = pfn_model()
    batch = jets([30, 10, 5])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = answer(model, batch, PFN)
    assert rough.dtype == torch.bfloat16
    torch.testing.assert_close(rough.float(), answer(model, batch, PFN), atol=0.05, rtol=0.05)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize(
    ("model", "groups"), [("particle_net", PARTICLE_NET), ("pfn", PFN), ("pfn_bn", PFN)]
)
def test_onnx_gives_the_same_outputs_at_any_batch_size(model, groups):
    model, file = MODELS[model], io.BytesIO()
    example = tuple(jets([30, 4])[g] for g in groups)
    axes = {name: {0: "N"} for name in [*groups, "output"]}
    names = {"input_names": list(groups), "output_names": ["output"], "dynamic_axes": axes}
    torch.onnx.export(model, example, file, dynamo=False, opset_version=17, **names)
    session = onnxruntime.InferenceSession(file.getvalue())
    for size in (1, 2, 17):
        batch = jets([(7 * n) % 31 for n in range(size)], seed=size)
        (output,) = session.run(None, {g: batch[g].numpy() for g in groups})
        with torch.no_grad():
            assert_nearly_equal(torch.from_numpy(output), answer(model, batch, groups))


@pytest.mark.parametrize(
    ("network", "groups"), [(pfn_regressor_open, PFN), (particle_net_regressor_open, PARTICLE_NET)]
)
def test_an_untrained_network_outputs_zero(network, groups):
    model = network.get_model(config(*groups))[0].eval()
    assert answer(model, jets([30, 3, 0]), groups).abs().max() == 0


def test_features_may_include_the_constant_of_the_first_bias():
    model, batch = settle(pfn_regressor_open.get_model(config(*PFN))[0]), jets([30, 4, 0])
    expected = answer(model, batch, PFN)
    model.has_one = True
    batch["pf_features"] = torch.cat((batch["pf_features"], batch["pf_mask"]), dim=1)
    torch.testing.assert_close(answer(model, batch, PFN), expected)


@pytest.mark.parametrize("norm", ["layer", "none"])
def test_without_batch_normalisation_training_mode_changes_nothing(norm):
    model, batch = particle_net_model(norm=norm), jets([30, 9, 2])
    torch.nn.init.normal_(model.blocks[0].first.linear.weight)
    layer, x = model.blocks[0].first, torch.randn(3, 30, 32)
    index = torch.randint(0, 30, (3, 30, 5))
    features_of_neighbours = torch.stack([x[n][index[n]] for n in range(3)])  # (N, P, k, C)
    centre = x[:, :, None].expand_as(features_of_neighbours)
    expected = torch.relu(
        layer.norm(layer.linear(torch.cat((centre, features_of_neighbours - centre), dim=-1)))
    )
    torch.testing.assert_close(
        model.blocks[0].first_layer(x, index), expected, rtol=1e-5, atol=1e-5
    )
    model.input_norm.eval()
    before = answer(model, batch)
    model.train()
    model.input_norm.eval()  # the one batch normalisation that stays
    torch.testing.assert_close(answer(model, batch), before)


@pytest.mark.parametrize(
    ("network", "groups"), [(pfn_regressor_open, PFN), (particle_net_regressor_open, PARTICLE_NET)]
)
def test_global_features_change_the_output(network, groups):
    groups = (*groups, "global_features")
    model, batch = settle(network.get_model(config(*groups))[0]), jets([30, 3])
    before = answer(model, batch, groups)
    batch["global_features"] = batch["global_features"] + 1
    assert ((answer(model, batch, groups) - before).abs() > 1e-4).all()


@pytest.mark.parametrize(
    ("network", "groups"), [(pfn_regressor_open, PFN), (particle_net_regressor_open, PARTICLE_NET)]
)
def test_quantiles_do_not_cross_and_have_named_columns(network, groups):
    model, info = network.get_model(
        config(*groups), loss="quantile", quantiles=[0.025, 0.84, 0.16, 0.975]
    )
    assert info["output_columns"] == ["median", "q2.5", "q16", "q84", "q97.5"]
    assert info["output_shapes"] == {"output": (1, 5)}
    untrained = answer(model.eval(), jets([30, 3]), groups)
    torch.testing.assert_close(untrained[0], torch.tensor([0.0, -0.2, -0.1, 0.1, 0.2]))
    median, *others = answer(settle(model), jets([30, 3, 0, 12]), groups).unbind(1)
    rising = torch.stack([*others[:2], median, *others[2:]], dim=1)
    assert (rising.diff(dim=1) > 0).all()


@pytest.mark.parametrize("train", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_networks_compile_without_graph_breaks(name, train):
    groups, batch = PFN if name.startswith("pfn") else PARTICLE_NET, jets([30, 7, 0])
    model = copy.deepcopy(MODELS[name]).train(train)
    expected = answer(copy.deepcopy(model), batch, groups)
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    torch.testing.assert_close(answer(compiled, batch, groups), expected, rtol=1e-5, atol=1e-5)


def test_particle_net_in_bf16_has_nearly_the_outputs_and_gradients_of_float32():
    model, batch = particle_net_model().train(), jets([30, 20, 25, 9] * 4)
    exact = answer(model, batch)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = answer(model, batch)
    torch.testing.assert_close(rough.float(), exact, atol=0.1, rtol=0.1)
    exact_gradients, rough_gradients = (
        [g.clone() for g in gradients(model, output.float()).values()] for output in (exact, rough)
    )
    # a bias in front of a normalisation has none
    pairs = [
        (a, b) for a, b in zip(exact_gradients, rough_gradients, strict=True) if a.norm() > 1e-5
    ]
    assert len(pairs) >= len(exact_gradients) - 1
    assert min(torch.cosine_similarity(a.flatten(), b.flatten(), dim=0) for a, b in pairs) > 0.9


def test_input_groups_may_have_any_order():
    groups = ("jet_features", "pf_mask", "pf_points", "pf_features")
    torch.manual_seed(0)
    other = settle(particle_net_regressor_open.get_model(config(*groups), **SMALL)[0])
    model, batch = particle_net_model(), jets([30, 3])
    torch.testing.assert_close(answer(other, batch, groups), answer(model, batch), rtol=0, atol=0)


def test_a_single_jet_feature_has_no_axis():
    data_config = config(*PFN)
    data_config.input_shapes["jet_features"] = (-1,)
    model, batch = settle(pfn_regressor_open.get_model(data_config)[0]), jets([30, 3])
    batch["jet_features"] = batch["jet_features"][:, 0]
    assert answer(model, batch, PFN).shape == (2, 1)


def test_model_info_describes_the_inputs():
    _, info = particle_net_regressor_open.get_model(config(*PARTICLE_NET))
    assert info["input_names"] == list(PARTICLE_NET)
    assert info["input_shapes"]["pf_features"] == (1, 6, 30)
    assert info["input_shapes"]["jet_features"] == (1, 8)
    assert info["output_names"] == ["output"]
    assert info["dynamic_axes"]["output"] == {0: "N"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"k": 0}, "'k' must be a whole number"),
        ({"dropout": 1.0}, "'dropout' must be"),
        ({"conv_dim": 2.5}, "'conv_dim'"),
        ({"use_counts": "no"}, "True"),
        ({"norm": "group"}, "'norm' must be batch, layer or none, not 'group'"),
        ({"loss": "l2"}, "'loss' must be l1, log_cosh or quantile"),
        ({"loss": "quantile", "quantiles": [0.5]}, "'quantiles' must name levels"),
        (
            {"loss": "quantile", "quantiles": [0.16, 1.0]},
            "'quantiles' must be at least 0 and below 1",
        ),
    ],
)
def test_an_invalid_option_is_refused(options, message):
    with pytest.raises(InputError, match=message):
        particle_net_regressor_open.get_model(config(*PARTICLE_NET), **options)


def test_a_data_config_that_does_not_fit_is_refused():
    with pytest.raises(InputError, match="needs the input group 'pf_points'"):
        particle_net_regressor_open.get_model(config(*PFN))
    with pytest.raises(InputError, match="does not use the input group 'pf_points'"):
        pfn_regressor_open.get_model(config(*PARTICLE_NET))
