"""The weights of jets: histogram reweighting as in weaver-core 0.5.3, and drawing jets by weight.

**What a weight is.** With `use_precomputed_weights` it is the product of `weight_branches`.
Otherwise it comes from two-dimensional histograms of `reweight_vars`, one for each of
`reweight_classes`, filled with the selected jets of the training files:

    flat   weight of a bin = ref / content, at most 1, where ref is the `reweight_threshold`-th
           percentile of the bins that hold more than 1 % of the median content: each class becomes
           flat in both variables
    ref    weight of a bin = content of the first class / content, divided by the
           (100 - threshold)-th percentile of these ratios, at most 1: each class gets the shape of
           the first

Then classes are scaled to equal sums of weights (times `class_weights`), the most populous ones
down. `reweight_basewgt`, an expression, multiplies into the histograms' contents and into each
jet's weight. Jets outside the bins have weight 0 unless `reweight_discard_under_overflow` is false;
jets of no class have weight 0. The histograms are kept with the prepared training data
(`reweight_hists` in dataset.json, in weaver-core's own form in data.auto.yaml) and serve the
validation set too; histograms and weights equal weaver-core's to the bit.

**What a weight does in training.** weaver-core uses weights for sampling, never in the loss. Of
each chunk that it fetches from disk it keeps a jet where a uniform number falls below the weight,
after repeating each jet n times, n = jets // jets kept in a first trial, at most 10. So a jet
appears n * min(weight, 1) times on average, and the number of jets in an epoch fluctuates.
`Sampler` gives a jet the same average number of copies in an epoch; but n is that of the whole data
set, the number of copies is that average rounded up or down by chance (weaver-core's fluctuates
binomially), and each epoch has the same number of jets. An epoch's draw depends on its generator
alone, hence on seed and epoch.

`weights: {use_as: loss}`, which weaver-core does not have, takes each jet once and multiplies its
loss by the weight instead; that is the choice for weights above 1, which sampling cuts to 1.
Validation always takes each jet once and weights its loss (weaver-core samples there too): the same
average without the noise. The test set has no weights.
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
# weaver-core keeps the sum of weights of the smallest class below its number of jets, for some
# chance in the drawing
HEADROOM = 0.9
BLOCK = 2**18  # jets handled at a time: what is held in memory does not grow with the data set


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
    """Leave out jets outside the bins; else they count for the nearest bin."""
    base: str | None
    """Column of the weight that each jet has beforehand."""

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the columns that the weights are made of."""
        return (
            *dict.fromkeys((*self.variables, *self.classes)),
            *((self.base,) if self.base else ()),
        )

    @property
    def shape(self) -> tuple[int, int]:
        """Bins in the two variables."""
        return len(self.bins[0]) - 1, len(self.bins[1]) - 1


Columns = Mapping[str, np.ndarray]
"""The columns of a Reweighting for some jets, (N,) each."""
Histograms = dict[str, np.ndarray]
"""Class -> weight by bin, float32, in the shape of the bins."""


