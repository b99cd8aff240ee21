"""From decoded columns to what a network takes, as pure functions of arrays.

Selection, new variables, standardisation, clipping, cutting to length. The numbers equal those of
weaver-core 0.5.3 to the bit: sequences are standardised in float32, single values in the type they
have and then made float32.

What becomes of NaN and infinity in inputs (`preprocess: non_finite` of the data config, or
`--non-finite` of weaver.prepared.prepare):

    weaver   as in weaver-core (the default): NaN becomes 0; infinity stays infinity in sequences
             unless it is clipped, and becomes the largest number of its type in single values
    zero     whatever is NaN or infinite after standardising and clipping becomes 0
    drop     jets that hold such a value, or a label or weight that is NaN or infinite, are left out
    error    such a value ends the preparation

NaN and infinity in the files are counted by variable whatever the policy. Only particles within the
length count.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import awkward as ak
import numpy as np

from common.errors import InputError
from weaver.config.data_config import DataConfig
from weaver.config.expressions import Expression
from weaver.config.plan import Plan
from weaver.config.sections import Parameters
from weaver.config.weights import jet_weights
from weaver.prepared.sorting import falling, sort_within
from weaver.read.jagged import (
    Column,
    Columns,
    Jagged,
    evaluate,
    plain,
    same_lists,
    to_awkward,
    without_options,
)

# particles put side by side at a time: their columns and rows fit into a core's own cache
ROWS = 16_384


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ready:
    """The ready rows of one chunk of jets."""

    num_jets: int
    sequences: dict[str, tuple[np.ndarray, np.ndarray]]
    """Group -> values (particles, C) float32, and the particles of each jet (N,) int64, both cut to
    the group's length.
    """
    flats: dict[str, np.ndarray]
    """Group -> (N, C) float32, or (N,) for a single variable; (N, C, k) or (N, k) where the
    variables have k numbers for each jet.
    """
    labels: dict[str, np.ndarray]
    """(N,) or (N, k)."""
    observers: dict[str, np.ndarray | Jagged]
    """(N,) or (N, k), or a list for each jet."""
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
    """NaN and infinity in one chunk of jets: counted by variable, treated by the policy."""

    def __init__(self, config: DataConfig, count: int, where: str) -> None:
        self.policy = config.non_finite
        self.where = where
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
        """The values under every policy but "weaver": 0 for NaN and infinity, their jets noted.

        counts: (N,) values of each jet; None for one value a jet.
        """
        non_finite = ~np.isfinite(values)
        if not non_finite.any():
            return values
        if counts is not None:
            jets = np.repeat(np.arange(len(counts)), counts)[non_finite]
        else:
            jets = by_jet(non_finite)
        self.note(name, values, jets)
        return np.where(non_finite, values.dtype.type(0), values)

    def note(self, name: str, values: np.ndarray, jets: np.ndarray) -> None:
        """Refuse the values, or mark their jets (a mask or indices), as the policy says."""
        if self.policy == "error":
            nan = int(np.isnan(values).sum())
            infinite = int(np.isinf(values).sum())
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
            self.note(name, values, by_jet(~np.isfinite(values)))


def select(columns: Mapping[str, Column], plan: Plan) -> tuple[Columns, int]:
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
        columns = {
            name: _selected(values, passed)
            for name, values in columns.items()
            if name in plan.columns_after_selection
        }
        count = int(np.count_nonzero(passed))
    columns = _cut_particles(columns, plan)
    if count:
        for name, expression in plan.functions:
            columns[name] = _column(expression, columns, count)
    return columns, count


def _selected(values: Column, jets: np.ndarray) -> Column:
    """The jets of a mask (N,); as in weaver-core, an array (N, k) of HDF5 becomes lists of k."""
    chosen = values[jets]
    if isinstance(chosen, ak.Array):
        layout = ak.to_layout(chosen)
        if isinstance(layout, ak.contents.NumpyArray):
            return ak.Array(layout.to_RegularArray())
    return chosen


def _cut_particles(columns: Columns, plan: Plan) -> Columns:
    """The columns without the particles that are in no input.

    Where anything else can depend on these particles, the columns as they are.
    """
    if plan.longest is None:
        return columns
    lists: dict[str, Jagged] = {}
    for name, values in columns.items():
        if isinstance(values, Jagged):
            lists[name] = values
        elif not isinstance(values, np.ndarray) or values.ndim != 1:
            return columns
    if not lists or not same_lists(lists.values()):
        return columns

    # Functions of the lists, directly or not; each comes after those that it depends on.
    depending = set(lists)
    for name, function in plan.functions:
        if depending.isdisjoint(function.names):
            continue
        if not function.is_elementwise:
            return columns
        depending.add(name)
    return columns | {name: values.head(plan.longest) for name, values in lists.items()}


def make_ready(
    columns: Mapping[str, Column], count: int, config: DataConfig, plan: Plan, where: str = ""
) -> Ready:
    """Turn the columns of `count` selected jets into rows. `where`: the file, for errors.

    Raises InputError for a variable of the wrong form, and for NaN and infinity where the config
    refuses them.
    """
    quality = _NonFinite(config, count, where or config.source)
    rows = _Rows(columns, config, quality)
    sequences = {}
    flats = {}
    for group, names in config.input_dicts.items():
        if config.preprocess_params[names[0]]["length"] is None:
            flats[group] = rows.flat_group(group)
        else:
            sequences[group] = rows.sequence_group(group)
    labels = {name: rows.numbers(name, "label") for name in plan.labels}
    checked = dict(labels)

    # The weights, or what they are to be made of once all training jets are in the histograms.
    weight = None
    reweight = {name: rows.single(name) for name in plan.reweight}
    if plan.weight:
        weight = rows.single(plan.weight).astype(np.float32)
    elif config.reweighting and reweight and config.reweight_hists is not None:
        weight = jet_weights(reweight, config.reweighting, config.reweight_hists)
        reweight = {}
    if weight is not None:
        checked["weight"] = weight
    for name, values in checked.items():
        quality.check(name, values)

    # Jets to leave out are known only now: make the rows of the others, and keep the counts of all.
    if quality.bad.any():
        kept = ~quality.bad
        columns = {name: values[kept] for name, values in columns.items()}
        ready = make_ready(columns, int(kept.sum()), config, plan, where)
        return dataclasses.replace(ready, non_finite=quality.counts, dropped=int(quality.bad.sum()))

    # Each training jet must belong to exactly one class.
    if "_labelcheck_" in columns:
        sums = rows.single("_labelcheck_")
        none = int((sums == 0).sum())
        several = int((sums > 1).sum())
        if (sums != 1).any():
            raise InputError(
                f"{config.source}: labels: {none} jets belong to no class and {several} to several"
                f" of {config.label_value}; see 'selection'"
            )
    return Ready(
        num_jets=count,
        sequences=sequences,
        flats=flats,
        labels=labels,
        observers={name: rows.observed(name) for name in plan.observers},
        weight=weight,
        reweight=reweight,
        non_finite=quality.counts,
        dropped=0,
    )


class _Rows:
    """Makes the rows of one chunk of N jets from its columns."""

    def __init__(
        self, columns: Mapping[str, Column], config: DataConfig, quality: _NonFinite
    ) -> None:
        self.columns = columns
        self.config = config
        self.quality = quality
        self.orders: dict[tuple, np.ndarray] = {}
        """Groups that are sorted alike share the work."""

    def sequence_group(self, group: str) -> tuple[np.ndarray, np.ndarray]:
        """(particles, C) float32, and how many of them each jet has, (N,) int64."""
        config = self.config
        names = config.input_dicts[group]
        place = f"{config.source}: inputs:{group}"

        # each variable's flat entries, (entries,), and the entries of each jet, (N,)
        parts = [flatten(self.columns[name], name, config.source) for name in names]
        counts = parts[0][1]
        for name, (_, other) in zip(names, parts, strict=True):
            _check_counts(counts, other, names[0], name, place)

        # cut to the length: the entries that stay, in the order they get
        length = config.preprocess_params[names[0]]["length"]
        kept = counts if length is None else np.minimum(counts, length)
        positions = _first_entries(counts, kept)
        if group in config.order_by:
            order = self.order(group, counts, place)
            positions = order if positions is None else order[positions]

        # as weaver-core: float32 throughout, unless a single value a jet or an option type is among
        # the variables
        in_float32 = all(_in_float32(self.columns[name]) for name in names)
        channels = []
        for name, (content, _) in zip(names, parts, strict=True):
            entries = content if positions is None else content[positions]
            params = config.preprocess_params[name]
            if in_float32:
                channels.append(_sequence_values(entries, name, params, self.quality, kept))
            else:
                channels.append(_single_values(entries, name, params, self.quality, kept))
        return _side_by_side(channels), kept

    def order(self, group: str, counts: np.ndarray, place: str) -> np.ndarray:
        """Positions (entries,) that sort each jet's particles by the group's `order_by`."""
        keys = self.config.order_by[group]
        name = (*((key.name, key.falling) for key in keys), counts.tobytes())
        if name not in self.orders:
            values = []
            for key in keys:
                content, other = flatten(self.columns[key.name], key.name, place)
                expression = f"order_by {key.expression.text}"
                _check_counts(counts, other, "the variables", expression, place)
                values.append(falling(content) if key.falling else content)
            self.orders[name] = sort_within(values, counts)
        return self.orders[name]

    def flat_group(self, group: str) -> np.ndarray:
        """(N, C) float32, or (N,) for one variable; (N, C, k) or (N, k) with k numbers a jet."""
        channels = []
        names = self.config.input_dicts[group]
        for name in names:
            params = self.config.preprocess_params[name]
            values = self.numbers(
                name, f"variable of an input group without length, inputs:{group}"
            )
            # the largest number of float64 becomes infinity
            with np.errstate(over="ignore"):
                values = _single_values(values, name, params, self.quality)
                channels.append(values.astype(np.float32))
        sizes = {name: list(values.shape[1:]) for name, values in zip(names, channels, strict=True)}
        if any(size != sizes[names[0]] for size in sizes.values()):
            raise InputError(
                f"{self.config.source}: inputs:{group}: the variables of a group without length"
                f" have different shapes for each jet: {sizes}"
            )
        return channels[0] if len(channels) == 1 else np.stack(channels, axis=1)

    def observed(self, name: str) -> np.ndarray | Jagged:
        """An observer as it is: (N,), (N, k), or a list for each jet.

        As in weaver-core, a monitor variable that is an input with one value a jet comes as the
        network gets it: standardised, and (N, length) where it is padded to a length.
        """
        values = without_options(self.columns[name])
        if isinstance(values, Jagged) and values.content.dtype.kind in "biuf":
            return values
        values = self.numbers(name, "observer")
        params = self.config.preprocess_params.get(name)
        if name not in self.config.monitor_variables or not params or values.ndim > 1:
            return values
        values = _single_values(values, name, params, None)
        length = params["length"]
        if length is None:
            return values
        padded = np.full((len(values), length), params["pad_value"], np.float32)
        padded[:, : length if params["pad_mode"] == "wrap" else 1] = values[:, None]
        return padded

    def single(self, name: str) -> np.ndarray:
        """A column with one number for each jet, (N,)."""
        values = self.numbers(name, "weight")
        if values.ndim > 1:
            raise self._refusal(name, "weight", "one number for each jet")
        return values

    def numbers(self, name: str, role: str) -> np.ndarray:
        """A column with one number, or equally many, for each jet: (N,) or (N, k, ...).

        role: what the column serves as, for the error.
        """
        values = without_options(self.columns[name])
        if isinstance(values, Jagged):
            # a vector that has k entries in every jet
            size = int(values.counts[0]) if len(values) else 0
            if size and (values.counts == size).all() and values.content.dtype.kind in "biuf":
                return values.content.reshape(-1, size)
        elif isinstance(values, np.ndarray):
            if values.dtype.kind in "biuf":
                return values
        else:
            layout = ak.to_layout(values)
            while layout.is_regular or isinstance(layout, ak.contents.UnmaskedArray):
                layout = layout.content
            if isinstance(layout, ak.contents.NumpyArray) and layout.data.dtype.kind in "biuf":
                return np.asarray(ak.to_numpy(values))
        raise self._refusal(name, role, "one number, or equally many, for each jet")

    def _refusal(self, name: str, role: str, expected: str) -> InputError:
        values = to_awkward(self.columns[name])
        hint = (
            _form_hint(values)
            or "; take one with ak.num, ak.sum or the like, or give an input group a length"
        )
        return InputError(
            f"{self.config.source}: '{name}' ({role}) is {ak.type(values)}; expected"
            f" {expected}{hint}"
        )


def flatten(values: Column, name: str, source: str) -> tuple[np.ndarray, np.ndarray]:
    """One variable as flat numbers (entries,), and the entries of each jet (N,) int64.

    A single value counts as one entry. Raises InputError for a column of another form.
    """
    values = without_options(values)
    if isinstance(values, ak.Array):
        values = plain(ak.from_regular(values, axis=None))
    if isinstance(values, Jagged):
        return values.content, values.counts
    if isinstance(values, np.ndarray) and values.ndim == 1:
        return values, np.ones(len(values), np.int64)

    raise InputError(
        f"{source}: '{name}' is {ak.type(values)}; expected one number, or one list of numbers, for"
        f" each jet{_form_hint(values)}"
    )


def by_jet(marked: np.ndarray) -> np.ndarray:
    """(N, ...) -> (N,): true for a jet with any mark."""
    return np.logical_or.reduce(marked.reshape(len(marked), -1), axis=1)


def _in_float32(column: Column) -> bool:
    """Whether weaver-core's kernel takes a column: lists of numbers that are no option type."""
    if isinstance(column, Jagged):
        return not column.optional
    # a two-dimensional array of HDF5 has no lists until a selection makes them
    is_array = isinstance(ak.to_layout(column), ak.contents.NumpyArray)
    return column.ndim > 1 and not is_array and "?" not in str(ak.type(column))


