"""From decoded columns to what a network takes: selection, new variables, standardisation,
clipping, cutting to length.

Pure functions of arrays. The numbers equal those of weaver-core 0.5.3 to the bit: sequences are
standardised in float32, single values in the type they have and then made float32.

What becomes of NaN and infinity in inputs (`preprocess: non_finite` of the data config, or
`--non-finite` of weaver.prepared.prepare):

    weaver   as in weaver-core (the default): NaN becomes 0; infinity stays infinity in sequences
        unless it is clipped, and becomes the
             largest number of its type in single values
    zero     whatever is NaN or infinite after standardising and clipping becomes 0
    drop     jets that hold such a value, or a label or weight that is NaN or infinite, are left out
    error    such a value ends the preparation

NaN and infinity in the files are counted by variable whatever the policy. Only particles within the
length count.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import awkward as ak
import numpy as np

from common.errors import InputError
from weaver.config.data_config import DataConfig, OrderKey, Plan
from weaver.config.expressions import Expression
from weaver.config.weights import jet_weights
from weaver.read.jagged import Jagged, evaluate, plain, same_lists, to_awkward

# particles put side by side at a time: their columns and rows fit into a core's own cache
ROWS = 16_384
# sorting rows of equal length takes a third to a half of the time of one long sort, unless most of
# them is padding
MOST_PADDING = 8


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ready:
    """The ready rows of one chunk of jets."""

    num_jets: int
    sequences: dict[str, tuple[np.ndarray, np.ndarray]]
    """Group -> values (particles, C) float32, and the number of particles of each jet (N,) int64,
    cut to the group's length.
    """
    flats: dict[str, np.ndarray]
    """Group -> (N, C) float32, or (N,) for a single variable."""
    labels: dict[str, np.ndarray]
    observers: dict[str, np.ndarray]
    weight: np.ndarray | None
    """(N,) float32."""
    reweight: dict[str, np.ndarray]
    """What the weights are to be made of, (N,) each, where the histograms of the reweighting do not
    exist yet.
    """
    non_finite: dict[str, tuple[int, int]]
    """Input variable, label or weight -> how many values were NaN and how many infinite, those of
    dropped jets included.
    """
    dropped: int
    """Jets that the policy for NaN and infinity left out."""


class _NonFinite:
    """NaN and infinity in one chunk of jets: counted by variable, and treated as the
    policy says.
    """

    def __init__(self, config: DataConfig, count: int, where: str) -> None:
        self.policy, self.where = config.non_finite, where
        self.counts: dict[str, tuple[int, int]] = {}
        self.bad = np.zeros(count, bool)
        """Jets to leave out."""

    def count(self, name: str, values: np.ndarray) -> bool:
        """Note how many values are NaN and how many infinite; true where there are any."""
        if values.dtype.kind != "f" or np.isfinite(values).all():
            return False
        self.counts[name] = (int(np.isnan(values).sum()), int(np.isinf(values).sum()))
        return True

    def treat(self, name: str, values: np.ndarray, counts: np.ndarray | None = None) -> np.ndarray:
        """The values under every policy but "weaver": 0 for NaN and infinity, their jets noted
        (`counts`: values of each jet).
        """
        found = ~np.isfinite(values)
        if found.any():
            self.note(
                name,
                values,
                found if counts is None else np.repeat(np.arange(len(counts)), counts)[found],
            )
            values = np.where(found, values.dtype.type(0), values)
        return values

    def note(self, name: str, values: np.ndarray, jets: np.ndarray) -> None:
        if self.policy == "error":
            nan, infinite = int(np.isnan(values).sum()), int(np.isinf(values).sum())
            raise InputError(
                f"{self.where}: '{name}' holds {nan:,} NaN and {infinite:,} infinite values, which"
                " non_finite: error refuses; clip them in the data config, or choose zero (they"
                " become 0) or drop (their jets are left out)"
            )
        if self.policy == "drop":
            self.bad[jets] = True

    def check(self, name: str, values: np.ndarray) -> None:
        """Labels and weights: counted and perhaps refused or dropped, never changed."""
        if self.count(name, values) and self.policy in ("error", "drop"):
            self.note(name, values, ~np.isfinite(values))


def select(columns: Mapping[str, Any], plan: Plan) -> tuple[dict[str, Any], int]:
    """Apply the plan's selection and compute its functions for the jets that pass.

    Returns the columns with new variables, labels and weight added, and the number of jets that
    passed (where that is none, the functions are left out: there is nothing to compute).
    """
    columns = {name: plain(values) for name, values in columns.items()}
    count = len(next(iter(columns.values())))
    if plan.selection is not None:
        for name, expression in plan.selection_functions:
            columns[name] = _column(expression, columns, count)
        passed = _condition(plan.selection, columns, count)
        columns = {name: values[passed] for name, values in columns.items() if name in plan.kept}
        count = int(np.count_nonzero(passed))
    columns = _cut(columns, plan)
    for name, expression in plan.functions if count else ():
        columns[name] = _column(expression, columns, count)
    return columns, count


def _cut(columns: dict[str, Any], plan: Plan) -> dict[str, Any]:
    """The columns without the particles that are in no input, where nothing else can depend on
    them.
    """
    lists = {name: values for name, values in columns.items() if isinstance(values, Jagged)}
    whole = all(
        isinstance(values, Jagged) or (isinstance(values, np.ndarray) and values.ndim == 1)
        for values in columns.values()
    )
    elementwise = all(
        function.is_elementwise
        for _, function in plan.functions
        if not set(function.names).isdisjoint(_fed_by(lists, plan))
    )
    if (
        plan.longest is None
        or not lists
        or not whole
        or not elementwise
        or not same_lists(lists.values())
    ):
        return columns
    return columns | {name: values.head(plan.longest) for name, values in lists.items()}


def _fed_by(names: Iterable[str], plan: Plan) -> set[str]:
    """These columns and the plan's functions that need them, directly or not."""
    found = set(names)
    for name, function in plan.functions:  # each comes after those that it depends on
        if not found.isdisjoint(function.names):
            found.add(name)
    return found


