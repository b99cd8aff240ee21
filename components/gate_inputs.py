"""Say before any training what the gate and the residual correction will lack.

The gate looks at a model after the whole search. That the label is of another kind, or that a test
set has no jet in a region, is known before.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from common import storage
from common.config import RunConfig
from common.errors import InputError
from common.measurements import GateSettings
from evaluating.requirements import check_observers, label_reason
from physics.gate import reasons_of_jets
from physics.metrics import NEEDED
from weaver.config.data_config import DataConfig
from weaver.config.reference import no_residual_because

MOMENTA = ("jetPt", "genJetPt")
FLAVOURS = ("partonFlav", "hadronFlav")
"""Observers from which a jet's flavour is known."""


def settings_of(config: RunConfig) -> GateSettings:
    """The gate's limits of a run."""
    fields = [field.name for field in dataclasses.fields(GateSettings)]
    values = {name: getattr(config, name) for name in fields if name != "seed"}
    return GateSettings(**values, seed=config.seed_number)


def missing_of_config(data_config: DataConfig, gate: str) -> list[str]:
    """What a data config alone says: why the gate will refuse, and why there is no correction.

    gate: 'default' or 'strict'. Raises InputError without an observer that evaluation needs.
    """
    observers = data_config.observer_names
    check_observers(observers, data_config.source)
    reasons = []
    columns = imagined_columns(data_config)
    # Without the two momenta nothing can be said.
    label = columns.get(data_config.label_names[0]) if set(MOMENTA) <= set(columns) else None
    reason = label_reason(labels_of(data_config), label, columns)
    if reason:
        reasons.append(f"the gate will refuse the model: {reason}")
    if gate == "strict" and not set(FLAVOURS) <= set(observers):
        reasons.append(
            "the strict gate will refuse the model: it needs the flavour spread, and"
            f" {' and '.join(FLAVOURS)} are not among the observers; add them"
        )
    if reason := no_residual_because(data_config):
        reasons.append(f"the model will have no residual correction: {reason}")
    return reasons


def labels_of(data_config: DataConfig) -> dict[str, str]:
    """Label -> its expression, as the exported model's metadata have it."""
    labels = {}
    for name in data_config.label_names:
        if name in data_config.functions:
            labels[name] = data_config.functions[name].text
    return labels


def imagined_columns(data_config: DataConfig) -> dict[str, NDArray[np.float64]]:
    """jetPt, genJetPt and the labels of jets whose branches are random: (50,) each.

    Two expressions that agree for them are the same. What cannot be computed of such branches, as
    lists of particles, is missing.
    """
    rng = np.random.default_rng(1)
    wanted = (*MOMENTA, *data_config.label_names)
    plan = data_config.plan_for(wanted)
    columns: dict[str, NDArray[np.float64]] = {}
    for name in plan.branches:
        columns[name] = rng.uniform(20.0, 200.0, 50)
    for name, expression in (*plan.selection_functions, *plan.functions):
        if set(expression.names) <= set(columns):
            with contextlib.suppress(InputError, TypeError, ValueError):
                columns[name] = np.asarray(expression.evaluate(columns), dtype=np.float64)
    return {name: columns[name] for name in wanted if name in columns}


def missing_of_jets(test_set: str, config: RunConfig) -> list[str]:
    """Why the gate will refuse every model, by the decoded test jets in the folder `test_set`."""
    columns = stored_columns(test_set, (*NEEDED, *FLAVOURS))
    if not set(NEEDED) <= set(columns):
        return []
    return reasons_of_jets(columns, settings_of(config))


def stored_columns(uri: str, names: tuple[str, ...]) -> Mapping[str, NDArray[np.float64]]:
    """Observers of the prepared jets in the folder `uri`: those of `names` that are there, (N,)."""
    columns = {}
    for name in names:
        file = storage.join(uri, f"observer.{name}.npy")
        if storage.exists(file):
            columns[name] = np.load(io.BytesIO(storage.read_bytes(file)))
    return columns
