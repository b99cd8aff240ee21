"""Transform decoded columns to a network's inputs, as pure functions of arrays.

These are the selection, new variables, standardisation, clipping and truncation to the length. The
results equal those of weaver-core 0.5.3 to the bit: sequences are standardised in float32, single
values in their own type and then cast to float32.

Treatment of NaN and infinity in inputs (`preprocess: non_finite` of the data config, or
`--non-finite` of weaver.prepared.prepare):

    weaver   as in weaver-core (default): NaN becomes 0; infinity in sequences stays unless it is
             clipped, in single values it becomes the largest number of its type
    zero     NaN and infinity after standardisation and clipping become 0
    drop     jets with such a value, or with a label or weight that is NaN or infinite, are left out
    error    such a value is an error

With every policy NaN and infinity in the files are counted for each variable, for particles within
the length.
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
    JaggedColumn,
    evaluate,
    plain,
    same_lists,
    to_awkward,
    without_options,
)

# particles copied at a time, so that their columns and rows fit in a core's cache
ROWS = 16_384


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rows:
    """The inputs, labels, observers and weights of one chunk of jets."""

    num_jets: int
    sequences: dict[str, tuple[np.ndarray, np.ndarray]]
    """Group -> (values (particles, C) float32, number of particles of each jet (N,) int64), both
    truncated to the group's length.
    """
    flats: dict[str, np.ndarray]
    """Group -> (N, C) float32, or (N,) for a single variable; (N, C, k) or (N, k) for variables
    with k numbers for each jet.
    """
    labels: dict[str, np.ndarray]
    """(N,) or (N, k)."""
    observers: dict[str, np.ndarray | JaggedColumn]
    """(N,) or (N, k), or a list for each jet."""
    weight: np.ndarray | None
    """(N,) float32."""
    reweight: dict[str, np.ndarray]
    """Columns (N,) from which weights will be computed, if the histograms of the reweighting do not
    exist yet.
    """
    non_finite: dict[str, tuple[int, int]]
    """Input variable, label or weight -> (number of NaN values, number of infinite values), with
    those of dropped jets.
    """
    num_dropped: int
    """Number of jets that the policy for NaN and infinity left out."""


class _NonFinite:
    """Count NaN and infinity in one chunk of jets, and treat them by the policy."""

    def __init__(self, config: DataConfig, count: int, where: str) -> None:
        self.policy = config.non_finite
        self.where = where
        self.counts: dict[str, tuple[int, int]] = {}
        self.bad = np.zeros(count, bool)
        """(N,): jets to leave out."""

    def count(self, name: str, values: np.ndarray) -> bool:
        """Count the NaN and the infinite values of a variable.

        Args:
            name: of the variable.
            values: of any shape.

        Returns:
            Whether there are any.
        """
        if values.dtype.kind != "f" or np.isfinite(values).all():
            return False
        self.counts[name] = (int(np.isnan(values).sum()), int(np.isinf(values).sum()))
        return True

    def treat(self, name: str, values: np.ndarray, counts: np.ndarray | None = None) -> np.ndarray:
        """Replace NaN and infinity by 0, and note their jets, for all policies but "weaver".

        counts: (N,), number of values of each jet; None for one value a jet. Raises InputError for
        the policy "error".
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
        """Mark the jets to leave out, with the policy "drop".

        Args:
            name: of the variable.
            values: of any shape, with NaN or infinity.
            jets: the jets of these values: a mask (N,) or indices.

        Raises:
            InputError: the policy is "error".
        """
        if self.policy == "error":
            nan = int(np.isnan(values).sum())
            infinite = int(np.isinf(values).sum())
            raise InputError(
                f"{self.where}: '{name}' has {nan:,} NaN and {infinite:,} infinite values, which"
                " non_finite: error does not allow; clip them in the data config, or choose zero"
                " (they become 0) or drop (their jets are left out)"
            )
        if self.policy == "drop":
            self.bad[jets] = True

    def check(self, name: str, values: np.ndarray) -> None:
        """Count NaN and infinity in a label or weight, and apply "error" or "drop".

        Args:
            name: of the label or weight.
            values: (N,) or (N, k).

        Raises:
            InputError: there are any, and the policy is "error".
        """
        if self.count(name, values) and self.policy in ("error", "drop"):
            self.note(name, values, by_jet(~np.isfinite(values)))


