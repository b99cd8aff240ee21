"""The records of a run: what its JSON files hold, as dataclasses that can be loaded and saved.

    record = SearchRecord.load(folder.search)      # InputError where there is no such file
    record = SearchRecord.find(folder.search)      # None where there is no such file
    record.save(folder.search)

Each file carries the version of its form as `format`. A file without one was written before forms
had versions, and is read as version 1. A file of a later version is refused. Keys that a class does
not know are ignored, so that an earlier version of the project may read a file with more in it.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, Literal, Self, TypeAlias, TypeVar, get_origin

from common import storage
from common.errors import InputError
from common.measurements import (
    Calibrated,
    Closure,
    CoreBin,
    Distribution,
    EdgeStep,
    EtaBin,
    Flavour,
    Gate,
    GateSettings,
    Importances,
    Inference,
    Interval,
    Pileup,
    ResidualEffect,
    ResidualSlice,
    ResponseBin,
    TailBin,
    Trees,
    Uncertainty,
    Unmeasured,
    Weighted,
)
from common.yaml_text import kind_of

Value = TypeVar("Value")

JsonObject: TypeAlias = dict[str, Any]
"""A JSON object with any keys."""

TrialStatus = Literal[
    "Succeeded", "Failed", "EarlyStopped", "Killed", "MetricsUnavailable", "Running", "Pending"
]
STATUSES_WITH_OBJECTIVE: tuple[TrialStatus, ...] = ("Succeeded", "EarlyStopped")
"""Status of the trials whose objective counts."""


@functools.cache
def _converter() -> Any:
    """Return the one converter between JSON values and dataclasses."""
    import cattrs  # where it is used: `--help` needs no records
    from cattrs.gen import make_dict_unstructure_fn

    converter = cattrs.Converter()

    def structure_float(value: Any, _: Any) -> float:
        number = float(value)  # OverflowError for a whole number that no float holds
        # JSON has one kind of number: a float that was written as 3 stays 3 when written again.
        return value if isinstance(value, int) else number

    converter.register_structure_hook(float, structure_float)

    def is_dataclass(cls: Any) -> bool:
        # A generic one with its parameter, Calibrated[Interval], is no class of its own.
        return dataclasses.is_dataclass(get_origin(cls) or cls)

    # Optional parts that a record lacks are left out of its file.
    converter.register_unstructure_hook_factory(
        is_dataclass,
        lambda cls: make_dict_unstructure_fn(
            cls, converter, _cattrs_omit_if_default=getattr(cls, "OMIT_DEFAULTS", False)
        ),
    )
    return converter


def _parse(content: object, form: type[Value], where: str) -> Value:
    """Return the content of a JSON file as a value of a type.

    Raises InputError where it is none.
    """
    try:
        value: Value = _converter().structure(content, form)
    except Exception as error:  # cattrs raises groups of errors of many types
        import cattrs

        reasons = "; ".join(cattrs.transform_error(error))
        # A list of records has no name of its own.
        name = getattr(form, "__name__", str(form))
        raise InputError(f"{where} does not hold a valid {name}: {reasons}") from error
    return value


def plain(record: Any) -> JsonObject:
    """Return the fields of a dataclass as JSON values, without the version of a file's form."""
    content: JsonObject = _converter().unstructure(record)
    return content


