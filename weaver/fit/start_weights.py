"""Weights that a training starts from, and weights that it leaves as they are:

Weaver's way to fine-tune a network.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping

import torch
from torch import nn

from common.errors import InputError, nearest
from weaver.fit.checkpoint import read_weights


def start_from(model: nn.Module, uri: str, exclude: str = "") -> None:
    """Load the weights of a file into those of a network that have the same name, but for the ones
    that `exclude` matches.

    exclude: regular expressions, separated by commas, matched from the beginning of a name. What
    the file lacks keeps its random start; one line says what that is. Raises InputError where
    nothing fits or a shape differs.
    """
    found = {name: value for name, value in read_weights(uri).items() if not matches(name, exclude)}
    wanted = model.state_dict()
    _check_shapes(uri, found, wanted)
    shared = {name: value for name, value in found.items() if name in wanted}
    if not shared:
        near = nearest(next(iter(found), ""), wanted) or list(wanted)[:3]
        raise InputError(
            f"{uri} has no weight of this network (it has {', '.join(list(found)[:3])}; the network"
            f" {', '.join(near)})"
        )
    model.load_state_dict(shared, strict=False)
    fresh = [name for name in wanted if name not in shared]
    print(
        f"{len(shared)} of {len(wanted)} weights from {uri}; random: {', '.join(fresh) or 'none'}",
        file=sys.stderr,
        flush=True,
    )


def freeze(model: nn.Module, patterns: str) -> None:
    """Leave the parameters that match a pattern out of the training.

    Raises InputError for a pattern that matches none.
    """
    for pattern in patterns.split(","):
        if not any(matches(name, pattern) for name, _ in model.named_parameters()):
            listed = ", ".join([name for name, _ in model.named_parameters()][:10])
            raise InputError(
                f"--freeze-model-weights: '{pattern}' matches no weight of the network; there are:"
                f" {listed}, ..."
            )
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not matches(name, patterns))


def matches(name: str, patterns: str) -> bool:
    """True if one of the comma-separated regular expressions matches from the beginning of the
    name.
    """
    try:
        return any(re.match(pattern, name) for pattern in patterns.split(",") if pattern)
    except re.error as error:
        raise InputError(f"'{patterns}' holds no regular expression: {error}") from None


def _check_shapes(
    uri: str, found: Mapping[str, torch.Tensor], wanted: Mapping[str, torch.Tensor]
) -> None:
    for name in found:
        if name in wanted and found[name].shape != wanted[name].shape:
            shapes = f"{tuple(found[name].shape)} there, {tuple(wanted[name].shape)} in the network"
            raise InputError(
                f"{uri}: weight '{name}' has the shape {shapes}; leave it out with"
                f" --exclude-model-weights '{re.escape(name)}'"
            )
