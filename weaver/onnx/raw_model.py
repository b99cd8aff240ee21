"""A model for raw jets: the network with its preprocessing, from ntuple columns to corrected pT.

    model, info = raw_model(program, network, network_info, data_config)

The inputs are the branches that the data config uses, with their names and types: (N, 1) for one
value a jet, (N, P) with any P for particles, and for each list of particles its counter (N, 1),
int32. Places at and beyond the counter may contain any number. There is no selection: the model
has outputs for every jet. Outputs, each (N, 1), all but the last float32:

    calibrated_pt      in GeV: the quantity that the label divides by (jetPt in
                       log(genJetPt / jetPt)) times exp(the network's first output)
    correction         that factor
    calibrated_pt_q16  and similar outputs of a network with quantiles; the names follow from its
                       output_columns
    valid              bool: the jet is in the range of the training, and its numbers are finite
                       (weaver/onnx/valid_range.py). Other jets keep the standard correction:
                       correction is 1, and every pT is the one that the label divides by

The operations are those of weaver/onnx/raw_program.py and weaver/prepared/transform.py, in numpy's
types. After the export they are part of the graph, so that a client computes nothing.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from common.errors import InputError
from networks.options import ModelInfo
from weaver.config.data_config import DataConfig
from weaver.config.vocabulary import COMPARE
from weaver.onnx.raw_program import RawProgram, Value
from weaver.onnx.residual_features import FEATURES
from weaver.onnx.valid_range import ValidRange
from weaver.prepared.transform import standardize

# numpy's type -> the type in the graph. ONNX Runtime has few kernels for small and unsigned
# integers.
_TYPES = {"f2": torch.float32, "f4": torch.float32, "f8": torch.float64} | {
    **dict.fromkeys(("i1", "i2", "i4", "u1", "u2"), torch.int32),
    **dict.fromkeys(("i8", "u4", "u8"), torch.int64),
}
VALID = "valid"
"""Name of the output that says whether a jet is in the range of the training."""

COMPARISONS = frozenset(operator.operation for operator in COMPARE.values())
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
    """Return the torch type for numbers of a numpy type."""
    dtype = np.dtype(dtype)
    return torch.bool if dtype.kind == "b" else _TYPES[f"{dtype.kind}{dtype.itemsize}"]


def graph_type_of(value: Value) -> torch.dtype:
    """Return the torch type of a Value in the graph.

    Choices between small integers, such as a charge, have the type float32, which is exact for
    them, because ONNX Runtime's Where is several times slower for 64-bit integers.
    """
    if value.op == "where" and value.dtype.kind in "iu" and _bound(value) <= LARGEST_EXACT:
        return torch.float32
    return graph_type(value.dtype)


LARGEST_EXACT = 2**24  # float32 holds all integers up to this one exactly


def _bound(argument: Any) -> float:
    """Return an upper bound on the absolute value of a Value or number.

    Infinity if there is none.
    """
    if not isinstance(argument, Value):
        return abs(float(argument))
    if argument.op == "sign" or argument.dtype.kind == "b":
        return 1.0
    if argument.op in ("negative", "positive", "abs"):
        return _bound(argument.args[0])
    if argument.op == "where":
        return max(_bound(argument.args[1]), _bound(argument.args[2]))
    return math.inf


class Preprocessing(torch.nn.Module):
    """Compute the network's inputs and the quantity to correct from the ntuple's columns."""

    assumes_finite: bool
    """Leave out operations that only jets with NaN or infinity among their columns need. The raw
    model returns the standard correction for these jets."""

    def __init__(
        self, program: RawProgram, data_config: DataConfig, input_names: Sequence[str]
    ) -> None:
        """Make a module for each of the network's inputs.

        Raises InputError for a residual correction without jetEta among the inputs.
        """
        super().__init__()
        self.program = program
        self.assumes_finite = False
        groups: dict[str, torch.nn.Module] = {}
        self.jet_variables: dict[str, list[Variable]] = {}
        for name in input_names:
            if name == FEATURES:
                groups[name] = ResidualFeatures(program)
                continue
            variables = _variables(name, program, data_config)
            if variables[0].params["length"] is None:
                groups[name] = JetGroup(name, len(variables))
                self.jet_variables[name] = variables
            else:
                groups[name] = ParticleGroup(
                    variables, program.orders.get(name, []), is_only=len(program.counters) == 1
                )
        self.groups = torch.nn.ModuleDict(groups)

    def forward(self, *columns: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return the network's inputs of columns (N, ...), last the reference pT (N, 1) in GeV."""
        run = self.run(columns)
        return (*self.inputs(run), run(self.program.reference))

    def run(self, columns: Sequence[torch.Tensor]) -> _Run:
        """Start an evaluation of the program on a batch.

        Args:
            columns: in the order of the program's inputs; (N, 1) for one value a jet, (N, P) for
                particles.
        """
        by_name = dict(zip(raw_inputs(self.program), columns, strict=True))
        return _Run(by_name, assumes_finite=self.assumes_finite)

    def inputs(self, run: _Run) -> list[torch.Tensor]:
        """Compute the network's inputs."""
        # All groups at once, because a node of the graph costs as much as hundreds of numbers.
        variables = [variable for group in self.jet_variables.values() for variable in group]
        if variables:
            values = _in_order(_standardise_parts(run, variables), dim=1)
            sizes = [len(group) for group in self.jet_variables.values()]
            groups = torch.split(values, sizes, dim=1)
            run.jet_groups = dict(zip(self.jet_variables, groups, strict=True))
        return [group(run) for group in self.groups.values()]


@dataclasses.dataclass(frozen=True, eq=False)
class Variable:
    """An input variable of the network."""

    value: Value
    params: Mapping[str, Any]
    """weaver.config.sections.Parameters."""
    dtype: np.dtype
    """numpy's type for the standardisation."""


def _variables(name: str, program: RawProgram, data_config: DataConfig) -> list[Variable]:
    """Return the variables of an input group.

    As in weaver.prepared.transform, variables of particles are standardised in float32, single
    values in their own type.
    """
    values = program.groups[name]
    params = [data_config.preprocess_params[variable] for variable in data_config.input_dicts[name]]
    in_float32 = all(value.counts is not None for value in values)
    variables = []
    for value, value_params in zip(values, params, strict=True):
        dtype = np.dtype(np.float32)
        if not in_float32:
            dtype = np.asarray(standardize(np.ones(1, value.dtype), value_params)).dtype
        variables.append(Variable(value, value_params, dtype))
    return variables