class Record:
    """A dataclass that is a JSON file of a run."""

    FORMAT: ClassVar[int] = 1

    def save(self, uri: str) -> None:
        """Write the file whole, or not at all."""
        storage.write_json(uri, self.as_json())

    def as_json(self) -> JsonObject:
        """Return the content of the file, the version of its form first."""
        return {"format": self.FORMAT, **plain(self)}

    @classmethod
    def load(cls, uri: str) -> Self:
        """Read the file at `uri`.

        Raises InputError where it is missing, of a later version, or not of this form.
        """
        record = cls.find(uri)
        if record is None:
            raise InputError(f"{uri} is missing; the step that writes it has not ended")
        return record

    @classmethod
    def find(cls, uri: str) -> Self | None:
        """Read the file at `uri`; None where it is missing. Raises InputError as `load` does."""
        content = storage.find_json(uri)
        return None if content is None else cls.from_json(content, uri)

    @classmethod
    def find_readable(cls, uri: str) -> Self | None:
        """As `find`, of a file that the run writes anew: a damaged one counts as missing.

        A line on stderr says so. Raises InputError for a file of a later version.
        """
        if not storage.exists(uri):
            return None
        try:
            content = json.loads(storage.read_bytes(uri))
        except (ValueError, RecursionError):
            content = None
        if isinstance(content, Mapping) and isinstance(content.get("format"), int):
            cls._refuse_later_version(content, uri)
        try:
            return cls.from_json(content, uri)
        except (InputError, TypeError, AttributeError):
            print(f"note: {uri} is damaged and ignored", file=sys.stderr, flush=True)
            return None

    @classmethod
    def from_json(cls, content: Mapping[str, Any], where: str = "the record") -> Self:
        """Return the record that the content of a file describes.

        Raises InputError as `load` does.
        """
        if not isinstance(content, Mapping):
            raise InputError(f"{where} holds {kind_of(content)}, not names with values")
        cls._refuse_later_version(content, where)
        return _parse(content, cls, where)

    @classmethod
    def _refuse_later_version(cls, content: Mapping[str, Any], where: str) -> None:
        version = content.get("format", 1)
        if not isinstance(version, int):
            raise InputError(
                f"{where} has the format {version!r}, which is not a number; it was not written by"
                " this project"
            )
        if version > cls.FORMAT:
            raise InputError(
                f"{where} has format {version}, and this version of the project reads up to"
                f" {cls.FORMAT}; update the project"
            )


