"""Requirements of the evaluation on a data config: observers, and a label that corrects jetPt.

prepare checks both before any training, also on machines without awkward.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.errors import InputError
from physics.metrics import REQUIRED_COLUMNS
from physics.response import Floats


def check_observers(observers: Collection[str], where: str) -> None:
    """Check that the observers that the evaluation needs are there.

    Args:
        observers: Observers of the data config.
        where: Name of the data config, for the error.

    Raises:
        InputError: If an observer is missing.
    """
    for name in REQUIRED_COLUMNS:
        if name not in observers:
            raise InputError(
                f"{where}: the evaluation needs the observer {name}, and 'observers' lists only"
                f" {', '.join(observers) or 'nothing'}; add it"
            )


def label_reason(
    labels: Mapping[str, str], values: Floats | None, columns: Mapping[str, NDArray[Any]]
) -> str:
    """Return why a model with these labels gives no correction of jetPt; empty if it does.

    Args:
        labels: Expression of each label.
        values: The label of jets, (N,); None where it is not known, which gives no reason.
        columns: genJetPt and jetPt of the same jets (GeV), (N,).
    """
    if not labels:
        return ""
    if len(labels) > 1:
        return (
            f"the network has {len(labels)} labels; train it with the one label"
            " np.log(genJetPt / jetPt)"
        )
    (text,) = labels.values()
    if values is None:
        return ""
    values = np.asarray(values, dtype=np.float64)
    with np.errstate(all="ignore"):
        correction = np.log(np.asarray(columns["genJetPt"]) / np.asarray(columns["jetPt"]))
    if values.shape == correction.shape:
        finite = np.isfinite(values) & np.isfinite(correction)
        # Observers are in single precision.
        if np.allclose(values[finite], correction[finite], rtol=0, atol=1e-4):
            return ""
    return (
        f"the label is {text}, so that the model gives no correction of jetPt and none of its"
        " numbers are meaningful; train it with the label np.log(genJetPt / jetPt)"
    )