def select(columns: Mapping[str, Column], plan: Plan) -> tuple[Columns, int]:
    """Apply the plan's selection and compute its functions for the jets that pass.

    Returns (columns with new variables, labels and weight; number of jets that pass). If no jet
    passes, the functions are not computed. Raises InputError for an expression that cannot be
    evaluated.
    """
    columns = {name: plain(values) for name, values in columns.items()}
    count = len(next(iter(columns.values())))
    if plan.selection is not None:
        for name, expression in plan.selection_functions:
            columns[name] = _column(expression, columns, count)
        passes = _condition(plan.selection, columns, count)
        columns = {
            name: _select_jets(values, passes)
            for name, values in columns.items()
            if name in plan.columns_after_selection
        }
        count = int(np.count_nonzero(passes))
    columns = _cut_particles(columns, plan)
    if count:
        for name, expression in plan.functions:
            columns[name] = _column(expression, columns, count)
    return columns, count


def _select_jets(values: Column, jets: np.ndarray) -> Column:
    """Select jets by a mask (N,); as in weaver-core, an array (N, k) of HDF5 becomes lists of k."""
    subset = values[jets]
    if isinstance(subset, ak.Array):
        layout = ak.to_layout(subset)
        if isinstance(layout, ak.contents.NumpyArray):
            return ak.Array(layout.to_RegularArray())
    return subset


def _cut_particles(columns: Columns, plan: Plan) -> Columns:
    """Remove particles beyond the length of the longest input.

    Returns the columns unchanged if anything else may depend on these particles.
    """
    if plan.longest is None:
        return columns
    lists: dict[str, JaggedColumn] = {}
    for name, values in columns.items():
        if isinstance(values, JaggedColumn):
            lists[name] = values
        elif not isinstance(values, np.ndarray) or values.ndim != 1:
            return columns
    if not lists or not same_lists(lists.values()):
        return columns

    # Functions that depend on the lists; each comes after those that it depends on.
    dependent = set(lists)
    for name, function in plan.functions:
        if dependent.isdisjoint(function.names):
            continue
        if not function.is_elementwise:
            return columns
        dependent.add(name)
    return columns | {name: values.head(plan.longest) for name, values in lists.items()}


def make_rows(
    columns: Mapping[str, Column], count: int, config: DataConfig, plan: Plan, where: str = ""
) -> Rows:
    """Make the rows of `count` selected jets from their columns; `where` names the file in errors.

    Raises InputError for a variable of the wrong form, for NaN and infinity with the policy
    "error", and for training jets that do not belong to exactly one class.
    """
    quality = _NonFinite(config, count, where or config.source)
    maker = _RowMaker(columns, config, quality)
    sequences = {}
    flats = {}
    for group, names in config.input_dicts.items():
        if config.preprocess_params[names[0]]["length"] is None:
            flats[group] = maker.flat_group(group)
        else:
            sequences[group] = maker.sequence_group(group)
    labels = {name: maker.numbers(name, "label") for name in plan.labels}
    values_to_check = dict(labels)

    # The weights, or the columns from which they will be computed after the histograms.
    weight = None
    reweight = {name: maker.single(name) for name in plan.reweight}
    if plan.weight:
        weight = maker.single(plan.weight).astype(np.float32)
    elif config.reweighting and reweight and config.reweight_hists is not None:
        weight = jet_weights(reweight, config.reweighting, config.reweight_hists)
        reweight = {}
    if weight is not None:
        values_to_check["weight"] = weight
    for name, values in values_to_check.items():
        quality.check(name, values)

    # Only now all jets to leave out are known. Make the rows again without them; the counts of NaN
    # and infinity are those of all jets.
    if quality.bad.any():
        keep = ~quality.bad
        columns = {name: values[keep] for name, values in columns.items()}
        rows = make_rows(columns, int(keep.sum()), config, plan, where)
        return dataclasses.replace(
            rows, non_finite=quality.counts, num_dropped=int(quality.bad.sum())
        )

    # Each training jet must belong to exactly one class.
    if "_labelcheck_" in columns:
        sums = maker.single("_labelcheck_")
        none = int((sums == 0).sum())
        several = int((sums > 1).sum())
        if (sums != 1).any():
            raise InputError(
                f"{config.source}: labels: {none} jets belong to no class and {several} to several"
                f" of {config.label_value}; see 'selection'"
            )
    return Rows(
        num_jets=count,
        sequences=sequences,
        flats=flats,
        labels=labels,
        observers={name: maker.observer(name) for name in plan.observers},
        weight=weight,
        reweight=reweight,
        non_finite=quality.counts,
        num_dropped=0,
    )


