"""Weights that a training starts from, and weights that it leaves as they are.

This is Weaver's way to fine-tune a network.
"""

from __future__ import annotations

import re
import sys

from torch import nn

from common.errors import InputError, nearest
from weaver.fit.checkpoint import read_weights, without_wrappers


def start_from(model: nn.Module, uri: str, exclude: str = "") -> None:
    """Load those weights of a file that have the same names in a network.

    exclude: regular expressions, separated by commas, matched from the beginning of a name; weights
    that match are not loaded. What the file lacks keeps its random start; one line says what that
    is. Raises InputError where nothing fits or a shape differs.
    """
    own = model.state_dict()
    stored = without_wrappers(read_weights(uri), own.keys(), uri)
    shared = {}
    candidates = []
    for name, value in stored.items():
        if matches(name, exclude):
            continue
        candidates.append(name)
        if name not in own:
            continue
        if value.shape != own[name].shape:
            shapes = f"{tuple(value.shape)} there, {tuple(own[name].shape)} in the network"
            raise InputError(
                f"{uri}: weight '{name}' has the shape {shapes}; leave it out with"
                f" --exclude-model-weights '{re.escape(name)}'"
            )
        shared[name] = value
    if not shared:
        near = nearest(next(iter(candidates), ""), own) or list(own)[:3]
        raise InputError(
            f"{uri} has no weight of this network (it has {', '.join(candidates[:3])}; the network"
            f" {', '.join(near)}); give weights of the same network file"
        )
    model.load_state_dict(shared, strict=False)
    random = [name for name in own if name not in shared]
    print(
        f"{len(shared)} of {len(own)} weights from {uri}; random: {', '.join(random) or 'none'}",
        file=sys.stderr,
        flush=True,
    )


def freeze(model: nn.Module, patterns: str) -> None:
    """Leave the parameters that match one of the comma-separated patterns out of the training.

    Raises InputError for a pattern that matches none.
    """
    names = [name for name, _ in model.named_parameters()]
    for pattern in patterns.split(","):
        if not any(matches(name, pattern) for name in names):
            listed = ", ".join(names[:10])
            raise InputError(
                f"--freeze-model-weights: '{pattern}' matches no weight of the network; there are:"
                f" {listed}, ..."
            )
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not matches(name, patterns))


def matches(name: str, patterns: str) -> bool:
    """Whether one of the comma-separated regular expressions matches a name from its beginning.

    Raises InputError for what is no regular expression.
    """
    try:
        return any(re.match(pattern, name) for pattern in patterns.split(",") if pattern)
    except re.error as error:
        raise InputError(f"'{patterns}' holds no regular expression: {error}") from None
