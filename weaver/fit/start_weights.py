"""Start a training from existing weights, and freeze weights, to fine-tune a network."""

from __future__ import annotations

import re
import sys

from torch import nn

from common.errors import InputError, nearest
from weaver.fit.checkpoint import read_weights, without_wrappers


def start_from(model: nn.Module, uri: str, exclude: str = "") -> None:
    """Load the weights of a file that have the same names in a network.

    exclude: regular expressions, separated by commas, matched from the beginning of a name; weights
    that match are not loaded. Weights that are not in the file stay random; a line on stderr lists
    them. Raises InputError if no name fits, or a shape differs.
    """
    own = model.state_dict()
    file_weights = without_wrappers(read_weights(uri), own.keys(), uri)
    common_weights = {}
    candidates = []
    for name, value in file_weights.items():
        if fits_pattern(name, exclude):
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
        common_weights[name] = value
    if not common_weights:
        near = nearest(next(iter(candidates), ""), own) or list(own)[:3]
        raise InputError(
            f"{uri} has no weight of this network (it has {', '.join(candidates[:3])}; the network"
            f" {', '.join(near)}); give weights of the same network file"
        )
    model.load_state_dict(common_weights, strict=False)
    random = [name for name in own if name not in common_weights]
    print(
        f"{len(common_weights)} of {len(own)} weights from {uri}; random:"
        f" {', '.join(random) or 'none'}",
        file=sys.stderr,
        flush=True,
    )


def freeze(model: nn.Module, patterns: str) -> None:
    """Do not train the parameters that match one of the comma-separated patterns.

    Raises InputError for a pattern that matches no parameter.
    """
    names = [name for name, _ in model.named_parameters()]
    for pattern in patterns.split(","):
        if not any(fits_pattern(name, pattern) for name in names):
            examples = ", ".join(names[:10])
            raise InputError(
                f"--freeze-model-weights: '{pattern}' matches no weight of the network; there are:"
                f" {examples}, ..."
            )
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not fits_pattern(name, patterns))


def fits_pattern(name: str, patterns: str) -> bool:
    """Return whether one of the comma-separated expressions matches a name from its beginning.

    Raises InputError for text that is not a regular expression.
    """
    try:
        return any(re.match(pattern, name) for pattern in patterns.split(",") if pattern)
    except re.error as error:
        raise InputError(f"'{patterns}' holds no regular expression: {error}") from None
