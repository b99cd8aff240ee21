"""Weights of jets: histogram reweighting as in weaver-core 0.5.3, and sampling jets by weight.

**What a weight is.** With `use_precomputed_weights` it is the product of `weight_branches`.
Otherwise it comes from two-dimensional histograms of `reweight_vars`, one for each of
`reweight_classes`, filled with the selected jets of the training files:

    flat   weight of a bin = ref / content, at most 1, where ref is the `reweight_threshold`-th
           percentile of the bins that hold more than 1 % of the median content: each class becomes
           flat in both variables
    ref    weight of a bin = content of the first class / content, divided by the
           (100 - threshold)-th percentile of these ratios, at most 1: each class gets the shape of
           the first

Then the classes are scaled down to equal sums of weights (times `class_weights`).
`reweight_basewgt`, an expression, multiplies the contents of the histograms and the weight of each
jet. Jets outside the bins have weight 0 unless `reweight_discard_under_overflow` is false; jets of
no class have weight 0. The histograms are stored with the prepared training data (`reweight_hists`
in dataset.json, and in weaver-core's form in data.auto.yaml); the validation set uses them too.
Histograms and weights equal weaver-core's to the bit.

**What a weight does in training.** weaver-core uses weights for sampling, never in the loss. For
each chunk that it reads from disk, it first repeats each jet n times, then accepts a copy if a
uniform random number is below the jet's weight. n is the number of jets divided by the number that
a first pass accepts, at most 10. So a jet appears n * min(weight, 1) times on average, and the
number of jets in an epoch fluctuates. `Sampler` gives each jet the same average number of copies in
an epoch, with three differences: n is computed for the whole data set; the number of copies is the
average rounded up or down at random (weaver-core's has a binomial distribution); and each epoch has
the same number of jets. The sample of an epoch depends only on the seed and the epoch.

`weights: {use_as: loss}`, which weaver-core does not have, takes each jet once and multiplies its
loss by the weight instead. Use it for weights above 1, which sampling cuts to 1. Validation always
takes each jet once and weights its loss. weaver-core samples there too, which gives the same
average with more noise. The test set has no weights.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np

from common.errors import InputError

METHODS = ("flat", "ref")
USES = ("sampling", "loss")
# weaver-core's max_resample: a rare class is repeated at most this often in an epoch
MOST_COPIES = 10
# weaver-core keeps the sum of weights of the smallest class below its number of jets, so that
# sampling leaves out some jets of each class
HEADROOM = 0.9
BLOCK = 2**18  # jets sampled at a time, so that memory does not grow with the data set


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reweighting:
    """The `weights` section of a data config that asks for histogram reweighting."""

    method: str
    variables: tuple[str, str]
    bins: tuple[tuple[float, ...], tuple[float, ...]]
    """Edges of the bins in both variables, rising."""
    classes: tuple[str, ...]
    """Columns that are 1 for the jets of a class."""
    class_weights: tuple[float, ...] | None
    threshold: float
    """Percentile, 0 to 100."""
    discard: bool
    """Leave out jets outside the bins; else they count in the nearest bin."""
    base: str | None
    """Column of `reweight_basewgt`, a weight that each jet has before the reweighting."""

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the columns from which the weights are computed."""
        return (
            *dict.fromkeys((*self.variables, *self.classes)),
            *((self.base,) if self.base else ()),
        )

    @property
    def shape(self) -> tuple[int, int]:
        """Number of bins in each of the two variables."""
        return len(self.bins[0]) - 1, len(self.bins[1]) - 1


Columns = Mapping[str, np.ndarray]
"""The columns of a Reweighting for some jets, (N,) each."""
Histograms = dict[str, np.ndarray]
"""Class -> weight by bin, float32, in the shape of the bins."""


