"""The valid range of an exported model, and the description of its inputs and outputs."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np

from common import storage
from common.errors import InputError
from common.layout import RunFolder
from exporting.candidates import ModelInfo
from exporting.spread import spread

if TYPE_CHECKING:
    from weaver.feed.dataset import Dataset
    from weaver.onnx.valid_range import ValidRange

MAX_JETS = 200_000  # jets that give |eta| if the selection has no limit

MEANINGS = {
    "output": "log(true pT / reconstructed pT) and its quantiles, in the order of output_columns",
    "calibrated_pt": "calibrated pT (GeV)",
    "correction": "factor to the pT of the standard correction",
    "valid": "whether the jet is in the range of the training with finite numbers; if not, the"
    " standard correction is returned unchanged",
}


def training_range(folder: RunFolder, validation: Dataset) -> ValidRange | None:
    """Return the range of the jets that the model was trained on.

    It is computed from the training jets if they are on this machine, else from the validation
    jets, which passed the same selection. None if the observers lack the pT that the label divides
    by.
    """
    from weaver.config.reference import eta_group, reference_expression
    from weaver.onnx.valid_range import selection_eta_limit, valid_range
    from weaver.read.jagged import evaluate

    config = validation.data_config
    try:
        reference = reference_expression(config)
    except InputError:
        return None
    if not set(reference.names) <= set(validation.observers()):
        return None
    dataset, jets = validation, "validation"
    training = local_training_jets(folder, validation)
    if training is not None:
        dataset, jets = training, "training"
    pt = np.asarray(evaluate(reference, dataset.observers()))
    eta = None
    if eta_group(config) is not None:
        eta = np.zeros(1)
        if selection_eta_limit(config) is None:
            eta = eta_of(dataset)
    return valid_range(config, pt[np.isfinite(pt)], eta, jets)


def eta_of(dataset: Dataset) -> np.ndarray:
    """Return jetEta (N,) of jets spread over a data set that has it among its inputs."""
    from weaver.onnx.residual_features import residual_features

    batch = dataset.batch(spread(len(dataset), MAX_JETS))
    return residual_features(dataset.data_config, batch)[:, 1]


def local_training_jets(folder: RunFolder, validation: Dataset) -> Dataset | None:
    """Return the training jets if they are on this machine and readable without a copy."""
    from weaver.feed.dataset import Dataset
    from weaver.prepared.columns import resolve_reference

    reference = folder.data("train")
    place = storage.find_object(reference).get("dataset", "")
    prepared = resolve_reference(reference, place) if place else ""
    if not prepared or not storage.is_local(prepared) or not storage.exists(prepared):
        return None
    dataset = Dataset.open(reference, validation.data_config)
    return dataset if len(dataset) else None


def signature(info: ModelInfo, limits: ValidRange | None) -> dict[str, str]:
    """Return names, shapes and meanings of inputs and outputs, as text for the ONNX file."""
    inputs = {}
    for name in info["input_names"]:
        inputs[name] = ["N", *(int(size) for size in info["input_shapes"][name][1:])]
    outputs = {}
    for name in info["output_names"]:
        meaning = MEANINGS.get(name, "")
        if not meaning and name.startswith("calibrated_pt_"):
            meaning = f"quantile {name.removeprefix('calibrated_pt_')} of the calibrated pT (GeV)"
        outputs[name] = meaning
    texts = {"inputs": json.dumps(inputs), "outputs": json.dumps(outputs)}
    if limits is not None:
        eta = "" if limits.max_abs_eta is None else f", |jetEta| <= {limits.max_abs_eta:g}"
        texts["range"] = f"pT {limits.min_pt:g} to {limits.max_pt:g} GeV{eta}"
    return texts