def make_ready(
    columns: Mapping[str, Any], count: int, config: DataConfig, plan: Plan, where: str = ""
) -> Ready:
    """Turn the columns of `count` selected jets into rows. `where`: the file, for errors.

    Raises InputError for a variable of the wrong form, and for NaN and infinity where the config
    refuses them.
    """
    quality = _NonFinite(config, count, where or config.source)
    orders: dict[tuple, np.ndarray] = {}  # groups that are sorted alike share the work
    sequences, flats = {}, {}
    for group, names in config.input_dicts.items():
        if config.preprocess_params[names[0]]["length"] is None:
            flats[group] = _flat_group(columns, names, config, quality)
        else:
            sequences[group] = _sequence_group(columns, group, config, quality, orders)
    labels = {name: _single(columns[name], name, config) for name in plan.labels}
    weight, reweight = _weight(columns, config, plan)
    for name, values in {**labels, **({"weight": weight} if weight is not None else {})}.items():
        quality.check(name, values)
    if quality.bad.any():
        kept = ~quality.bad
        ready = make_ready(
            {name: values[kept] for name, values in columns.items()},
            int(kept.sum()),
            config,
            plan,
            where,
        )
        return dataclasses.replace(ready, non_finite=quality.counts, dropped=int(quality.bad.sum()))
    if "_labelcheck_" in columns:
        _check_classes(_single(columns["_labelcheck_"], "_labelcheck_", config), config)
    return Ready(
        num_jets=count,
        sequences=sequences,
        flats=flats,
        labels=labels,
        observers={name: _observed(columns, name, config) for name in plan.observers},
        weight=weight,
        reweight=reweight,
        non_finite=quality.counts,
        dropped=0,
    )


