"""Check an exported file at many lengths: its outputs equal the network's, or both raise an error.

`check_lengths` compares random jets of all multiplicities at the data config's length. If the
network's `dynamic_axes` leave the number of particles free, as in nearly all published networks, it
also compares jets padded to other lengths: all short ones, where a search for k neighbours takes
another path, and some that are longer than the traced one.

A graph is wrong at other lengths if the network converted a shape to a Python number (`int(P)`,
`max(k, P)`, `if P > k`) while it was traced, because that number becomes a constant of the graph.
The gate's error names the line of the network, and the layer whose outputs differ.
"""

from __future__ import annotations

import linecache
import math
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from common.errors import GateError
from weaver.onnx.layer_differences import describe_layer_differences
from weaver.onnx.onnx_export import free_axes, input_shapes, without_trimming
from weaver.onnx.parity import LIMIT, relative_difference, torch_answers
from weaver.onnx.runtime import feed_of, session

ALL_LENGTHS = 34  # every length up to it is checked: networks search at most 32 neighbours
SOME_LENGTHS = 8  # number of lengths between it and the data config's length
LONGER = 1.3  # the longest length, relative to the data config's
SHORT_JETS = 4  # jets at each length other than the data config's
# (seed, lowest value) of the sets of jets, of which one must agree. A network may take the
# logarithm of a variable, so that the values of the last set are positive.
DRAWS = ((1, -1), (2, -1), (3, 0))
LINES = 3  # lines of a network file in an error

Inputs = dict[str, np.ndarray]
"""Input of the network -> (N, C, P) or (N, C) float32."""


def check_lengths(
    model, model_info: Mapping[str, Any], data_config, onnx_path: str | os.PathLike
) -> float:
    """Compare the outputs of ONNX Runtime and PyTorch for random jets (see the module's docstring).

    Returns the largest difference, relative where an output is above 1. Raises GateError if it is
    too large, or if one of the two raises an error at a length that the other accepts.
    """
    check = _Check(
        network=without_trimming(model),
        onnx_path=onnx_path,
        data_config=data_config,
        shapes=input_shapes(model_info, data_config),
    )
    largest = 0.0
    for label, sizes in _variants(model_info, check.shapes):
        largest = max(largest, check.difference(label, sizes))
    return largest


class _Check:
    """Compare one exported file with its network."""

    def __init__(
        self,
        *,
        network,
        onnx_path: str | os.PathLike,
        data_config,
        shapes: Mapping[str, tuple[int, ...]],
    ) -> None:
        self.network = network
        self.onnx_path = onnx_path
        self.data_config = data_config
        self.shapes = shapes
        """Input -> shape at the data config's length."""
        self.runtime = session(onnx_path)

    def difference(self, label: str, sizes: Mapping[str, tuple[int, ...]]) -> float:
        """Return the largest difference for inputs of these shapes.

        `label` describes them in errors.

        Rounding may decide which of two nearly equally distant particles is a neighbour. So a jet
        of one set may differ, but not in all sets of DRAWS. Returns 0 if both raise errors for such
        inputs. Raises GateError as `check_lengths` does.
        """
        for seed, lowest in DRAWS:
            inputs = random_jets(
                self.data_config, sizes, own=sizes == self.shapes, seed=seed, lowest=lowest
            )
            answers = self._compute_both(label, sizes, inputs)
            if answers is None:
                return 0.0
            difference = _difference(*answers, label)
            if difference <= LIMIT:
                return difference
        if math.isnan(difference):
            raise GateError(f"the network's own answers at {label} are not finite")
        layers = describe_layer_differences(self.network, self.onnx_path, list(sizes), inputs, 0)
        raise self._gate_error(
            f"differs from PyTorch at {label}: largest difference {difference:.1e}, allowed"
            f" {LIMIT:.0e}; {layers}"
        )

    def _compute_both(
        self, label: str, sizes: Mapping[str, tuple[int, ...]], inputs: Inputs
    ) -> tuple[np.ndarray, np.ndarray] | None:
        """Return the outputs of ONNX Runtime and of PyTorch; None if both raise errors."""
        expected, network_error = None, ""
        try:
            expected = torch_answers(self.network, list(sizes), inputs)
        except Exception as error:  # a network's own code may raise anything
            if sizes == self.shapes:
                raise GateError(f"the network does not take {label}: {error}") from error
            network_error = str(error)
        try:
            answers = _onnx_answers(self.runtime, inputs)
        except Exception as error:  # onnxruntime's own exceptions share no base class
            if expected is None:
                return None
            raise self._gate_error(f"rejects {label}, which the network takes: {error}") from error
        if expected is None:
            raise self._gate_error(f"takes {label}, which the network rejects ({network_error})")
        return answers, expected

    def _gate_error(self, what: str) -> GateError:
        """Return the gate's error, with the lines of the network that made shapes constants."""
        inputs = random_jets(self.data_config, self.shapes, own=True)
        return GateError(
            f"the ONNX file {what}{constant_sources(self.network, list(inputs), inputs)}"
        )