class HistogramMaker:
    """Fill the histograms of a reweighting chunk by chunk, then compute the weights of the bins."""

    def __init__(self, reweighting: Reweighting) -> None:
        """Start with empty histograms."""
        self.reweighting = reweighting
        self.shape = tuple(n + 2 for n in reweighting.shape)  # with underflow and overflow
        self.contents: Histograms = {
            label: np.zeros(self.shape).ravel() for label in reweighting.classes
        }
        self.jets = 0
        self.num_entries = 0
        """Jets inside the bins, summed over the classes."""

    def fill(self, columns: Columns) -> None:
        """Add a chunk of jets.

        Args:
            columns: (N,) each: the variables, a 0-1 column for each class, and the base weight.
        """
        reweighting = self.reweighting
        # the bin of each jet in each variable, then its number in the flat histogram, (N,)
        numbers_by_variable = []
        for name, bins in zip(reweighting.variables, reweighting.bins, strict=True):
            values = columns[name]
            if not reweighting.discard:
                values = np.clip(values, min(bins), max(bins))
            numbers_by_variable.append(_bin_numbers(values, bins))
        numbers = np.ravel_multi_index(numbers_by_variable, self.shape)
        self.jets += len(numbers)

        for label, content in self.contents.items():
            members = columns[label] == 1
            counts = np.bincount(numbers[members], minlength=len(content))
            self.num_entries += int(self._inner(counts).sum())
            weights = (
                columns[reweighting.base][members]
                if reweighting.base
                else np.ones(int(members.sum()))
            )
            # The content so far goes in first, so that the sums equal those of one pass over all
            # jets to the last bit.
            self.contents[label] = np.bincount(
                np.concatenate([np.arange(len(content)), numbers[members]]),
                np.concatenate([content, weights]),
                minlength=len(content),
            )

    def _inner(self, content: np.ndarray) -> np.ndarray:
        """Return the bins of a flat histogram in two dimensions, without under- and overflow."""
        return content.reshape(self.shape)[1:-1, 1:-1]

    def weights_by_bin(self) -> Histograms:
        """Compute the weight of each bin; `scale_base` must follow with `reweight_basewgt`.

        Raises InputError for a class without jets inside the bins, and for a class that shares no
        bin with the first one (method ref).
        """
        reweighting = self.reweighting
        contents: Histograms = {}
        empty = []
        for label, content in self.contents.items():
            contents[label] = self._inner(content).astype(np.float32)
            if not (contents[label] > 0).any():
                empty.append(label)
        if empty:
            raise InputError(
                f"weights: no selected training jet of class {' nor '.join(empty)} lies in the bins"
                " of reweight_vars; make them wider"
            )

        weights: Histograms = {}
        reference = contents[reweighting.classes[0]]
        # an empty bin divides by zero: its weight becomes 0
        with np.errstate(divide="ignore", invalid="ignore"):
            for label, content in contents.items():
                if reweighting.method == "flat":
                    weights[label] = _flat(content, reweighting.threshold)
                else:
                    weights[label] = _to_reference(content, reference, reweighting.threshold)

            # Scale each class so that all have the same sum of weights (times their class weight).
            # The types are those of weaver-core: a class weight of the config is a Python number,
            # so that the quotient stays float32.
            factors = reweighting.class_weights or np.ones(len(weights))
            sums = {}
            for label, factor in zip(weights, factors, strict=True):
                sums[label] = np.sum(contents[label] * weights[label]) / factor
            smallest = min(sums.values()) * HEADROOM
            for label in weights:
                weights[label] *= float(smallest) / sums[label]
        return weights


def _bin_numbers(values: np.ndarray, bins: Sequence[float]) -> np.ndarray:
    """Return the number of each value's bin as in numpy.histogramdd: 0 for underflow.

    The last bin includes its upper edge.
    """
    edges = np.asarray(bins)
    numbers = np.searchsorted(edges, values, side="right")
    numbers[values == edges[-1]] -= 1
    return numbers


def _flat(content: np.ndarray, threshold: float) -> np.ndarray:
    filled_bins = content[content > np.median(content[content > 0]) * 0.01]
    reference = np.percentile(filled_bins, threshold)
    return np.clip(np.nan_to_num(reference / content, posinf=0), 0, 1)


def _to_reference(content: np.ndarray, reference: np.ndarray, threshold: float) -> np.ndarray:
    ratio = np.nan_to_num(reference / content, posinf=0)
    if not (ratio > 0).any():
        raise InputError(
            "weights: a class of the method 'ref' shares no bin with the first class; make the bins"
            " wider"
        )
    return np.clip(ratio / np.percentile(ratio[ratio > 0], 100 - threshold), 0, 1)


def scale_base(hists: Histograms, weights: np.ndarray, threshold: float) -> Histograms:
    """Scale the histograms of `reweight_basewgt` so that a percentile of all weights becomes 1.

    weights: (N,), of all jets. The percentile is the (100 - threshold)-th. Raises InputError if it
    is 0.
    """
    scale = np.percentile(weights, 100 - threshold)
    if not scale > 0:
        raise InputError(
            f"weights: the {100 - threshold:g}th percentile of all weights is {scale:g}; raise"
            " reweight_threshold"
        )
    return {label: hist / scale for label, hist in hists.items()}