def standardize(values: np.ndarray, params: Mapping[str, Any]) -> np.ndarray:
    """clip((values - center) * scale, min, max), or the values as they are without a center.

    There is no bound where min or max is None. params: weaver.config.sections.Parameters.
    """
    if params["center"] is None:
        return values
    low = -np.inf if params["min"] is None else params["min"]
    high = np.inf if params["max"] is None else params["max"]
    return np.clip((values - params["center"]) * params["scale"], low, high)


def _column(expression: Expression, columns: Columns, count: int) -> Column:
    """The column that an expression gives: one entry for each of `count` jets.

    A single number counts for every jet.
    """
    values = evaluate(expression, columns)
    if isinstance(values, bool | int | float | np.generic):
        return np.full(count, values)
    if isinstance(values, Jagged):
        return values
    is_array = isinstance(values, ak.Array | np.ndarray)
    if not is_array or len(values) != count:
        form = ak.type(values) if is_array else type(values).__name__
        raise InputError(
            f"{expression.where}: '{expression.text}' gives {form}; expected one entry for each of"
            f" {count} jets"
        )
    if isinstance(values, np.ndarray) and values.ndim > 1:
        # weaver-core's table holds it as lists of one size
        return ak.from_numpy(values, regulararray=True)
    return plain(ak.Array(values))