class JetGroup(torch.nn.Module):
    """One input of the network with one value a jet: (N, C), or (N,) for a single variable."""

    def __init__(self, name: str, size: int) -> None:
        """Take the group's name and its number of variables."""
        super().__init__()
        self.name = name
        self.size = size

    def forward(self, run: _Run) -> torch.Tensor:
        """Return the group's variables, (N, C) or (N,)."""
        x = run.jet_groups[self.name]  # (N, C)
        return x if self.size > 1 else x[:, 0]


class ParticleGroup(torch.nn.Module):
    """One input of the network with values of particles: (N, C, length), truncated and padded."""

    def __init__(
        self,
        variables: Sequence[Variable],
        order: Sequence[tuple[Value, bool]],
        *,
        is_only: bool,
    ) -> None:
        """Make the group.

        variables: its input variables. order: (key, whether the order is falling) for each sort
        key, the most important one first. is_only: the model takes no other list of particles, so
        that every valid jet has at least one particle in this one.
        """
        super().__init__()
        self.variables = variables
        self.order = order
        params = variables[0].params
        self.length: int = params["length"]
        self.wraps = params["pad_mode"] == "wrap"
        self.is_sorted = True
        self.is_only = is_only
        self.needs_padding = True  # False if padding may be any finite number
        self.appends_mask = False  # one more variable: 1 for a particle, 0 for padding
        self.are_particles = all(variable.value.counts is not None for variable in variables)
        self.tables = (
            _tables([variable.value for variable in variables]) if self.are_particles else []
        )

    @property
    def selection_key(self) -> tuple[Any, ...]:
        """Identifies the particles and their order: equal keys mean that one selection will do."""
        order = tuple((id(value), falls) for value, falls in self.order)
        return id(self.variables[0].value.counts), order, self.length, self.wraps

    @property
    def pads_with_zeros(self) -> bool:
        """Whether all variables are padded with 0."""
        is_zero = all(variable.params["pad_value"] == 0 for variable in self.variables)
        return is_zero and not self.wraps

    def forward(self, run: _Run) -> torch.Tensor:
        """Return the group's variables, (N, C, length)."""
        first = self.variables[0].value
        # real: (N, length), True for places with a particle
        cut, real = run.cut(
            first, self.order, self.length, wraps=self.wraps, is_sorted=self.is_sorted
        )
        mask = cut.mask(real)  # (N, length)
        # With an explicit shape, the network's own operations need no nodes that compute it.
        real = real.reshape(-1, 1, self.length)
        # A product is faster than a choice, but does not remove NaN and infinity.
        is_finite = self.is_only and cut.repeats_particles and cut.assumes_finite
        parts = []
        if self.are_particles:
            new_parts = self._parts(cut, mask)
        else:
            new_parts = _standardise_parts(cut, self.variables, length=self.length)
        for part in new_parts:
            params = [self._params(i) for i in part.members]
            padding = [0.0] * len(params)
            if not self.wraps:
                padding = [float(param["pad_value"]) for param in params]
            x = part.x
            if self.needs_padding or not (is_finite and part.is_finite):
                x = _fill_padding(part, real, mask.reshape(-1, 1, self.length), padding, is_finite)
            parts.append(dataclasses.replace(part, x=x))
        x = _in_order(parts, dim=1)
        if self.are_particles and len(parts) == 1:
            return x
        return x.reshape(-1, len(self.variables) + int(self.appends_mask), self.length)

    def _params(self, index: int) -> Mapping[str, Any]:
        """Return how a variable is standardised; the mask, which comes behind all, is not."""
        if index == len(self.variables):
            return {"center": None, "pad_value": 0.0}
        return self.variables[index].params

    def _parts(self, cut: _Cut, mask: torch.Tensor) -> list[Part]:
        """Standardise the variables of particles: constants in one part, all others in another.

        mask: (N, length), 1 for particles.
        """
        constants = [
            i for i, variable in enumerate(self.variables) if variable.value.op in CONSTANTS
        ]
        table_members = [i for table in self.tables for i in table.members]
        others = [i for i in range(len(self.variables)) if i not in {*constants, *table_members}]
        maybe_nan = [i for i in others if _may_be_nan(self.variables[i].value, cut.assumes_finite)]
        never_nan = [i for i in others if i not in maybe_nan]
        parts = []
        if constants:
            values = [self.variables[i].value for i in constants]
            params = [self.variables[i].params for i in constants]
            x = _standardise(_constants(values), params, np.dtype(np.float32))
            parts.append(Part(constants, x, None, is_constant=True))
        columns = []  # (N, k * length) each
        is_number = None
        if maybe_nan:
            x = cut.together([self.variables[i].value for i in maybe_nan])
            is_number = _is_number(x)
            # NaN is replaced by the center, which becomes 0.
            centers = [self.variables[i].params["center"] or 0.0 for i in maybe_nan]
            zero = torch.tensor(centers, dtype=torch.float32).repeat_interleave(self.length)
            columns.append(torch.where(is_number, x, zero))
        columns += [cut(self.variables[i].value).float() for i in never_nan]
        columns += [table.look_up(cut(table.column), self.length) for table in self.tables]
        members = [*maybe_nan, *never_nan, *table_members]
        if self.appends_mask:
            columns.append(mask)
            members.append(len(self.variables))
        if columns:
            parts.append(self._standardise_part(members, _side_by_side(columns, dim=1)))
        return parts

    def _standardise_part(self, members: list[int], x: torch.Tensor) -> Part:
        """Standardise k variables (N, k * length) to a part (N, k, length)."""
        params = [self._params(i) for i in members]
        sizes = [_bound(self.variables[i].value) for i in members if i < len(self.variables)]
        sizes += [1.0] * (len(members) - len(sizes))  # of the mask
        # A parameter for each place, because ONNX Runtime's broadcast of one parameter is slower.
        x = _standardise(x, params, np.dtype(np.float32), sizes=sizes, repeats=self.length)
        x = x.reshape(-1, len(members), self.length)
        return Part(members, x, None, is_finite=all(map(_is_finite, params, sizes)))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Table:
    """k variables of a group, all functions of one integer column x, which the graph looks up.

    Each is constant for x >= reach and for x <= -reach. The first ones are indicators: 1 where
    |x| has a certain value (such as a particle's type), else 0. The others can be any functions.
    """

    column: Value
    reach: int
    members: list[int]
    """Indices of the variables in their group, the indicators first."""
    magnitudes: list[int]
    """For each indicator, the value of |x| at which it is 1."""
    rows: torch.Tensor
    """Values of the other k' variables, (k', 2 * reach + 1) float32, at x = 0, ..., reach, -reach,
    ..., -1. In this order x itself is the index, because a negative one counts from the end."""

    def look_up(self, x: torch.Tensor, length: int) -> torch.Tensor:
        """Return the k variables side by side, (N, k * length), for integers x (N, length)."""
        columns = []
        if self.magnitudes:
            magnitudes = torch.tensor(self.magnitudes, dtype=x.dtype)[:, None]
            equal = torch.abs(x).reshape(-1, 1, length) == magnitudes  # (N, k - k', length)
            columns.append(equal.float().flatten(1))
        if len(self.rows):
            # ONNX Runtime's GatherElements takes a tenth of the time of its Gather.
            index = x.clamp(-self.reach, self.reach).reshape(-1)
            columns += [_looked_up(row, index).reshape(-1, length) for row in self.rows]
        return _side_by_side(columns, dim=1)


