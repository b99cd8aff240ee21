"""Networks under weaver-core's import paths: the same weights give the same outputs and gradients,
and published files work.
"""

from __future__ import annotations

import io
import warnings
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

from benchmarks.published import settle
from common.errors import InputError
from weaver.network.network_file import load_network
from weaver.nn.model.ParticleNet import ParticleNet, ParticleNetTagger, trim_padding

NET = {"conv_params": [(3, (8, 8)), (3, (8, 12))], "fc_params": [(8, 0.0)], "trim": False}
MODELS = {
    "fusion": lambda: ParticleNet(5, 3, **NET),
    "plain": lambda: ParticleNet(5, 1, use_fusion=False, use_fts_bn=False, use_counts=False, **NET),
    "tagger": lambda: ParticleNetTagger(5, 3, 4, use_fusion=False, use_fts_bn=False, **NET),
}


@pytest.fixture(scope="module")
def peer_arrays() -> dict[str, torch.Tensor]:
    """Arrays of weaver-core 0.5.3, made by peer/particle_net.py."""
    with np.load(Path(__file__).parents[1] / "peer" / "particle_net.npz") as arrays:
        return {name: torch.from_numpy(arrays[name]) for name in arrays.files}


@pytest.mark.parametrize("name", MODELS)
def test_weights_of_weaver_core_give_its_outputs_and_gradients(name, peer_arrays):
    def of(what: str) -> dict[str, torch.Tensor]:
        return {
            key.removeprefix(f"{name}/{what}/"): value
            for key, value in peer_arrays.items()
            if key.startswith(f"{name}/{what}/")
        }

    model = MODELS[name]()
    model.load_state_dict(of("weight"))
    output = model.train()(*of("input").values())
    torch.testing.assert_close(output, peer_arrays[f"{name}/train"], rtol=1e-5, atol=1e-5)
    output.square().sum().backward()
    largest = max(float(value.abs().max()) for value in of("gradient").values())
    for key, value in of("gradient").items():
        torch.testing.assert_close(
            dict(model.named_parameters())[key].grad, value, rtol=1e-4, atol=1e-5 * largest
        )
    torch.testing.assert_close(
        model.eval()(*of("input").values()), peer_arrays[f"{name}/eval"], rtol=1e-5, atol=1e-5
    )


def test_trimming_changes_no_output_and_keeps_all_particles():
    torch.manual_seed(0)
    mask = (torch.arange(20) < torch.tensor([3, 9, 0])[:, None])[:, None]
    points, features = torch.randn(3, 2, 20) * mask, torch.arange(1.0, 21.0).expand(3, 1, 20) * mask
    assert [x.shape[-1] for x in trim_padding(points, features, mask, training=False)] == [9] * 3
    model = ParticleNet(1, 2, conv_params=[(3, (4,))], fc_params=[(4, 0.0)]).eval()
    before = model(points, features, mask)
    model.trims = False
    torch.testing.assert_close(model(points, features, mask), before)
    _, trimmed_features, where = trim_padding(points, features, mask, training=True)
    assert trimmed_features.shape == where.shape
    assert set(trimmed_features[0][where[0]].tolist()) == {1.0, 2.0, 3.0}
    assert not trimmed_features[2].any()


@pytest.mark.parametrize("name", MODELS)
def test_an_exported_network_gives_the_same_output_for_any_number_of_jets_and_particles(name):
    """With the particles' axis free, as published network files declare it."""
    torch.manual_seed(0)
    model, file = settle(MODELS[name]()), io.BytesIO()
    names = [
        f"{of}_{what}"
        for of in (("pf", "sv") if name == "tagger" else ("pf",))
        for what in ("points", "features", "mask")
    ]
    dims = {"pf_points": 2, "pf_features": 5, "sv_points": 2, "sv_features": 3}

    def random_jets(jets: int, particles: int) -> list[torch.Tensor]:
        mask = (torch.arange(particles) < torch.randint(1, particles + 1, (jets, 1)))[
            :, None
        ].float()
        return [
            torch.randn(jets, dims[key], particles) * mask if key in dims else mask for key in names
        ]

    axes = {key: {0: "N", 2: f"n_{key[:2]}"} for key in names} | {"output": {0: "N"}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        options = {
            "input_names": names,
            "output_names": ["output"],
            "dynamic_axes": axes,
            "opset_version": 17,
        }
        torch.onnx.export(model, tuple(random_jets(3, 7)), file, dynamo=False, **options)
    runtime = onnxruntime.InferenceSession(file.getvalue())
    for size in ((1, 7), (4, 12), (17, 30)):
        inputs = random_jets(*size)
        (result,) = runtime.run(
            None, {key: x.numpy() for key, x in zip(names, inputs, strict=True)}
        )
        with torch.no_grad():
            np.testing.assert_allclose(result, model(*inputs).numpy(), atol=2e-6)


@pytest.mark.parametrize("junk", [float("nan"), float("inf"), 1e30])
@pytest.mark.parametrize("use_counts", [True, False])
def test_values_in_padded_points_change_no_output(junk, use_counts):
    torch.manual_seed(0)
    model = settle(ParticleNet(5, 3, use_counts=use_counts, **NET))
    mask = (torch.arange(20) < torch.tensor([3, 9, 20, 1])[:, None])[:, None]
    points, features = torch.randn(4, 2, 20) * mask, torch.randn(4, 5, 20) * mask
    with torch.no_grad():
        expected = model(points, features, mask)
        torch.testing.assert_close(model(points.masked_fill(~mask, junk), features, mask), expected)


def test_a_jet_may_have_fewer_particles_than_neighbours():
    model = ParticleNet(1, 2, conv_params=[(7, (4,))], fc_params=[(4, 0.0)]).eval()
    assert model(torch.randn(2, 2, 3), torch.randn(2, 1, 3), torch.ones(2, 1, 3)).isfinite().all()


def test_unsupported_networks_of_weaver_core_are_refused_with_a_remedy(tmp_path):
    for number, (line, message) in enumerate(
        (
            (
                "from weaver.nn.model.ParticleTransformer import ParticleTransformer",
                "no module weaver.nn.model.ParticleTransformer; put the",
            ),
            (
                "from utils.nn.model.ParticleNet import ParticleNet",
                "write 'from weaver.nn.model.ParticleNet import ...'",
            ),
        )
    ):
        path = tmp_path / f"network{number}.py"
        path.write_text(f"{line}\ndef get_model(data_config, **kwargs): ...\n")
        with pytest.raises(InputError, match=message):
            load_network(str(path)).build(None, {})
    with pytest.raises(InputError, match="for_segmentation"):
        ParticleNet(1, 2, for_segmentation=True)
