"""Why a model that takes raw jets calls some of them invalid, and how many for each reason.

    limits = model_range(config["parameters"]["valid_range"]["string_value"])
    reasons = invalid_reasons(columns, limits)                  # (N,), "" for valid jets
    counts = count_invalid(columns, limits, valid=answer["valid"])

The raw model returns the standard correction, unchanged, for a jet that it was not trained for, and
says so by its output `valid`. It does not say why; this module finds the reason in what was sent.
It imports numpy alone.

Where the range stands
----------------------
One text of JSON, under the key `valid_range`:

    config.pbtxt                      parameters { key: "valid_range" value { string_value: ... } }
    GET /v2/models/NAME/config        answer["parameters"]["valid_range"]["string_value"]
    model.onnx                        metadata_props, by the key valid_range

with these keys:

    min_pt, max_pt   GeV: the 0.1 and 99.9 % quantiles of the training's jets
    max_abs_eta      largest |jetEta|; null where the network does not take jetEta
    jets             "training" or "validation": whose quantiles these are
    pt               input with the pT that is corrected; null where it is computed from several
    eta              input with jetEta; null where it is computed, or not taken
    counters         {counter input: [inputs of the particles that it counts]}

The last three are there for the raw model (NAME-raw) only.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

KEY = "valid_range"
"""Key of the range in config.pbtxt's parameters and in the metadata of model.onnx."""

NOT_FINITE = "input not finite"
COUNTER = "particle counter beyond the array"
NO_PARTICLES = "no particles"
NEGATIVE_PT = "negative pT"
PT_RANGE = "pT outside the range"
ETA_RANGE = "|eta| outside the range"
OTHER = "other"
"""The model says invalid, and no rule of this module does."""

REASONS = (NOT_FINITE, COUNTER, NO_PARTICLES, NEGATIVE_PT, PT_RANGE, ETA_RANGE)
"""In this order: a jet has the first one that applies."""


