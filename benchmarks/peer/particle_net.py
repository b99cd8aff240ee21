"""ParticleNet as published, as a network file for weaver-core.

benchmarks/published.py holds the network.
"""

import importlib.util
from pathlib import Path

import torch
from torch import nn

SPEC = importlib.util.spec_from_file_location(
    "published", Path(__file__).parents[1] / "published.py"
)
module = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(module)

STEM_DIM = 32


class Network(nn.Module):
    """The network with its inputs in the order of data/jec_particle_net_open.yaml."""

    def __init__(self, inner):
        """Wrap the published network."""
        super().__init__()
        self.inner = inner

    def forward(self, points, features, mask, jet):
        """Answer in the order of the data config's groups."""
        return self.inner(points, features, mask, jet)


class MaskedL1(nn.Module):
    """Mean absolute error; jets with |target| >= 1 count as zero."""

    def forward(self, prediction, target):
        """Return the mean absolute error; jets off by a factor e or more count as 0."""
        return torch.where(target.abs() < 1, (prediction - target).abs(), 0.0).mean()


def head(in_dim, num_layers, dim):
    """Return the fully connected layers."""
    layers = []
    for index in range(num_layers):
        layers += [nn.Linear(dim if index else in_dim, dim), nn.ReLU()]
    last = nn.Linear(dim, 1)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    return nn.Sequential(*layers, last)


def describe(data_config):
    """Return the shapes that weaver-core exports with."""
    names = list(data_config.input_names)
    return {
        "input_names": names,
        "input_shapes": {name: (1, *data_config.input_shapes[name][1:]) for name in names},
        "output_names": ["output"],
        "dynamic_axes": {name: {0: "N"} for name in [*names, "output"]},
    }


def get_model(
    data_config,
    num_edge_conv_blocks=3,
    k=16,
    num_conv_layers=3,
    conv_dim=50,
    num_fc_layers=3,
    fc_dim=200,
    **kwargs,
):
    """Return the network and its description, as weaver-core asks for them."""
    particles, jet = (data_config.input_shapes[name][1] for name in ("pf_features", "jet_features"))
    blocks = [
        module.EdgeConv(conv_dim if i else STEM_DIM, conv_dim, num_conv_layers, k)
        for i in range(num_edge_conv_blocks)
    ]
    readout = head(conv_dim + jet, num_fc_layers, fc_dim)
    inner = module.ParticleNet(particles, STEM_DIM, blocks, readout, use_fts_bn=False)
    return Network(inner), describe(data_config)


def get_loss(data_config, **kwargs):
    """Return the loss."""
    return MaskedL1()