class HistogramMaker:
    """Fills the histograms of a reweighting chunk by chunk.

    `weights_by_bin` makes the weights of them.
    """

    def __init__(self, reweighting: Reweighting) -> None:
        """Begin with empty histograms."""
        self.reweighting = reweighting
        self.shape = tuple(n + 2 for n in reweighting.shape)  # with underflow and overflow
        self.contents: Histograms = {
            label: np.zeros(self.shape).ravel() for label in reweighting.classes
        }
        self.jets = 0
        self.used = 0
        """Jets in the bins, added up over the classes."""

    def fill(self, columns: Columns) -> None:
        """Add a chunk of jets."""
        chosen = self.reweighting
        # the bin of each jet in each variable, then its number in the flat histogram, (N,)
        numbers_by_variable = []
        for name, bins in zip(chosen.variables, chosen.bins, strict=True):
            values = columns[name]
            if not chosen.discard:
                values = np.clip(values, min(bins), max(bins))
            numbers_by_variable.append(_bin_numbers(values, bins))
        numbers = np.ravel_multi_index(numbers_by_variable, self.shape)
        self.jets += len(numbers)

        for label, content in self.contents.items():
            members = columns[label] == 1
            counts = np.bincount(numbers[members], minlength=len(content))
            self.used += int(self._inner(counts).sum())
            weights = columns[chosen.base][members] if chosen.base else np.ones(int(members.sum()))
            # The content so far goes in first: the sums are then those of one pass over all jets,
            # to the last bit.
            self.contents[label] = np.bincount(
                np.concatenate([np.arange(len(content)), numbers[members]]),
                np.concatenate([content, weights]),
                minlength=len(content),
            )

    def _inner(self, content: np.ndarray) -> np.ndarray:
        """The bins of a flat histogram without underflow and overflow."""
        return content.reshape(self.shape)[1:-1, 1:-1]

    def weights_by_bin(self) -> Histograms:
        """The histograms of weights, before `reweight_basewgt` is brought to its scale.

        Raises InputError for an empty class.
        """
        chosen = self.reweighting
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
        reference = contents[chosen.classes[0]]
        # an empty bin divides by zero: its weight becomes 0
        with np.errstate(divide="ignore", invalid="ignore"):
            for label, content in contents.items():
                if chosen.method == "flat":
                    weights[label] = _flat(content, chosen.threshold)
                else:
                    weights[label] = _to_reference(content, reference, chosen.threshold)

            # Scale each class so that all have the same sum of weights (times their class weight).
            # The types are weaver-core's: a class weight of the config is a Python number, and the
            # quotient then stays float32.
            factors = chosen.class_weights or np.ones(len(weights))
            sums = {}
            for label, factor in zip(weights, factors, strict=True):
                sums[label] = np.sum(contents[label] * weights[label]) / factor
            smallest = min(sums.values()) * HEADROOM
            for label in weights:
                weights[label] *= float(smallest) / sums[label]
        return weights


def _bin_numbers(values: np.ndarray, bins: Sequence[float]) -> np.ndarray:
    """Number of each value's bin, 0 for underflow; the last bin includes its upper edge.

    As numpy.histogramdd counts.
    """
    edges = np.asarray(bins)
    numbers = np.searchsorted(edges, values, side="right")
    numbers[values == edges[-1]] -= 1
    return numbers


def _flat(content: np.ndarray, threshold: float) -> np.ndarray:
    populated = content[content > np.median(content[content > 0]) * 0.01]
    reference = np.percentile(populated, threshold)
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
    """With `reweight_basewgt`: scale so that a percentile of all jets' weights (N,) becomes 1.

    The percentile is the (100 - threshold)-th. Raises InputError where it is 0.
    """
    scale = np.percentile(weights, 100 - threshold)
    if not scale > 0:
        raise InputError(
            f"weights: the {100 - threshold:g}th percentile of all weights is {scale:g}; raise"
            " reweight_threshold"
        )
    return {label: hist / scale for label, hist in hists.items()}


def jet_weights(
    columns: Columns, chosen: Reweighting, hists: Mapping[str, np.ndarray]
) -> np.ndarray:
    """(N,) float32: the weight of each jet by its class and its bin."""
    x, y = (columns[name] for name in chosen.variables)
    x_bins, y_bins = chosen.bins
    weights = np.zeros(len(x), np.float32)
    inside = np.ones(len(x), bool)
    if chosen.discard:
        inside = (x >= min(x_bins)) & (x <= max(x_bins)) & (y >= min(y_bins)) & (y <= max(y_bins))
    for label in chosen.classes:
        members = (columns[label] == 1) & inside
        # a jet outside, where it counts, takes the nearest bin
        row = np.clip(np.digitize(x[members], x_bins) - 1, 0, len(x_bins) - 2)
        column = np.clip(np.digitize(y[members], y_bins) - 1, 0, len(y_bins) - 2)
        weights[members] = np.asarray(hists[label], np.float32)[row, column]
    if chosen.base:
        weights *= columns[chosen.base]
    return weights