def _condition(expression: Expression, columns: Columns, count: int) -> np.ndarray:
    """(N,) bool: true for each jet that passes; a missing value does not."""
    values = _column(expression, columns, count)
    if values.ndim != 1:
        raise InputError(
            f"{expression.where}: '{expression.text}' gives {ak.type(to_awkward(values))}; expected"
            " one true or false for each jet"
        )
    if isinstance(values, np.ndarray):
        return values.astype(bool, copy=False)
    return ak.to_numpy(ak.fill_none(ak.values_astype(values, "bool"), False))


def _side_by_side(channels: list[np.ndarray]) -> np.ndarray:
    """(n, C) float32 of C channels (n,)."""
    if len(channels) == 1:
        return channels[0].astype(np.float32, copy=False)[:, None]
    values = np.empty((len(channels[0]), len(channels)), np.float32)
    # block by block, because each pass over the whole array would fetch all of it again
    for start in range(0, len(values), ROWS):
        block = values[start : start + ROWS]
        for index, channel in enumerate(channels):
            block[:, index] = channel[start : start + ROWS]
    return values


def _check_counts(
    counts: np.ndarray, other: np.ndarray, first: str, second: str, where: str
) -> None:
    if not np.array_equal(counts, other):
        jet = int(np.flatnonzero(counts != other)[0])
        sizes = f"{counts[jet]} and {other[jet]} in one jet"
        raise InputError(
            f"{where}: '{first}' and '{second}' differ in number of entries ({sizes});"
            " take variables of the same particles"
        )


