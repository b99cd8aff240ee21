"""Batches of a file's jets as inputs of the model, and its outputs in the order of the jets.

Jets are sorted by their number of particles, because a batch is as wide as its largest jet and
would otherwise be mostly padding.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from common.errors import InputError
from serving.calibration.model import CALIBRATED_PT, VALID, Description, Input, Model
from serving.validity import count_invalid
from weaver.read.jagged import Column, JaggedColumn, plain


def answers(
    model: Model, columns: Mapping[str, Column], count: int, uri: str
) -> tuple[dict[str, np.ndarray], Counter[str]]:
    """Run the model on the jets of some columns.

    Args:
        model: The model.
        columns: Branches of the model: numbers (N,) or lists.
        count: Number N of jets.
        uri: The file, for errors.

    Returns:
        The outputs of the model, (N,) each, and the number of invalid jets by reason.

    Raises:
        InputError: If a column does not have the form that the model needs, or numbers that it
            cannot represent.
    """
    description = model.description
    result = {}
    for name in description.outputs:
        result[name] = np.zeros(count, bool if name == VALID else np.float32)
    invalid: Counter[str] = Counter()
    for jets, inputs in batches(description, columns, count, model.batch, uri):
        batch_outputs = model.answer(inputs)
        for name, values in batch_outputs.items():
            result[name][jets] = values
        if description.limits is not None:
            invalid += count_invalid(
                inputs,
                description.limits,
                valid=batch_outputs[VALID],
                reference_pt=batch_outputs[CALIBRATED_PT],
            )
    return result, invalid


def batches(
    description: Description, columns: Mapping[str, Column], count: int, size: int, uri: str
) -> Iterator[tuple[np.ndarray, dict[str, np.ndarray]]]:
    """Yield (indices of jets, inputs for them) until each of the `count` jets was in a batch.

    Inputs are (n, 1), or (n, P) for particles, where values after a jet's own particles are
    arbitrary.

    Raises:
        InputError: As `answers`.
    """
    numbers: dict[str, np.ndarray] = {}  # one a jet
    particles: dict[str, np.ndarray] = {}  # of all jets, one after the other
    counts: dict[str, np.ndarray] = {}  # number of particles of each jet (N,), by counter
    for name, column in description.inputs.items():
        values = _plain(columns[name])
        where = f"{uri}: '{name}'"
        if not column.counter:
            if not isinstance(values, np.ndarray):
                raise InputError(
                    f"{where} is {_form(values)}; the model takes one number a jet: correct the"
                    " file, or leave it out"
                )
            numbers[name] = convert(values, column, where)
            continue
        if not isinstance(values, JaggedColumn):
            raise InputError(
                f"{where} is {_form(values)}; the model takes a list of numbers a jet: correct the"
                " file, or leave it out"
            )
        if not np.array_equal(counts.setdefault(column.counter, values.counts), values.counts):
            raise InputError(
                f"{where} does not have as many entries as {column.counter} says;"
                " give files in which they agree"
            )
        particles[name] = convert(values.content, column, where)

    starts = {name: np.cumsum(number) - number for name, number in counts.items()}
    # Zeros after the last jet, so that each jet has as many places as the largest.
    for name, content in particles.items():
        num_padding = int(counts[description.inputs[name].counter].max(initial=1)) + 1
        particles[name] = np.concatenate([content, np.zeros(num_padding, content.dtype)])
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
    """Return a column as array or JaggedColumn if possible, also for lists of fixed size."""
    if isinstance(values, np.ndarray | JaggedColumn):
        return values
    import awkward as ak

    return plain(ak.from_regular(values, axis=None))


def _form(values: Column) -> str:
    """Return the form of a column in words."""
    if isinstance(values, np.ndarray):
        return "one number a jet"
    if isinstance(values, JaggedColumn):
        return "a list of numbers a jet"
    kind = str(values.type.content)
    is_option = "?" in kind or "option" in kind
    return f"{kind}, with missing values (None)" if is_option else kind


def convert(values: np.ndarray, column: Input, where: str) -> np.ndarray:
    """Convert numbers of any shape to the type of the model; the shape stays.

    Floating-point numbers may be rounded to single precision.

    Raises:
        InputError: If the type cannot represent a number otherwise, or for text.
    """
    if values.dtype == column.dtype:
        return values
    if values.dtype.kind not in "biuf":
        raise InputError(
            f"{where} has the type {values.dtype}, and the model takes numbers; write the column as"
            f" {column.dtype}, or leave the file out"
        )
    with np.errstate(over="ignore", invalid="ignore"):
        result = values.astype(column.dtype)
        if values.dtype.kind == "f" and column.dtype.kind == "f":
            return result
        same = result == values
    if not same.all():
        raise InputError(
            f"{where} is {values.dtype} and holds {values[~same][0]}, which the model's type"
            f" {column.dtype} cannot hold; correct the column, or leave the file out"
        )
    return result
