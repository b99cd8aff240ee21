"""Whether a label makes a correction of jetPt."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from evaluating.inputs import Columns
from weaver.config.expressions import Expression
from weaver.read.jagged import evaluate


def label_reason(labels: Mapping[str, str], columns: Columns) -> str:
    """Why a model of these labels gives no correction of jetPt; empty if it does.

    labels: label -> expression. columns: name -> (N,). Also empty where a label needs more than the
    observers, so that nothing can be said.
    """
    if not labels:
        return ""
    if len(labels) > 1:
        return f"the network has {len(labels)} labels, and one, np.log(genJetPt / jetPt), is needed"
    (text,) = labels.values()
    label = Expression(text, "label")
    if not set(label.names) <= set(columns):
        return ""
    with np.errstate(all="ignore"):
        values = np.asarray(evaluate(label, columns), dtype=np.float64)
        needed = np.log(np.asarray(columns["genJetPt"]) / np.asarray(columns["jetPt"]))
    known = np.isfinite(values) & np.isfinite(needed)
    # Observers are in single precision.
    if np.allclose(values[known], needed[known], rtol=0, atol=1e-4):
        return ""
    return (
        f"the label is {text}, so that the model gives no correction of jetPt, and none of the"
        " numbers mean anything; train it with the label np.log(genJetPt / jetPt)"
    )