class _RowMaker:
    """Make the rows of one chunk of N jets from its columns."""

    def __init__(
        self, columns: Mapping[str, Column], config: DataConfig, quality: _NonFinite
    ) -> None:
        self.columns = columns
        self.config = config
        self.quality = quality
        self.orders: dict[tuple, np.ndarray] = {}
        """Sort keys -> positions, so that groups with the same order are sorted once."""

    def sequence_group(self, group: str) -> tuple[np.ndarray, np.ndarray]:
        """Make a group of particles: values (particles, C) float32, counts of jets (N,) int64."""
        config = self.config
        names = config.input_dicts[group]
        place = f"{config.source}: inputs:{group}"

        # of each variable: flat entries (entries,), and number of entries of each jet (N,)
        parts = [flatten(self.columns[name], name, config.source) for name in names]
        counts = parts[0][1]
        for name, (_, other) in zip(names, parts, strict=True):
            _check_counts(counts, other, names[0], name, place)

        # positions of the entries within the length, in their final order
        length = config.preprocess_params[names[0]]["length"]
        num_kept = counts if length is None else np.minimum(counts, length)
        positions = _first_entries(counts, num_kept)
        if group in config.order_by:
            order = self.order(group, counts, place)
            positions = order if positions is None else order[positions]

        # as in weaver-core: float32, unless a variable has one value a jet or an option type
        in_float32 = all(_in_float32(self.columns[name]) for name in names)
        channels = []
        for name, (content, _) in zip(names, parts, strict=True):
            entries = content if positions is None else content[positions]
            params = config.preprocess_params[name]
            if in_float32:
                channels.append(_sequence_values(entries, name, params, self.quality, num_kept))
            else:
                channels.append(_single_values(entries, name, params, self.quality, num_kept))
        return _side_by_side(channels), num_kept

    def order(self, group: str, counts: np.ndarray, place: str) -> np.ndarray:
        """Return positions (entries,) that sort each jet's particles by the group's `order_by`."""
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
        """Make a group with one value a jet: (N, C) float32, or (N,) for one variable.

        With k numbers for each jet it is (N, C, k) or (N, k).

        Raises:
            InputError: the variables have different shapes.
        """
        channels = []
        names = self.config.input_dicts[group]
        for name in names:
            params = self.config.preprocess_params[name]
            values = self.numbers(
                name, f"variable of an input group without length, inputs:{group}"
            )
            # the largest float64 becomes infinite in float32
            with np.errstate(over="ignore"):
                values = _single_values(values, name, params, self.quality)
                channels.append(values.astype(np.float32))
        sizes = {name: list(values.shape[1:]) for name, values in zip(names, channels, strict=True)}
        if any(size != sizes[names[0]] for size in sizes.values()):
            raise InputError(
                f"{self.config.source}: inputs:{group}: the variables of a group without length"
                f" have different shapes for each jet: {sizes}; put each shape into a"
                " group of its own"
            )
        return channels[0] if len(channels) == 1 else np.stack(channels, axis=1)

    def observer(self, name: str) -> np.ndarray | JaggedColumn:
        """Return the values of an observer: (N,), (N, k), or a list for each jet.

        As in weaver-core, a monitor variable that is an input with one value a jet is standardised,
        and padded to (N, length) if its group has a length.
        """
        values = without_options(self.columns[name])
        if isinstance(values, JaggedColumn) and values.content.dtype.kind in "biuf":
            return values
        values = self.numbers(name, "observer")
        params = self.config.preprocess_params.get(name)
        if name not in self.config.monitor_variables or not params or values.ndim > 1:
            return values
        values = _single_values(values, name, params, None)
        length = params["length"]
        if length is None:
            return values
        rows = np.full((len(values), length), params["pad_value"], np.float32)
        rows[:, : length if params["pad_mode"] == "wrap" else 1] = values[:, None]
        return rows

    def single(self, name: str) -> np.ndarray:
        """Return a column with one number for each jet, (N,). Raises InputError for other forms."""
        values = self.numbers(name, "weight")
        if values.ndim > 1:
            raise self._error(name, "weight", "one number for each jet")
        return values

    def numbers(self, name: str, role: str) -> np.ndarray:
        """Return a column with the same number of numbers for each jet: (N,) or (N, k, ...).

        role: the use of the column, for the error. Raises InputError for other forms.
        """
        values = without_options(self.columns[name])
        if isinstance(values, JaggedColumn):
            # a list that has k entries in every jet
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
        raise self._error(name, role, "one number, or the same number of values, for each jet")

    def _error(self, name: str, role: str, expected: str) -> InputError:
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
    """Flatten a variable to numbers (entries,), and the number of entries of each jet (N,) int64.

    A single value counts as one entry. source: the data config, for the error. Raises InputError
    for a column of another form.
    """
    values = without_options(values)
    if isinstance(values, ak.Array):
        values = plain(ak.from_regular(values, axis=None))
    if isinstance(values, JaggedColumn):
        return values.content, values.counts
    if isinstance(values, np.ndarray) and values.ndim == 1:
        return values, np.ones(len(values), np.int64)

    raise InputError(
        f"{source}: '{name}' is {ak.type(values)}; expected one number, or one list of numbers, for"
        f" each jet{_form_hint(values)}"
    )


