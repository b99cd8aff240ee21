"""The parts of metrics.json: what is measured on the test jets, as dataclasses.

A measured number is an Interval. The calibrations are compared on the same jets: `model` (this
network), `standard` (jetPt as it is in the file), `trees` (boosted trees, where they were trained),
`baseline` (an earlier model, where one is named) and `uncorrected` (jetRawPt, where it is among the
observers).

A class with OMIT_DEFAULTS leaves fields that have their default value out of the file.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar, Generic, TypeVar

from common.choices import (
    MAX_COVERAGE_POINTS,
    MAX_FLAVOUR_RATIO,
    MAX_RESOLUTION_RATIO,
    MAX_TAIL_RATIO,
)

Value = TypeVar("Value")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Interval:
    """A measured number with the ends of its confidence interval."""

    value: float
    low: float
    high: float

    def text(self, scale: float = 1.0, digits: int = 1, *, sign: str = "+", unit: str = "") -> str:
        """Return the interval as text, "+4.1 [3.2, 5.0]"; with `sign` empty without the plus.

        The unit, with the space before it, follows the value.
        """
        value, low, high = (scale * end for end in (self.value, self.low, self.high))
        return f"{value:{sign}.{digits}f}{unit} [{low:.{digits}f}, {high:.{digits}f}]"

    def percent(self, scale: float = 1.0, digits: int = 1, sign: str = "+") -> str:
        """Return the interval as text, "+4.1 % [3.2, 5.0]".

        scale: 100 for a fraction, 1 for a number that is per cent already.
        """
        return self.text(scale, digits, sign=sign, unit=" %")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Calibrated(Generic[Value]):
    """The same quantity of each calibration that was measured."""

    OMIT_DEFAULTS: ClassVar[bool] = True

    model: Value
    standard: Value
    trees: Value | None = None
    baseline: Value | None = None
    uncorrected: Value | None = None

    def by_calibration(self) -> dict[str, Value]:
        """Return calibration -> value, in the order of legends."""
        # Not every run compares trees or an earlier model, and not every file has the raw pT.
        values = {
            "model": self.model,
            "standard": self.standard,
            "trees": self.trees,
            "baseline": self.baseline,
            "uncorrected": self.uncorrected,
        }
        return {name: value for name, value in values.items() if value is not None}


@dataclasses.dataclass(frozen=True, kw_only=True)
class PtBin:
    """A bin of pT (GeV) in a region of eta."""

    region: str
    """barrel, endcap or all."""
    pt_range: str
    pt_low: float
    pt_high: float | None
    """None for a bin without an upper edge."""
    num_jets: int

    def is_whole(self, lowest: float) -> bool:
        """Return whether it holds all jets of its region from `lowest` (GeV) up."""
        return self.pt_low == lowest and self.pt_high is None


# ------------------------------------------------------------------------ response and resolution


@dataclasses.dataclass(frozen=True, kw_only=True)
class Response:
    """Median and widths of the response of one calibration; the widths are relative to the median.

    resolution: the interquartile range; half_width: half of the central 68 %.
    """

    median: Interval
    resolution: Interval
    half_width: Interval


@dataclasses.dataclass(frozen=True, kw_only=True)
class ResponseBin(Calibrated[Response], PtBin):
    """Response in a bin of generated pT, and the gain of the model (per cent, paired)."""

    pt: float
    """Median generated pT of the bin's jets (GeV)."""
    gain: Interval
    gain_half_width: Interval
    gain_over_trees: Interval | None = None
    gain_over_baseline: Interval | None = None
    effective_jets: float | None = None
    """Jets of equal weight that would have the same error; None where each jet counts once."""
    ratio: dict[str, Interval] = dataclasses.field(default_factory=dict)
    """Calibration -> its median response over that of the standard JEC, paired; empty in runs of
    earlier versions.
    """


@dataclasses.dataclass(frozen=True, kw_only=True)
class Weighted:
    """The summary with each jet counted eventWeight times.

    A bin whose gain is too uncertain is in MetricsRecord.unmeasured instead.
    """

    gain: Interval | None
    """None where it is too uncertain, as MetricsRecord.unmeasured says."""
    gain_half_width: Interval | None
    gain_over_baseline: Interval | None
    resolution: Calibrated[Interval] | None
    bins: list[ResponseBin]
    effective_jets: float
    """Of all jets above 30 GeV (Kish)."""
    gain_over_trees: Interval | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Moments:
    """Mean of the response, and its normal core with errors of one standard deviation (bootstrap).

    Without a core there is the mean alone: fewer than 20 jets, or quartiles that coincide.
    """

    OMIT_DEFAULTS: ClassVar[bool] = True

    mean: float
    core_mean: float | None
    core_sigma: float | None
    core_mean_error: float | None = None
    core_sigma_error: float | None = None
    core_resolution: float | None = None
    """core_sigma / core_mean."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class CoreBin(Calibrated[Moments]):
    """Means and normal cores in one bin of the summary."""

    bin: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Distribution:
    """Histogram of the response above 30 GeV."""

    edges: list[float]
    """Edges of the histogram's bins, one more than there are counts."""
    counts: dict[str, Calibrated[list[int]]]
    """Region -> calibration -> jets in each bin."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class PileupSlice(Calibrated[Response], PtBin):
    """Response in a slice of a pile-up column, and the gain of the model (per cent, paired)."""

    low: float
    high: float
    middle: float
    """Median of the column."""
    gain: Interval


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pileup:
    """Response and resolution against pile-up."""

    column: str
    """Name of the column in the file."""
    slices: list[PileupSlice]
    """Those with enough jets."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TailBin(Calibrated[Interval], PtBin):
    """The share of jets in a tail of the response, a fraction."""

    tail: str
    difference: Interval
    """The model's share minus that of the standard JEC, on the same jets."""