@dataclass(frozen=True, kw_only=True)
class ModelRange:
    """The jets that a model is meant for, and the inputs that say whether a jet is one of them."""

    min_pt: float
    """GeV, as max_pt."""
    max_pt: float
    max_abs_eta: float | None = None
    jets: str = ""
    pt: str | None = None
    eta: str | None = None
    counters: Mapping[str, list[str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check the types of the limits. Raises ValueError."""
        for name in ("min_pt", "max_pt", "max_abs_eta"):
            value = getattr(self, name)
            is_number = isinstance(value, int | float) and not isinstance(value, bool)
            if not is_number and not (value is None and name == "max_abs_eta"):
                raise ValueError(f"'{name}' is {value!r}, no number")
        if not isinstance(self.counters, Mapping) or not all(
            isinstance(branches, list) and branches for branches in self.counters.values()
        ):
            raise ValueError("'counters' does not hold a list of inputs for each counter")
        if not all(isinstance(name, str) for name in self._inputs()):
            raise ValueError("'pt', 'eta' or 'counters' has a value that names no input")

    def _inputs(self) -> list[str]:
        names = [name for name in (self.pt, self.eta) if name is not None]
        for counter, branches in self.counters.items():
            names += [counter, *branches]
        return names

    def check_inputs(self, names: Collection[str]) -> None:
        """Raise ValueError where the range is judged by an input that the model does not have."""
        absent = [name for name in self._inputs() if name not in names]
        if absent:
            raise ValueError(f"'{KEY}' names '{absent[0]}', which is not an input of the model")


def model_range(text: str) -> ModelRange:
    """Read the range from the text under the key `valid_range`; unknown keys are ignored.

    Raises ValueError for text that is not such a range.
    """
    try:
        content = json.loads(text)
        known_fields = {
            key: content[key] for key in ModelRange.__dataclass_fields__ if key in content
        }
        return ModelRange(**known_fields)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"'{KEY}' of the model is not a range (JSON with min_pt and max_pt) but {text[:200]!r}:"
            f" {error}"
        ) from None


def range_of_config(config: Mapping[str, Any]) -> ModelRange | None:
    """Return the range in a server's answer to GET /v2/models/NAME/config.

    None for a model without one.

    Raises ValueError for a parameter `valid_range` that is no range.
    """
    parameter = config.get("parameters", {}).get(KEY)
    return None if parameter is None else model_range(parameter["string_value"])


def invalid_reasons(
    columns: Mapping[str, NDArray[Any]],
    limits: ModelRange,
    reference_pt: NDArray[Any] | None = None,
) -> NDArray[np.str_]:
    """Return the reason why each jet (N,) is invalid, one of REASONS; "" where none applies.

    columns: the model's inputs as they are sent, by name. One value a jet is (N,) or (N, 1),
    particles are (N, P) and what stands in a jet's places from its counter on is ignored.
    reference_pt: the pT that is corrected (GeV), (N,) or (N, 1), where `limits` does not name its
    column; the model's `calibrated_pt` is just that for invalid jets. Without both, no pT is
    judged. Comparisons are in single precision, as the model's are.
    """
    num_jets = len(next(iter(columns.values())))
    reasons: NDArray[np.str_] = np.full(num_jets, "", f"<U{max(map(len, REASONS))}")

    def mark(reason: str, applies: NDArray[np.bool_]) -> None:
        """Give the reason to the jets (N,) to which it applies, and that have none yet."""
        reasons[applies & (reasons == "")] = reason

    mark(NOT_FINITE, ~_finite(columns, limits, num_jets))

    if limits.counters:
        counts = {name: _one_a_jet(columns[name]) for name in limits.counters}
        for name, branches in limits.counters.items():
            places = columns[branches[0]].shape[1]
            mark(COUNTER, (counts[name] < 0) | (counts[name] > places))
        mark(NO_PARTICLES, np.all([of_jet == 0 for of_jet in counts.values()], axis=0))

    if limits.pt is not None:
        reference_pt = columns[limits.pt]
    if reference_pt is not None:
        pt = _single(_one_a_jet(reference_pt))
        mark(NEGATIVE_PT, pt < 0)
        mark(PT_RANGE, (pt < np.float32(limits.min_pt)) | (pt > np.float32(limits.max_pt)))

    if limits.max_abs_eta is not None and limits.eta is not None:
        eta = _single(_one_a_jet(columns[limits.eta]))
        mark(ETA_RANGE, np.abs(eta) > np.float32(limits.max_abs_eta))
    return reasons


def count_invalid(
    columns: Mapping[str, NDArray[Any]],
    limits: ModelRange,
    *,
    valid: NDArray[Any],
    reference_pt: NDArray[Any] | None = None,
) -> dict[str, int]:
    """Return how many jets are invalid for each reason; reasons without a jet are left out.

    valid: the model's answer, (N,) or (N, 1): only the jets that it calls invalid are counted. The
    other arguments are those of `invalid_reasons`.
    """
    invalid = ~_one_a_jet(valid).astype(bool)
    if not invalid.any():
        return {}
    of_invalid = {name: np.asarray(column)[invalid] for name, column in columns.items()}
    if reference_pt is not None:
        reference_pt = np.asarray(reference_pt)[invalid]
    reasons = invalid_reasons(of_invalid, limits, reference_pt)
    counts = {}
    for reason in REASONS:
        counts[reason] = int(np.count_nonzero(reasons == reason))
    counts[OTHER] = int(np.count_nonzero(reasons == ""))
    return {reason: count for reason, count in counts.items() if count}


def _finite(
    columns: Mapping[str, NDArray[Any]], limits: ModelRange, num_jets: int
) -> NDArray[np.bool_]:
    """Return whether all numbers of a jet, (N,), are finite in single precision.

    The model adds up the numbers of the particles of one counter, because a sum keeps NaN and
    infinity. Where that sum overflows, as for many numbers of 1e38, the jet is not valid either.
    """
    counter_of = {}
    for counter, branches in limits.counters.items():
        for branch in branches:
            counter_of[branch] = counter
    totals = {counter: np.zeros(num_jets, np.float32) for counter in limits.counters}
    finite = np.ones(num_jets, bool)
    for name, column in columns.items():
        if column.dtype.kind != "f":
            continue
        values = np.abs(_single(column)).reshape(num_jets, -1)
        if name in counter_of:
            counts = _one_a_jet(columns[counter_of[name]])
            is_particle = np.arange(column.shape[1]) < counts[:, None]
            with np.errstate(over="ignore"):
                totals[counter_of[name]] += values.sum(axis=1, where=is_particle)
        else:
            finite &= np.isfinite(values).all(axis=1)
    for total in totals.values():
        finite &= np.isfinite(total)
    return finite


def _one_a_jet(column: NDArray[Any]) -> NDArray[Any]:
    """Return a column (N,) or (N, 1) as (N,)."""
    return np.asarray(column).reshape(len(column))


def _single(column: NDArray[Any]) -> NDArray[np.float32]:
    """Return a column in single precision, infinite where that cannot hold it."""
    with np.errstate(over="ignore"):
        return column.astype(np.float32)
