"""The models that an export may write, each with the jets that it must pass the gate on."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from common import storage

if TYPE_CHECKING:
    import torch

    from weaver.config.data_config import DataConfig
    from weaver.feed.dataset import Dataset
    from weaver.onnx.parity import Golden

ModelInfo = Mapping[str, Any]
"""The model_info of a network file: names, shapes and types of inputs, names of outputs."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Candidate:
    """A model that must pass the gate."""

    name: str
    model: torch.nn.Module
    info: ModelInfo
    data_config: DataConfig | None
    """For the shapes of the inputs; None where `info` says them all."""
    jets: Golden
    """Jets of all multiplicities, real ones among them, for the gate."""
    real: Mapping[str, np.ndarray]
    """Inputs of real jets, for the golden requests: name -> (N, ...)."""
    expected: np.ndarray | None = None
    """The right answers to `jets`, (N, C), where they are not the model's own."""
    explain: Callable[[], str] = str
    """Called where the gate fails: a further explanation, empty by default."""


def feature_model(
    name: str, model: torch.nn.Module, info: ModelInfo, dataset: Dataset
) -> Candidate:
    """The network itself, which takes inputs prepared as weaver does it."""
    from weaver.onnx import parity

    index = spread(len(dataset), parity.NUM_JETS)
    tensors = dataset.batch(index).inputs
    inputs = {key: tensors[key].numpy() for key in info["input_names"]}

    # Value of each variable in a place without particle, {group: (C,)}.
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
    )


def raw_model(name: str, model: torch.nn.Module, info: ModelInfo, dataset: Dataset) -> Candidate:
    """The network with the preprocessing in front, which takes the columns of the files.

    The right answers to its jets are those of weaver's own preparation and the network. Raises
    InputError where the data config has no form in a graph, or the files of the validation set can
    no longer be read.
    """
    from weaver.onnx import parity, raw_jets
    from weaver.onnx import raw_model as weaver_raw_model
    from weaver.onnx.raw_program import raw_program

    config = dataset.data_config
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
    with_preprocessing, raw_info = weaver_raw_model.raw_model(program, model, info, config)

    real = raw_jets.read_raw(entries, config, program, parity.NUM_JETS)
    jets = raw_jets.golden_raw_jets(real, program, config)
    reference = raw_jets.reference_inputs(jets.inputs, config, program)
    expected = raw_jets.reference_answers(model, info["input_names"], reference)

    def explain() -> str:
        """Say which input the preprocessing in the graph computes differently."""
        explanation: str = raw_jets.preprocessing_apart(
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
        explain=explain,
    )


def spread(length: int, count: int) -> np.ndarray:
    """Indices of at most `count` jets, evenly spread over a dataset of `length`.

    The files of a dataset may differ in pT, so its first jets say little about the rest.
    """
    return np.unique(np.linspace(0, length - 1, min(count, length)).astype(np.int64))
