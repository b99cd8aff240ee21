"""Refuses search-space parameters that nothing would take. The network file is read, not run: the steps have no torch."""

from __future__ import annotations

from common.errors import InputError, unknown
from training.search_space import Parameter
from weaver.network_file import option_names
from weaver.options import TRAIN_FLAGS


def check_options(space: list[Parameter], network_config: str, source: str) -> None:
    """Raise InputError for a parameter that is neither a flag of weaver.train nor an option of the network."""
    options = option_names(source, network_config)
    if options is None:
        return
    for parameter in space:
        if parameter.name.replace("_", "-") not in TRAIN_FLAGS and parameter.name.replace("-", "_") not in options:
            known = [*TRAIN_FLAGS, *(name.replace("_", "-") for name in options)]
            raise InputError(f"search space: {unknown('parameter', parameter.name, known)} ({network_config} has no such option)")
