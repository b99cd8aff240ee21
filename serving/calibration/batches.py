"""Jets of a file as batches of the model's inputs, and its answers in the order of the jets.

Jets go through the model sorted by their number of particles: a batch is as wide as its fullest
jet, and most places would otherwise be empty.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from common.errors import InputError
from serving.calibration.model import CALIBRATED, VALID, Description, Input, Model
from serving.validity import count_invalid
from weaver.read.jagged import Column, JaggedColumn, plain


def answers(
    model: Model, columns: Mapping[str, Column], count: int, uri: str
) -> tuple[dict[str, np.ndarray], Counter[str]]:
    """The model's outputs (N,) for the N = `count` jets of columns, and why jets are invalid.

    columns: the model's branches, numbers (N,) or lists. uri: the file, for errors. The second are
    the numbers of invalid jets by reason. Raises InputError for a column that is not of the model's
    kind, or whose numbers it cannot hold.
    """
    description = model.description
    result = {}
    for name in description.outputs:
        result[name] = np.zeros(count, bool if name == VALID else np.float32)
    invalid: Counter[str] = Counter()
    for jets, inputs in batches(description, columns, count, model.batch, uri):
        answered = model.answer(inputs)
        for name, values in answered.items():
            result[name][jets] = values
        if description.limits is not None:
            invalid += count_invalid(
                inputs,
                description.limits,
                valid=answered[VALID],
                reference_pt=answered[CALIBRATED],
            )
    return result, invalid


def batches(
    description: Description, columns: Mapping[str, Column], count: int, size: int, uri: str
) -> Iterator[tuple[np.ndarray, dict[str, np.ndarray]]]:
    """(jets of the batch, inputs for them), until each of the N = `count` jets was in one.

    Inputs are (n, 1), or (n, P) for particles, where what stands behind a jet's own particles is
    arbitrary. Raises InputError as `answers`.
    """
    numbers: dict[str, np.ndarray] = {}  # one a jet
    particles: dict[str, np.ndarray] = {}  # of all jets, one after the other
    counts: dict[str, np.ndarray] = {}  # counter -> particles of each jet (N,)
    for name, column in description.inputs.items():
        values = _plain(columns[name])
        where = f"{uri}: '{name}'"
        if not column.counter:
            if not isinstance(values, np.ndarray):
                raise InputError(f"{where} is {_form(values)}; the model takes one number a jet")
            numbers[name] = cast(values, column, where)
            continue
        if not isinstance(values, JaggedColumn):
            raise InputError(f"{where} is {_form(values)}; the model takes a list of numbers a jet")
        if not np.array_equal(counts.setdefault(column.counter, values.counts), values.counts):
            raise InputError(
                f"{where} does not have as many entries as {column.counter} says;"
                " give files in which they agree"
            )
        particles[name] = cast(values.content, column, where)

    starts = {name: np.cumsum(number) - number for name, number in counts.items()}
    # Zeros behind the last jet, so that each jet has as many places as the fullest.
    for name, content in particles.items():
        behind = int(counts[description.inputs[name].counter].max(initial=1)) + 1
        particles[name] = np.concatenate([content, np.zeros(behind, content.dtype)])
    order = np.arange(count)
    if counts:
        order = np.argsort(next(iter(counts.values())), kind="stable")
    for first in range(0, count, size):
        jets = order[first : first + size]
        inputs = {name: values[jets, None] for name, values in numbers.items()}
        for counter, number in counts.items():
            inputs[counter] = number[jets, None].astype(np.int32)
        for name, content in particles.items():
            counter = description.inputs[name].counter
            width = max(int(inputs[counter].max()), 1)
            # A window for each place where a jet may begin: rows are copied as a whole, which is
            # several times faster than an index for each place.
            inputs[name] = sliding_window_view(content, width)[starts[counter][jets]]
        yield jets, inputs


def _plain(values: Column) -> Column:
    """A column as array or JaggedColumn where it can be one: also lists of a fixed size."""
    if isinstance(values, np.ndarray | JaggedColumn):
        return values
    import awkward as ak

    return plain(ak.from_regular(values, axis=None))


def _form(values: Column) -> str:
    """What a column is, in words."""
    if isinstance(values, np.ndarray):
        return "one number a jet"
    if isinstance(values, JaggedColumn):
        return "a list of numbers a jet"
    kind = str(values.type.content)
    is_option = "?" in kind or "option" in kind
    return f"{kind}, with missing values (None)" if is_option else kind


def cast(values: np.ndarray, column: Input, where: str) -> np.ndarray:
    """Numbers in the type that the model takes.

    Floating-point numbers may be rounded to single precision. Raises InputError for numbers that
    the type cannot hold otherwise, and for text.
    """
    if values.dtype == column.dtype:
        return values
    if values.dtype.kind not in "biuf":
        raise InputError(f"{where} is {values.dtype}; the model takes numbers ({column.dtype})")
    with np.errstate(over="ignore", invalid="ignore"):
        converted = values.astype(column.dtype)
        if values.dtype.kind == "f" and column.dtype.kind == "f":
            return converted
        same = converted == values
    if not same.all():
        raise InputError(
            f"{where} is {values.dtype} and holds {values[~same][0]}, which the model's type"
            f" {column.dtype} cannot hold"
        )
    return converted