def _weight(
    columns: Mapping, config: DataConfig, plan: Plan
) -> tuple[np.ndarray | None, dict[str, np.ndarray]]:
    """The weights, or what they are to be made of."""
    if plan.weight:
        return _single(columns[plan.weight], plan.weight, config).astype(np.float32), {}
    found = {name: _single(columns[name], name, config) for name in plan.reweight}
    if found and config.reweight_hists is not None:
        return jet_weights(found, config.reweighting, config.reweight_hists), {}
    return None, found


def flatten(values: Any, name: str, source: str) -> tuple[np.ndarray, np.ndarray]:
    """One variable as flat numbers and the number of entries of each jet (N,) int64; a single value
    counts as one entry.
    """
    values = plain(values)
    if isinstance(values, Jagged):
        return values.content, values.counts
    if isinstance(values, np.ndarray) and values.ndim == 1:
        return values, np.ones(len(values), np.int64)
    layout = ak.to_layout(
        ak.to_packed(ak.from_regular(values, axis=None) if isinstance(values, ak.Array) else values)
    )
    if isinstance(layout, ak.contents.NumpyArray) and layout.data.ndim == 1:
        return np.asarray(layout.data), np.ones(len(layout), np.int64)
    if isinstance(layout, ak.contents.ListOffsetArray) and isinstance(
        layout.content, ak.contents.NumpyArray
    ):
        return np.asarray(layout.content.data), np.diff(np.asarray(layout.offsets.data)).astype(
            np.int64
        )
    raise InputError(
        f"{source}: '{name}' is {ak.type(values)}; expected one number, or one list of numbers, for"
        f" each jet{_form_hint(values)}"
    )


def standardize(values: np.ndarray, params: Mapping[str, Any]) -> np.ndarray:
    """clip((values - center) * scale, min, max), or the values as they are without a center; no
    bound where min or max is None.
    """
    if params["center"] is None:
        return values
    low, high = (
        bound if params[key] is None else params[key]
        for key, bound in (("min", -np.inf), ("max", np.inf))
    )
    return np.clip((values - params["center"]) * params["scale"], low, high)


def _column(expression: Expression, columns: Mapping[str, Any], count: int) -> Any:
    """The column that an expression gives: one entry for each of `count` jets; a single number
    counts for every jet.
    """
    values = evaluate(expression, columns)
    if isinstance(values, bool | int | float | np.generic):
        return np.full(count, values)
    if isinstance(values, Jagged):
        return values
    if not isinstance(values, ak.Array | np.ndarray) or len(values) != count:
        found = (
            ak.type(values) if isinstance(values, ak.Array | np.ndarray) else type(values).__name__
        )
        raise InputError(
            f"{expression.where}: '{expression.text}' gives {found}; expected one entry for each of"
            f" {count} jets"
        )
    return plain(ak.Array(values))


def _condition(expression: Expression, columns: Mapping[str, Any], count: int) -> np.ndarray:
    """True for each jet that passes; a missing value does not."""
    values = _column(expression, columns, count)
    if values.ndim != 1:
        found = ak.type(to_awkward(values))
        raise InputError(
            f"{expression.where}: '{expression.text}' gives {found}; expected one true or false for"
            " each jet"
        )
    if isinstance(values, np.ndarray):
        return values.astype(bool, copy=False)
    return ak.to_numpy(ak.fill_none(ak.values_astype(values, "bool"), False))


