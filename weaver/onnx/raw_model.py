"""A network with its preprocessing in front: from the ntuple's columns to each jet's corrected pT.

    model, info = raw_model(program, network, network_info, data_config)

Inputs are the branches that the data config uses, under their own names and in their own types: one
value a jet as (N, 1), particles as (N, P) with any P, and for each list of particles its counter
(N, 1), int32. Places from the counter on may hold anything. Nothing is selected: each jet gets an
answer. Outputs, each (N, 1), all but the last float32:

    calibrated_pt      in GeV: the quantity that the label divides by (jetPt in
                       log(genJetPt / jetPt)) times exp(the network's first output)
    correction         that factor
    calibrated_pt_q16  and so on for the further outputs of a network with quantiles, named by its
                       output_columns
    valid              bool: the jet is one that the training has, with finite numbers
                       (weaver/onnx/valid_range.py). Of the others the standard correction is
                       returned unchanged: correction 1, and all pT the label's reference

The operations are those of weaver/onnx/raw_program.py and weaver/prepared/transform.py, in numpy's
types; exported, they are part of the graph, so that a client has nothing to compute and nothing to
get wrong.
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

# numpy's type -> the type in the graph. ONNX Runtime has few kernels for small and unsigned whole
# numbers.
_TYPES = {"f2": torch.float32, "f4": torch.float32, "f8": torch.float64} | {
    **dict.fromkeys(("i1", "i2", "i4", "u1", "u2"), torch.int32),
    **dict.fromkeys(("i8", "u4", "u8"), torch.int64),
}
VALID = "valid"
"""Name of the output that says whether a jet is one that the model is meant for."""

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


def held_in(value: Value) -> torch.dtype:
    """The torch type of a Value in the graph.

    Choices between small whole numbers, such as a charge, are held in float32, which is exact for
    them: ONNX Runtime's Where takes several times longer with 64 bits.
    """
    if value.op == "where" and value.dtype.kind in "iu" and _bound(value) <= EXACT:
        return torch.float32
    return graph_type(value.dtype)


EXACT = 2**24  # float32 has all whole numbers up to it


def _bound(argument: Any) -> float:
    """A number that the absolute value of a Value or number never exceeds, as far as known."""
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
    """Columns of the ntuple -> (the network's inputs..., the quantity to correct (N, 1))."""

    trusts_inputs: bool
    """Leave out what only jets with NaN or infinity among their inputs need: the raw model gives
    no answer to these."""

    def __init__(
        self, program: RawProgram, data_config: DataConfig, input_names: Sequence[str]
    ) -> None:
        """Make a module for each of the network's inputs. Raises InputError."""
        super().__init__()
        self.program = program
        self.trusts_inputs = False
        groups: dict[str, torch.nn.Module] = {}
        self.of_jets: dict[str, list[Variable]] = {}
        for name in input_names:
            if name == FEATURES:
                groups[name] = ResidualFeatures(program)
                continue
            variables = _variables(name, program, data_config)
            if variables[0].params["length"] is None:
                groups[name] = JetGroup(name, len(variables))
                self.of_jets[name] = variables
            else:
                groups[name] = ParticleGroup(
                    variables, program.orders.get(name, []), is_only=len(program.counters) == 1
                )
        self.groups = torch.nn.ModuleDict(groups)

    def forward(self, *columns: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Turn the file's columns (N, ...) into the network's inputs and the reference pT (GeV)."""
        run = self.run(columns)
        return (*self.inputs(run), run(self.program.reference))

    def run(self, columns: Sequence[torch.Tensor]) -> _Run:
        """One evaluation of the program on a batch: columns in the order of its inputs."""
        by_name = dict(zip(raw_inputs(self.program), columns, strict=True))
        return _Run(by_name, trusts_inputs=self.trusts_inputs)

    def inputs(self, run: _Run) -> list[torch.Tensor]:
        """The network's inputs."""
        # All groups at once: a node of the graph costs as much as hundreds of numbers.
        variables = [one for group in self.of_jets.values() for one in group]
        if variables:
            values = _in_order(_standardised_parts(run, variables), dim=1)
            sizes = [len(group) for group in self.of_jets.values()]
            groups = torch.split(values, sizes, dim=1)
            run.jet_groups = dict(zip(self.of_jets, groups, strict=True))
        return [group(run) for group in self.groups.values()]


@dataclasses.dataclass(frozen=True, eq=False)
class Variable:
    """An input variable of the network."""

    value: Value
    params: Mapping[str, Any]
    """weaver.config.sections.Parameters."""
    dtype: np.dtype
    """numpy's type in which it is standardised."""


def _variables(name: str, program: RawProgram, data_config: DataConfig) -> list[Variable]:
    """The variables of an input group.

    As in weaver.prepared.transform, those of particles are standardised in float32, single values
    in the type they have.
    """
    values = program.groups[name]
    params = [data_config.preprocess_params[one] for one in data_config.input_dicts[name]]
    in_float32 = all(value.counts is not None for value in values)
    variables = []
    for value, of_value in zip(values, params, strict=True):
        dtype = np.dtype(np.float32)
        if not in_float32:
            dtype = np.asarray(standardize(np.ones(1, value.dtype), of_value)).dtype
        variables.append(Variable(value, of_value, dtype))
    return variables


class JetGroup(torch.nn.Module):
    """One input of the network with one value a jet: (N, C), or (N,) for a single variable."""

    def __init__(self, name: str, size: int) -> None:
        """Name the group and the number of its variables."""
        super().__init__()
        self.name = name
        self.size = size

    def forward(self, run: _Run) -> torch.Tensor:
        """Return the group's variables, one number for each jet; (N, C)."""
        x = run.jet_groups[self.name]  # (N, C)
        return x if self.size > 1 else x[:, 0]


class ParticleGroup(torch.nn.Module):
    """One input of the network with values of particles: (N, C, length), cut and padded."""

    def __init__(
        self,
        variables: Sequence[Variable],
        order: Sequence[tuple[Value, bool]],
        *,
        is_only: bool,
    ) -> None:
        """`order` holds the keys by which particles are sorted, each with its direction.

        is_only: there is no other list of particles, so that a valid jet has some.
        """
        super().__init__()
        self.variables = variables
        self.order = order
        params = variables[0].params
        self.length: int = params["length"]
        self.wraps = params["pad_mode"] == "wrap"
        self.is_sorted = True
        self.is_only = is_only
        self.needs_padding = True  # False where finite numbers do as well
        self.appends_mask = False  # one more variable: 1 for a particle, 0 for padding
        self.are_particles = all(one.value.counts is not None for one in variables)
        self.tables = _tables([one.value for one in variables]) if self.are_particles else []

    @property
    def choice(self) -> tuple[Any, ...]:
        """Which particles these are: equal for groups that have the same."""
        order = tuple((id(value), falls) for value, falls in self.order)
        return id(self.variables[0].value.counts), order, self.length, self.wraps

    @property
    def pads_with_zeros(self) -> bool:
        """Whether each variable is 0 in a place without particle."""
        is_zero = all(variable.params["pad_value"] == 0 for variable in self.variables)
        return is_zero and not self.wraps

    def forward(self, run: _Run) -> torch.Tensor:
        """Return the group's variables for each particle; (N, C, length)."""
        first = self.variables[0].value
        # real: (N, length)
        cut, real = run.cut(
            first, self.order, self.length, wraps=self.wraps, is_sorted=self.is_sorted
        )
        mask = cut.mask(real)  # (N, length)
        # With their shape stated, the network's own operations need no question about it.
        real = real.reshape(-1, 1, self.length)
        # A product is quicker than a choice, but does not take NaN and infinity away.
        is_finite = self.is_only and cut.repeats_particles and cut.trusts_inputs
        parts = []
        if self.are_particles:
            standardised = self._parts(cut, mask)
        else:
            standardised = _standardised_parts(cut, self.variables, length=self.length)
        for part in standardised:
            params = [self._params(i) for i in part.members]
            padding = [0.0] * len(params)
            if not self.wraps:
                padding = [float(one["pad_value"]) for one in params]
            x = part.x
            if self.needs_padding or not (is_finite and part.is_finite):
                x = _padded(part, real, mask.reshape(-1, 1, self.length), padding, is_finite)
            parts.append(dataclasses.replace(part, x=x))
        x = _in_order(parts, dim=1)
        if self.are_particles and len(parts) == 1:
            return x
        return x.reshape(-1, len(self.variables) + int(self.appends_mask), self.length)

    def _params(self, index: int) -> Mapping[str, Any]:
        """How a variable is standardised; the mask, which comes behind all, is not."""
        if index == len(self.variables):
            return {"center": None, "pad_value": 0.0}
        return self.variables[index].params

    def _parts(self, cut: _Cut, mask: torch.Tensor) -> list[Part]:
        """The variables of particles, standardised: all in one part, but for constants.

        mask: (N, length), 1 for particles.
        """
        constants = [i for i, one in enumerate(self.variables) if one.value.op in CONSTANTS]
        tabled = [i for table in self.tables for i in table.members]
        others = [i for i in range(len(self.variables)) if i not in {*constants, *tabled}]
        unsure = [i for i in others if _may_be_nan(self.variables[i].value, cut.trusts_inputs)]
        sure = [i for i in others if i not in unsure]
        parts = []
        if constants:
            values = [self.variables[i].value for i in constants]
            params = [self.variables[i].params for i in constants]
            x = _standardised(_constants(values), params, np.dtype(np.float32))
            parts.append(Part(constants, x, None, is_constant=True))
        columns = []  # (N, k * length) each
        known = None
        if unsure:
            x = cut.together([self.variables[i].value for i in unsure])
            known = _is_number(x)
            # In place of NaN what becomes 0.
            centers = [self.variables[i].params["center"] or 0.0 for i in unsure]
            zero = torch.tensor(centers, dtype=torch.float32).repeat_interleave(self.length)
            columns.append(torch.where(known, x, zero))
        columns += [cut(self.variables[i].value).float() for i in sure]
        columns += [table.look_up(cut(table.column), self.length) for table in self.tables]
        members = [*unsure, *sure, *tabled]
        if self.appends_mask:
            columns.append(mask)
            members.append(len(self.variables))
        if columns:
            parts.append(self._standardised_part(members, _side_by_side(columns, dim=1)))
        return parts

    def _standardised_part(self, members: list[int], x: torch.Tensor) -> Part:
        """Standardise k variables (N, k * length)."""
        params = [self._params(i) for i in members]
        sizes = [_bound(self.variables[i].value) for i in members if i < len(self.variables)]
        sizes += [1.0] * (len(members) - len(sizes))  # of the mask
        # One number for each place: ONNX Runtime takes time for each row that it repeats one on.
        x = _standardised(x, params, np.dtype(np.float32), sizes=sizes, repeats=self.length)
        x = x.reshape(-1, len(members), self.length)
        return Part(members, x, None, is_finite=all(map(_is_finite, params, sizes)))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Table:
    """Variables that are functions of one column of whole numbers, for a graph to look up.

    Outside of +-reach each is the same for all numbers of one sign.
    """

    column: Value
    reach: int
    members: list[int]
    """Places of the k variables in their group."""
    numbers: list[int]
    """a of the first variables, each of which is 1 where |x| = a, and else 0."""
    rows: torch.Tensor
    """Of the other ones: (k', 2 * reach + 1) float32, for 0, ..., reach, -reach, ..., -1, so that a
    negative number counts from the end."""

    def look_up(self, x: torch.Tensor, length: int) -> torch.Tensor:
        """The variables (N, k * length), one behind the other, of whole numbers x (N, length)."""
        columns = []
        if self.numbers:
            numbers = torch.tensor(self.numbers, dtype=x.dtype)[:, None]
            equal = torch.abs(x).reshape(-1, 1, length) == numbers  # (N, number of numbers, length)
            columns.append(equal.float().flatten(1))
        if len(self.rows):
            # ONNX Runtime's GatherElements takes a tenth of the time of its Gather.
            index = x.clamp(-self.reach, self.reach).reshape(-1)
            columns += [_looked_up(row, index).reshape(-1, length) for row in self.rows]
        return _side_by_side(columns, dim=1)


LARGEST_REACH = 4096
"""Of a table that is looked up, so that it stays in a core's cache."""


def _tables(values: Sequence[Value]) -> list[Table]:
    """Tables for those of a group's variables that are functions of one column of whole numbers."""
    members: dict[str, list[int]] = {}
    columns: dict[str, Value] = {}
    reaches: dict[str, int] = {}
    for i, value in enumerate(values):
        steps = _steps(value)
        if steps is None or not math.isfinite(_bound(value)):
            continue
        column, reach = steps
        if column is None or reach > LARGEST_REACH:
            continue
        branch = column.args[0]
        members.setdefault(branch, []).append(i)
        columns[branch] = column
        reaches[branch] = max(reach, reaches.get(branch, 0))
    tables = []
    for branch, indices in members.items():
        if len(indices) == 1:  # the operations are as quick
            continue
        column, reach = columns[branch], reaches[branch]
        # evaluated by the very operations that the graph would have
        x = torch.cat((torch.arange(reach + 1), torch.arange(-reach, 0)))
        x = x.to(graph_type(column.dtype))
        run = _Run({branch: x[None]})
        by_number: dict[int, int] = {}  # member -> a of |x| = a
        rows: dict[int, torch.Tensor] = {}
        for i in indices:
            row = run(values[i]).float().reshape(-1)
            number = _number_of(row, reach)
            if number is None:
                rows[i] = row
            else:
                by_number[i] = number
        tables.append(
            Table(
                column=column,
                reach=reach,
                members=[*by_number, *rows],
                numbers=list(by_number.values()),
                rows=torch.stack(list(rows.values())) if rows else torch.empty(0, len(x)),
            )
        )
    return tables


def _number_of(row: torch.Tensor, reach: int) -> int | None:
    """The a of a function that is 1 where |x| = a, and else 0; None for any other function.

    row: its values for 0, ..., reach, -reach, ..., -1.
    """
    positive = row[: reach + 1].nonzero().flatten().tolist()
    if len(positive) != 1 or not 0 < positive[0] < reach:
        return None
    number = int(positive[0])
    expected = torch.zeros_like(row)
    expected[[number, -number]] = 1
    return number if torch.equal(row, expected) else None


class _LookUp(torch.autograd.Function):
    """The values row[index] of a table (R,), for an index (K,) that may count from the end.

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
    """The values row[index] of a table (R,), for an index (K,) that may count from the end."""
    values: torch.Tensor = _LookUp.apply(row, index)
    return values


STEPS = COMPARISONS | {
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
"""Operations that know whole numbers by their signs and by comparisons alone."""


def _steps(argument: Any) -> tuple[Value | None, int] | None:
    """The column of whole numbers that an expression of STEPS alone looks at, and how far.

    The column is None for a plain number. None where it is no such expression.
    """
    if not isinstance(argument, Value):
        return (None, math.ceil(abs(argument)) + 1) if math.isfinite(argument) else None
    if argument.op == "column":
        is_whole = argument.dtype.kind in "iu" and argument.counts is not None
        return (argument, 1) if is_whole else None
    if argument.op not in STEPS:
        return None
    column: Value | None = None
    reach = 1
    for part in map(_steps, argument.args):
        if part is None or (part[0] is not None and column not in (None, part[0])):
            return None
        column = column or part[0]
        reach = max(reach, part[1])
    return column, reach


class ResidualFeatures(torch.nn.Module):
    """The input of the residual correction: reference pT (GeV) and jetEta, (N, 2)."""

    def __init__(self, program: RawProgram) -> None:
        """Raises InputError if jetEta is not among the network's inputs."""
        super().__init__()
        if program.eta is None:
            raise InputError("a residual correction needs jetEta among the network's inputs")
        self.values = (program.reference, program.eta)

    def forward(self, run: _Run) -> torch.Tensor:
        """Return the reference pT (GeV) and jetEta; (N, 2)."""
        return torch.cat([run(value).float() for value in self.values], dim=1)


class RawModel(torch.nn.Module):
    """Preprocessing, network, and the answer in physical terms; see the module's text."""

    def __init__(
        self, preprocessing: Preprocessing, network: torch.nn.Module, limits: ValidRange
    ) -> None:
        """Put the preprocessing before the network, and the range of valid jets behind it."""
        super().__init__()
        self.preprocessing = preprocessing
        self.preprocessing.trusts_inputs = True
        self.network = network
        self.limits = limits

    def forward(self, *columns: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Turn the file's columns (N, ...) into the answers and `valid`; (N, 1) each."""
        run = self.preprocessing.run(columns)
        output = self.network(*self.preprocessing.inputs(run))
        program = self.preprocessing.program
        valid = _valid(run, program, self.limits)
        return (*answers(output, run(program.reference), valid), valid)


def answers(
    output: torch.Tensor, reference: torch.Tensor, valid: torch.Tensor
) -> tuple[torch.Tensor, ...]:
    """Turn a network's answer into physical terms.

    output (N, C), logarithms of factors, reference (N, 1), in GeV, and valid (N, 1) ->
    calibrated_pt (GeV), correction, and one pT for each further output, (N, 1) each. The factors of
    jets that are not valid are 1.
    """
    factors = torch.where(valid, torch.exp(output.float()), torch.tensor(1.0))
    pts = reference.float() * factors  # (N, C)
    # Of the graph's operations Split takes less time than Slice.
    calibrated_pt, *further = pts.split(1, dim=1)  # (N, 1) each
    correction = factors.split(1, dim=1)[0]
    return calibrated_pt, correction, *further


def _valid(run: _Run, program: RawProgram, limits: ValidRange) -> torch.Tensor:
    """Which jets are valid, (N, 1): the rule of weaver.onnx.valid_range as part of the graph."""
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
        counts = run.limited(counter, of_counter[0])  # (N, 1)
        check(run.columns[counter].to(torch.int64) - counts, 0, 0)
        most = counts if most is None else torch.maximum(most, counts)
        particles = [run.columns[name].float() for name in of_counter if name in floats]
        if particles:
            # Infinity and NaN stay in a sum.
            total = functools.reduce(torch.add, particles)  # (N, P)
            real = run.real_places(counter, of_counter[0])
            total = torch.where(real, total, torch.tensor(0.0))
            check(total.sum(1, keepdim=True))
    if most is not None:
        check(most, 1)
    # All at once: each node of the graph costs time. NaN and infinity are at no distance of 0.
    x = torch.cat(columns, dim=1)
    low, high = torch.tensor(bounds).T
    beyond = x - torch.minimum(torch.maximum(x, low), high)
    return torch.norm(beyond, p=1, dim=1, keepdim=True) == 0


def raw_inputs(program: RawProgram) -> list[str]:
    """Names of the model's inputs in order: branches, then counters."""
    return [*program.inputs, *program.counters]


def raw_model(
    program: RawProgram,
    network: torch.nn.Module,
    network_info: Mapping[str, Any],
    data_config: DataConfig,
    limits: ValidRange,
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
            VALID,
        ],
        "output_types": {VALID: np.dtype(bool)},
        "dynamic_axes": axes,
    }
    preprocessing = Preprocessing(program, data_config, network_info["input_names"])
    network = copy.deepcopy(network)
    _leave_out_work(network, preprocessing)
    return RawModel(preprocessing, network, limits).eval(), info


def _leave_out_work(network: torch.nn.Module, preprocessing: Preprocessing) -> None:
    """Leave out what a network with `any_order` (networks/pfn_regressor_open.py) does not need.

    Its particles need not be sorted, if all its inputs have the same ones. What lies in padding
    need not be masked, if it is finite already: 0, or another particle of the jet.
    """
    groups = preprocessing.groups.items()
    of_particles = {name: group for name, group in groups if isinstance(group, ParticleGroup)}
    if len({group.choice for group in of_particles.values()}) != 1:
        return
    for module in network.modules():
        if not getattr(module, "any_order", False):
            continue
        for group in of_particles.values():
            group.is_sorted = False
        mask = of_particles.get("pf_mask")
        if mask is None or any(one.value.op != "ones_like" for one in mask.variables):
            continue
        if hasattr(module, "masks") and all(g.pads_with_zeros for g in of_particles.values()):
            setattr(module, "masks", False)  # noqa: B010 (nn.Module declares no such field)
            for name, group in of_particles.items():
                # Finite numbers are as good as 0: the network's sum multiplies by the mask.
                group.needs_padding = name == "pf_mask"
            features = of_particles.get("pf_features")
            takes_one = hasattr(module, "has_one") and not module.by_row
            if takes_one and features is not None and features.are_particles:
                features.appends_mask = True
                setattr(module, "has_one", True)  # noqa: B010


# ------------------------------------------------------------------------------- standardise, pad

# Operations whose result is the same for all particles -> that number.
CONSTANTS: dict[str, Callable[[Value], float]] = {
    "ones_like": lambda value: 1,
    "zeros_like": lambda value: 0,
    "full_like": lambda value: value.args[1],
}


def _constants(values: Sequence[Value]) -> torch.Tensor:
    """The numbers of constants, (1, k, 1)."""
    numbers = [float(CONSTANTS[value.op](value)) for value in values]
    return torch.tensor(numbers, dtype=torch.float32)[None, :, None]


@dataclasses.dataclass(frozen=True, eq=False)
class Part:
    """Variables of one type, which go through the same nodes of the graph."""

    members: list[int]
    """Their places among all variables."""
    x: torch.Tensor
    """Standardised: (N, k) of jets, (N, k, length) of particles, (1, k, 1) of constants."""
    known: torch.Tensor | None
    """False where the value is NaN, of the shape of x; None where it cannot be."""
    is_finite: bool = False
    """Neither NaN nor infinite for any finite columns."""
    is_constant: bool = False


def _standardised_parts(
    run: _Run, variables: Sequence[Variable], length: int | None = None
) -> list[Part]:
    """Standardise variables, those of one type together: of jets, or of `length` particles."""
    members: dict[tuple[torch.dtype, str, np.dtype, bool], list[int]] = {}
    for index, variable in enumerate(variables):
        value = variable.value
        is_constant = length is not None and value.op in CONSTANTS
        key = (held_in(value), value.dtype.kind, variable.dtype, is_constant)
        if length is None and value.dtype.kind in "biu":
            # numpy computes in double precision; fewer nodes are worth a rounding.
            key = (torch.float32, "f", np.dtype(np.float32), False)
        members.setdefault(key, []).append(index)
    is_sequence = all(variable.value.counts is not None for variable in variables)
    parts = []
    for (source, kind, dtype, is_constant), indices in members.items():
        values = [variables[index].value for index in indices]
        params = [variables[index].params for index in indices]
        known = None
        if is_constant:
            raw = _constants(values)
        else:
            # one value a jet has the first place
            columns = [run(value).to(source) for value in values]
            if length is not None:
                # Only single values: where the shape is not known, expand is a node of the graph.
                columns = [
                    x if value.counts is not None else x.expand(-1, length)
                    for x, value in zip(columns, values, strict=True)
                ]
            raw = _side_by_side(columns, dim=1)
            if length is not None:
                raw = raw.reshape(-1, len(values), length)
            if kind == "f" and any(_may_be_nan(value, run.trusts_inputs) for value in values):
                known = _is_number(raw)
        x = _standardised(raw, params, np.dtype(np.float32) if is_constant else dtype)
        if length is not None and x.dtype != torch.bool:
            x = x.float()
        if not is_sequence and x.is_floating_point() and not _are_clipped(params):
            # As in weaver-core, for single values only; the largest number of double precision is
            # infinite in float32.
            largest = torch.finfo(x.dtype).max
            x = x.clamp(-largest, largest)
        if length is None:
            if known is not None:
                x = torch.where(known, x, torch.tensor(0, dtype=x.dtype))
            x = x.float()
        parts.append(Part(indices, x, known, is_constant=is_constant))
    return parts


def _side_by_side(tensors: Sequence[torch.Tensor], dim: int) -> torch.Tensor:
    return tensors[0] if len(tensors) == 1 else torch.cat(list(tensors), dim=dim)


def _in_order(parts: Sequence[Part], dim: int) -> torch.Tensor:
    """The parts' variables side by side, in their own order."""
    x = _side_by_side([part.x for part in parts], dim)
    by_part = [index for part in parts for index in part.members]
    if by_part == sorted(by_part):
        return x
    return x.index_select(dim, torch.tensor(np.argsort(by_part)))


def _standardised(
    x: torch.Tensor,
    params: Sequence[Mapping[str, Any]],
    dtype: np.dtype,
    *,
    sizes: Sequence[float] = (),
    repeats: int = 1,
) -> torch.Tensor:
    """Shift, scale and clip variables (N, k) or (N, k, P), each by its numbers.

    `dtype` is numpy's type of the result. Without anything to do x is as it was. sizes: numbers
    that the absolute values of the variables never exceed, as far as known. repeats: x is
    (N, k * repeats).
    """
    if all(one["center"] is None for one in params):
        return x if x.dtype == torch.bool else x.to(graph_type(dtype))
    x = x.to(graph_type(dtype))

    def numbers(key: str, default: float) -> np.ndarray:
        """One number a variable, rounded to the type first, as numpy does beside an array."""
        values = []
        for one in params:
            is_default = one["center"] is None or one[key] is None
            values.append(default if is_default else one[key])
        return np.array(values, dtype if dtype.kind == "f" else np.float64)

    def column(values: np.ndarray) -> torch.Tensor:
        """(k,) for jets, (k, 1) for particles."""
        values = np.repeat(values, repeats)
        return torch.tensor(values, dtype=x.dtype).reshape(-1, *[1] * (x.dim() - 2))

    center, scale = numbers("center", 0.0), numbers("scale", 1.0)
    low, high = numbers("min", -np.inf), numbers("max", np.inf)
    # One that has no bounds and needs none may take those of the others, for a single Clip.
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


def _are_clipped(params: Sequence[Mapping[str, Any]]) -> bool:
    """Whether all variables have both bounds, so that none is infinite."""
    for one in params:
        if one["center"] is None or one["min"] is None or one["max"] is None:
            return False
    return True


def _is_finite(params: Mapping[str, Any], size: float) -> bool:
    """Whether a variable is finite, by its clip or by its size, which it never exceeds."""
    return _are_clipped([params]) or (params["center"] is None and math.isfinite(size))


def _may_be_nan(value: Value, trusts_inputs: bool) -> bool:
    """Whether a Value may be NaN, of finite columns if `trusts_inputs`."""
    if value.dtype.kind != "f":
        return False
    return not (trusts_inputs and value.op == "column")


def _padded(
    part: Part,
    real: torch.Tensor,
    mask: torch.Tensor,
    padding: Sequence[float],
    is_finite: bool,
) -> torch.Tensor:
    """A part (N, k, length), NaN as 0, with the padding (k) where `real` (N, 1, length) is not.

    mask: `real` as numbers. is_finite: there are finite columns in these places as well.
    """
    x, known = part.x, part.known
    if any(padding):
        if known is not None:
            x = torch.where(known, x, torch.tensor(0.0))
        return torch.where(real, x.float(), torch.tensor(padding)[:, None])
    if x.dtype == torch.bool:
        return torch.logical_and(x, real).float()
    if part.is_constant or (is_finite and part.is_finite):
        return x * mask
    if known is not None:
        real = torch.logical_and(known, real)
    return torch.where(real, x, torch.tensor(0.0))


def _is_number(x: torch.Tensor) -> torch.Tensor:
    """False for NaN."""
    return x == x  # noqa: PLR0124


def _nan_to_num(x: torch.Tensor) -> torch.Tensor:
    """NaN as 0 and infinity as the largest number, as numpy's."""
    if not x.is_floating_point():
        return x
    largest = torch.finfo(x.dtype).max
    return torch.where(_is_number(x), x.clamp(-largest, largest), torch.tensor(0, dtype=x.dtype))


# --------------------------------------------------------------------------------- the operations


class _Run:
    """One evaluation of a program on a batch; each Value is computed once."""

    def __init__(self, columns: Mapping[str, torch.Tensor], *, trusts_inputs: bool = False) -> None:
        self.columns = columns
        self.trusts_inputs = trusts_inputs
        self.known: dict[int, torch.Tensor] = {}
        self.known_places: dict[str, torch.Tensor] = {}
        self.cuts: dict[tuple[Any, ...], tuple[_Cut, torch.Tensor]] = {}
        self.jet_groups: dict[str, torch.Tensor] = {}
        """Input group of the network with one value a jet -> (N, C)."""

    def __call__(self, value: Value) -> torch.Tensor:
        """The values of all jets (N, 1) or of their particles (N, P)."""
        if id(value) not in self.known:
            self.known[id(value)] = self.compute(value)
        return self.known[id(value)]

    def counts(self, value: Value) -> torch.Tensor:
        """How many particles each jet has (N, 1), of a value of particles."""
        if value.counts is None:
            raise TypeError(f"{value.op} is one value a jet")
        return self(value.counts)

    def compute(self, value: Value) -> torch.Tensor:
        """The values of one operation, by a method of its name or by OPERATIONS."""
        method = getattr(self, f"op_{value.op}", None)
        if method is not None:
            return method(value)
        args = [self.argument(argument, value) for argument in value.args]
        return OPERATIONS[value.op](*args).to(held_in(value))

    def argument(self, argument: Any, value: Value) -> torch.Tensor:
        """An operand of an elementwise operation.

        It has the type that numpy computes in and the shape of the result.
        """
        dtype = _computed_in(value)
        if not isinstance(argument, Value):
            return torch.tensor(argument, dtype=dtype)
        x = self(argument)
        is_condition = value.op == "where" and argument is value.args[0]
        return x if is_condition else x.to(dtype)

    # -- inputs

    def op_column(self, value: Value) -> torch.Tensor:
        return self.columns[value.args[0]].to(graph_type(value.dtype))

    def op_counter(self, value: Value) -> torch.Tensor:
        """A counter beyond the places that were sent means all of them."""
        return self.limited(*value.args)

    def limited(self, counter: str, branch: str) -> torch.Tensor:
        """The numbers (N, 1) of a counter, from 0 to the places of one of its branches."""
        counts = self.columns[counter].to(torch.int64).clamp(min=0)
        return torch.minimum(counts, self.places(branch))

    def real_places(self, counter: str, branch: str) -> torch.Tensor:
        """True for the places (N, P) of a counter's branches that hold a particle."""
        places: Any = self.places(branch)  # a plain number would be that of the traced jets
        real: torch.Tensor = torch.arange(places) < self.limited(counter, branch)
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
        """The first `length` particles in an order, and which places hold one: (N, length).

        first: one of the values to cut, whose jets' particles are counted (a single value a jet
        counts as one). order: the sort keys, none for the order of the file. With `wraps` the
        particles come again and again until the places are full. Unless `is_sorted`, the same
        particles come in any order, with places without one among them.
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
        ordered: torch.Tensor | None = None
        if order:
            values = [(self(value), falls) for value, falls in order]
            trusts = [self.trusts_inputs and value.op == "column" for value, _ in order]
            most = torch.minimum(places_of_branch, torch.tensor(length))
            # (N, most)
            ordered = self.order(values, self.real(order[0][0]), most, is_sorted or wraps, trusts)
            missing = (length - most).reshape(1)
        if wraps:
            # (N, length)
            places = torch.remainder(slots[None, :], counts.clamp(min=1, max=length))
            if ordered is not None:
                places = ordered.gather(1, places)
            return _Cut(self, places), (counts > 0).expand(-1, length)
        assert ordered is not None
        filled = _padded_to(ordered, missing, NO_PLACE)  # (N, length)
        places = torch.minimum(filled, (counts - 1).clamp(min=0))
        return _Cut(self, places, repeats_particles=True), filled < counts

    def places(self, branch: str) -> torch.Tensor:
        """The places P of a branch (N, P) as a number of the graph."""
        if branch not in self.known_places:
            shape: torch.Tensor = torch._shape_as_tensor(self.columns[branch])
            self.known_places[branch] = shape[1]
        return self.known_places[branch]

    def real(self, value: Value) -> torch.Tensor:
        """True for the places (N, P) of particles that exist."""
        if value.counts is not None and value.counts.op == "counter":
            return self.real_places(*value.counts.args)
        return torch.arange(self(value).shape[1])[None, :] < self.counts(value)

    def op_where(self, value: Value) -> torch.Tensor:
        condition, one, other = (self.argument(argument, value) for argument in value.args)
        if held_in(value) == torch.float32 and value.dtype.kind in "iu":
            # Small whole numbers: exact, and several times as fast as ONNX Runtime's Where.
            is_one = condition if condition.dtype == torch.bool else condition != 0
            return other + is_one.float() * (one - other)
        return _where(condition, one, other).to(held_in(value))

    def op_gather(self, value: Value) -> torch.Tensor:
        particles, positions = value.args
        x = self(particles)
        index = self(positions).to(torch.int64)
        # numpy counts negative positions from the end
        index = torch.where(index < 0, index + self.counts(particles), index)
        # what stands in places without particle must not lead outside
        return x.gather(1, torch.remainder(index, x.shape[1]))

    def op_chosen_first(self, value: Value) -> torch.Tensor:
        chosen = self(value.args[0]) & self.real(value.args[0])
        return _positions(chosen.to(torch.int32))

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
        """Positions (N, P) that sort each jet's particles by one or more keys (N, P).

        The first key counts first; ties keep their order, padding, where `real` (N, P) is false,
        is last. With a length, a number of at most P, only so many positions; these come in any
        order unless `is_sorted`. are_numbers: which keys need no care for NaN.
        """
        falling = []
        for index, (key, falls) in enumerate(keys):
            falling.append(_falling(key, falls, bool(are_numbers) and are_numbers[index]))
        if len(keys) > 1 and _are_one_key(keys[-2][0], keys[-1][0]):
            falling[-2:] = [_one_key(*falling[-2:])]
        # sorted by the last key first: the others keep the order where they are equal
        positions: torch.Tensor | None = None
        for index in reversed(range(len(falling))):
            key = falling[index]
            key = torch.where(real, key, torch.tensor(-math.inf, dtype=key.dtype))
            most = length if index == 0 else None
            in_order = is_sorted or index > 0
            if positions is None:
                positions = _positions(key, most, in_order)
            else:
                chosen = _positions(key.gather(1, positions), most, in_order)
                positions = positions.gather(1, chosen)
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

    def reduced(
        self, value: Value, outside: float, dtype: torch.dtype | None = None
    ) -> torch.Tensor:
        """The particles, with `outside` in places without one."""
        x = self(value.args[0]).to(dtype or graph_type(value.dtype))
        return torch.where(self.real(value.args[0]), x, torch.tensor(outside, dtype=x.dtype))

    def op_sum(self, value: Value) -> torch.Tensor:
        return self.reduced(value, 0).sum(1, keepdim=True)

    def op_prod(self, value: Value) -> torch.Tensor:
        return self.reduced(value, 1).prod(1, keepdim=True)

    def op_mean(self, value: Value) -> torch.Tensor:
        return self.reduced(value, 0).sum(1, keepdim=True) / self.counts(value.args[0])

    def op_count_nonzero(self, value: Value) -> torch.Tensor:
        counted = (self(value.args[0]) != 0) & self.real(value.args[0])
        return counted.to(torch.int64).sum(1, keepdim=True)

    def op_any(self, value: Value) -> torch.Tensor:
        return self.op_count_nonzero(value) > 0

    def op_all(self, value: Value) -> torch.Tensor:
        return self.op_count_nonzero(value) == self.counts(value.args[0])

    def op_max(self, value: Value) -> torch.Tensor:
        return self.reduced(value, _limit(value, -1)).amax(1, keepdim=True)

    def op_min(self, value: Value) -> torch.Tensor:
        return self.reduced(value, _limit(value, 1)).amin(1, keepdim=True)


def _limit(value: Value, sign: int) -> float:
    """The largest (sign 1) or smallest (-1) number of a Value's type."""
    if value.dtype.kind == "f":
        return sign * math.inf
    limits = torch.iinfo(graph_type(value.dtype))
    return limits.max if sign > 0 else limits.min


class _Cut(_Run):
    """The same evaluation for the particles at some places.

    What is computed of each particle by itself is computed after the cut, of fewer particles.
    """

    def __init__(
        self,
        run: _Run,
        places: torch.Tensor | None = None,
        missing: torch.Tensor | None = None,
        repeats_particles: bool = False,
    ) -> None:
        """places: (N, length), or (length,) for the same ones of each jet.

        Without places these are the first ones; `missing` says by how many there are too few, below
        0 by how many there are too many. repeats_particles: where there is no particle stands a
        place of another one of the jet, if it has any.
        """
        super().__init__(run.columns, trusts_inputs=run.trusts_inputs)
        self.repeats_particles = repeats_particles
        self.run = run
        self.at = places
        self.missing = missing
        self.known_mask: torch.Tensor | None = None

    def mask(self, real: torch.Tensor) -> torch.Tensor:
        """`real` (N, length) as numbers: 1 for a particle, 0 for padding."""
        if self.known_mask is None:
            self.known_mask = real.float()
        return self.known_mask

    def together(self, values: Sequence[Value]) -> torch.Tensor:
        """Values of particles side by side, (N, k * length) in float32.

        A function of one argument that all have, such as the logarithm, is one node of the graph.
        """
        first = values[0]
        same = all(
            (one.op, one.dtype, len(one.args)) == (first.op, np.float32, 1) for one in values
        )
        if same and first.op in OPERATIONS:
            arguments = [self.argument(one.args[0], one) for one in values]
            return OPERATIONS[first.op](_side_by_side(arguments, dim=1)).float()
        return _side_by_side([self(one).float() for one in values], dim=1)

    def compute(self, value: Value) -> torch.Tensor:
        if value.counts is None:
            return self.run(value)  # (N, 1)
        if value.op in OPERATIONS or value.op in ("full_like", "where"):
            return super().compute(value)
        x = self.run(value)  # (N, P)
        if self.at is None:
            assert self.missing is not None, "a cut has places or says how many are missing"
            return _padded_to(x, self.missing, 0)
        return x.index_select(1, self.at) if self.at.dim() == 1 else x.gather(1, self.at)


def _branch(value: Value) -> str:
    """A branch that has as many places as a value of particles."""
    while value.op != "column":
        arguments = [a for a in value.args if isinstance(a, Value) and a.counts is not None]
        value = arguments[-1 if value.op == "gather" else 0]
    branch: str = value.args[0]
    return branch


NO_PLACE = 2**62
"""In place of a particle's place, where a jet has too few."""


class _Pad(torch.autograd.Function):
    """Append `missing` (1,) places with `fill` to (N, P); below 0 take so many away.

    torch's exporter writes nine nodes for its own function.
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
        padded = graph.op("Pad", x, before_and_behind, graph.op("Constant", value_t=value))
        return padded.setType(x.type().with_sizes([None, None]))


def _padded_to(x: torch.Tensor, missing: torch.Tensor, fill: int) -> torch.Tensor:
    """Append `missing` (1,) places with `fill` to (N, P); below 0 take so many away."""
    padded: torch.Tensor = _Pad.apply(x, missing, fill)
    return padded


def _positions(
    key: torch.Tensor, length: torch.Tensor | None = None, is_sorted: bool = True
) -> torch.Tensor:
    """The stable falling order of each row (N, P), of the first `length` places, at most P.

    ONNX's TopK is stable by its definition; torch's own topk is not. Unless `is_sorted`, the same
    places come in any order.
    """
    if torch.onnx.is_in_onnx_export():
        # a number of the graph: a plain one would be that of the jets it is traced with
        places: Any = torch._shape_as_tensor(key)[1] if length is None else length
        return key.topk(places, dim=1, largest=True, sorted=is_sorted)[1]
    return torch.sort(key, dim=1, descending=True, stable=True)[1][:, :length]


def _falling(key: torch.Tensor, falls: bool, is_number: bool) -> torch.Tensor:
    """A key (N, P) of which the largest comes first, NaN after all numbers."""
    if not key.is_floating_point():
        key = key.to(torch.float64)
        return key if falls else -key
    key = key if falls else -key
    if is_number:
        return key
    return torch.where(_is_number(key), key, torch.tensor(-math.inf, dtype=key.dtype))


def _are_one_key(first: torch.Tensor, second: torch.Tensor) -> bool:
    return first.dtype in (torch.bool, torch.int32) and second.dtype == torch.float32


# Of a number of single precision, the logarithm is within +-STEP / 2 when its least is 0.
LEAST = 2.0**-150
LARGEST = 2.0**129
STEP = 512.0


def _one_key(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """One key (N, P) in double precision for whole numbers and float32 ones, so that one sort does.

    The first key's steps are larger than the range of the second one's logarithm, with its sign.
    Two neighbours in single precision differ by 6e-8 in the logarithm, which double precision
    keeps beside whole numbers up to 2**18; beyond, nearly equal second keys keep their order.
    """
    x = second.to(torch.float64)
    # the smallest number that stands for 0, and the largest for infinity
    size = torch.abs(x).clamp(LEAST, LARGEST)
    return first * STEP + torch.sign(x) * (torch.log(size) - math.log(LEAST))


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
    return torch.float32 if value.op in SINGLE else held_in(value)


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
    "nan_to_num": _nan_to_num,
    "clip": _clip,
}