# ------------------------------------------------------------------------------- closure, flavour


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClosureBin(Calibrated[Interval], PtBin):
    """Bias (median response - 1) in a bin that the gate judges."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Closure:
    """Bias of the response from `from_gev` up."""

    from_gev: float
    worst: ClosureBin | None
    """The bin whose interval lies farthest from zero; None without any bin."""
    bins: list[ClosureBin]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ResidualBin(PtBin):
    """Bias (median response - 1) in a bin with the model's residual correction and without it."""

    with_residual: Interval
    without: Interval
    measured: bool
    """False where the interval is too wide (ResidualEffect.measured_to)."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ResidualGain:
    """Resolution gain above 30 GeV (per cent) with the correction and without; paired."""

    with_residual: Interval
    without: Interval
    difference: Interval


@dataclasses.dataclass(frozen=True, kw_only=True)
class ResidualEffect:
    """Effect of the model's residual correction on the test jets."""

    bins: list[ResidualBin]
    gain: ResidualGain | None
    """None with too few jets."""
    measured_to: float
    """Largest half-width of an interval with which a bin counts as measured."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class EtaBin(Calibrated[Interval]):
    """Bias in a slice of eta."""

    eta_low: float
    eta_high: float
    num_jets: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class ResidualSlice(Calibrated[Interval]):
    """Bias in a slice of another quantity of the jet or its event."""

    low: float
    high: float
    middle: float
    """Median of the quantity."""
    num_jets: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class FlavourBin(Calibrated[Interval], PtBin):
    """Median response of the jets of one flavour."""

    flavour: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class FlavourSpread:
    """Standard deviation of the median response between the flavours of one region.

    The statistical noise of the medians is subtracted (physics.response.spread_squared); the spread
    is 0 if noise explains all of it. In runs of earlier versions it is the largest minus the
    smallest median.
    """

    OMIT_DEFAULTS: ClassVar[bool] = True

    flavours: list[str]
    """Those with enough jets; the others are in MetricsRecord.unmeasured."""
    spread: Calibrated[Interval]
    reduction: Interval | None
    """Share of the standard JEC's spread that the model removes (per cent, paired); None where that
    spread may be zero.
    """
    uds_minus_g: Calibrated[Interval] | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flavour:
    """Response by flavour, and its spread in each region from `from_gev` up."""

    from_gev: float
    regions: dict[str, FlavourSpread]
    bins: list[FlavourBin]


# ---------------------------------------------------------------------------- uncertainty of a jet


@dataclasses.dataclass(frozen=True, kw_only=True)
class Band:
    """Two opposite quantiles, such as q16 and q84."""

    low: str
    high: str
    nominal: float
    """The share of jets that should lie between them."""
    coverage: Interval
    num_crossed: int
    """Jets whose lower quantile lies above the higher one."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Below:
    """The share of jets below one quantile, which is its level if the quantile is right."""

    column: str
    level: float
    share: Interval


