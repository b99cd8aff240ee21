"""The check of an exported file at every length: it answers as the network, or refuses as it does.

`check_lengths` is for networks whose `dynamic_axes` leave the number of particles free, as nearly
all published ones do, and for those with fixed lengths as well: these are checked at their own
length only. Random jets of all multiplicities are compared at the data config's length; then jets
padded to other lengths: all short ones, where a search for k neighbours changes its form, and some
that are longer than the traced one.

A graph is wrong at other lengths where the network made a Python number of a shape (`int(P)`,
`max(k, P)`, `if P > k`) while it was traced: that number is a constant of the graph. The error of
the gate names the line in which that happened, and the operation of the graph that departs.
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
from weaver.onnx.layers_apart import layers_apart
from weaver.onnx.onnx_export import free_axes, input_shapes, untrimmed
from weaver.onnx.parity import LIMIT, relative_difference, torch_answers
from weaver.onnx.runtime import feed_of, session

ALL_LENGTHS = 34  # every shorter length is checked: networks look for at most 32 neighbours
SOME_LENGTHS = 8  # of those between it and the data config's length
LONGER = 1.3  # times the data config's length
SHORT_JETS = 4  # jets at each length but the data config's
LINES = 3  # of a network file, that an error names

Inputs = dict[str, np.ndarray]
"""Input of the network -> (N, C, P) or (N, C) float32."""


def check_lengths(
    model, model_info: Mapping[str, Any], data_config, onnx_path: str | os.PathLike
) -> float:
    """Compare the answers of ONNX Runtime and PyTorch to random jets, as the module's text says.

    Returns the largest difference, relative where an answer is above 1. Raises GateError where it
    is too large, or one of the two refuses a length that the other takes.
    """
    network = untrimmed(model)
    runtime = session(onnx_path)
    shapes = input_shapes(model_info, data_config)
    names = list(shapes)
    largest = 0.0
    for label, sizes in _variants(model_info, shapes):
        inputs = random_jets(data_config, sizes, own=sizes == shapes)
        expected, refusal = None, ""
        try:
            expected = torch_answers(network, names, inputs)
        except Exception as error:  # a network's own code may raise anything
            if sizes == shapes:
                raise GateError(f"the network does not take {label}: {error}") from error
            refusal = str(error)
        try:
            answers = _onnx_answers(runtime, inputs)
        except Exception as error:  # onnxruntime's own exceptions share no base class
            if expected is None:
                continue
            raise GateError(
                f"the ONNX file refuses {label}, which the network takes: {error}"
                f"{fixed_by(network, names, random_jets(data_config, shapes, own=True))}"
            ) from error
        if expected is None:
            raise GateError(
                f"the ONNX file answers at {label}, which the network refuses ({refusal})"
                f"{fixed_by(network, names, random_jets(data_config, shapes, own=True))}"
            )
        difference = _difference(answers, expected, label)
        if difference > LIMIT:
            layers = layers_apart(network, onnx_path, names, inputs, 0)
            raise GateError(
                f"the ONNX file answers otherwise than PyTorch at {label}: largest difference"
                f" {difference:.1e}, allowed {LIMIT:.0e}; {layers}"
                f"{fixed_by(network, names, random_jets(data_config, shapes, own=True))}"
            )
        largest = max(largest, difference)
    return largest


def _variants(
    model_info: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]
) -> Iterator[tuple[str, dict[str, tuple[int, ...]]]]:
    """The shapes to check, each with words for it; first those of the data config.

    All free axes of particles get a length together, since inputs that belong together have the
    same. A free axis of another kind is made longer by one, on its own.
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
    """Lengths of padded jets to check a network of the length `own` at."""
    short = range(1, min(own, ALL_LENGTHS) + 2)
    between = np.linspace(min(own, ALL_LENGTHS), own, SOME_LENGTHS).astype(int).tolist()
    return sorted({*short, *between, own + 1, math.ceil(LONGER * own)})


