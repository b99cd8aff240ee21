"""Predict before the training whether the gate or the residual correction will lack inputs.

The gate judges a model after the search, which takes hours. Unsuitable labels, missing observers,
and a region without test jets are known before.
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
from physics.metrics import REQUIRED_COLUMNS
from weaver.config.data_config import DataConfig
from weaver.config.reference import no_residual_because

MOMENTA = ("jetPt", "genJetPt")
FLAVOURS = ("partonFlav", "hadronFlav")
"""Observers from which a jet's flavour is known."""


def settings_of(config: RunConfig) -> GateSettings:
    """Return the gate's limits of a run."""
    fields = [field.name for field in dataclasses.fields(GateSettings)]
    values = {name: getattr(config, name) for name in fields if name != "seed"}
    return GateSettings(**values, seed=config.seed_number)


def warnings_about_config(data_config: DataConfig, gate: str) -> list[str]:
    """Return warnings about a data config, each a clause with its reason; empty if it is suitable.

    They say that the gate will refuse every model trained with it, or that the models will have no
    residual correction. `gate` is 'default' or 'strict'. Raises InputError if an observer is
    missing that the evaluation needs.
    """
    observers = data_config.observer_names
    check_observers(observers, data_config.source)
    reasons = []
    columns = random_columns(data_config)
    # Only with both momenta can the label be recognised.
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
    """Return label -> its expression, as in the exported model's metadata."""
    labels = {}
    for name in data_config.label_names:
        if name in data_config.functions:
            labels[name] = data_config.functions[name].text
    return labels


def random_columns(data_config: DataConfig) -> dict[str, NDArray[np.float64]]:
    """Return jetPt, genJetPt and the labels of 50 jets with random branches: name -> (50,).

    Two expressions count as the same if their values for these jets agree. Columns that cannot be
    computed from one number per branch and jet, such as those of lists of particles, are left out.
    """
    rng = np.random.default_rng(1)
    names = (*MOMENTA, *data_config.label_names)
    plan = data_config.plan_for(names)
    columns: dict[str, NDArray[np.float64]] = {}
    for name in plan.branches:
        columns[name] = rng.uniform(20.0, 200.0, 50)
    for name, expression in (*plan.selection_functions, *plan.functions):
        if set(expression.names) <= set(columns):
            with contextlib.suppress(InputError, TypeError, ValueError):
                columns[name] = np.asarray(expression.evaluate(columns), dtype=np.float64)
    return {name: columns[name] for name in names if name in columns}


def refusals_on_test_set(test_set: str, config: RunConfig) -> list[str]:
    """Return the reasons for which the gate will refuse every model, whatever its answers.

    They follow from the decoded jets in the folder `test_set`, such as a region of eta without
    jets. Empty if there are none, or if the folder lacks the columns to decide it.
    """
    columns = stored_columns(test_set, (*REQUIRED_COLUMNS, *FLAVOURS))
    if not set(REQUIRED_COLUMNS) <= set(columns):
        return []
    return reasons_of_jets(columns, settings_of(config))


def stored_columns(uri: str, names: tuple[str, ...]) -> Mapping[str, NDArray[np.float64]]:
    """Return the observers of the prepared jets in the folder `uri`: name -> (N,).

    Those of `names` that the folder does not have are missing.
    """
    columns = {}
    for name in names:
        file = storage.join(uri, f"observer.{name}.npy")
        if storage.exists(file):
            columns[name] = np.load(io.BytesIO(storage.read_bytes(file)))
    return columns
