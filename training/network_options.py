"""Check that trials can use each parameter of the search space.

Refused are names that neither weaver.train nor the network has, and values that a flag or the
network refuses. Names and flags are checked by reading the network file, which needs no torch (the
image of the steps has none) and is fast. Where torch is installed, the network is also built with
the extremes of the space, first on torch's meta device, without memory or numbers. If it is not too
large, it then gets a few random jets of the data config's shapes, because `forward` may refuse
options that get_model accepts.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
from collections.abc import Iterator, Mapping
from typing import Any

from common.errors import InputError, unknown
from networks.options import check
from training.search_space import Parameter
from weaver.fit.options import TRAIN_FLAGS, TrainOptions, literal
from weaver.network.network_file import NetworkFile, option_names, option_rules

MAX_PARAMETERS_IN_MEMORY = 50_000_000
"""Largest network that is built in memory (200 MB); larger ones only on the meta device."""


def check_options(space: list[Parameter], network_config: str, source: str) -> None:
    """Check names and extreme values with the flags of weaver.train and the text of a network file.

    Args:
        space: Parameters of the search space.
        network_config: Name of the network file, for errors.
        source: Text of the network file.

    Raises:
        InputError: If a parameter is neither a flag nor an option of the network, or has an invalid
            value.
    """
    options = option_names(source, network_config)
    rules = option_rules(source)
    flags = {field.name: field for field in dataclasses.fields(TrainOptions)}
    for parameter in space:
        is_flag = parameter.flag in TRAIN_FLAGS
        # None: the network takes any option, so that only building it shows whether it is valid.
        if not is_flag and options is not None and parameter.option not in options:
            valid_names = [*TRAIN_FLAGS, *(name.replace("_", "-") for name in options)]
            raise InputError(
                f"search space: {unknown('parameter', parameter.name, valid_names)}"
                f" ({network_config} has no such option); give --search-space FILE with parameters"
                " of this network"
            )
        for value in parameter.extremes:
            try:
                if is_flag:
                    parse = flags[parameter.option].metadata["argparse"].get("type", str)
                    parse(value)
                elif parameter.option in rules:
                    check(rules, {parameter.option: literal(value)})
            except (argparse.ArgumentTypeError, ValueError, InputError) as error:
                raise InputError(
                    f"search space, parameter '{parameter.name}', value {value}: {error}"
                ) from None


def check_builds(space: list[Parameter], network: NetworkFile, data_config: Any) -> int | None:
    """Build the network and its loss with each extreme of the space, and pass jets through it.

    Args:
        space: Parameters of the search space.
        network: The network file.
        data_config: The data config.

    Returns:
        Number of parameters of the largest network; None without torch.

    Raises:
        InputError: If the network refuses options or jets; it names the values.
    """
    if importlib.util.find_spec("torch") is None:
        return None
    largest = 0
    network_parameters = [parameter for parameter in space if parameter.flag not in TRAIN_FLAGS]
    for values in _combinations(network_parameters):
        options = {parameter.option: literal(value) for parameter, value in values.items()}
        try:
            largest = max(largest, _build(network, data_config, options))
        except InputError as error:
            assignments = ", ".join(
                f"{parameter.name} {value}" for parameter, value in values.items()
            )
            where = f"search space: {assignments}: " if assignments else ""
            raise InputError(f"{where}{error}") from None
    return largest


def _combinations(space: list[Parameter]) -> Iterator[Mapping[Parameter, str]]:
    """Yield all first extremes, then each other extreme by itself, then all last extremes."""
    first = {parameter: parameter.extremes[0] for parameter in space}
    yield first
    for parameter in space:
        for value in parameter.extremes[1:]:
            yield {**first, parameter: value}
    # Values that are fine one by one may be too large together.
    if len(space) > 1:
        yield {parameter: parameter.extremes[-1] for parameter in space}


def _build(network: NetworkFile, data_config: Any, options: Mapping[str, object]) -> int:
    """Build network and loss, pass a few jets through it, and return its number of parameters.

    Raises:
        InputError: If the network refuses the options or the jets, or is too large.
    """
    import torch

    from weaver.network.construction_limit import check_size, limit_construction
    from weaver.network.forward_check import check_shapes
    from weaver.network.network_file import check_is_module, check_loss, num_parameters

    size = check_size(network, data_config, options)
    if size <= MAX_PARAMETERS_IN_MEMORY:
        with torch.random.fork_rng(devices=[]), limit_construction(network.uri):
            model, _ = network.build(data_config, options)
        check_is_module(network.uri, model)
        check_shapes(model, data_config, network)
        size = num_parameters(model)  # known after its first jets, if it has torch.nn.LazyLinear
    check_loss(network.uri, network.loss(data_config, options))
    return size