# -------------------------------------------------------------------------------------- run.json


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataSet:
    """One of the three sets of jets of a run: train, val or test."""

    dataset: str
    """URI of the prepared data."""
    jets: int
    """Jets that pass the selection."""
    read: int
    files: int
    fingerprint: str
    """Digest of the files' names, sizes and tags."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunRecord(Record):
    """run.json beyond the run's id and configuration, which common.run.Run adds."""

    data: dict[str, DataSet] = dataclasses.field(default_factory=dict)
    """Split (train, val, test) -> its jets."""
    data_fingerprint: str = ""
    """Digest of the three fingerprints."""
    jet_columns: dict[str, str] = dataclasses.field(default_factory=dict)
    """Split -> URI of prepared jet-level columns, for the boosted trees of the report."""
    no_jet_columns: str = ""
    """Why there are none; also empty in runs of earlier versions."""
    versions: dict[str, str] = dataclasses.field(default_factory=dict)
    """Package -> version; none where it is not installed."""
    git_commit: str = ""
    images: dict[str, str] = dataclasses.field(default_factory=dict)
    """steps and weaver -> the image as the user named it; none on one machine."""
    image_digests: dict[str, str | None] = dataclasses.field(default_factory=dict)
    """The same names -> the image's digest; None if it is not known."""
    shared_jets: dict[str, int] = dataclasses.field(default_factory=dict)
    """"train and test" -> jets that both sets hold."""
    kfp_run: str = ""
    """KFP job that prepared the run."""
    inputs_digest: str = ""
    """Digest of all inputs of the results except the data; empty in runs of earlier versions."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SuccessRecord(Record):
    """last_success/<inputs digest>.json beside the runs: the last completed run."""

    run_id: str
    data_fingerprint: str
    state: str
    """succeeded, or not deployed (the gate)."""
    time: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class UnchangedRecord(Record):
    """unchanged.json: why a run with --if-data-changed did nothing."""

    run_id: str
    job_id: str
    same_as: str
    """URI of the folder of the earlier run."""
    reason: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class StartRecord(Record):
    """start_at.json: the step of --start-at, and the job that starts there."""

    step: str
    job_id: str = ""
    """KFP job that starts there; empty until its step prepare has begun."""


# ------------------------------------------------------- a trial's history.json and options.json


@dataclasses.dataclass(frozen=True, kw_only=True)
class EpochRecord:
    """One epoch of history.json, which weaver writes as a list of epochs."""

    epoch: int
    # None where it was not finite: NaN is no JSON.
    train_loss: float | None = None
    val_loss: float | None = None
    seconds: float | None = None
    jets_per_second: float | None = None
    time: str = ""
    """When it ended, as RFC 3339; empty in files of early versions."""


def find_history(uri: str) -> list[EpochRecord]:
    """Return the epochs of a trial, first to last; none where the file is missing.

    Raises InputError where it is not of this form.
    """
    return _parse(storage.find_json(uri, []), list[EpochRecord], uri)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrialOptions(Record):
    """options.json: the options of a trial, and its best epoch. weaver writes it."""

    OMIT_DEFAULTS: ClassVar[bool] = True

    network_options: JsonObject | None = None
    train_options: JsonObject | None = None
    network_config: str | None = None
    data_config: str | None = None
    num_parameters: int | None = None
    seed: int | None = None
    versions: dict[str, str] | None = None
    best_epoch: int | None = None
    best_metric: float | None = None


# ------------------------------------------------------------------------------------- search.json


@dataclasses.dataclass(frozen=True, kw_only=True)
class Observation:
    """Lowest, highest and last value of one metric of one trial, from a metrics collector."""

    min: float
    max: float
    latest: float


def finite_number(text: str) -> float | None:
    """Return the finite number that a text represents; None for any other text."""
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trial:
    """One trial of an experiment."""

    name: str
    status: TrialStatus
    parameters: dict[str, str]
    """Parameter name as in the experiment -> value as the text that was substituted."""
    metrics: dict[str, Observation]
    reason: str = ""
    """Why it did not succeed; empty if it did."""
    started: str = ""
    finished: str = ""

    @property
    def counts(self) -> bool:
        """Whether its objective counts."""
        return self.status in STATUSES_WITH_OBJECTIVE


@dataclasses.dataclass(frozen=True, kw_only=True)
class Objective:
    """The metric that a search optimises."""

    name: str
    type: Literal["minimize", "maximize"] = "minimize"

    def value(self, trial: Trial) -> float | None:
        """Return the best value that a trial had; None if the trial has none that counts."""
        observation = trial.metrics.get(self.name)
        if observation is None or not trial.counts:
            return None
        return observation.min if self.type == "minimize" else observation.max

    def best(self, values: Iterable[float]) -> float:
        """Return the best of some values."""
        return min(values) if self.type == "minimize" else max(values)

    def best_first(self, trials: Sequence[Trial]) -> list[Trial]:
        """Return the trials, best first, the first of equals first, those without a value last."""
        sign = 1 if self.type == "minimize" else -1

        def rank(trial: Trial) -> tuple[bool, float]:
            value = self.value(trial)
            return value is None, 0.0 if value is None else sign * value

        return sorted(trials, key=rank)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SearchRecord(Record):
    """search.json: all trials of a search, and the optimal one."""

    experiment: str
    objective: Objective
    algorithm: str = "not recorded"
    early_stopping: str = "none"
    seed: int | None = None
    asked: int | None = None
    """Total number of trials that were requested."""
    carried: int = 0
    """Number of trials, the first ones, that belong to earlier experiments."""
    optimal: str
    trials: list[Trial]

    @property
    def best(self) -> Trial:
        """The optimal trial."""
        return self.trial(self.optimal)

    @property
    def best_value(self) -> float:
        """The objective of the optimal trial, which always counts."""
        value = self.objective.value(self.best)
        assert value is not None
        return value

    @property
    def trials_with_values(self) -> list[tuple[Trial, float]]:
        """The trials that have an objective that counts, each with it, in their order."""
        # Like Katib: values of trials that failed or were killed do not count.
        pairs = []
        for trial in self.trials:
            value = self.objective.value(trial)
            if value is not None:
                pairs.append((trial, value))
        return pairs

    def trial(self, name: str) -> Trial:
        """Return the trial of that name. Raises KeyError where there is none."""
        for trial in self.trials:
            if trial.name == name:
                return trial
        raise KeyError(name)

    def value_of(self, name: str | None) -> float | None:
        """Return the objective of the trial of that name.

        None where it has none or does not exist.
        """
        for trial in self.trials:
            if trial.name == name:
                return self.objective.value(trial)
        return None

    @property
    def parameter_names(self) -> list[str]:
        """Names of the parameters in the order of the search space."""
        names: dict[str, None] = {}
        for trial in self.trials:
            names |= dict.fromkeys(trial.parameters)
        return list(names)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ResumedRecord(Record):
    """resumed.json: the trials of a search that were resumed without Katib."""

    settings: dict[str, str]
    """The parameters of the run that their jobs had, as text."""
    names: list[str]
    failed: list[Trial]
    """Trials that failed. The state of the others follows from the files in their folders."""


# ------------------------------------------------------------------------------------- export.json


@dataclasses.dataclass(frozen=True, kw_only=True)
class MemoryRecord:
    """Peak memory of an exported model: bytes by which it grew at each batch size."""

    sizes: list[int]
    growth: list[int]
    bytes_per_jet: int
    budget: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class ParityRecord:
    """How well ONNX Runtime's answers agree with PyTorch's (weaver.onnx.parity)."""

    num_jets: int
    num_answers: int
    share_close: float
    max_difference: float
    worst: str
    levels: list[int]
    batch_sizes: list[int]


@dataclasses.dataclass(frozen=True, kw_only=True)
class RateRecord:
    """How fast a model answers in ONNX Runtime."""

    batch_size: int
    threads: int
    jets_per_second: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelRecord:
    """One model of a Triton repository."""

    model: str
    max_batch_size: int
    memory: MemoryRecord | None = None
    """None where the batch size was given, and nothing was measured."""
    size_bytes: int
    sha256: str
    inputs: dict[str, list[int]]
    """Name -> shape of one jet, -1 for a free size."""
    outputs: list[str]
    parity: ParityRecord
    rates: list[RateRecord] = dataclasses.field(default_factory=list)
    """In ONNX Runtime on the machine of the export; empty in exports of earlier versions."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ResidualPoint:
    """The residual correction measured in a pT bin of validation jets."""

    region: str
    pt: float
    """Median calibrated pT (GeV) of the bin's jets, before the correction."""
    num_jets: int
    needed: float
    """The factor that makes the bin close."""
    error: float
    """Standard deviation of `needed`."""
    applied: float
    """The correction at this pT, after smoothing."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ResidualRecord:
    """The residual correction that an exported model ends with (physics.residual)."""

    num_jets: int
    """Validation jets of the fit."""
    points: list[ResidualPoint]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ValidRangeRecord:
    """The jets that a model is meant for (weaver.onnx.valid_range)."""

    min_pt: float
    """GeV, as max_pt: the 0.1 and 99.9 % quantiles."""
    max_pt: float
    max_abs_eta: float | None
    jets: str
    """Whose quantiles they are: training or validation."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExportRecord(ModelRecord, Record):
    """model/export.json: the exported model, and the raw one beside it."""

    trial: str
    opset: int
    output_columns: list[str] | None = None
    """Names of the answer's columns (median, q16, q84); None where the network gives none."""
    raw: ModelRecord | None = None
    raw_reason: str | None = None
    """Why there is no raw model, although `--raw-model auto` asks for one where it can be."""
    residual: ResidualRecord | None = None
    residual_reason: str | None = None
    """Why the model has no residual correction."""
    versions: str = ""
    valid_range: ValidRangeRecord | None = None
    """For jets outside of it the raw model returns the standard correction; None if pT is not among
    the observers."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelCard(Record):
    """model_card.json: the description of the models for their users."""

    models: list[str]
    """Of the repository: the one that takes features, then the raw one where there is one."""
    run_id: str
    trial: str
    trained_on: dict[str, str] = dataclasses.field(default_factory=dict)
    """Entries of the user's file: era, campaign, jet type, JEC version."""
    notes: str = ""
    """The user's file, where it is text."""
    selection: str = ""
    label: dict[str, str] = dataclasses.field(default_factory=dict)
    num_validation_jets: int = 0
    valid_range: ValidRangeRecord | None = None
    limits: list[str] = dataclasses.field(default_factory=list)
    """What the models cannot do, a sentence each."""
    version: str = ""
    git_commit: str = ""
    data_fingerprint: str = ""
    data_config_digest: str = ""
    packages: str = ""
    performance: dict[str, str] = dataclasses.field(default_factory=dict)
    """Measured on the test jets, with intervals; empty before the evaluation."""
    gate: str = ""
    """Whether the model passed; empty before the evaluation."""


