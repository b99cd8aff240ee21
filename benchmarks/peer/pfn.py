"""The particle flow network as published, as a network file for weaver-core.

benchmarks/published.py holds the network.
"""

import importlib.util
from pathlib import Path

from torch import nn

SPEC = importlib.util.spec_from_file_location(
    "particle_net", Path(__file__).parent / "particle_net.py"
)
shared = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(shared)


def get_model(data_config, num_conv_layers=3, conv_dim=100, num_fc_layers=3, fc_dim=100, **kwargs):
    """Return the network and its description, as weaver-core asks for them."""
    particles, jet = (data_config.input_shapes[name][1] for name in ("pf_features", "jet_features"))
    layers = []
    for index in range(num_conv_layers):
        layers += [nn.Conv1d(conv_dim if index else particles, conv_dim, 1), nn.ReLU()]
    model = shared.published.ParticleFlowNetwork(
        layers, shared.head(conv_dim + jet, num_fc_layers, fc_dim)
    )
    return model, shared.describe(data_config)


def get_loss(data_config, **kwargs):
    """Return the loss."""
    return shared.MaskedL1()