LARGEST_REACH = 4096
"""Largest `reach` of a table, so that it fits in a core's cache."""


def _tables(values: Sequence[Value]) -> list[Table]:
    """Make tables for those variables of a group that are functions of one integer column."""
    members: dict[str, list[int]] = {}
    columns: dict[str, Value] = {}
    reaches: dict[str, int] = {}
    for i, value in enumerate(values):
        column_and_reach = _column_and_reach(value)
        if column_and_reach is None or not math.isfinite(_bound(value)):
            continue
        column, reach = column_and_reach
        if column is None or reach > LARGEST_REACH:
            continue
        branch = column.args[0]
        members.setdefault(branch, []).append(i)
        columns[branch] = column
        reaches[branch] = max(reach, reaches.get(branch, 0))
    tables = []
    for branch, indices in members.items():
        if len(indices) == 1:  # a table would not be faster
            continue
        column, reach = columns[branch], reaches[branch]
        # computed by the operations that the graph would contain
        x = torch.cat((torch.arange(reach + 1), torch.arange(-reach, 0)))
        x = x.to(graph_type(column.dtype))
        run = _Run({branch: x[None]})
        magnitudes: dict[int, int] = {}  # member -> the |x| at which this indicator is 1
        rows: dict[int, torch.Tensor] = {}
        for i in indices:
            row = run(values[i]).float().reshape(-1)
            magnitude = _indicated_magnitude(row, reach)
            if magnitude is None:
                rows[i] = row
            else:
                magnitudes[i] = magnitude
        tables.append(
            Table(
                column=column,
                reach=reach,
                members=[*magnitudes, *rows],
                magnitudes=list(magnitudes.values()),
                rows=torch.stack(list(rows.values())) if rows else torch.empty(0, len(x)),
            )
        )
    return tables


def _indicated_magnitude(row: torch.Tensor, reach: int) -> int | None:
    """Return the a for which a function is 1 where |x| = a and 0 elsewhere; None if there is none.

    row: values of the function at x = 0, ..., reach, -reach, ..., -1.
    """
    positive = row[: reach + 1].nonzero().flatten().tolist()
    if len(positive) != 1 or not 0 < positive[0] < reach:
        return None
    magnitude = int(positive[0])
    expected = torch.zeros_like(row)
    expected[[magnitude, -magnitude]] = 1
    return magnitude if torch.equal(row, expected) else None


