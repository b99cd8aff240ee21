"""The range of jets for which a model was trained, and the rule that decides which jets are valid.

    limits = valid_range(data_config, observers, eta)
    is_valid = valid_jets(jets, program, reference_pt, eta, limits)     # numpy, (N,)

The raw model computes its output `valid` by the same rule (weaver/onnx/raw_model.py):

    every number of the jet and of its particles is finite (in single precision), and so is the sum
        of the particles' numbers, which the graph computes to check them all at once
    the pT that the label divides by is in the range of the training
    |jetEta| is not above the selection's limit, if jetEta is among the inputs
    each counter is from 0 to the number of places, and at least one counter is above 0
"""

from __future__ import annotations

import ast
import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from weaver.config.data_config import DataConfig
from weaver.config.expressions import Expression
from weaver.onnx.raw_program import RawProgram, Value

QUANTILES = (0.001, 0.999)
"""Quantiles of the training's pT at the ends of the range."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ValidRange:
    """pT (GeV) and |jetEta| of the jets that the model was trained on."""

    min_pt: float
    max_pt: float
    max_abs_eta: float | None
    """None if jetEta is not among the network's inputs."""
    jets: str
    """The jets of which the quantiles were taken: training or validation."""

    def as_json(self) -> dict[str, Any]:
        """Return the fields as JSON values, for the model's metadata."""
        return dataclasses.asdict(self)


def valid_range(
    config: DataConfig, pt: NDArray[np.floating], eta: NDArray[np.floating] | None, jets: str
) -> ValidRange:
    """Compute the range from pT (GeV) and jetEta of the training's jets, (N,) each, N at least 1.

    The limit on |jetEta| is that of the selection, else the largest value of the jets.
    """
    low, high = QUANTILES
    pt = np.asarray(pt, np.float64)
    max_abs_eta = None
    if eta is not None:
        limit = selection_eta_limit(config)
        largest = float(np.abs(np.asarray(eta, np.float64)).max())
        max_abs_eta = largest if limit is None else limit
    # pT values of jets, rounded to single precision, so that the graph compares the same numbers.
    return ValidRange(
        min_pt=float(np.float32(np.quantile(pt, low, method="lower"))),
        max_pt=float(np.float32(np.quantile(pt, high, method="higher"))),
        max_abs_eta=max_abs_eta,
        jets=jets,
    )


def selection_eta_limit(config: DataConfig) -> float | None:
    """Return the limit c of a condition np.abs(<jet's eta>) < c in the selection.

    None without one.
    """
    selection = config.selections["train"]
    limits = []
    for condition in _conditions(selection.tree if isinstance(selection, Expression) else None):
        match condition:
            case ast.Compare(
                left=ast.Call(func=function, args=[ast.Name(id=name)]),
                ops=[ast.Lt() | ast.LtE()],
                comparators=[ast.Constant(value=int() | float() as limit)],
            ) if ast.unparse(function).split(".")[-1] in ("abs", "absolute", "fabs"):
                if name.lower().endswith("eta"):
                    limits.append(float(limit))
    return min(limits, default=None)


def _conditions(tree: ast.AST | None) -> Iterator[ast.AST]:
    """Yield the conditions that a selection combines with `&`."""
    match tree:
        case ast.BinOp(left=left, op=ast.BitAnd(), right=right):
            yield from _conditions(left)
            yield from _conditions(right)
        case ast.AST():
            yield tree


def range_columns(program: RawProgram) -> dict[str, Any]:
    """Return the raw model's inputs that the rule uses, under the keys of jec_client/validity.py.

    pt and eta are None if they are computed from several inputs, or are not used.
    """
    counters: dict[str, list[str]] = {counter: [] for counter in program.counters}
    for name, column in program.inputs.items():
        if column.particles:
            counters[column.counter].append(name)
    return {
        "pt": _input_of(program.reference),
        "eta": None if program.eta is None else _input_of(program.eta),
        "counters": counters,
    }


def _input_of(value: Value) -> str | None:
    """Return the name of the input if the value is one; None if it is computed."""
    return str(value.args[0]) if value.op == "column" else None


def valid_jets(
    jets: Mapping[str, NDArray[Any]],
    program: RawProgram,
    reference_pt: NDArray[np.floating],
    eta: NDArray[np.floating] | None,
    limits: ValidRange,
) -> NDArray[np.bool_]:
    """Return (N,): which raw jets are valid.

    jets: the raw model's inputs, (N, 1) and (N, P). reference_pt (GeV), eta: (N,), as the data
    config computes them from the jets.
    """
    with np.errstate(invalid="ignore"):
        valid = (reference_pt >= np.float32(limits.min_pt)) & (
            reference_pt <= np.float32(limits.max_pt)
        )
        if eta is not None and limits.max_abs_eta is not None:
            valid &= np.abs(eta) <= np.float32(limits.max_abs_eta)
    any_particle = np.zeros(len(valid), bool)
    for counter in program.counters:
        counts = jets[counter][:, 0]
        branches = [n for n, column in program.inputs.items() if column.counter == counter]
        valid &= (counts >= 0) & (counts <= jets[branches[0]].shape[1])
        any_particle |= counts > 0
    if program.counters:
        valid &= any_particle
    totals = {counter: np.zeros(len(valid), np.float32) for counter in program.counters}
    for name, column in program.inputs.items():
        if column.dtype.kind != "f":
            continue
        values = np.abs(jets[name])
        if column.particles:
            is_particle = np.arange(values.shape[1]) < jets[column.counter]
            with np.errstate(over="ignore"):
                totals[column.counter] += values.sum(axis=1, where=is_particle)
        else:
            valid &= np.isfinite(values).all(axis=1)
    for total in totals.values():
        valid &= np.isfinite(total)
    return valid