def _sequence_group(
    columns: Mapping,
    group: str,
    config: DataConfig,
    quality: _NonFinite,
    orders: dict[tuple, np.ndarray],
) -> tuple[np.ndarray, np.ndarray]:
    names = config.input_dicts[group]
    parts = {name: flatten(columns[name], name, config.source) for name in names}
    counts = parts[names[0]][1]
    for name, (_, other) in parts.items():
        _check_counts(counts, other, names[0], name, f"{config.source}: inputs:{group}")
    kept = np.minimum(counts, config.preprocess_params[names[0]]["length"])
    positions = _positions(counts, kept)
    if group in config.order_by:
        order = _order(
            columns, counts, config.order_by[group], f"{config.source}: inputs:{group}", orders
        )
        positions = order if positions is None else order[positions]
    in_float32 = all(columns[name].ndim > 1 for name in names)
    make = _sequence_values if in_float32 else _single_values
    made = []
    for name in names:
        content = parts[name][0] if positions is None else parts[name][0][positions]
        made.append(make(content, name, config.preprocess_params[name], quality, kept))
    return _side_by_side(made), kept


def _side_by_side(columns: list[np.ndarray]) -> np.ndarray:
    """(n, C) float32 of C columns (n,), block by block, because each pass over the whole array
    would fetch all of it again.
    """
    if len(columns) == 1:
        return columns[0].astype(np.float32, copy=False)[:, None]
    values = np.empty((len(columns[0]), len(columns)), np.float32)
    for start in range(0, len(values), ROWS):
        block = values[start : start + ROWS]
        for index, column in enumerate(columns):
            block[:, index] = column[start : start + ROWS]
    return values


def _check_counts(
    counts: np.ndarray, other: np.ndarray, first: str, second: str, where: str
) -> None:
    if not np.array_equal(counts, other):
        jet = int(np.flatnonzero(counts != other)[0])
        sizes = f"{counts[jet]} and {other[jet]} in one jet"
        raise InputError(f"{where}: '{first}' and '{second}' differ in number of entries ({sizes})")


def _order(
    columns: Mapping,
    counts: np.ndarray,
    keys: tuple[OrderKey, ...],
    where: str,
    known: dict[tuple, np.ndarray],
) -> np.ndarray:
    """Positions in the flat numbers that put each jet's particles in order."""
    name = (*((key.name, key.falling) for key in keys), counts.tobytes())
    if name not in known:
        values = []
        for key in keys:
            content, other = flatten(columns[key.name], key.name, where)
            _check_counts(counts, other, "the variables", f"order_by {key.expression.text}", where)
            values.append(_falling(content) if key.falling else content)
        known[name] = sort_within(values, counts)
    return known[name]


def _falling(values: np.ndarray) -> np.ndarray:
    """Values in the opposite order, NaN still last: ~x is -x - 1 for whole numbers, without
    overflow, and `not` for true and false.
    """
    return -values if values.dtype.kind == "f" else ~values


def sort_within(keys: list[np.ndarray], counts: np.ndarray) -> np.ndarray:
    """The positions that sort flat entries within each jet by `keys` (rising, the first one first,
    stable, NaN last).
    """
    most = int(counts.max(initial=0))
    # one jet with very many particles among small ones
    if len(counts) * most > MOST_PADDING * max(int(counts.sum()), 1):
        return np.lexsort((*reversed(keys), np.repeat(np.arange(len(counts)), counts)))
    inside = np.arange(most) < counts[:, None]
    order = None
    # by the last key first: each sort keeps the order that the one before gave to equal values
    for key in reversed(keys):
        full = np.full(inside.shape, _last(key.dtype), key.dtype)
        full[inside] = key
        found = np.argsort(
            full if order is None else np.take_along_axis(full, order, axis=1),
            axis=1,
            kind="stable",
        )
        order = found if order is None else np.take_along_axis(order, found, axis=1)
    return (order + (np.cumsum(counts) - counts)[:, None])[inside]


def _last(dtype: np.dtype) -> Any:
    """A value that nothing of this type is sorted behind."""
    return np.nan if dtype.kind == "f" else True if dtype.kind == "b" else np.iinfo(dtype).max


def _positions(counts: np.ndarray, kept: np.ndarray) -> np.ndarray | None:
    """Where the first `kept` entries of each jet lie in the flat numbers;

    None if these are all of them.
    """
    if np.array_equal(counts, kept):
        return None
    shift = (np.cumsum(counts) - counts) - (np.cumsum(kept) - kept)
    return np.arange(int(kept.sum())) + np.repeat(shift, kept)


