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
# (seed, lowest value) of the jets that must not all differ; a network may take the logarithm of a
# variable, so that the last ones are positive
DRAWS = ((1, -1), (2, -1), (3, 0))
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
    check = _Check(
        network=untrimmed(model),
        onnx_path=onnx_path,
        data_config=data_config,
        shapes=input_shapes(model_info, data_config),
    )
    largest = 0.0
    for label, sizes in _variants(model_info, check.shapes):
        largest = max(largest, check.difference(label, sizes))
    return largest


class _Check:
    """One exported file beside its network."""

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
        """Those of the data config."""
        self.runtime = session(onnx_path)

    def difference(self, label: str, sizes: Mapping[str, tuple[int, ...]]) -> float:
        """The largest difference for inputs of these shapes; `label` describes them.

        Where two particles are nearly equally far away, rounding decides which of them is a
        neighbour: a jet of the first draw may be off, those of all draws are not. 0 where both
        refuse such inputs. Raises GateError as `check_lengths`.
        """
        for seed, lowest in DRAWS:
            inputs = random_jets(
                self.data_config, sizes, own=sizes == self.shapes, seed=seed, lowest=lowest
            )
            answers = self._both(label, sizes, inputs)
            if answers is None:
                return 0.0
            difference = _difference(*answers, label)
            if difference <= LIMIT:
                return difference
        if math.isnan(difference):
            raise GateError(f"the network's own answers at {label} are not finite")
        layers = layers_apart(self.network, self.onnx_path, list(sizes), inputs, 0)
        raise self._refusal(
            f"answers otherwise than PyTorch at {label}: largest difference {difference:.1e},"
            f" allowed {LIMIT:.0e}; {layers}"
        )

    def _both(
        self, label: str, sizes: Mapping[str, tuple[int, ...]], inputs: Inputs
    ) -> tuple[np.ndarray, np.ndarray] | None:
        """The answers of ONNX Runtime and of PyTorch; None where both refuse."""
        expected, refusal = None, ""
        try:
            expected = torch_answers(self.network, list(sizes), inputs)
        except Exception as error:  # a network's own code may raise anything
            if sizes == self.shapes:
                raise GateError(f"the network does not take {label}: {error}") from error
            refusal = str(error)
        try:
            answers = _onnx_answers(self.runtime, inputs)
        except Exception as error:  # onnxruntime's own exceptions share no base class
            if expected is None:
                return None
            raise self._refusal(f"refuses {label}, which the network takes: {error}") from error
        if expected is None:
            raise self._refusal(f"answers at {label}, which the network refuses ({refusal})")
        return answers, expected

    def _refusal(self, what: str) -> GateError:
        """The error, with the lines of the network that made constants of shapes."""
        inputs = random_jets(self.data_config, self.shapes, own=True)
        return GateError(f"the ONNX file {what}{fixed_by(self.network, list(inputs), inputs)}")


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


def random_jets(
    data_config,
    shapes: Mapping[str, tuple[int, ...]],
    *,
    own: bool,
    seed: int = 1,
    lowest: float = -1,
) -> Inputs:
    """Random jets, of 1 particle to as many as there are places.

    Padded places hold the pad values of the data config. Inputs by whose name, or their variables'
    names, they are masks are 1 for a particle. own: this is the data config's length, for which
    there are more jets.
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
    answers = runtime.run(None, feed_of(runtime, inputs), quiet)
    return np.concatenate([answer.reshape(len(answer), -1) for answer in answers], axis=1)


def _difference(answers: np.ndarray, expected: np.ndarray, label: str) -> float:
    """Largest difference over the jets to which PyTorch's own answer is finite; NaN without any."""
    if answers.shape != expected.shape:
        raise GateError(
            f"the ONNX file gives outputs of shape {answers.shape} at {label}, the network"
            f" {expected.shape}"
        )
    finite = np.isfinite(expected).all(axis=1)
    if not finite.any():
        return math.nan
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