def _first_entries(counts: np.ndarray, kept: np.ndarray) -> np.ndarray | None:
    """Positions of the first `kept` (N,) entries of each jet in the flat entries.

    None if these are all of them, which saves a copy.
    """
    if np.array_equal(counts, kept):
        return None
    # how far each jet's entries move to the front, (N,)
    shift = (np.cumsum(counts) - counts) - (np.cumsum(kept) - kept)
    return np.arange(int(kept.sum())) + np.repeat(shift, kept)


def _sequence_values(
    entries: np.ndarray, name: str, params: Parameters, quality: _NonFinite, counts: np.ndarray
) -> np.ndarray:
    """Standardised entries, float32 throughout. weaver-core replaces only NaN."""
    entries = entries.astype(np.float32, copy=False)
    are_non_finite = quality.count(name, entries)
    in_float32 = params.copy()
    for key in ("center", "scale", "min", "max"):
        if params[key] is not None:
            in_float32[key] = np.float32(params[key])
    values = standardize(entries, in_float32)
    if not are_non_finite:
        return values
    if quality.policy == "weaver":
        return np.where(np.isnan(values), np.float32(0), values)
    return quality.treat(name, values, counts)


def _single_values(
    values: np.ndarray,
    name: str,
    params: Parameters,
    quality: _NonFinite | None,
    counts: np.ndarray | None = None,
) -> np.ndarray:
    """Standardised values, computed in the type of the variable.

    Single values that have a length become float32 before NaN and infinity are replaced.
    """
    if quality:
        quality.count(name, values)
    values = standardize(values, params)
    if quality and quality.policy != "weaver" and values.dtype.kind == "f":
        values = quality.treat(name, values, counts)
    # a float64 infinity becomes float64's largest number, and that infinite in float32
    with np.errstate(over="ignore"):
        return np.nan_to_num(values if params["length"] is None else values.astype(np.float32))


def _form_hint(values: Column) -> str:
    kind = str(ak.type(values))
    if "?" not in kind and "option" not in kind:
        return ""
    return "; values are missing: fill them, as in ak.fill_none(x, 0)"