def jet_weights(
    columns: Columns, reweighting: Reweighting, hists: Mapping[str, np.ndarray]
) -> np.ndarray:
    """Return (N,) float32: the weight of each jet, from the histogram of its class."""
    x, y = (columns[name] for name in reweighting.variables)
    x_bins, y_bins = reweighting.bins
    weights = np.zeros(len(x), np.float32)
    inside = np.ones(len(x), bool)
    if reweighting.discard:
        inside = (x >= min(x_bins)) & (x <= max(x_bins)) & (y >= min(y_bins)) & (y <= max(y_bins))
    for label in reweighting.classes:
        members = (columns[label] == 1) & inside
        # a jet outside the bins takes the nearest bin, unless `discard` leaves it out
        row = np.clip(np.digitize(x[members], x_bins) - 1, 0, len(x_bins) - 2)
        column = np.clip(np.digitize(y[members], y_bins) - 1, 0, len(y_bins) - 2)
        weights[members] = np.asarray(hists[label], np.float32)[row, column]
    if reweighting.base:
        weights *= columns[reweighting.base]
    return weights


def make_histograms(
    chunks: Iterable[Columns], reweighting: Reweighting
) -> tuple[Histograms, int, int]:
    """Compute the histograms of weights from chunks of jets.

    Returns (histograms, number of jets inside the bins, number of all jets). With a base weight,
    `chunks` is iterated twice and the weights of all jets are in memory at once (4 bytes a jet),
    because a percentile of them sets the scale. Raises InputError as `weights_by_bin` does.
    """
    maker = HistogramMaker(reweighting)
    for columns in chunks:
        maker.fill(columns)
    hists = maker.weights_by_bin()
    if reweighting.base:
        weights = [jet_weights(columns, reweighting, hists) for columns in chunks]
        hists = scale_base(hists, np.concatenate(weights), reweighting.threshold)
    return hists, maker.num_entries, maker.jets


# ------------------------------------------------------------------------------ sampling an epoch


class Sampler:
    """Draw the jets of an epoch by their weights."""

    def __init__(self, weights: np.ndarray, most_copies: int = MOST_COPIES) -> None:
        """Take the weight of each jet, (N,).

        NaN and negative weights count as 0, those above 1 as 1. Raises InputError if all are 0.
        """
        self.weights = weights
        total = sum(float(chances.sum()) for chances in map(_chances, _blocks(weights)))
        if not total > 0:
            raise InputError(
                "no jet can be drawn: all weights are 0 (or NaN); see 'weights' in the data config"
            )
        self.copies = min(int(len(weights) // max(total, 1.0)), most_copies)
        """Copies of a jet of weight 1 in an epoch."""
        self.size = max(round(self.copies * total), 1)
        """Jets in each epoch."""
        self._per_chance = self.size / total

    def draw(self, rng: np.random.Generator) -> np.ndarray:
        """Return (size,) int64: the epoch's jets, block by block, a jet's copies together.

        This is systematic sampling. Each jet is an interval whose length is its average number of
        copies; the intervals follow each other in random order. Points at distance 1, from a random
        start, select the jets in whose intervals they fall.
        """
        start = rng.random()
        end = 0.0  # of the last interval so far
        first = 0  # position of the block's first jet
        parts = []
        for block in _blocks(self.weights):
            order = rng.permutation(len(block))
            ends = end + np.cumsum(_chances(block)[order] * self._per_chance)
            # the number of points up to each interval's end; their differences are the copies
            marks = np.floor(np.concatenate([[end], ends]) + start).astype(np.int64)
            parts.append(first + np.repeat(order, np.diff(marks)))
            end = ends[-1]
            first += len(block)
        positions = np.concatenate(parts)
        # by a rounding error, the last interval may end just before the last point
        missing = self.size - len(positions)
        return (
            np.concatenate([positions, positions[-missing:]])
            if missing > 0
            else positions[: self.size]
        )


def _blocks(weights: np.ndarray) -> Iterator[np.ndarray]:
    return (weights[start : start + BLOCK] for start in range(0, len(weights), BLOCK))


def _chances(weights: np.ndarray) -> np.ndarray:
    return np.clip(np.nan_to_num(weights.astype(np.float64)), 0, 1)


# --------------------------------------------------------------------- histograms of a data config


def histograms_from(tables: object, reweighting: Reweighting, where: str) -> Histograms:
    """Convert `reweight_hists` to arrays: class -> float32 in the shape of the bins.

    where: names the section in errors. Raises InputError where the tables do not fit the classes
    and the bins.
    """
    if not isinstance(tables, Mapping) or set(tables) != set(reweighting.classes):
        raise InputError(
            f"{where}: reweight_hists must give one histogram for each of"
            f" {', '.join(reweighting.classes)}"
        )
    try:
        hists = {label: np.asarray(tables[label], np.float32) for label in reweighting.classes}
    except (TypeError, ValueError):
        raise InputError(f"{where}: reweight_hists must be tables of numbers") from None
    for label, hist in hists.items():
        if hist.shape != reweighting.shape:
            raise InputError(
                f"{where}: reweight_hists: '{label}' has {hist.shape} bins, reweight_vars"
                f" {reweighting.shape}; make them the same"
            )
    return hists