class _LookUp(torch.autograd.Function):
    """Return row[index] of a table (R,), for an index (K,) that may count from the end.

    torch's own gather takes no negative index and no int32 one; ONNX's takes both.
    """

    @staticmethod
    def forward(ctx: Any, row: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        return row[index.to(torch.int64)]

    @staticmethod
    def symbolic(graph: Any, row: Any, index: Any) -> Any:
        values = graph.op("GatherElements", row, index, axis_i=0)
        return values.setType(row.type().with_sizes([None]))


def _looked_up(row: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """Return row[index] of a table (R,), for an index (K,) that may count from the end."""
    values: torch.Tensor = _LookUp.apply(row, index)
    return values


SIGN_OPERATIONS = COMPARISONS | {
    "where",
    "sign",
    "abs",
    "negative",
    "positive",
    "logical_and",
    "logical_or",
    "logical_xor",
    "logical_not",
}
"""Operations that use an integer only in signs and comparisons with numbers, or return it with
another sign. A bounded function composed of them is constant for large integers."""


def _column_and_reach(argument: Any) -> tuple[Value | None, int] | None:
    """Find the integer column x on which an expression depends, and from where it is constant.

    Returns (x, reach) if the expression uses only x, numbers and SIGN_OPERATIONS, else None. If it
    is bounded as well, it is constant for x >= reach and for x <= -reach. x is None for a plain
    number.
    """
    if not isinstance(argument, Value):
        return (None, math.ceil(abs(argument)) + 1) if math.isfinite(argument) else None
    if argument.op == "column":
        is_whole = argument.dtype.kind in "iu" and argument.counts is not None
        return (argument, 1) if is_whole else None
    if argument.op not in SIGN_OPERATIONS:
        return None
    column: Value | None = None
    reach = 1
    for part in map(_column_and_reach, argument.args):
        if part is None or (part[0] is not None and column not in (None, part[0])):
            return None
        column = column or part[0]
        reach = max(reach, part[1])
    return column, reach


class ResidualFeatures(torch.nn.Module):
    """The input of the residual correction: reference pT (GeV) and jetEta, (N, 2)."""

    def __init__(self, program: RawProgram) -> None:
        """Take the program. Raises InputError if jetEta is not among the network's inputs."""
        super().__init__()
        if program.eta is None:
            raise InputError("a residual correction needs jetEta among the network's inputs")
        self.values = (program.reference, program.eta)

    def forward(self, run: _Run) -> torch.Tensor:
        """Return the reference pT (GeV) and jetEta, (N, 2)."""
        return torch.cat([run(value).float() for value in self.values], dim=1)


class RawModel(torch.nn.Module):
    """Preprocessing, network, and physical outputs; see the module's docstring."""

    def __init__(
        self, preprocessing: Preprocessing, network: torch.nn.Module, limits: ValidRange
    ) -> None:
        """Combine the preprocessing, the network and the range of valid jets."""
        super().__init__()
        self.preprocessing = preprocessing
        self.preprocessing.assumes_finite = True
        self.network = network
        self.limits = limits

    def forward(self, *columns: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return the file's columns (N, ...) -> the outputs, `valid` last, (N, 1) each."""
        run = self.preprocessing.run(columns)
        output = self.network(*self.preprocessing.inputs(run))
        program = self.preprocessing.program
        valid = _valid(run, program, self.limits)
        return (*physical_outputs(output, run(program.reference), valid), valid)


def physical_outputs(
    output: torch.Tensor, reference: torch.Tensor, valid: torch.Tensor
) -> tuple[torch.Tensor, ...]:
    """Convert a network's outputs to calibrated_pt (GeV), correction, and a pT for each other one.

    output: (N, C), logarithms of factors. reference: (N, 1), in GeV. valid: (N, 1); the factors of
    other jets are 1. Returns tensors of shape (N, 1).
    """
    factors = torch.where(valid, torch.exp(output.float()), torch.tensor(1.0))
    pts = reference.float() * factors  # (N, C)
    # Of the graph's operations Split takes less time than Slice.
    calibrated_pt, *further = pts.split(1, dim=1)  # (N, 1) each
    correction = factors.split(1, dim=1)[0]
    return calibrated_pt, correction, *further


def _valid(run: _Run, program: RawProgram, limits: ValidRange) -> torch.Tensor:
    """Return (N, 1): which jets are valid, by the rule of weaver.onnx.valid_range, in the graph."""
    columns: list[torch.Tensor] = []  # (N, 1) each
    bounds: list[tuple[float, float]] = []

    largest = float(np.finfo(np.float32).max)

    def check(x: torch.Tensor, low: float = -largest, high: float = largest) -> None:
        columns.append(x.float())
        bounds.append((low, high))

    check(run(program.reference), limits.min_pt, limits.max_pt)
    if program.eta is not None and limits.max_abs_eta is not None:
        check(run(program.eta), -limits.max_abs_eta, limits.max_abs_eta)

    floats = [name for name, column in program.inputs.items() if column.dtype.kind == "f"]
    for name in floats:
        if not program.inputs[name].particles:
            check(run.columns[name])
    most = None
    for counter in program.counters:
        of_counter = [n for n, column in program.inputs.items() if column.counter == counter]
        counts = run.clamped_counter(counter, of_counter[0])  # (N, 1)
        check(run.columns[counter].to(torch.int64) - counts, 0, 0)
        most = counts if most is None else torch.maximum(most, counts)
        particles = [run.columns[name].float() for name in of_counter if name in floats]
        if particles:
            # A sum keeps infinity and NaN.
            total = functools.reduce(torch.add, particles)  # (N, P)
            real = run.real_places(counter, of_counter[0])
            total = torch.where(real, total, torch.tensor(0.0))
            check(total.sum(1, keepdim=True))
    if most is not None:
        check(most, 1)
    # All conditions at once, because each node of the graph costs time. The distance to the range
    # is NaN or infinite for such numbers, never 0.
    x = torch.cat(columns, dim=1)
    low, high = torch.tensor(bounds).T
    beyond = x - torch.minimum(torch.maximum(x, low), high)
    return torch.norm(beyond, p=1, dim=1, keepdim=True) == 0


def raw_inputs(program: RawProgram) -> list[str]:
    """Return the names of the model's inputs in order: branches, then counters."""
    return [*program.inputs, *program.counters]


def raw_model(
    program: RawProgram,
    network: torch.nn.Module,
    network_info: Mapping[str, Any],
    data_config: DataConfig,
    limits: ValidRange,
) -> tuple[RawModel, ModelInfo]:
    """Make the model and its model_info for weaver.onnx.onnx_export.

    network_info: that of the network. The network may be one with the residual correction
    (weaver.onnx.residual.CorrectedNetwork). Raises InputError for a residual correction without
    jetEta among the inputs.
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
            VALID,
        ],
        "output_types": {VALID: np.dtype(bool)},
        "dynamic_axes": axes,
    }
    preprocessing = Preprocessing(program, data_config, network_info["input_names"])
    network = copy.deepcopy(network)
    _skip_unneeded_work(network, preprocessing)
    return RawModel(preprocessing, network, limits).eval(), info


def _skip_unneeded_work(network: torch.nn.Module, preprocessing: Preprocessing) -> None:
    """Skip work that a network with `any_order` (networks/pfn_regressor_open.py) does not need.

    Its particles need not be sorted if all inputs contain the same ones. Padding need not be masked
    if it is finite: 0, or another particle of the jet.
    """
    groups = preprocessing.groups.items()
    of_particles = {name: group for name, group in groups if isinstance(group, ParticleGroup)}
    if len({group.selection_key for group in of_particles.values()}) != 1:
        return
    for module in network.modules():
        if not getattr(module, "any_order", False):
            continue
        for group in of_particles.values():
            group.is_sorted = False
        mask = of_particles.get("pf_mask")
        if mask is None or any(variable.value.op != "ones_like" for variable in mask.variables):
            continue
        if hasattr(module, "masks") and all(g.pads_with_zeros for g in of_particles.values()):
            setattr(module, "masks", False)  # noqa: B010 (nn.Module declares no such field)
            for name, group in of_particles.items():
                # Padding may be any finite number, because the network multiplies by the mask.
                group.needs_padding = name == "pf_mask"
            features = of_particles.get("pf_features")
            takes_one = hasattr(module, "has_one") and not module.by_row
            if takes_one and features is not None and features.are_particles:
                features.appends_mask = True
                setattr(module, "has_one", True)  # noqa: B010


# ------------------------------------------------------------------------------- standardise, pad

# Operations whose result is the same for all particles -> function that returns it.
CONSTANTS: dict[str, Callable[[Value], float]] = {
    "ones_like": lambda value: 1,
    "zeros_like": lambda value: 0,
    "full_like": lambda value: value.args[1],
}


def _constants(values: Sequence[Value]) -> torch.Tensor:
    """Return the numbers of constants, (1, k, 1)."""
    numbers = [float(CONSTANTS[value.op](value)) for value in values]
    return torch.tensor(numbers, dtype=torch.float32)[None, :, None]


@dataclasses.dataclass(frozen=True, eq=False)
class Part:
    """Variables of one type, which the same nodes of the graph compute."""

    members: list[int]
    """Their indices among all variables."""
    x: torch.Tensor
    """Standardised: (N, k) of jets, (N, k, length) of particles, (1, k, 1) of constants."""
    is_number: torch.Tensor | None
    """False where the value is NaN, in the shape of x; None if it cannot be NaN."""
    is_finite: bool = False
    """Whether x is finite for all finite columns."""
    is_constant: bool = False


def _standardise_parts(
    run: _Run, variables: Sequence[Variable], length: int | None = None
) -> list[Part]:
    """Standardise variables of jets, or of `length` particles; one part for each type."""
    members: dict[tuple[torch.dtype, str, np.dtype, bool], list[int]] = {}
    for index, variable in enumerate(variables):
        value = variable.value
        is_constant = length is not None and value.op in CONSTANTS
        key = (graph_type_of(value), value.dtype.kind, variable.dtype, is_constant)
        if length is None and value.dtype.kind in "biu":
            # numpy computes in double precision; the graph rounds, which saves nodes.
            key = (torch.float32, "f", np.dtype(np.float32), False)
        members.setdefault(key, []).append(index)
    is_sequence = all(variable.value.counts is not None for variable in variables)
    parts = []
    for (source, kind, dtype, is_constant), indices in members.items():
        values = [variables[index].value for index in indices]
        params = [variables[index].params for index in indices]
        is_number = None
        if is_constant:
            raw = _constants(values)
        else:
            columns = [run(value).to(source) for value in values]
            if length is not None:
                # Only single values, because expand is a node of the graph if shapes are unknown.
                columns = [
                    x if value.counts is not None else x.expand(-1, length)
                    for x, value in zip(columns, values, strict=True)
                ]
            raw = _side_by_side(columns, dim=1)
            if length is not None:
                raw = raw.reshape(-1, len(values), length)
            if kind == "f" and any(_may_be_nan(value, run.assumes_finite) for value in values):
                is_number = _is_number(raw)
        x = _standardise(raw, params, np.dtype(np.float32) if is_constant else dtype)
        if length is not None and x.dtype != torch.bool:
            x = x.float()
        if not is_sequence and x.is_floating_point() and not _have_bounds(params):
            # As in weaver-core, for single values only. The largest double-precision number then
            # becomes infinite in float32.
            largest = torch.finfo(x.dtype).max
            x = x.clamp(-largest, largest)
        if length is None:
            if is_number is not None:
                x = torch.where(is_number, x, torch.tensor(0, dtype=x.dtype))
            x = x.float()
        parts.append(Part(indices, x, is_number, is_constant=is_constant))
    return parts


def _side_by_side(tensors: Sequence[torch.Tensor], dim: int) -> torch.Tensor:
    return tensors[0] if len(tensors) == 1 else torch.cat(list(tensors), dim=dim)


def _in_order(parts: Sequence[Part], dim: int) -> torch.Tensor:
    """Concatenate the parts' variables, in the order of their indices."""
    x = _side_by_side([part.x for part in parts], dim)
    by_part = [index for part in parts for index in part.members]
    if by_part == sorted(by_part):
        return x
    return x.index_select(dim, torch.tensor(np.argsort(by_part)))


def _standardise(
    x: torch.Tensor,
    params: Sequence[Mapping[str, Any]],
    dtype: np.dtype,
    *,
    sizes: Sequence[float] = (),
    repeats: int = 1,
) -> torch.Tensor:
    """Shift, scale and clip variables (N, k) or (N, k, P), each by its parameters.

    dtype: numpy's type of the result. sizes: upper bounds on the absolute values of the variables.
    repeats: x is (N, k * repeats).
    """
    if all(variable_params["center"] is None for variable_params in params):
        return x if x.dtype == torch.bool else x.to(graph_type(dtype))
    x = x.to(graph_type(dtype))

    def numbers(key: str, default: float) -> np.ndarray:
        """Return a parameter of each variable, in the type of the result, as numpy rounds it."""
        values = []
        for param in params:
            is_default = param["center"] is None or param[key] is None
            values.append(default if is_default else param[key])
        return np.array(values, dtype if dtype.kind == "f" else np.float64)

    def column(values: np.ndarray) -> torch.Tensor:
        """(k,) for jets, (k, 1) for particles."""
        values = np.repeat(values, repeats)
        return torch.tensor(values, dtype=x.dtype).reshape(-1, *[1] * (x.dim() - 2))

    center, scale = numbers("center", 0.0), numbers("scale", 1.0)
    low, high = numbers("min", -np.inf), numbers("max", np.inf)
    # A variable that needs no bounds may take those of the others, so that one Clip is enough.
    for i, size in enumerate(sizes):
        if params[i]["center"] is None and size <= min(-low.max(), high.min()):
            low[i], high[i] = low.max(), high.min()
    if (center != 0).any():
        x = x - column(center)
    if (scale != 1).any():
        x = x * column(scale)
    if len(set(low)) == len(set(high)) == 1:
        is_open = np.isinf(low[0]) and np.isinf(high[0])
        return x if is_open else x.clamp(float(low[0]), float(high[0]))
    return torch.minimum(torch.maximum(x, column(low)), column(high))


def _have_bounds(params: Sequence[Mapping[str, Any]]) -> bool:
    """Return whether all variables have both bounds, so that they are finite."""
    for param in params:
        if param["center"] is None or param["min"] is None or param["max"] is None:
            return False
    return True


def _is_finite(params: Mapping[str, Any], size: float) -> bool:
    """Return whether a variable is finite, because of its bounds or of `size`, its upper bound."""
    return _have_bounds([params]) or (params["center"] is None and math.isfinite(size))


def _may_be_nan(value: Value, assumes_finite: bool) -> bool:
    """Return whether a Value may be NaN; with `assumes_finite`, for finite columns."""
    if value.dtype.kind != "f":
        return False
    return not (assumes_finite and value.op == "column")


def _fill_padding(
    part: Part,
    real: torch.Tensor,
    mask: torch.Tensor,
    padding: Sequence[float],
    is_finite: bool,
) -> torch.Tensor:
    """Replace NaN in a part (N, k, length) by 0, and places without particle by the padding (k).

    real: (N, 1, length), True for places with a particle; mask: the same as numbers. is_finite: the
    columns in the other places are finite too.
    """
    x, is_number = part.x, part.is_number
    if any(padding):
        if is_number is not None:
            x = torch.where(is_number, x, torch.tensor(0.0))
        return torch.where(real, x.float(), torch.tensor(padding)[:, None])
    if x.dtype == torch.bool:
        return torch.logical_and(x, real).float()
    if part.is_constant or (is_finite and part.is_finite):
        return x * mask
    if is_number is not None:
        real = torch.logical_and(is_number, real)
    return torch.where(real, x, torch.tensor(0.0))


def _is_number(x: torch.Tensor) -> torch.Tensor:
    """Return False for NaN."""
    return x == x  # noqa: PLR0124


def _nan_to_num(x: torch.Tensor) -> torch.Tensor:
    """Replace NaN by 0 and infinity by the largest number, as numpy's nan_to_num does."""
    if not x.is_floating_point():
        return x
    largest = torch.finfo(x.dtype).max
    return torch.where(_is_number(x), x.clamp(-largest, largest), torch.tensor(0, dtype=x.dtype))


# --------------------------------------------------------------------------------- the operations


class _Run:
    """One evaluation of a program on a batch; each Value is computed once."""

    def __init__(
        self, columns: Mapping[str, torch.Tensor], *, assumes_finite: bool = False
    ) -> None:
        self.columns = columns
        self.assumes_finite = assumes_finite
        self.results: dict[int, torch.Tensor] = {}
        self.place_counts: dict[str, torch.Tensor] = {}
        self.cuts: dict[tuple[Any, ...], tuple[_Cut, torch.Tensor]] = {}
        self.jet_groups: dict[str, torch.Tensor] = {}
        """Input group of the network with one value a jet -> (N, C)."""

    def __call__(self, value: Value) -> torch.Tensor:
        """Compute a Value, or take its earlier result: (N, 1) for jets, (N, P) for particles."""
        if id(value) not in self.results:
            self.results[id(value)] = self.compute(value)
        return self.results[id(value)]

    def counts(self, value: Value) -> torch.Tensor:
        """Return the number of particles of each jet (N, 1) in a value of particles.

        Raises TypeError.
        """
        if value.counts is None:
            raise TypeError(f"{value.op} is one value a jet")
        return self(value.counts)

    def compute(self, value: Value) -> torch.Tensor:
        """Compute one operation, by the method `op_<name>` or by OPERATIONS."""
        method = getattr(self, f"op_{value.op}", None)
        if method is not None:
            return method(value)
        args = [self.argument(argument, value) for argument in value.args]
        return OPERATIONS[value.op](*args).to(graph_type_of(value))

    def argument(self, argument: Any, value: Value) -> torch.Tensor:
        """Compute an operand of an elementwise operation, in the type that numpy would use."""
        dtype = _operand_type(value)
        if not isinstance(argument, Value):
            return torch.tensor(argument, dtype=dtype)
        x = self(argument)
        is_condition = value.op == "where" and argument is value.args[0]
        return x if is_condition else x.to(dtype)

    # -- inputs

    def op_column(self, value: Value) -> torch.Tensor:
        return self.columns[value.args[0]].to(graph_type(value.dtype))

    def op_counter(self, value: Value) -> torch.Tensor:
        """Return the counter, at most the number of places: a larger one means all of them."""
        return self.clamped_counter(*value.args)

    def clamped_counter(self, counter: str, branch: str) -> torch.Tensor:
        """Return a counter (N, 1), limited to 0 and the number of places of `branch`."""
        counts = self.columns[counter].to(torch.int64).clamp(min=0)
        return torch.minimum(counts, self.places(branch))

    def real_places(self, counter: str, branch: str) -> torch.Tensor:
        """Return (N, P): True for places with a particle, in branches of this counter."""
        places: Any = self.places(branch)  # not a Python number, which would become a constant
        real: torch.Tensor = torch.arange(places) < self.clamped_counter(counter, branch)
        return real

    # -- particles

    def cut(
        self,
        first: Value,
        order: Sequence[tuple[Value, bool]],
        length: int,
        *,
        wraps: bool,
        is_sorted: bool,
    ) -> tuple[_Cut, torch.Tensor]:
        """Select the first `length` particles in an order.

        Returns (cut, real), where real (N, length) is True for places with a particle.
        first: one of the values to cut, which decides the number of particles (a single value a jet
        counts as one). order: the sort keys; empty for the order of the file. wraps: repeat the
        particles until all places are full. Unless `is_sorted`, the same particles may come in any
        order, also after places without one.
        """
        keys = tuple((id(value), falls) for value, falls in order)
        key = (id(first.counts), keys, length, wraps, is_sorted)
        if key not in self.cuts:
            self.cuts[key] = self._cut(first, order, length, wraps, is_sorted)
        return self.cuts[key]

    def _cut(
        self,
        first: Value,
        order: Sequence[tuple[Value, bool]],
        length: int,
        wraps: bool,
        is_sorted: bool,
    ) -> tuple[_Cut, torch.Tensor]:
        slots = torch.arange(length)
        if first.counts is None:
            return _Cut(self, slots.clamp(max=0)), (slots[None, :] < (length if wraps else 1))
        counts = self(first.counts)  # (N, 1)
        places_of_branch = self.places(_branch(first))
        if not wraps and not order:
            missing = (length - places_of_branch).reshape(1)
            return _Cut(self, missing=missing), slots[None, :] < counts
        sorted_places: torch.Tensor | None = None
        if order:
            values = [(self(value), falls) for value, falls in order]
            trusts = [self.assumes_finite and value.op == "column" for value, _ in order]
            most = torch.minimum(places_of_branch, torch.tensor(length))
            # (N, most)
            sorted_places = self.order(
                values, self.real(order[0][0]), most, is_sorted or wraps, trusts
            )
            missing = (length - most).reshape(1)
        if wraps:
            # (N, length)
            places = torch.remainder(slots[None, :], counts.clamp(min=1, max=length))
            if sorted_places is not None:
                places = sorted_places.gather(1, places)
            return _Cut(self, places), (counts > 0).expand(-1, length)
        assert sorted_places is not None
        places_or_none = _resize_places(sorted_places, missing, NO_PLACE)  # (N, length)
        places = torch.minimum(places_or_none, (counts - 1).clamp(min=0))
        return _Cut(self, places, repeats_particles=True), places_or_none < counts

    def places(self, branch: str) -> torch.Tensor:
        """Return the number of places P of a branch (N, P), as a tensor of the graph."""
        if branch not in self.place_counts:
            shape: torch.Tensor = torch._shape_as_tensor(self.columns[branch])
            self.place_counts[branch] = shape[1]
        return self.place_counts[branch]

    def real(self, value: Value) -> torch.Tensor:
        """Return (N, P): True for places with a particle, of a value of particles."""
        if value.counts is not None and value.counts.op == "counter":
            return self.real_places(*value.counts.args)
        return torch.arange(self(value).shape[1])[None, :] < self.counts(value)

    def op_where(self, value: Value) -> torch.Tensor:
        condition, one, other = (self.argument(argument, value) for argument in value.args)
        if graph_type_of(value) == torch.float32 and value.dtype.kind in "iu":
            # For small integers this is exact, and several times faster than ONNX Runtime's Where.
            is_one = condition if condition.dtype == torch.bool else condition != 0
            return other + is_one.float() * (one - other)
        return _where(condition, one, other).to(graph_type_of(value))

    def op_gather(self, value: Value) -> torch.Tensor:
        particles, positions = value.args
        x = self(particles)
        index = self(positions).to(torch.int64)
        # numpy counts negative positions from the end
        index = torch.where(index < 0, index + self.counts(particles), index)
        # indices in places without particle must not be out of range
        return x.gather(1, torch.remainder(index, x.shape[1]))

    def op_chosen_first(self, value: Value) -> torch.Tensor:
        is_chosen = self(value.args[0]) & self.real(value.args[0])
        return _positions(is_chosen.to(torch.int32))

    def op_argsort(self, value: Value) -> torch.Tensor:
        key, falling = value.args
        return self.order([(self(key), falling)], self.real(key))

    def order(
        self,
        keys: Sequence[tuple[torch.Tensor, bool]],
        real: torch.Tensor,
        length: torch.Tensor | None = None,
        is_sorted: bool = True,
        are_numbers: Sequence[bool] = (),
    ) -> torch.Tensor:
        """Return positions (N, P) that sort each jet's particles by one or more keys (N, P).

        keys: (key, whether it falls), the most important one first. Ties keep their order; places
        where `real` (N, P) is False come last. length: return only so many positions, at most P, in
        any order unless `is_sorted`. are_numbers: which keys cannot be NaN. Raises ValueError
        without keys.
        """
        falling_keys = []
        for index, (key, falls) in enumerate(keys):
            falling_keys.append(_falling_key(key, falls, bool(are_numbers) and are_numbers[index]))
        if len(keys) > 1 and _can_combine(keys[-2][0], keys[-1][0]):
            falling_keys[-2:] = [_combine_keys(*falling_keys[-2:])]
        # sort by the last key first; the later sorts keep this order among equal keys
        positions: torch.Tensor | None = None
        for index in reversed(range(len(falling_keys))):
            key = falling_keys[index]
            key = torch.where(real, key, torch.tensor(-math.inf, dtype=key.dtype))
            most = length if index == 0 else None
            in_order = is_sorted or index > 0
            if positions is None:
                positions = _positions(key, most, in_order)
            else:
                new_order = _positions(key.gather(1, positions), most, in_order)
                positions = positions.gather(1, new_order)
        if positions is None:
            raise ValueError("there is no key to sort by")
        return positions

    def op_first(self, value: Value) -> torch.Tensor:
        return self(value.args[0])[:, :1]

    def op_local_index(self, value: Value) -> torch.Tensor:
        x = self(value.args[0])
        return torch.arange(x.shape[1])[None, :].expand(x.shape)

    def op_full_like(self, value: Value) -> torch.Tensor:
        return torch.full_like(self(value.args[0]), value.args[1], dtype=graph_type(value.dtype))

    # -- particles to one value a jet

    def fill_empty_places(
        self, value: Value, outside: float, dtype: torch.dtype | None = None
    ) -> torch.Tensor:
        """Return the values of particles, with `outside` in places without a particle."""
        x = self(value.args[0]).to(dtype or graph_type(value.dtype))
        return torch.where(self.real(value.args[0]), x, torch.tensor(outside, dtype=x.dtype))

    def op_sum(self, value: Value) -> torch.Tensor:
        return self.fill_empty_places(value, 0).sum(1, keepdim=True)

    def op_prod(self, value: Value) -> torch.Tensor:
        return self.fill_empty_places(value, 1).prod(1, keepdim=True)

    def op_mean(self, value: Value) -> torch.Tensor:
        return self.fill_empty_places(value, 0).sum(1, keepdim=True) / self.counts(value.args[0])

    def op_count_nonzero(self, value: Value) -> torch.Tensor:
        is_nonzero = (self(value.args[0]) != 0) & self.real(value.args[0])
        return is_nonzero.to(torch.int64).sum(1, keepdim=True)

    def op_any(self, value: Value) -> torch.Tensor:
        return self.op_count_nonzero(value) > 0

    def op_all(self, value: Value) -> torch.Tensor:
        return self.op_count_nonzero(value) == self.counts(value.args[0])

    def op_max(self, value: Value) -> torch.Tensor:
        return self.fill_empty_places(value, _limit(value, -1)).amax(1, keepdim=True)

    def op_min(self, value: Value) -> torch.Tensor:
        return self.fill_empty_places(value, _limit(value, 1)).amin(1, keepdim=True)


def _limit(value: Value, sign: int) -> float:
    """Return the largest (sign 1) or smallest (-1) number of a Value's type."""
    if value.dtype.kind == "f":
        return sign * math.inf
    limits = torch.iinfo(graph_type(value.dtype))
    return limits.max if sign > 0 else limits.min


class _Cut(_Run):
    """The same evaluation for the particles at some places only.

    Elementwise operations on particles are computed after the cut, for fewer particles.
    """

    def __init__(
        self,
        run: _Run,
        places: torch.Tensor | None = None,
        missing: torch.Tensor | None = None,
        repeats_particles: bool = False,
    ) -> None:
        """Take the positions of the particles.

        places: (N, length), or (length,) for the same ones of each jet; None for the first ones.
        missing: without places, the number of places to append, or below 0 to remove.
        repeats_particles: in places without a particle, `places` has the position of another
        particle of the jet, if there is any.
        """
        super().__init__(run.columns, assumes_finite=run.assumes_finite)
        self.repeats_particles = repeats_particles
        self.run = run
        self.positions = places
        self.missing = missing
        self.known_mask: torch.Tensor | None = None

    def mask(self, real: torch.Tensor) -> torch.Tensor:
        """Return `real` (N, length) as numbers: 1 for a particle, 0 for padding."""
        if self.known_mask is None:
            self.known_mask = real.float()
        return self.known_mask

    def together(self, values: Sequence[Value]) -> torch.Tensor:
        """Return the values of particles side by side, (N, k * length) in float32.

        A function of one argument that all have, such as the logarithm, is one node of the graph.
        """
        first = values[0]
        same = all(
            (item.op, item.dtype, len(item.args)) == (first.op, np.float32, 1) for item in values
        )
        if same and first.op in OPERATIONS:
            arguments = [self.argument(item.args[0], item) for item in values]
            return OPERATIONS[first.op](_side_by_side(arguments, dim=1)).float()
        return _side_by_side([self(item).float() for item in values], dim=1)

    def compute(self, value: Value) -> torch.Tensor:
        if value.counts is None:
            return self.run(value)  # (N, 1)
        if value.op in OPERATIONS or value.op in ("full_like", "where"):
            return super().compute(value)
        x = self.run(value)  # (N, P)
        if self.positions is None:
            assert self.missing is not None, "a cut has places or says how many are missing"
            return _resize_places(x, self.missing, 0)
        return (
            x.index_select(1, self.positions)
            if self.positions.dim() == 1
            else x.gather(1, self.positions)
        )


def _branch(value: Value) -> str:
    """Return the name of a branch with as many places as a value of particles."""
    while value.op != "column":
        arguments = [a for a in value.args if isinstance(a, Value) and a.counts is not None]
        value = arguments[-1 if value.op == "gather" else 0]
    branch: str = value.args[0]
    return branch


NO_PLACE = 2**62
"""Marks a place for which a jet has no particle."""


class _ResizePlaces(torch.autograd.Function):
    """Append `missing` (1,) places with the value `fill` to (N, P); below 0 remove places.

    torch's exporter would write nine nodes for torch's own pad.
    """

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, missing: torch.Tensor, fill: int) -> torch.Tensor:
        return torch.nn.functional.pad(x, [0, int(missing)], value=fill)

    @staticmethod
    def symbolic(graph: Any, x: Any, missing: Any, fill: int) -> Any:
        before_and_behind = graph.op(
            "Concat",
            graph.op("Constant", value_t=torch.tensor([0, 0, 0])),
            missing,
            axis_i=0,
        )
        value = torch.tensor(fill, dtype=x.type().dtype())
        result = graph.op("Pad", x, before_and_behind, graph.op("Constant", value_t=value))
        return result.setType(x.type().with_sizes([None, None]))


def _resize_places(x: torch.Tensor, missing: torch.Tensor, fill: int) -> torch.Tensor:
    """Append `missing` (1,) places with the value `fill` to (N, P); below 0 remove places."""
    result: torch.Tensor = _ResizePlaces.apply(x, missing, fill)
    return result


def _positions(
    key: torch.Tensor, length: torch.Tensor | None = None, is_sorted: bool = True
) -> torch.Tensor:
    """Return the positions that sort each row (N, P) in falling order, stably.

    The first `length`, at most P.

    ONNX's TopK is stable by its definition; torch's topk is not. Unless `is_sorted`, the same
    positions may come in any order.
    """
    if torch.onnx.is_in_onnx_export():
        # a tensor of the graph; a Python number would become a constant
        places: Any = torch._shape_as_tensor(key)[1] if length is None else length
        return key.topk(places, dim=1, largest=True, sorted=is_sorted)[1]
    return torch.sort(key, dim=1, descending=True, stable=True)[1][:, :length]


def _falling_key(key: torch.Tensor, falls: bool, is_number: bool) -> torch.Tensor:
    """Convert a key (N, P) so that a falling sort gives the requested order, with NaN last."""
    if not key.is_floating_point():
        key = key.to(torch.float64)
        return key if falls else -key
    key = key if falls else -key
    if is_number:
        return key
    return torch.where(_is_number(key), key, torch.tensor(-math.inf, dtype=key.dtype))


def _can_combine(first: torch.Tensor, second: torch.Tensor) -> bool:
    return first.dtype in (torch.bool, torch.int32) and second.dtype == torch.float32


# Range of the magnitudes of single-precision numbers, with 0 and infinity; STEP exceeds twice the
# range of their logarithms.
SMALLEST_MAGNITUDE = 2.0**-150
LARGEST_MAGNITUDE = 2.0**129
STEP = 512.0


def _combine_keys(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Combine an integer key and a float32 key into one (N, P), so that one sort is enough.

    The integer is multiplied by STEP, which exceeds the range of the second key's signed logarithm.
    Neighbouring single-precision numbers differ by 6e-8 in the logarithm. Double precision resolves
    this for integers up to 2**18; beyond, nearly equal second keys count as equal.
    """
    x = second.to(torch.float64)
    # the smallest magnitude represents 0, the largest represents infinity
    size = torch.abs(x).clamp(SMALLEST_MAGNITUDE, LARGEST_MAGNITUDE)
    return first * STEP + torch.sign(x) * (torch.log(size) - math.log(SMALLEST_MAGNITUDE))


def _operand_type(value: Value) -> torch.dtype:
    """Return the type to which numpy converts operands, or the nearest in the graph."""
    if value.op in COMPARISONS:
        types = [a.dtype if isinstance(a, Value) else a for a in value.args]
        dtype = np.result_type(*types)
        return torch.int32 if dtype.kind == "b" else graph_type(dtype)
    if value.op.startswith("logical"):
        return torch.bool
    if value.op in ("isnan", "isinf", "isfinite"):
        return graph_type(np.result_type(value.args[0].dtype, np.float32))
    return torch.float32 if value.op in SINGLE else graph_type_of(value)


def _where(condition: torch.Tensor, one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """Choose by a condition, as numpy's where does."""
    condition = condition != 0 if condition.dtype != torch.bool else condition
    if one.dtype == torch.bool:  # ONNX Runtime's Where has no booleans
        return (condition & one) | (~condition & other)
    return torch.where(condition, one, other)


def _truncate(x: torch.Tensor) -> torch.Tensor:
    return torch.sign(x) * torch.floor(torch.abs(x))


def _logaddexp(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return torch.maximum(a, b) + torch.log1p(torch.exp(-torch.abs(a - b)))


def _clip(x: torch.Tensor, low: torch.Tensor, high: torch.Tensor) -> torch.Tensor:
    return torch.minimum(torch.maximum(x, low), high)


# Operations for which ONNX opset 17 has no operator are composed of others.
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
    "trunc": _truncate,
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
    "nan_to_num": _nan_to_num,
    "clip": _clip,
}