# ------------------------------------------------------------------------------------ metrics.json


@dataclasses.dataclass(frozen=True, kw_only=True)
class MetricsRecord(Record):
    """metrics.json: everything measured on the test jets, and the verdict of the gate."""

    OMIT_DEFAULTS: ClassVar[bool] = True

    passed: bool
    reasons: list[str]
    """Why the gate refuses the model; empty if it passed."""
    run: str
    """URI of the run's folder."""
    run_id: str
    model: str
    trial: str | None
    """The trial that was exported; None where it is not known."""
    baseline: str | None
    """URI of the earlier run's folder that was compared; None without one."""
    config: GateSettings
    gain: Interval | None
    """Resolution gain over the standard JEC above 30 GeV (per cent); None with too few jets."""
    gain_half_width: Interval | None
    gain_over_baseline: Interval | None
    resolution: Calibrated[Interval] | None
    closure: Closure
    flavour: Flavour
    bins: list[ResponseBin]
    curves: list[ResponseBin]
    weighted: Weighted | None
    """None where the jets have no weights, equal ones, or invalid ones."""
    core: list[CoreBin]
    residuals: dict[str, list[ResidualSlice]]
    """Column -> its slices."""
    eta: list[EtaBin]
    distribution: Distribution
    num_jets: int
    num_measured: int
    num_without_answer: int
    num_far: Calibrated[int]
    """Jets off by more than a factor e."""
    interval: float
    """Confidence level of all intervals, a fraction."""
    replicates: int
    """Draws of the bootstrap."""
    inference: Inference | None
    uncertainty: Uncertainty | None = None
    """Of a quantile network."""
    gate: Gate | None = None
    """The gate's checks; None in runs of earlier versions."""
    unmeasured: list[Unmeasured] = dataclasses.field(default_factory=list)
    """What could not be measured, and why."""
    left_out: dict[str, int] = dataclasses.field(default_factory=dict)
    """Cause -> test jets that are in no measurement."""
    residual: ResidualEffect | None = None
    """Of a model that ends with a residual correction."""
    gain_over_trees: Interval | None = None
    """Resolution gain over boosted trees above 30 GeV (per cent)."""
    trees: Trees | None = None
    """None in runs of earlier versions, as are those below."""
    label: dict[str, str] = dataclasses.field(default_factory=dict)
    """The network's target: label -> expression; empty if the model's metadata lack it."""
    test_fingerprint: str = ""
    """Digest of the momenta of the test jets: equal for runs that were tested on the same ones."""
    fine_eta: list[EtaBin] = dataclasses.field(default_factory=list)
    """In the eta bins of CMS's corrections (physics.groups.JERC_ETA_SLICES)."""
    tails: list[TailBin] = dataclasses.field(default_factory=list)
    pileup: Pileup | None = None
    """None where the file has no pile-up column."""
    importances: Importances | None = None
    edges: list[EdgeStep] = dataclasses.field(default_factory=list)
    """Of the range that the model is meant for; empty where it is not known."""
    headline: dict[str, float] = dataclasses.field(default_factory=dict)
    """Name -> number by which runs are compared (reporting.headline)."""


