"""What the evaluation asks of a data config: observers, and a label that corrects jetPt.

prepare looks at both before any training, on machines without awkward as well.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.errors import InputError
from physics.metrics import NEEDED
from physics.response import Floats


def check_observers(observers: Collection[str], where: str) -> None:
    """Refuse jets that the physics cannot measure.

    Raises InputError with the first observer that it needs and the data config `where` lacks.
    """
    for name in NEEDED:
        if name not in observers:
            raise InputError(
                f"{where}: the evaluation needs the observer {name}, and 'observers' lists only"
                f" {', '.join(observers) or 'nothing'}; add it"
            )


def label_reason(
    labels: Mapping[str, str], values: Floats | None, columns: Mapping[str, NDArray[Any]]
) -> str:
    """Why a model of these labels gives no correction of jetPt; empty if it does.

    labels: label -> expression. values: the label of jets (N,), None where that is not known, so
    that nothing can be said. columns: genJetPt and jetPt of the same jets (GeV), (N,).
    """
    if not labels:
        return ""
    if len(labels) > 1:
        return f"the network has {len(labels)} labels, and one, np.log(genJetPt / jetPt), is needed"
    (text,) = labels.values()
    if values is None:
        return ""
    values = np.asarray(values, dtype=np.float64)
    with np.errstate(all="ignore"):
        needed = np.log(np.asarray(columns["genJetPt"]) / np.asarray(columns["jetPt"]))
    if values.shape == needed.shape:
        known = np.isfinite(values) & np.isfinite(needed)
        # Observers are in single precision.
        if np.allclose(values[known], needed[known], rtol=0, atol=1e-4):
            return ""
    return (
        f"the label is {text}, so that the model gives no correction of jetPt, and none of the"
        " numbers mean anything; train it with the label np.log(genJetPt / jetPt)"
    )