def _variants(
    model_info: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]
) -> Iterator[tuple[str, dict[str, tuple[int, ...]]]]:
    """Yield the shapes to check, each with a description; first those of the data config.

    All free axes of particles get the same length, because inputs of the same particles must agree.
    Each other free axis is extended by one, by itself.
    """
    own = max((shape[1] for shape in shapes.values() if len(shape) > 1), default=0)
    yield f"the data config's length, {own} places" if own else "single values", dict(shapes)

    free = free_axes(model_info)
    particles = {name: axes for name, axes in free.items() if name in shapes and 2 in axes}
    if particles:
        for length in lengths(own):
            sizes = dict(shapes)
            for name in particles:
                sizes[name] = (shapes[name][0], length)
            if sizes != shapes:
                yield f"{length} places", sizes
    for name in shapes:
        if 1 in free.get(name, {}):
            first, *rest = shapes[name]
            yield f"{first + 1} values of '{name}'", {**shapes, name: (first + 1, *rest)}


def lengths(own: int) -> list[int]:
    """Return the lengths at which a network is checked whose data config has the length `own`."""
    short = range(1, min(own, ALL_LENGTHS) + 2)
    between = np.linspace(min(own, ALL_LENGTHS), own, SOME_LENGTHS).astype(int).tolist()
    return sorted({*short, *between, own + 1, math.ceil(LONGER * own)})


def random_jets(
    data_config,
    shapes: Mapping[str, tuple[int, ...]],
    *,
    own: bool,
    seed: int = 1,
    lowest: float = -1,
) -> Inputs:
    """Make random jets with 1 particle up to as many as there are places.

    Padded places contain the data config's pad values. Masks, which are recognised by the names of
    inputs or variables, are 1 for particles. own: the shapes have the data config's length, for
    which more jets are made. lowest: smallest random value.
    """
    rng = np.random.default_rng(seed)
    most = max((shape[1] for shape in shapes.values() if len(shape) > 1), default=1)
    if own:
        multiplicity = np.array([length for length in lengths(most) if length <= most])  # (N,)
    else:
        multiplicity = np.linspace(1, most, SHORT_JETS).round().astype(int)
    inputs: Inputs = {}
    for name, shape in shapes.items():
        array = rng.uniform(lowest, 1, (len(multiplicity), *shape)).astype(np.float32)
        if is_mask(data_config, name):
            array[:] = 1
        if is_momentum(name, shape):
            # energies of particles with small masses, as in real jets
            array[:, 3] = 1.01 * np.linalg.norm(array[:, :3], axis=1)
        if len(shape) > 1:
            is_padding = np.arange(shape[1]) >= multiplicity[:, None]  # (N, P)
            pads = np.array(_pad_values(data_config, name, shape[0]), np.float32)  # (C,)
            array = np.where(is_padding[:, None, :], pads[:, None], array)
        inputs[name] = array
    return inputs


def is_mask(data_config, name: str) -> bool:
    """Return whether an input is a mask: 1 for places with a particle."""
    variables = data_config.input_dicts.get(name, [])
    return name.endswith("mask") or (
        bool(variables) and all(variable.endswith("mask") for variable in variables)
    )


def is_momentum(name: str, shape: Sequence[int]) -> bool:
    """Return whether an input has four-momenta (px, py, pz, E), as for Particle Transformer."""
    return "vectors" in name and len(shape) == 2 and shape[0] == 4


def _pad_values(data_config, name: str, channels: int) -> list[float]:
    """Return the value of each variable of an input in a padded place."""
    variables = data_config.input_dicts.get(name, [])
    if len(variables) != channels:
        return [0.0] * channels
    return [data_config.preprocess_params[variable]["pad_value"] for variable in variables]


def _onnx_answers(runtime, inputs: Inputs) -> np.ndarray:
    """ONNX Runtime's outputs (N, outputs); its errors are raised, but not also printed."""
    import onnxruntime

    quiet = onnxruntime.RunOptions()
    quiet.log_severity_level = 4  # fatal
    answers = runtime.run(None, feed_of(runtime, inputs), quiet)
    return np.concatenate([answer.reshape(len(answer), -1) for answer in answers], axis=1)


def _difference(answers: np.ndarray, expected: np.ndarray, label: str) -> float:
    """Return largest difference over jets for which PyTorch's output is finite.

    NaN without such jets.
    """
    if answers.shape != expected.shape:
        raise GateError(
            f"the ONNX file gives outputs of shape {answers.shape} at {label}, the network"
            f" {expected.shape}"
        )
    is_finite = np.isfinite(expected).all(axis=1)
    if not is_finite.any():
        return math.nan
    return float(relative_difference(answers[is_finite], expected[is_finite]).max())


def constant_sources(network, names: Sequence[str], inputs: Inputs) -> str:
    """Return the lines that convert shapes to Python numbers while the network is traced.

    Returns the end of a sentence; empty if there are none. Never raises.
    """
    import torch

    example = tuple(torch.from_numpy(inputs[name].copy()) for name in names)
    lines: dict[str, None] = {}  # each once, in order
    with warnings.catch_warnings(record=True) as tracer_warnings, torch.no_grad():
        warnings.simplefilter("always")
        try:
            torch.jit.trace(network, example, check_trace=False)
        except Exception as error:  # an error here must not hide the gate's result
            return (
                f"; its operations could not be traced again ({str(error) or type(error).__name__})"
            )
    for warning in tracer_warnings:
        if issubclass(warning.category, torch.jit.TracerWarning):
            text = linecache.getline(warning.filename, warning.lineno).strip()
            what = str(warning.message).partition(" might cause")[0].partition(":")[0]
            lines[f"{warning.filename}, line {warning.lineno}: {text} ({what})"] = None
    if not lines:
        return ""
    text = "; ".join(list(lines)[:LINES])
    return f"; numbers that became constants of the graph: {text}"
