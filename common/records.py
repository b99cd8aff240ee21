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
from collections.abc import Sequence
from typing import Any, ClassVar, Literal, Self

from common import storage
from common.errors import InputError

TrialStatus = Literal[
    "Succeeded", "Failed", "EarlyStopped", "Killed", "MetricsUnavailable", "Running", "Pending"
]
COUNTED: tuple[TrialStatus, ...] = ("Succeeded", "EarlyStopped")
"""Status of the trials whose objective counts."""


@functools.cache
def _converter() -> Any:
    """The one converter between JSON values and dataclasses."""
    import cattrs  # where it is used: `--help` needs no records
    from cattrs.gen import make_dict_unstructure_fn

    converter = cattrs.Converter()
    # Optional parts that a record lacks are left out of its file.
    converter.register_unstructure_hook_factory(
        dataclasses.is_dataclass,
        lambda cls: make_dict_unstructure_fn(
            cls, converter, _cattrs_omit_if_default=getattr(cls, "OMIT_DEFAULTS", False)
        ),
    )
    return converter


class Record:
    """A dataclass that is a JSON file of a run."""

    FORMAT: ClassVar[int] = 1

    def save(self, uri: str) -> None:
        """Write the file whole, or not at all."""
        storage.write_json(uri, self.as_json())

    def as_json(self) -> dict[str, Any]:
        """The content of the file."""
        return {"format": self.FORMAT, **_converter().unstructure(self)}

    @classmethod
    def load(cls, uri: str) -> Self:
        """Read the file at `uri`.

        Raises InputError where it is missing, of a later version, or not of this form.
        """
        record = cls.find(uri)
        if record is None:
            raise InputError(f"{uri} is missing")
        return record

    @classmethod
    def find(cls, uri: str) -> Self | None:
        """Read the file at `uri`; None where it is missing. Raises InputError as `load` does."""
        content = storage.find_json(uri)
        return None if content is None else cls.from_json(content, uri)

    @classmethod
    def from_json(cls, content: dict[str, Any], where: str = "the record") -> Self:
        """The record that the content of a file describes. Raises InputError as `load` does."""
        version = content.get("format", 1)
        if version > cls.FORMAT:
            raise InputError(
                f"{where} has format {version}, and this version of the project reads up to"
                f" {cls.FORMAT}; update the project"
            )
        try:
            record: Self = _converter().structure(content, cls)
        except Exception as error:  # cattrs raises groups of errors of many types
            import cattrs

            reasons = "; ".join(cattrs.transform_error(error))
            raise InputError(f"{where} is no {cls.__name__}: {reasons}") from error
        return record


@dataclasses.dataclass(frozen=True, kw_only=True)
class Interval:
    """A measured number with the ends of its confidence interval."""

    value: float
    low: float
    high: float

    def percent(self, scale: float = 1.0, digits: int = 1, sign: str = "+") -> str:
        """The interval as text, "+4.1 % [3.2, 5.0]"; with `sign` empty without the plus.

        scale: 100 for a fraction, 1 for a number that is per cent already.
        """
        value, low, high = (scale * end for end in (self.value, self.low, self.high))
        return f"{value:{sign}.{digits}f} % [{low:.{digits}f}, {high:.{digits}f}]"


# ------------------------------------------------------------------------------------- search.json


@dataclasses.dataclass(frozen=True, kw_only=True)
class Observation:
    """What a metrics collector observed of one metric of one trial: over all lines, and last."""

    min: float
    max: float
    latest: float


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
        return self.status in COUNTED


@dataclasses.dataclass(frozen=True, kw_only=True)
class Objective:
    """The metric that a search optimises."""

    name: str
    type: Literal["minimize", "maximize"] = "minimize"

    def value(self, trial: Trial) -> float | None:
        """The best value that a trial had; None if the trial has none that counts."""
        observation = trial.metrics.get(self.name)
        if observation is None or not trial.counts:
            return None
        return observation.min if self.type == "minimize" else observation.max

    def ranked(self, trials: Sequence[Trial]) -> list[Trial]:
        """The trials, best first, the first of equals first, those without a value last."""
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
    """How many trials the search was to have in all."""
    carried: int = 0
    """So many trials, the first ones, belong to experiments before this one."""
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

    def trial(self, name: str) -> Trial:
        """The trial of that name. Raises KeyError where there is none."""
        for trial in self.trials:
            if trial.name == name:
                return trial
        raise KeyError(name)

    def value_of(self, name: str | None) -> float | None:
        """The objective of the trial of that name; None where it has none or does not exist."""
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
    versions: str = ""


# ------------------------------------------------------------------------------------ service.json


@dataclasses.dataclass(frozen=True, kw_only=True)
class GoldenAnswers:
    """What a service answered to the golden requests."""

    max_difference: dict[str, float]
    """Number of jets in the request -> largest difference from PyTorch's answer."""
    tolerance: float
    answer: dict[str, Any]
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
    """service.json: where the model is served, what it answered, and how fast."""

    name: str
    url: str
    kind: str
    details: dict[str, Any]
    """What the backend needs to end it, such as its pid on one machine."""
    golden: GoldenAnswers
    others: dict[str, dict[str, float]]
    """Name of a further model -> largest difference by number of jets in the request."""
    model_sha256: str | None = None
    round_trips: dict[str, RoundTrip] | None = None
    """Number of jets in the request -> times; None where the service did not answer again."""


# -------------------------------------------------------------------- status.json and summary.json


@dataclasses.dataclass(frozen=True, kw_only=True)
class StepStatus:
    """How one step of a run is, or how it ended."""

    state: str
    """running, done, failed or interrupted."""
    reason: str = ""
    time: str = ""
    job_id: str = ""
    """KFP job that the step belongs to."""
    repeats: bool = False
    """Whether another attempt would fail for the same reason."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class StatusRecord(Record):
    """status.json: the step that wrote last, and the same of each step."""

    step: str = "prepare"
    state: str = ""
    reason: str = ""
    time: str = ""
    steps: dict[str, StepStatus] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SummaryRecord(Record):
    """summary.json: how a run ended, and what there is of results."""

    run_id: str
    run: str
    state: str
    """succeeded, not deployed (the gate), failed or interrupted."""
    step: str
    """The step that the run ended in."""
    reason: str
    time: str
    steps: dict[str, StepStatus]
    best_trial: str | None = None
    trials: int = 0
    gain_percent: Interval | None = None
    gate: bool | None = None
    service: str | None = None
    report: str | None = None
