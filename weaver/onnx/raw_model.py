"""A network with its preprocessing in front: from the ntuple's columns to each jet's corrected pT.

    model, info = raw_model(program, network, network_info, data_config)

Inputs are the branches that the data config uses, under their own names and in their own types: one
value a jet as (N, 1), particles as (N, P) with any P, and for each list of particles its counter
(N, 1), int32. Places from the counter on may hold anything. Nothing is selected: each jet gets an
answer. Outputs, each (N, 1) float32:

    calibrated_pt      in GeV: the quantity that the label divides by (jetPt in
                       log(genJetPt / jetPt)) times exp(the network's first output)
    correction         that factor
    calibrated_pt_q16  and so on for the further outputs of a network with quantiles, named by its
                       output_columns

The operations are those of weaver/onnx/raw_program.py and weaver/prepared/transform.py, in numpy's
types; exported, they are part of the graph, so that a client has nothing to compute and nothing to
get wrong.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from common.errors import InputError
from networks.options import ModelInfo
from weaver.config.data_config import DataConfig
from weaver.config.vocabulary import COMPARE
from weaver.onnx.raw_program import RawProgram, Value
from weaver.onnx.residual_features import FEATURES
from weaver.prepared.transform import standardize

# numpy's type -> the type in the graph. ONNX Runtime has few kernels for small and unsigned whole
# numbers.
_TYPES = {"f2": torch.float32, "f4": torch.float32, "f8": torch.float64} | {
    **dict.fromkeys(("i1", "i2", "i4", "u1", "u2"), torch.int32),
    **dict.fromkeys(("i8", "u4", "u8"), torch.int64),
}
COMPARISONS = frozenset(known.operation for known in COMPARE.values())
# ONNX Runtime computes these in single precision only.
SINGLE = frozenset(
    {
        "sin",
        "cos",
        "tan",
        "arcsin",
        "arccos",
        "arctan",
        "arctan2",
        "sinh",
        "cosh",
        "tanh",
        "arcsinh",
        "arccosh",
        "arctanh",
    }
)


def graph_type(dtype: np.dtype) -> torch.dtype:
    """The torch type for numbers of a numpy type."""
    dtype = np.dtype(dtype)
    return torch.bool if dtype.kind == "b" else _TYPES[f"{dtype.kind}{dtype.itemsize}"]


class Preprocessing(torch.nn.Module):
    """Columns of the ntuple -> (the network's inputs..., the quantity to correct (N,))."""

    def __init__(
        self, program: RawProgram, data_config: DataConfig, input_names: Sequence[str]
    ) -> None:
        super().__init__()
        self.program = program
        groups: dict[str, torch.nn.Module] = {}
        for name in input_names:
            if name == FEATURES:
                groups[name] = ResidualFeatures(program)
            else:
                groups[name] = Group(name, program, data_config)
        self.groups = torch.nn.ModuleDict(groups)

    def forward(self, *columns: torch.Tensor) -> tuple[torch.Tensor, ...]:
        run = _Run(dict(zip(raw_inputs(self.program), columns, strict=True)))
        inputs = [group(run) for group in self.groups.values()]
        return (*inputs, run(self.program.reference))


class Group(torch.nn.Module):
    """One input of the network: (N, C, length), or (N, C) for one value a jet."""

    def __init__(self, name: str, program: RawProgram, data_config: DataConfig) -> None:
        super().__init__()
        self.values = program.groups[name]
        self.order = program.orders.get(name, [])
        self.params = [
            data_config.preprocess_params[variable] for variable in data_config.input_dicts[name]
        ]
        self.length: int | None = self.params[0]["length"]
        self.wraps = self.params[0]["pad_mode"] == "wrap"

    def forward(self, run: _Run) -> torch.Tensor:
        if self.length is None:
            return self.of_jets(run)
        return self.of_particles(run, self.length)

    def of_jets(self, run: _Run) -> torch.Tensor:
        """Values of jets: (N, C), or (N,) for a single variable."""
        singles = []
        for value, params in zip(self.values, self.params, strict=True):
            singles.append(_single(run(value), value, params))
        return torch.stack(singles, dim=1) if len(singles) > 1 else singles[0]

    def of_particles(self, run: _Run, length: int) -> torch.Tensor:
        """Values of particles, cut to a length and padded: (N, C, length)."""
        places, real = self.places(run, length)
        in_float32 = all(value.counts is not None for value in self.values)
        rows = []
        for value, params in zip(self.values, self.params, strict=True):
            x = run(value)
            if value.counts is None:
                x = x[:, None]  # (N, 1): a value of the jet among those of particles
            x = _cut(x, places, length)  # (N, length)
            if in_float32:
                # as weaver.prepared.transform does it for sequences: NaN becomes 0
                x = _standardised(x.float(), params, np.dtype(np.float32))
                x = torch.where(torch.isnan(x), torch.zeros_like(x), x)
            else:
                x = _single(x, value, params)
            padding = 0.0 if self.wraps else float(params["pad_value"])
            rows.append(torch.where(real, x, torch.full_like(x, padding)))
        return torch.stack(rows, dim=1)

    def places(self, run: _Run, length: int) -> tuple[torch.Tensor | None, torch.Tensor]:
        """Which particle comes to which place, and which places hold one: (N, length) each.

        None instead of the former for the order of the file.
        """
        first = self.values[0]
        if first.counts is not None:
            counts = run(first.counts)
        else:
            counts = torch.ones_like(run(first), dtype=torch.int64)
        slots = torch.arange(length)[None, :]  # (1, length)
        kept = counts.clamp(max=length)[:, None]  # (N, 1)
        places = None
        if self.order:
            keys = [(run(key), falling) for key, falling in self.order]
            places = run.order(keys, counts)  # (N, P)
        if not self.wraps:
            return places, slots < kept

        # The particles again and again until the places are full.
        slots = torch.remainder(slots, kept.clamp(min=1))  # (N, length)
        if places is not None:
            slots = _cut(places, None, length).gather(1, slots)
        return slots, (kept > 0).expand(-1, length)


class ResidualFeatures(torch.nn.Module):
    """The input of the residual correction: reference pT (GeV) and jetEta, (N, 2)."""

    def __init__(self, program: RawProgram) -> None:
        super().__init__()
        if program.eta is None:
            raise InputError("a residual correction needs jetEta among the network's inputs")
        self.values = (program.reference, program.eta)

    def forward(self, run: _Run) -> torch.Tensor:
        return torch.stack([run(value).float() for value in self.values], dim=1)


class RawModel(torch.nn.Module):
    """Preprocessing, network, and the answer in physical terms; see the module's text."""

    def __init__(self, preprocessing: Preprocessing, network: torch.nn.Module) -> None:
        super().__init__()
        self.preprocessing = preprocessing
        self.network = network

    def forward(self, *columns: torch.Tensor) -> tuple[torch.Tensor, ...]:
        *inputs, reference = self.preprocessing(*columns)
        return answers(self.network(*inputs), reference)


def answers(output: torch.Tensor, reference: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Turn a network's answer into physical terms.

    output (N, C), logarithms of factors, and reference (N,), in GeV -> calibrated_pt (GeV),
    correction, and one pT for each further output, (N, 1) each.
    """
    factors = torch.exp(output.float())
    pts = reference.float()[:, None] * factors  # (N, C)
    calibrated_pt = pts[:, :1]  # (N, 1)
    correction = factors[:, :1]
    further = [pts[:, i : i + 1] for i in range(1, output.shape[1])]
    return calibrated_pt, correction, *further


def raw_inputs(program: RawProgram) -> list[str]:
    """Names of the model's inputs in order: branches, then counters."""
    return [*program.inputs, *program.counters]


def raw_model(
    program: RawProgram,
    network: torch.nn.Module,
    network_info: Mapping[str, Any],
    data_config: DataConfig,
) -> tuple[RawModel, ModelInfo]:
    """Make the model and its description, as weaver.onnx.onnx_export takes it.

    The description has types, shapes (-1 for free axes) and outputs by name. The network may have
    the residual correction behind it (weaver.onnx.residual.Corrected).
    """
    shapes: dict[str, tuple[int, int]] = {}
    types: dict[str, np.dtype] = {}
    axes: dict[str, dict[int, str]] = {}
    for branch, column in program.inputs.items():
        shapes[branch] = (-1, -1) if column.particles else (-1, 1)
        types[branch] = column.dtype
        axes[branch] = {0: "batch"}
        if column.particles:
            axes[branch][1] = f"places of {column.counter}"
    for counter in program.counters:
        shapes[counter] = (-1, 1)
        types[counter] = np.dtype(np.int32)
        axes[counter] = {0: "batch"}
    further = list(network_info.get("output_columns", ["output"]))[1:]
    info: ModelInfo = {
        "input_names": raw_inputs(program),
        "input_shapes": shapes,
        "input_types": types,
        "output_names": [
            "calibrated_pt",
            "correction",
            *(f"calibrated_pt_{name}" for name in further),
        ],
        "dynamic_axes": axes,
    }
    preprocessing = Preprocessing(program, data_config, network_info["input_names"])
    return RawModel(preprocessing, network).eval(), info


# -------------------------------------------------------------------------- standardise, cut, pad


def _single(x: torch.Tensor, value: Value, params: Mapping[str, Any]) -> torch.Tensor:
    """Standardise as weaver.prepared.transform does it for single values.

    It computes in numpy's type for them; NaN becomes 0 and infinity the largest number.
    """
    dtype = np.asarray(standardize(np.ones(1, value.dtype), params)).dtype
    x = _standardised(x.to(graph_type(dtype)), params, dtype)
    if params["length"] is not None:
        x = x.float()
    return (_finite(x) if x.is_floating_point() else x).float()


def _standardised(x: torch.Tensor, params: Mapping[str, Any], dtype: np.dtype) -> torch.Tensor:
    """Shift, scale and clip; `dtype` is numpy's type of the result."""
    if params["center"] is None:
        return x
    # rounded to that type first, as numpy does with numbers beside an array
    center = float(dtype.type(params["center"]))
    scale = float(dtype.type(params["scale"]))
    x = (x - center) * scale
    low = None if params["min"] is None else float(params["min"])
    high = None if params["max"] is None else float(params["max"])
    return x if low is None and high is None else torch.clamp(x, low, high)


def _cut(x: torch.Tensor, places: torch.Tensor | None, length: int) -> torch.Tensor:
    """The first `length` of each row: (N, P) -> (N, length), with zeros behind them.

    They are in the order of `places` (N, P), or as they are without it.
    """
    if places is not None:
        x = x.gather(1, places[:, :length])
    return functional.pad(x, (0, length))[:, :length]


def _finite(x: torch.Tensor) -> torch.Tensor:
    """Replace NaN by 0 and infinity by the largest number, as numpy's nan_to_num."""
    largest = torch.full_like(x, torch.finfo(x.dtype).max)
    x = torch.where(torch.isnan(x), torch.zeros_like(x), x)
    return torch.where(x == math.inf, largest, torch.where(x == -math.inf, -largest, x))


# --------------------------------------------------------------------------------- the operations


class _Run:
    """One evaluation of a program on a batch; each Value is computed once."""

    def __init__(self, columns: Mapping[str, torch.Tensor]) -> None:
        self.columns = columns
        self.known: dict[int, torch.Tensor] = {}

    def __call__(self, value: Value) -> torch.Tensor:
        """The values of all jets (N,) or of their particles (N, P)."""
        if id(value) not in self.known:
            self.known[id(value)] = self.compute(value)
        return self.known[id(value)]

    def counts(self, value: Value) -> torch.Tensor:
        """How many particles each jet has (N,), of a value of particles."""
        if value.counts is None:
            raise TypeError(f"{value.op} is one value a jet")
        return self(value.counts)

    def compute(self, value: Value) -> torch.Tensor:
        """The values of one operation, by a method of its name or by OPERATIONS."""
        method = getattr(self, f"op_{value.op}", None)
        if method is not None:
            return method(value)
        args = [self.argument(argument, value) for argument in value.args]
        return OPERATIONS[value.op](*args).to(graph_type(value.dtype))

    def argument(self, argument: Any, value: Value) -> torch.Tensor:
        """An operand of an elementwise operation.

        It has the type that numpy computes in and the shape of the result.
        """
        dtype = _computed_in(value)
        if not isinstance(argument, Value):
            return torch.tensor(argument, dtype=dtype)
        x = self(argument)
        is_condition = value.op == "where" and argument is value.args[0]
        x = x if is_condition else x.to(dtype)
        return x[:, None] if value.counts is not None and argument.counts is None else x

    # -- inputs

    def op_column(self, value: Value) -> torch.Tensor:
        x = self.columns[value.args[0]].to(graph_type(value.dtype))
        return x if value.counts is not None else x[:, 0]

    def op_counter(self, value: Value) -> torch.Tensor:
        """A counter beyond the places that were sent means all of them."""
        counter, branch = value.args
        counts = self.columns[counter][:, 0].to(torch.int64).clamp(min=0)
        return counts.clamp(max=self.columns[branch].shape[1])

    # -- particles

    def real(self, value: Value) -> torch.Tensor:
        """True for the places of particles that exist."""
        x = self(value)
        return torch.arange(x.shape[1], device=x.device)[None, :] < self.counts(value)[:, None]

    def op_gather(self, value: Value) -> torch.Tensor:
        particles, positions = value.args
        x = self(particles)
        index = self(positions)
        # numpy counts negative positions from the end
        index = torch.where(index < 0, index + self.counts(particles)[:, None], index)
        # what stands in places without particle must not lead outside
        return x.gather(1, torch.remainder(index, x.shape[1]))

    def op_chosen_first(self, value: Value) -> torch.Tensor:
        chosen = self(value.args[0]) & self.real(value.args[0])
        return _positions(chosen.to(torch.int32), falling=True)

    def op_argsort(self, value: Value) -> torch.Tensor:
        key, falling = value.args
        return self.order([(self(key), falling)], self.counts(key))

    def order(
        self, keys: Sequence[tuple[torch.Tensor, bool]], counts: torch.Tensor
    ) -> torch.Tensor:
        """Positions (N, P) that sort each jet's particles by one or more keys (N, P).

        The first key counts first; ties keep their order, padding is last.
        """
        real = torch.arange(keys[0][0].shape[1], device=counts.device)[None, :] < counts[:, None]
        # sorted by the last key first: the others keep the order where they are equal
        positions: torch.Tensor | None = None
        for values, falling in reversed(keys):
            key = values if values.is_floating_point() else values.to(torch.float64)
            last = torch.full_like(key, -math.inf if falling else math.inf)
            key = torch.where(real & ~torch.isnan(key), key, last)
            if positions is None:
                positions = _positions(key, falling)
            else:
                positions = positions.gather(1, _positions(key.gather(1, positions), falling))
        if positions is None:
            raise ValueError("there is no key to sort by")
        return positions

    def op_first(self, value: Value) -> torch.Tensor:
        return self(value.args[0])[:, 0]

    def op_local_index(self, value: Value) -> torch.Tensor:
        x = self(value.args[0])
        return torch.arange(x.shape[1], device=x.device)[None, :].expand(x.shape)

    def op_full_like(self, value: Value) -> torch.Tensor:
        return torch.full_like(self(value.args[0]), value.args[1], dtype=graph_type(value.dtype))

    # -- particles to one value a jet

    def reduced(
        self, value: Value, outside: float, dtype: torch.dtype | None = None
    ) -> torch.Tensor:
        """The particles, with `outside` in places without one."""
        x = self(value.args[0]).to(dtype or graph_type(value.dtype))
        return torch.where(self.real(value.args[0]), x, torch.full_like(x, outside))

    def op_sum(self, value: Value) -> torch.Tensor:
        return self.reduced(value, 0).sum(1)

    def op_prod(self, value: Value) -> torch.Tensor:
        return self.reduced(value, 1).prod(1)

    def op_mean(self, value: Value) -> torch.Tensor:
        return self.reduced(value, 0).sum(1) / self.counts(value.args[0])

    def op_count_nonzero(self, value: Value) -> torch.Tensor:
        return ((self(value.args[0]) != 0) & self.real(value.args[0])).to(torch.int64).sum(1)

    def op_any(self, value: Value) -> torch.Tensor:
        return self.op_count_nonzero(value) > 0

    def op_all(self, value: Value) -> torch.Tensor:
        return self.op_count_nonzero(value) == self.counts(value.args[0])

    def op_max(self, value: Value) -> torch.Tensor:
        return self.reduced(value, _limit(value, -1)).amax(1)

    def op_min(self, value: Value) -> torch.Tensor:
        return self.reduced(value, _limit(value, 1)).amin(1)


def _limit(value: Value, sign: int) -> float:
    """The largest (sign 1) or smallest (-1) number of a Value's type."""
    if value.dtype.kind == "f":
        return sign * math.inf
    limits = torch.iinfo(graph_type(value.dtype))
    return limits.max if sign > 0 else limits.min


def _positions(key: torch.Tensor, falling: bool) -> torch.Tensor:
    """The stable order of each row.

    ONNX's TopK is stable by its definition; torch's own topk is not.
    """
    if torch.onnx.is_in_onnx_export():
        return key.topk(key.shape[1], dim=1, largest=falling, sorted=True)[1]
    return torch.sort(key, dim=1, descending=falling, stable=True)[1]


def _computed_in(value: Value) -> torch.dtype:
    """The type that numpy converts the operands of an operation to, as far as the graph can."""
    if value.op in COMPARISONS:
        given = [a.dtype if isinstance(a, Value) else a for a in value.args]
        dtype = np.result_type(*given)
        return torch.int32 if dtype.kind == "b" else graph_type(dtype)
    if value.op.startswith("logical"):
        return torch.bool
    if value.op in ("isnan", "isinf", "isfinite"):
        return graph_type(np.result_type(value.args[0].dtype, np.float32))
    return torch.float32 if value.op in SINGLE else graph_type(value.dtype)


def _where(condition: torch.Tensor, one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """Choose by a condition, as numpy's where."""
    condition = condition != 0 if condition.dtype != torch.bool else condition
    if one.dtype == torch.bool:  # ONNX Runtime's Where has no booleans
        return (condition & one) | (~condition & other)
    return torch.where(condition, one, other)


def _rounded_to_zero(x: torch.Tensor) -> torch.Tensor:
    return torch.sign(x) * torch.floor(torch.abs(x))


def _logaddexp(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return torch.maximum(a, b) + torch.log1p(torch.exp(-torch.abs(a - b)))


def _clip(x: torch.Tensor, low: torch.Tensor, high: torch.Tensor) -> torch.Tensor:
    return torch.minimum(torch.maximum(x, low), high)


# Spelt out where the exporter has no operator of that name.
OPERATIONS: dict[str, Callable[..., torch.Tensor]] = {
    "abs": torch.abs,
    "add": torch.add,
    "subtract": torch.sub,
    "multiply": torch.mul,
    "divide": torch.div,
    "floor_divide": lambda a, b: (
        torch.floor(a / b) if a.is_floating_point() else (a - torch.remainder(a, b)) // b
    ),
    "remainder": torch.remainder,
    "power": torch.pow,
    "maximum": torch.maximum,
    "minimum": torch.minimum,
    "sqrt": torch.sqrt,
    "square": lambda x: x * x,
    "cbrt": lambda x: torch.sign(x) * torch.pow(torch.abs(x), 1 / 3),
    "exp": torch.exp,
    "exp2": lambda x: torch.exp(x * math.log(2)),
    "expm1": lambda x: torch.exp(x) - 1,
    "log": torch.log,
    "log2": lambda x: torch.log(x) * (1 / math.log(2)),
    "log10": lambda x: torch.log(x) * (1 / math.log(10)),
    "log1p": lambda x: torch.log(1 + x),
    "logaddexp": _logaddexp,
    "sin": torch.sin,
    "cos": torch.cos,
    "tan": torch.tan,
    "arcsin": torch.asin,
    "arccos": torch.acos,
    "arctan": torch.atan,
    "arctan2": torch.atan2,
    "sinh": lambda x: (torch.exp(x) - torch.exp(-x)) / 2,
    "cosh": lambda x: (torch.exp(x) + torch.exp(-x)) / 2,
    "tanh": torch.tanh,
    "arcsinh": lambda x: torch.sign(x) * torch.log(torch.abs(x) + torch.sqrt(x * x + 1)),
    "arccosh": lambda x: torch.log(x + torch.sqrt(x * x - 1)),
    "arctanh": lambda x: torch.log((1 + x) / (1 - x)) / 2,
    "hypot": lambda a, b: torch.sqrt(a * a + b * b),
    "sign": torch.sign,
    "negative": torch.neg,
    "positive": lambda x: x,
    "reciprocal": lambda x: 1 / x,
    "floor": torch.floor,
    "ceil": torch.ceil,
    "rint": torch.round,
    "trunc": _rounded_to_zero,
    "deg2rad": lambda x: x * (math.pi / 180),
    "rad2deg": lambda x: x * (180 / math.pi),
    "isfinite": lambda x: torch.abs(x) < math.inf,
    "isnan": torch.isnan,
    "isinf": lambda x: torch.abs(x) == math.inf,
    "where": _where,
    "equal": torch.eq,
    "not_equal": torch.ne,
    "less": torch.lt,
    "less_equal": torch.le,
    "greater": torch.gt,
    "greater_equal": torch.ge,
    "logical_and": torch.logical_and,
    "logical_or": torch.logical_or,
    "logical_xor": torch.logical_xor,
    "logical_not": torch.logical_not,
    "zeros_like": torch.zeros_like,
    "ones_like": torch.ones_like,
    "nan_to_num": lambda x: _finite(x) if x.is_floating_point() else x,
    "clip": _clip,
}
