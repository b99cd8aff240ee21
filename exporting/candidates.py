"""The models that an export may write, each with the jets for its parity gate."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from common import storage
from common.errors import InputError
from exporting.spread import spread
from physics.residual import Residual

if TYPE_CHECKING:
    import torch

    from weaver.config.data_config import DataConfig
    from weaver.feed.dataset import Dataset
    from weaver.onnx.parity import Golden
    from weaver.onnx.valid_range import ValidRange

ModelInfo = Mapping[str, Any]
"""model_info of a network file: names, shapes and types of inputs, names of outputs."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Candidate:
    """A model that must pass the parity gate before it is written."""

    name: str
    model: torch.nn.Module
    info: ModelInfo
    data_config: DataConfig | None
    """Data config with the shapes of the inputs; None if `info` has them all."""
    jets: Golden
    """Jets of all multiplicities for the gate, real ones among them."""
    real: Mapping[str, np.ndarray]
    """Inputs of real jets for the golden requests, by name, (N, ...)."""
    expected: np.ndarray
    """Expected outputs for `jets`, (N, C): network in PyTorch, residual correction in numpy."""
    range_columns: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """For the raw model: the inputs that decide whether a jet is valid."""
    explain: Callable[[], str] = str
    """Returns a further explanation if the gate fails; empty by default."""


def feature_model(
    name: str,
    network: torch.nn.Module,
    network_info: ModelInfo,
    residual: Residual | None,
    dataset: Dataset,
) -> Candidate:
    """Return the network itself, whose inputs are prepared as by weaver.

    With a residual correction it takes the residual features as well.

    Args:
        name: Name of the model.
        network: The network.
        network_info: Its model_info.
        residual: The residual correction; None without one.
        dataset: The validation jets.
    """
    from weaver.onnx import parity
    from weaver.onnx.residual_features import FEATURES, residual_features

    index = spread(len(dataset), parity.NUM_JETS)
    batch = dataset.batch(index)
    inputs = {key: batch.inputs[key].numpy() for key in network_info["input_names"]}
    if residual is not None:
        inputs[FEATURES] = residual_features(dataset.data_config, batch)
    model, info = with_residual(network, network_info, residual)

    # Value of each variable in padded positions, {group: (C,)}.
    padding = {}
    params = dataset.data_config.preprocess_params
    for group, variables in dataset.data_config.input_dicts.items():
        values = [params[variable]["pad_value"] for variable in variables]
        padding[group] = np.array(values, np.float32)

    jets = parity.golden_jets(inputs, dataset.multiplicity()[index], padding=padding)
    return Candidate(
        name=name,
        model=model,
        info=info,
        data_config=dataset.data_config,
        jets=jets,
        real=inputs,
        expected=expected_output(network, network_info, residual, jets.inputs),
    )


def raw_model(
    name: str,
    network: torch.nn.Module,
    network_info: ModelInfo,
    residual: Residual | None,
    dataset: Dataset,
    limits: ValidRange | None,
) -> Candidate:
    """Return the network with its preprocessing, which takes the columns of the files.

    Its expected outputs come from weaver's own preparation, the network, and the residual
    correction.

    Args:
        name: Name of the model.
        network: The network.
        network_info: Its model_info.
        residual: The residual correction; None without one.
        dataset: The validation jets.
        limits: Valid range of the model.

    Raises:
        InputError: If the data config cannot be expressed as a graph, or the files of the
            validation set can no longer be read.
    """
    from weaver.config.reference import reference_expression
    from weaver.onnx import parity, raw_jets
    from weaver.onnx import raw_model as weaver_raw_model
    from weaver.onnx.raw_program import raw_program
    from weaver.onnx.residual_features import FEATURES
    from weaver.onnx.valid_range import range_columns, valid_jets

    config = dataset.data_config
    if limits is None:
        raise InputError(
            f"{config.source}: a model that takes raw jets says which are in the range of its"
            f" training; add '{reference_expression(config).text}' to the observers"
        )
    entries = []
    for file in dataset.description["files"]:
        entries.append(
            storage.Entry(
                uri=file["uri"],
                size=file["size"],
                tag=file["tag"],
                written=file.get("written", ""),  # data prepared by an earlier version have none
            )
        )
    columns = raw_jets.raw_columns(entries[0], config)
    for branch, dtype in dataset.description.get("types", {}).items():  # of all files
        if branch in columns:
            columns[branch] = dataclasses.replace(columns[branch], dtype=np.dtype(dtype))
    program = raw_program(config, columns)
    model, info = with_residual(network, network_info, residual)
    with_preprocessing, raw_info = weaver_raw_model.raw_model(program, model, info, config, limits)

    real = raw_jets.read_raw(entries, config, program, parity.NUM_JETS)
    jets = raw_jets.golden_raw_jets(real, program, config)
    reference = raw_jets.reference_inputs(jets.inputs, config, program)
    output = expected_output(network, network_info, residual, reference)
    eta = reference[FEATURES][:, 1] if FEATURES in reference else None
    valid = valid_jets(jets.inputs, program, reference[""], eta, limits)
    expected = raw_jets.reference_answers(output, reference[""], valid)

    def explain() -> str:
        """Return which input the preprocessing in the graph computes differently."""
        explanation: str = raw_jets.describe_worst_input(
            with_preprocessing, raw_info["input_names"], jets.inputs, reference, config
        )
        return explanation

    return Candidate(
        name=name,
        model=with_preprocessing,
        info=raw_info,
        data_config=None,
        jets=jets,
        real=real,
        expected=expected,
        range_columns=range_columns(program),
        explain=explain,
    )


def with_residual(
    network: torch.nn.Module, info: ModelInfo, residual: Residual | None
) -> tuple[torch.nn.Module, ModelInfo]:
    """Return the network and its model_info with the residual correction as last layer."""
    from weaver.onnx.residual import CorrectedNetwork, with_features

    if residual is None:
        return network, info
    return CorrectedNetwork(network, residual).eval(), with_features(info)


def expected_output(
    network: torch.nn.Module,
    info: ModelInfo,
    residual: Residual | None,
    inputs: Mapping[str, np.ndarray],
) -> np.ndarray:
    """Return the outputs (N, C) of the network in PyTorch, with the residual in numpy."""
    from weaver.onnx.parity import torch_answers
    from weaver.onnx.residual_features import FEATURES

    output = torch_answers(network, info["input_names"], inputs)
    if residual is None:
        return output
    reference_pt, eta = inputs[FEATURES].T
    return residual.apply(output, reference_pt, eta).astype(np.float32)