# ------------------------------------------------------------------------------------ service.json


@dataclasses.dataclass(frozen=True, kw_only=True)
class GoldenAnswers:
    """A service's answers to the golden requests."""

    max_difference: dict[str, float]
    """Number of jets in the request -> largest difference from PyTorch's answer."""
    tolerance: float
    answer: JsonObject
    """The body of the answer to one jet (Open Inference Protocol v2)."""
    seconds: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class RoundTrip:
    """How long a service takes for one request."""

    median_ms: float
    min_ms: float
    max_ms: float
    repeats: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class ServiceRecord(Record):
    """service.json: where the model is served, its answers to golden requests, and its speed."""

    name: str
    url: str
    kind: str
    details: JsonObject
    """Data that the backend needs to stop it, such as its pid on one machine."""
    golden: GoldenAnswers
    others: dict[str, dict[str, float]]
    """Name of a further model -> largest difference by number of jets in the request."""
    model_sha256: str | None = None
    round_trips: dict[str, RoundTrip] | None = None
    """Number of jets in the request -> times; None where the service did not answer again."""


# -------------------------------------------------------------------- status.json and summary.json


TERMINATED = "the run was terminated by a user"
"""Reason of a step that was stopped by Terminate in Kubeflow's UI or by `--down`."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class StepStatus:
    """State of one step of a run, or how it ended."""

    state: str
    """running, done, failed or interrupted."""
    reason: str = ""
    time: str = ""
    job_id: str = ""
    """KFP job that the step belongs to."""
    retryable: bool = True
    """Whether another attempt may succeed, although nobody has changed anything."""
    refused: int = 0
    """Later attempts that ended immediately, because the failure is not retryable."""
    attempts: int = 0
    """Attempts of the job that have begun the step's work, since the run last ended."""