def make_histograms(chunks: Iterable[Columns], chosen: Reweighting) -> tuple[Histograms, int, int]:
    """Histograms of weights, the jets that they use and all jets, from chunks of jets.

    With a base weight the chunks are gone through twice, and all jets' weights are held in memory
    at once (4 bytes a jet): a percentile of them sets the scale.
    """
    maker = HistogramMaker(chosen)
    for columns in chunks:
        maker.fill(columns)
    hists = maker.weights_by_bin()
    if chosen.base:
        weights = [jet_weights(columns, chosen, hists) for columns in chunks]
        hists = scale_base(hists, np.concatenate(weights), chosen.threshold)
    return hists, maker.used, maker.jets


# ------------------------------------------------------------------------------- drawing an epoch


class Sampler:
    """Draws the jets of an epoch by their weights.

    weights: (N,), NaN and negative ones count as 0, those above 1 as 1. Raises InputError where no
    jet can be drawn.
    """

    def __init__(self, weights: np.ndarray, most_copies: int = MOST_COPIES) -> None:
        """Take the weight of each jet; (N,). Raises InputError if all are 0."""
        self.weights = weights
        total = sum(float(chances.sum()) for chances in map(_chances, _blocks(weights)))
        if not total > 0:
            raise InputError(
                "no jet can be drawn: all weights are 0 (or NaN); see 'weights' in the data config"
            )
        self.copies = min(int(len(weights) // max(total, 1.0)), most_copies)
        """The copies of a jet of weight 1 in an epoch."""
        self.size = max(round(self.copies * total), 1)
        """Jets in each epoch."""
        self._per_chance = self.size / total

    def draw(self, rng: np.random.Generator) -> np.ndarray:
        """(size,) int64: positions of the epoch's jets, block by block, a jet's copies together.

        Systematic sampling: jets in random order lie end to end on a line, each as long as its
        average number of copies, and each whole step from a random start picks the jet that it
        falls on.
        """
        start = rng.random()
        end = 0.0  # of the line, so far
        first = 0  # jet of the block
        parts = []
        for block in _blocks(self.weights):
            order = rng.permutation(len(block))
            ends = end + np.cumsum(_chances(block)[order] * self._per_chance)
            # whole steps up to each jet's end; the differences are the jets' copies
            marks = np.floor(np.concatenate([[end], ends]) + start).astype(np.int64)
            parts.append(first + np.repeat(order, np.diff(marks)))
            end = ends[-1]
            first += len(block)
        drawn = np.concatenate(parts)
        # the line may end a rounding error before its last whole step
        missing = self.size - len(drawn)
        return np.concatenate([drawn, drawn[-missing:]]) if missing > 0 else drawn[: self.size]


def _blocks(weights: np.ndarray) -> Iterator[np.ndarray]:
    return (weights[start : start + BLOCK] for start in range(0, len(weights), BLOCK))


def _chances(weights: np.ndarray) -> np.ndarray:
    return np.clip(np.nan_to_num(weights.astype(np.float64)), 0, 1)


# ------------------------------------------------------------------------------------- the config


def histograms_from(tables: object, chosen: Reweighting, where: str) -> Histograms:
    """`reweight_hists` as numbers: class -> (bins, bins).

    Raises InputError where they do not fit the classes and the bins.
    """
    if not isinstance(tables, Mapping) or set(tables) != set(chosen.classes):
        raise InputError(
            f"{where}: reweight_hists must give one histogram for each of"
            f" {', '.join(chosen.classes)}"
        )
    try:
        hists = {label: np.asarray(tables[label], np.float32) for label in chosen.classes}
    except (TypeError, ValueError):
        raise InputError(f"{where}: reweight_hists must be tables of numbers") from None
    for label, hist in hists.items():
        if hist.shape != chosen.shape:
            raise InputError(
                f"{where}: reweight_hists: '{label}' has {hist.shape} bins, reweight_vars"
                f" {chosen.shape}; make them the same"
            )
    return hists