def random_jets(data_config, shapes: Mapping[str, tuple[int, ...]], *, own: bool) -> Inputs:
    """Random jets, of 1 particle to as many as there are places.

    Padded places hold the pad values of the data config. Inputs by whose name, or their variables'
    names, they are masks are 1 for a particle. own: this is the data config's length, for which
    there are more jets.
    """
    rng = np.random.default_rng(1)
    most = max((shape[1] for shape in shapes.values() if len(shape) > 1), default=1)
    if own:
        multiplicity = np.array([length for length in lengths(most) if length <= most])  # (N,)
    else:
        multiplicity = np.linspace(1, most, SHORT_JETS).round().astype(int)
    inputs: Inputs = {}
    for name, shape in shapes.items():
        array = rng.uniform(-1, 1, (len(multiplicity), *shape)).astype(np.float32)
        if is_mask(data_config, name):
            array[:] = 1
        if is_momentum(name, shape):
            # energies of particles whose mass is small, as real ones are
            array[:, 3] = 1.01 * np.linalg.norm(array[:, :3], axis=1)
        if len(shape) > 1:
            padded = np.arange(shape[1]) >= multiplicity[:, None]  # (N, P)
            pads = np.array(_pad_values(data_config, name, shape[0]), np.float32)  # (C,)
            array = np.where(padded[:, None, :], pads[:, None], array)
        inputs[name] = array
    return inputs


def is_mask(data_config, name: str) -> bool:
    """Whether an input says which places hold a particle."""
    variables = data_config.input_dicts.get(name, [])
    return name.endswith("mask") or (
        bool(variables) and all(variable.endswith("mask") for variable in variables)
    )


def is_momentum(name: str, shape: Sequence[int]) -> bool:
    """Whether an input holds four-momenta (px, py, pz, E), as Particle Transformer takes them."""
    return "vectors" in name and len(shape) == 2 and shape[0] == 4


def _pad_values(data_config, name: str, channels: int) -> list[float]:
    """The value of each variable of an input in a padded place."""
    variables = data_config.input_dicts.get(name, [])
    if len(variables) != channels:
        return [0.0] * channels
    return [data_config.preprocess_params[variable]["pad_value"] for variable in variables]


def _onnx_answers(runtime, inputs: Inputs) -> np.ndarray:
    """ONNX Runtime's answers (N, outputs); an error is raised, and not printed as well."""
    import onnxruntime

    quiet = onnxruntime.RunOptions()
    quiet.log_severity_level = 4  # fatal
    return np.concatenate(runtime.run(None, feed_of(runtime, inputs), quiet), axis=1)


def _difference(answers: np.ndarray, expected: np.ndarray, label: str) -> float:
    """Largest difference over the jets to which PyTorch's own answer is finite."""
    if answers.shape != expected.shape:
        raise GateError(
            f"the ONNX file gives outputs of shape {answers.shape} at {label}, the network"
            f" {expected.shape}"
        )
    finite = np.isfinite(expected).all(axis=1)
    if not finite.any():
        raise GateError(f"the network's own answers at {label} are not finite")
    return float(relative_difference(answers[finite], expected[finite]).max())


def fixed_by(network, names: Sequence[str], inputs: Inputs) -> str:
    """The lines that made Python numbers of shapes while the network was traced.

    The end of a sentence; empty where there are none. Never raises.
    """
    import torch

    example = tuple(torch.from_numpy(inputs[name].copy()) for name in names)
    lines: dict[str, None] = {}  # each once, in order
    with warnings.catch_warnings(record=True) as caught, torch.no_grad():
        warnings.simplefilter("always")
        try:
            torch.jit.trace(network, example, check_trace=False)
        except Exception as error:  # what it raises matters less than what was to be explained
            return f"; its operations could not be traced again ({type(error).__name__}: {error})"
    for warning in caught:
        if issubclass(warning.category, torch.jit.TracerWarning):
            text = linecache.getline(warning.filename, warning.lineno).strip()
            what = str(warning.message).partition(" might cause")[0].partition(":")[0]
            lines[f"{warning.filename}, line {warning.lineno}: {text} ({what})"] = None
    if not lines:
        return ""
    listed = "; ".join(list(lines)[:LINES])
    return f"; numbers that became constants of the graph: {listed}"