@dataclasses.dataclass(frozen=True, kw_only=True)
class CoverageBin(PtBin):
    """Coverage of the band in a bin of the pT of the file."""

    pt: float
    """Median pT of the file (GeV)."""
    coverage: Interval
    half_width: float
    """Mean half-width of the band."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class CoverageRegion:
    """Coverage of the band in a region of eta, or in a wide bin of the pT of the file in it."""

    region: str
    """barrel, endcap or all."""
    pt_range: str
    """GeV; empty for any pT."""
    num_jets: int
    coverage: Interval


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeasuredWidth:
    """The measured half-width of log(pT / pT_gen) beside the mean predicted one."""

    OMIT_DEFAULTS: ClassVar[bool] = True

    measured: Interval
    predicted: float
    num_jets: int | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pull:
    """(log(pT_gen / pT) - median) / predicted half-width."""

    median: Interval
    half_width: Interval


@dataclasses.dataclass(frozen=True, kw_only=True)
class SamePt:
    """Widths of the two halves of the jets of each pT, by the predicted width."""

    narrow: MeasuredWidth
    wide: MeasuredWidth
    ratio: Interval
    """Measured width of the wide half over that of the narrow one."""
    predicted_ratio: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Uncertainty:
    """How well the quantiles of a network describe the jets (physics.uncertainty)."""

    columns: list[str]
    num_jets: int
    num_without_answer: int
    bands: list[Band]
    """The band nearest to 68 % first."""
    below: list[Below]
    pt: list[CoverageBin]
    regions: list[CoverageRegion] = dataclasses.field(default_factory=list)
    """Those with enough jets."""
    widths: list[MeasuredWidth]
    pull: Pull
    same_pt: SamePt | None


# ----------------------------------------------------------------------------- trees and inputs


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trees:
    """The boosted trees that the network is compared with, or why there are none."""

    OMIT_DEFAULTS: ClassVar[bool] = True

    reason: str = ""
    """Why there are none, as a sentence without its full stop; empty where there are."""
    columns: list[str] = dataclasses.field(default_factory=list)
    """Columns that they take."""
    missing: list[str] = dataclasses.field(default_factory=list)
    """Columns that they would take, but that the files lack."""
    num_training_jets: int = 0
    num_trees: int = 0
    seconds: float = 0.0
    """Duration of the training."""
    scikit_learn: str = ""
    """Its version."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class InputImportance:
    """Importance of a group of inputs: the gain that is lost when it is shuffled among the jets."""

    name: str
    inputs: list[str]
    """The model's inputs that were shuffled together."""
    gain_lost: list[float]
    """Of each shuffling, in points of the gain (per cent of the standard JEC's resolution)."""

    @property
    def mean(self) -> float:
        """Mean of the shufflings."""
        return sum(self.gain_lost) / len(self.gain_lost)

    @property
    def spread(self) -> float:
        """Standard deviation of the shufflings; 0 of a single one."""
        squares = sum((gain - self.mean) ** 2 for gain in self.gain_lost)
        return float((squares / max(len(self.gain_lost) - 1, 1)) ** 0.5)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Importances:
    """Importance of each group of inputs, the largest first."""

    num_jets: int
    """Test jets above 30 GeV on which it was measured."""
    gain: float
    """On these jets, with all inputs in place (per cent)."""
    groups: list[InputImportance]


# ----------------------------------------------------------------------------- how it was measured


@dataclasses.dataclass(frozen=True, kw_only=True)
class Unmeasured:
    """A number that could not be measured, and why."""

    quantity: str
    where: str
    """Which jets."""
    num_jets: int
    reason: str

    @property
    def text(self) -> str:
        """A sentence without its full stop."""
        return f"{self.quantity}, {self.where}: {self.reason}"


# ----------------------------------------------------------------------------------------- the gate


@dataclasses.dataclass(frozen=True, kw_only=True)
class GateSettings:
    """Limits of the gate, and the seed of the bootstrap."""

    OMIT_DEFAULTS: ClassVar[bool] = True

    min_improvement: float
    """Per cent."""
    max_closure: float
    """A fraction: largest |median response - 1|."""
    seed: int
    gate: str = "default"
    """default or strict (common.choices.GATES)."""
    gate_regions: str = "both"
    """Regions of eta that the gate judges (common.choices.GATE_REGIONS)."""
    max_resolution_ratio: float = MAX_RESOLUTION_RATIO
    """Resolution over that of the standard JEC."""
    max_tail_ratio: float = MAX_TAIL_RATIO
    """Share of jets in the tails over that of the standard JEC."""
    max_flavour_ratio: float = MAX_FLAVOUR_RATIO
    """Flavour spread over that of the standard JEC."""
    max_coverage_points: float = MAX_COVERAGE_POINTS
    """Largest difference of the coverage from its nominal value, in percentage points."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class GateCheck:
    """One number that the gate judged; value, standard, limit and margin have the unit `unit`.

    `margin` is how far the value is on the allowed side of the limit: limit - |value|, or
    value - limit for the gain. The gate decides by its interval, which is corrected for the number
    of tests, except for the gain.
    """

    quantity: str
    where: str
    """Which jets."""
    num_jets: int
    unit: str
    """'%', 'points' (of per cent) or '' for a plain number."""
    value: float
    standard: float | None
    """The same of the standard JEC; None where it has no such number."""
    limit: float
    margin: Interval
    passed: bool


@dataclasses.dataclass(frozen=True, kw_only=True)
class Gate:
    """Everything that the gate judged, and what it could not judge."""

    level: float
    """Confidence level of the margins, corrected for `num_tests`; the gain has the level of all
    intervals.
    """
    num_tests: int
    checks: list[GateCheck]
    """The gain first."""
    unmeasured: list[Unmeasured]


@dataclasses.dataclass(frozen=True, kw_only=True)
class EdgeStep:
    """Median responses beside an edge of a model's valid range; None where jets are too few."""

    edge: str
    num_inside: int
    num_outside: int
    model_inside: Interval | None
    standard_inside: Interval | None
    """Standard JEC for the same jets."""
    standard_outside: Interval | None
    """Of the jets to which the raw model returns the standard correction unchanged."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Inference:
    """Speed of ONNX Runtime alone, with prepared inputs in memory."""

    jets_per_second: float | None
    """None without jets."""
    batch_size: int
    threads: int
    provider: str
    """CPU or CUDA."""
    processor: str
    onnxruntime: str = ""
    """Its version."""
