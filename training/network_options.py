"""Refuse a search space that trials could not use.

That is a name that nothing takes, or a value that a flag or the network refuses. Names and flags
are checked by reading the network file, which needs no torch (the image of the steps has none) and
takes no time. Where torch is there, the network is also built with the extremes of the space, at
first on torch's meta device: without memory or numbers. One that is not too large then passes a few
made-up jets of the data config's shapes, because `forward` may refuse what get_model took.
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

MOST_PARAMETERS = 50_000_000
"""Of a network that is built in memory (200 MB); a larger one is built on the meta device only."""
MOST_TRAINABLE = 10_000_000_000
"""With Adam's two moments and the gradients these are 160 GB, more than any GPU has."""


def check_options(space: list[Parameter], network_config: str, source: str) -> None:
    """Check names and extreme values by the flags of weaver.train and the text of a network file.

    network_config: the file's name, for the errors; source: its text. Raises InputError for a
    parameter that is neither a flag nor an option of the network, or a value it cannot have.
    """
    options = option_names(source, network_config)
    rules = option_rules(source)
    flags = {field.name: field for field in dataclasses.fields(TrainOptions)}
    for parameter in space:
        is_flag = parameter.flag in TRAIN_FLAGS
        # With None the network takes any option, and only building it can tell.
        if not is_flag and options is not None and parameter.option not in options:
            known = [*TRAIN_FLAGS, *(name.replace("_", "-") for name in options)]
            raise InputError(
                f"search space: {unknown('parameter', parameter.name, known)} ({network_config} has"
                " no such option)"
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
    """Build the network and its loss with each extreme of the space, and let it take jets.

    Returns the parameters of the largest, None where there is no torch to build it with. Raises
    InputError with the parameters' values that the network refused.
    """
    if importlib.util.find_spec("torch") is None:
        return None
    most = 0
    searched = [parameter for parameter in space if parameter.flag not in TRAIN_FLAGS]
    for values in _combinations(searched):
        options = {parameter.option: literal(value) for parameter, value in values.items()}
        try:
            most = max(most, _build(network, data_config, options))
        except InputError as error:
            listed = ", ".join(f"{parameter.name} {value}" for parameter, value in values.items())
            where = f"search space: {listed}: " if listed else ""
            raise InputError(f"{where}{error}") from None
    return most


def _combinations(space: list[Parameter]) -> Iterator[Mapping[Parameter, str]]:
    """Everything at its first extreme, each other extreme by itself, everything at its last."""
    first = {parameter: parameter.extremes[0] for parameter in space}
    yield first
    for parameter in space:
        for value in parameter.extremes[1:]:
            yield {**first, parameter: value}
    # What each parameter may have by itself may still be too much together.
    if len(space) > 1:
        yield {parameter: parameter.extremes[-1] for parameter in space}


def _build(network: NetworkFile, data_config: Any, options: Mapping[str, object]) -> int:
    """Build network and loss, pass a few jets through it, and return its number of parameters.

    Raises InputError where the network refuses the options, or does not take the jets.
    """
    import torch

    from weaver.network.construction_limit import ConstructionLimit, limit_construction
    from weaver.network.forward_check import check_shapes
    from weaver.network.network_file import check_loss, check_model, num_parameters

    size = 0
    limit = ConstructionLimit()
    try:
        with limit_construction(network.uri) as limit, torch.device("meta"):
            model, _ = network.build(data_config, options)
    except InputError:
        # A network may look at numbers while it is made, and the meta device has none.
        if limit.excess:
            raise
    else:
        check_model(network.uri, model)
        size = num_parameters(model)
    if size > MOST_TRAINABLE:
        raise InputError(
            f"{network.uri}: the network has {size:.3g} parameters, more than"
            f" {MOST_TRAINABLE:.0e}, and could not be trained; make it smaller"
        )
    if size <= MOST_PARAMETERS:
        with torch.random.fork_rng(devices=[]), limit_construction(network.uri):
            model, _ = network.build(data_config, options)
        check_model(network.uri, model)
        size = num_parameters(model)
        check_shapes(model, data_config, network)
    check_loss(network.uri, network.loss(data_config, options))
    return size
