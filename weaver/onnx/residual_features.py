"""The features of each jet that the residual correction (physics.residual) takes.

    features = residual_features(data_config, batch)  # (N, 2)

They are the pT that the label divides by (jetPt in log(genJetPt / jetPt), GeV), from the observers,
and jetEta, from the network's inputs, whose standardisation is undone. So prepared jets contain all
that is needed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from weaver.config.data_config import DataConfig
from weaver.config.reference import ETA, eta_group, reference_expression
from weaver.read.jagged import evaluate

FEATURES = "residual_features"
"""Name of the exported feature model's input, (N, 2) float32."""

FEATURE_NAMES = ("pT", ETA)
"""Columns of the features: the pT that the label divides by (GeV), and jetEta."""


class Jets(Protocol):
    """Prepared jets (weaver.feed.dataset.Batch)."""

    @property
    def inputs(self) -> Mapping[str, Any]:
        """Input group -> (N, C), (N,) for one variable, or (N, C, P)."""

    @property
    def observers(self) -> Mapping[str, Any]:
        """Observer -> (N,)."""


def residual_features(config: DataConfig, jets: Jets) -> NDArray[np.float32]:
    """Compute the features (N, 2) of prepared jets: reference pT (GeV) and jetEta.

    config: with all parameters of the standardisation, and one for which
    weaver.config.reference.no_residual_because is empty.
    """
    reference = evaluate(reference_expression(config), jets.observers)
    group = eta_group(config)
    assert group is not None, "the data config has no jetEta"
    place = list(config.input_dicts[group]).index(ETA)
    values = np.asarray(jets.inputs[group])
    eta = values[:, place] if values.ndim == 2 else values
    params = config.preprocess_params[ETA]
    if params["center"] is not None:
        eta = eta / params["scale"] + params["center"]
    return np.stack([np.asarray(reference), eta], axis=1).astype(np.float32)