def _sequence_values(
    content: np.ndarray,
    name: str,
    params: Mapping[str, Any],
    quality: _NonFinite,
    counts: np.ndarray,
) -> np.ndarray:
    """float32 throughout; weaver-core replaces only NaN."""
    content = content.astype(np.float32, copy=False)
    found = quality.count(name, content)
    numbers = {
        key: None if params[key] is None else np.float32(params[key])
        for key in ("center", "scale", "min", "max")
    }
    values = standardize(content, numbers)
    if not found:
        return values
    return (
        np.where(np.isnan(values), np.float32(0), values)
        if quality.policy == "weaver"
        else quality.treat(name, values, counts)
    )


def _single_values(
    content: np.ndarray,
    name: str,
    params: Mapping[str, Any],
    quality: _NonFinite | None,
    counts: np.ndarray | None = None,
) -> np.ndarray:
    """Computed in the type of the variable; single values that have a length become float32 before
    NaN and infinity are replaced.
    """
    if quality:
        quality.count(name, content)
    values = standardize(content, params)
    if quality and quality.policy != "weaver":
        values = quality.treat(name, values, counts) if values.dtype.kind == "f" else values
    # a float64 infinity becomes float64's largest number, and that infinite in float32
    with np.errstate(over="ignore"):
        return np.nan_to_num(values if params["length"] is None else values.astype(np.float32))


def _flat_group(
    columns: Mapping, names: list[str], config: DataConfig, quality: _NonFinite
) -> np.ndarray:
    parts = []
    for name in names:
        values = _single(columns[name], name, config)
        with np.errstate(over="ignore"):
            parts.append(
                _single_values(values, name, config.preprocess_params[name], quality).astype(
                    np.float32
                )
            )
    return parts[0] if len(parts) == 1 else np.stack(parts, axis=1)


def _observed(columns: Mapping, name: str, config: DataConfig) -> np.ndarray:
    """An observer as it is; a monitor variable that is an input with one value a jet as the network
    gets it (as weaver-core).

    (N,), or (N, length) for such an input that is padded to a length.
    """
    values = _single(columns[name], name, config)
    params = config.preprocess_params.get(name)
    if name not in config.monitor_variables or not params:
        return values
    values = _single_values(values, name, params, None)
    if params["length"] is None:
        return values
    padded = np.full((len(values), params["length"]), params["pad_value"], np.float32)
    padded[:, : params["length"] if params["pad_mode"] == "wrap" else 1] = values[:, None]
    return padded


def _single(values: Any, name: str, config: DataConfig) -> np.ndarray:
    """A column with one number for each jet."""
    if isinstance(values, np.ndarray) and values.ndim == 1 and values.dtype.kind in "biuf":
        return values
    values = to_awkward(values)
    layout = ak.to_layout(ak.to_packed(values))
    if (
        isinstance(layout, ak.contents.NumpyArray)
        and layout.data.ndim == 1
        and layout.data.dtype.kind in "biuf"
    ):
        return np.asarray(layout.data)
    hint = (
        _form_hint(values)
        or "; take one with ak.num, ak.sum or the like, or give an input group a length"
    )
    raise InputError(
        f"{config.source}: '{name}' is {ak.type(values)}; expected one number for each jet{hint}"
    )


def _form_hint(values: Any) -> str:
    kind = str(ak.type(values))
    return "; fill missing values with ak.fill_none" if "?" in kind or "option" in kind else ""


def _check_classes(sums: np.ndarray, config: DataConfig) -> None:
    """Each training jet must belong to exactly one class."""
    if (sums != 1).any():
        none, several = int((sums == 0).sum()), int((sums > 1).sum())
        raise InputError(
            f"{config.source}: labels: {none} jets belong to no class and {several} to several of"
            f" {config.label_value}; see 'selection'"
        )