class RecordOfSteps(Record):
    """A record that holds the status of each step as `steps`."""

    @classmethod
    def from_json(cls, content: Mapping[str, Any], where: str = "the record") -> Self:
        """As Record.from_json; also reads `repeats`, which was the opposite of `retryable`."""
        steps = content.get("steps") if isinstance(content, Mapping) else None
        if not isinstance(steps, Mapping):  # there are none, or what follows refuses it
            return super().from_json(content, where)
        current_steps = {}
        for name, entry in steps.items():
            current_steps[name] = entry
            if isinstance(entry, Mapping) and "repeats" in entry:
                current_steps[name] = {"retryable": not entry["repeats"], **entry}
        return super().from_json({**content, "steps": current_steps}, where)


@dataclasses.dataclass(frozen=True, kw_only=True)
class StatusRecord(RecordOfSteps):
    """status.json: the step that wrote last, and the same of each step."""

    step: str = "prepare"
    state: str = ""
    reason: str = ""
    time: str = ""
    steps: dict[str, StepStatus] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SummaryRecord(RecordOfSteps):
    """summary.json: how a run ended, and its results."""

    run_id: str
    run: str
    state: str
    """succeeded, not deployed (the gate), unchanged (--if-data-changed), failed or interrupted; or
    ending: not known yet.
    """
    step: str
    """The step that the run ended in."""
    reason: str
    time: str
    steps: dict[str, StepStatus]
    best_trial: str | None = None
    trials: int = 0
    gain_percent: Interval | None = None
    gate: bool | None = None
    gate_settings: GateSettings | None = None
    """Limits of the gate."""
    service: str | None = None
    report: str | None = None
    resume: str = ""
    """The command that resumes a run that did not end well; empty for any other.

    Where a pod wrote it, a shell comment at its end names the missing part, Kubeflow's address.
    """
