"""Refuses a search space that trials could not use: names that nothing takes, values that a flag or
the network refuses.

Names and flags are checked by reading the network file, which needs no torch (the image of the
steps has none) and takes no time. Where torch is there, the network is also built with the extremes
of the space, on torch's meta device: without memory or numbers.
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


def check_options(space: list[Parameter], network_config: str, source: str) -> None:
    """Raise InputError for a parameter that is neither a flag of weaver.train nor an option of the
    network, or a value it cannot have.
    """
    options, rules = option_names(source, network_config), option_rules(source)
    for parameter in space:
        if _flag(parameter) in TRAIN_FLAGS:
            _check_flag(parameter)
        elif options is not None and _option(parameter) not in options:
            known = [*TRAIN_FLAGS, *(name.replace("_", "-") for name in options)]
            raise InputError(
                f"search space: {unknown('parameter', parameter.name, known)} ({network_config} has"
                " no such option)"
            )
        elif _option(parameter) in rules:
            _check_option(parameter, rules)


def check_builds(space: list[Parameter], network: NetworkFile, data_config: Any) -> bool:
    """Build the network and its loss with each extreme of the space. False where there is no torch
    to do it with.

    Raises InputError with the parameters' values that it refused.
    """
    if importlib.util.find_spec("torch") is None:
        return False
    searched = [parameter for parameter in space if _flag(parameter) not in TRAIN_FLAGS]
    for chosen in _combinations(searched):
        options = {_option(parameter): literal(value) for parameter, value in chosen.items()}
        try:
            _build(network, data_config, options)
        except InputError as error:
            values = ", ".join(f"{parameter.name} {value}" for parameter, value in chosen.items())
            raise InputError(
                f"search space: the network cannot be built with {values}: {error}"
            ) from None
    return True


def _check_flag(parameter: Parameter) -> None:
    """Hold a flag's extreme values against what weaver.train takes."""
    field = next(
        field for field in dataclasses.fields(TrainOptions) if field.name == _option(parameter)
    )
    parse = field.metadata["argparse"].get("type", str)
    for value in parameter.extremes:
        try:
            parse(value)
        except (argparse.ArgumentTypeError, ValueError) as error:
            raise InputError(
                f"search space, parameter '{parameter.name}', value {value}: {error}"
            ) from None


def _check_option(parameter: Parameter, rules: Mapping[str, Any]) -> None:
    """Hold an option's extreme values against what the network file says of it."""
    for value in parameter.extremes:
        try:
            check(rules, {_option(parameter): literal(value)})
        except InputError as error:
            raise InputError(
                f"search space, parameter '{parameter.name}', value {value}: {error}"
            ) from None


def _combinations(space: list[Parameter]) -> Iterator[Mapping[Parameter, str]]:
    """Everything at its first extreme, each other extreme by itself, everything at its last."""
    first = {parameter: parameter.extremes[0] for parameter in space}
    yield first
    for parameter in space:
        for value in parameter.extremes[1:]:
            yield {**first, parameter: value}
    if len(space) > 1:
        yield {parameter: parameter.extremes[-1] for parameter in space}


def _build(network: NetworkFile, data_config: Any, options: dict[str, Any]) -> None:
    """Build on the meta device, and in earnest where that is what fails: a network may look at
    numbers while it is made.
    """
    import torch

    try:
        with torch.device("meta"):
            network.build(data_config, options)
    except InputError:
        network.build(data_config, options)
    network.loss(data_config, options)


def _flag(parameter: Parameter) -> str:
    return parameter.name.replace("_", "-")


def _option(parameter: Parameter) -> str:
    return parameter.name.replace("-", "_")
