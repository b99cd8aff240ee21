"""The jets that a model's answer is meant for, and which jets of a request are among them.

    limits = valid_range(data_config, observers, eta)
    is_valid = valid_jets(jets, program, reference_pt, eta, limits)     # numpy, (N,)

The raw model's output `valid` is the same rule as part of the graph (weaver/onnx/raw_model.py):

    every number of the jet and of its particles is finite (in single precision)
    the pT that the label divides by lies in the range that the training has
    |jetEta| is not beyond the selection's limit, where jetEta is among the inputs
    each counter says a number from 0 to the places that were sent, and one of them more than 0
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
"""Of the training's pT: the ends of the range."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ValidRange:
    """pT (GeV) and |jetEta| of the jets that the model was trained on."""

    min_pt: float
    max_pt: float
    max_abs_eta: float | None
    """None where jetEta is not among the network's inputs."""
    jets: str
    """Whose quantiles of pT these are: training or validation."""

    def as_json(self) -> dict[str, Any]:
        """Return the fields, for the model's metadata."""
        return dataclasses.asdict(self)


def valid_range(
    config: DataConfig, pt: NDArray[np.floating], eta: NDArray[np.floating] | None, jets: str
) -> ValidRange:
    """The range of jets with these pT (GeV) and jetEta, (N,) each, N at least 1.

    The limit of |eta| is the selection's, and the jets' own where it has none.
    """
    low, high = QUANTILES
    pt = np.asarray(pt, np.float64)
    max_abs_eta = None
    if eta is not None:
        selected = selected_abs_eta(config)
        largest = float(np.abs(np.asarray(eta, np.float64)).max())
        max_abs_eta = largest if selected is None else selected
    # Numbers of jets, as single precision holds them, so that the graph compares the same.
    return ValidRange(
        min_pt=float(np.float32(np.quantile(pt, low, method="lower"))),
        max_pt=float(np.float32(np.quantile(pt, high, method="higher"))),
        max_abs_eta=max_abs_eta,
        jets=jets,
    )


def selected_abs_eta(config: DataConfig) -> float | None:
    """The limit c of a condition np.abs(<jet's eta>) < c in the selection; None without one."""
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
    """The parts of a selection that must all be true."""
    match tree:
        case ast.BinOp(left=left, op=ast.BitAnd(), right=right):
            yield from _conditions(left)
            yield from _conditions(right)
        case ast.AST():
            yield tree


def range_columns(program: RawProgram) -> dict[str, Any]:
    """The raw model's inputs that the rule looks at, by the keys of jec_client/validity.py.

    pt and eta are None where they are computed from several inputs, or not taken.
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
    """The input that a value is; None for one that is computed."""
    return str(value.args[0]) if value.op == "column" else None


def valid_jets(
    jets: Mapping[str, NDArray[Any]],
    program: RawProgram,
    reference_pt: NDArray[np.floating],
    eta: NDArray[np.floating] | None,
    limits: ValidRange,
) -> NDArray[np.bool_]:
    """Which raw jets (N, 1) and (N, P) are valid: (N,).

    reference_pt (GeV) and eta: (N,), as the data config computes them of the jets.
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
    for name, column in program.inputs.items():
        if column.dtype.kind == "f":
            finite = np.isfinite(jets[name])
            if column.particles:
                finite |= np.arange(finite.shape[1]) >= jets[column.counter]
            valid &= finite.all(axis=1)
    return valid
