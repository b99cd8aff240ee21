"""Small jets for the network tests: random features, any number of real particles."""

from __future__ import annotations

import types

import torch

GROUPS = {"pf_points": 2, "pf_features": 6, "pf_mask": 1, "jet_features": 8, "global_features": 3}


def config(*groups: str, length: int = 30) -> types.SimpleNamespace:
    """The attributes of a data config that a network reads."""
    shapes = {
        g: (-1, GROUPS[g]) if not g.startswith("pf_") else (-1, GROUPS[g], length) for g in groups
    }
    return types.SimpleNamespace(input_names=groups, input_shapes=shapes)


def jets(multiplicity: list[int], length: int = 30, seed: int = 1) -> dict[str, torch.Tensor]:
    """One jet for each multiplicity, padded with zeros to `length`."""
    generator = torch.Generator().manual_seed(seed)
    # (N, 1, P)
    mask = (torch.arange(length) < torch.tensor(multiplicity)[:, None]).float()[:, None]
    shape = (len(multiplicity), length)
    return {
        "pf_points": torch.rand(shape[0], 2, length, generator=generator) * mask,
        "pf_features": torch.randn(shape[0], 6, length, generator=generator) * mask,
        "pf_mask": mask,
        "jet_features": torch.randn(shape[0], 8, generator=generator),
        "global_features": torch.randn(shape[0], 3, generator=generator),
    }