def by_jet(marks: np.ndarray) -> np.ndarray:
    """Boolean (N, ...) -> (N,): True for a jet with any True value."""
    return np.logical_or.reduce(marks.reshape(len(marks), -1), axis=1)


def _in_float32(column: Column) -> bool:
    """Return whether weaver-core standardises a column in float32: lists without option type."""
    if isinstance(column, JaggedColumn):
        return not column.optional
    # a two-dimensional array of HDF5 becomes lists only by a selection
    is_array = isinstance(ak.to_layout(column), ak.contents.NumpyArray)
    return column.ndim > 1 and not is_array and "?" not in str(ak.type(column))


def standardize(values: np.ndarray, params: Mapping[str, Any]) -> np.ndarray:
    """Compute clip((values - center) * scale, min, max); without a center return the values.

    Args:
        values: of any shape.
        params: weaver.config.sections.Parameters; None as min or max means no bound.

    Returns:
        Of the same shape.
    """
    if params["center"] is None:
        return values
    low = -np.inf if params["min"] is None else params["min"]
    high = np.inf if params["max"] is None else params["max"]
    return np.clip((values - params["center"]) * params["scale"], low, high)


def _column(expression: Expression, columns: Columns, count: int) -> Column:
    """Evaluate an expression to a column of `count` jets; a single number is repeated.

    Raises InputError if the result does not have one entry for each jet.
    """
    values = evaluate(expression, columns)
    if isinstance(values, bool | int | float | np.generic):
        return np.full(count, values)
    if isinstance(values, JaggedColumn):
        return values
    is_array = isinstance(values, ak.Array | np.ndarray)
    if not is_array or len(values) != count:
        form = ak.type(values) if is_array else type(values).__name__
        raise InputError(
            f"{expression.where}: '{expression.text}' gives {form}; expected one entry for each of"
            f" {count} jets"
        )
    if isinstance(values, np.ndarray) and values.ndim > 1:
        # weaver-core stores it as lists of a fixed size
        return ak.from_numpy(values, regulararray=True)
    return plain(ak.Array(values))


def _condition(expression: Expression, columns: Columns, count: int) -> np.ndarray:
    """Return (N,) bool: which jets pass a condition; a missing value counts as false."""
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
    """Stack C channels (n,) to (n, C) float32."""
    if len(channels) == 1:
        return channels[0].astype(np.float32, copy=False)[:, None]
    values = np.empty((len(channels[0]), len(channels)), np.float32)
    # block by block, because each pass over the whole array would read all of it from memory
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


def _first_entries(counts: np.ndarray, num_kept: np.ndarray) -> np.ndarray | None:
    """Return the positions of the first `num_kept` of the `counts` entries of each jet, (N,) both.

    None if these are all of them, which saves a copy.
    """
    if np.array_equal(counts, num_kept):
        return None
    # (N,): by how much the positions of each jet's entries decrease
    shift = (np.cumsum(counts) - counts) - (np.cumsum(num_kept) - num_kept)
    return np.arange(int(num_kept.sum())) + np.repeat(shift, num_kept)


def _sequence_values(
    entries: np.ndarray, name: str, params: Parameters, quality: _NonFinite, counts: np.ndarray
) -> np.ndarray:
    """Standardise entries in float32; with the policy "weaver" only NaN is replaced, by 0."""
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
    """Standardise values in their own type.

    Values of a group with a length become float32 before NaN and infinity are replaced.
    """
    if quality:
        quality.count(name, values)
    values = standardize(values, params)
    if quality and quality.policy != "weaver" and values.dtype.kind == "f":
        values = quality.treat(name, values, counts)
    # infinity becomes the largest float64, which is infinite in float32
    with np.errstate(over="ignore"):
        return np.nan_to_num(values if params["length"] is None else values.astype(np.float32))


def _form_hint(values: Column) -> str:
    kind = str(ak.type(values))
    if "?" not in kind and "option" not in kind:
        return ""
    return "; values are missing: fill them, as in ak.fill_none(x, 0)"
