"""Sections of report.html on the run: search, training, data, and how to reproduce it.

Each function takes records of the run and returns the text and tables that templates/report.html
shows.
"""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Mapping, Sequence

from common.config import RunConfig, flag
from common.layout import RunFolder
from common.measurements import GateSettings
from common.records import (
    DataSet,
    EpochRecord,
    MetricsRecord,
    RunRecord,
    SearchRecord,
    TrialOptions,
    plain,
)
from common.run import Run
from reporting.drawing import CALIBRATIONS
from reporting.page import Table, flat
from reporting.search_page import common_parameters, trials_table, unsuccessful

USES = {
    "train": "the weights",
    "val": "the best epoch and trial, parity",
    "test": "this page, once",
}
"""Use of the jets of each split."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Search:
    """The settings of the search and a table of its trials."""

    algorithm: str
    objective: str
    seed: str
    num_counted: int
    trials: Table
    common_parameters: str
    """Parameters that are the same in all trials; empty without any."""
    unsuccessful: Sequence[str]
    """A line on each trial that did not succeed."""


def search(record: SearchRecord) -> Search:
    """Return the section on the search."""
    return Search(
        algorithm=record.algorithm,
        objective=f"{record.objective.type} {record.objective.name}",
        seed="" if record.seed is None else str(record.seed),
        num_counted=len(record.trials_with_values),
        trials=trials_table(record),
        common_parameters=common_parameters(record),
        unsuccessful=unsuccessful(record),
    )


def training(options: TrialOptions | None, history: Sequence[EpochRecord]) -> dict[str, str]:
    """Return the options of the best trial and its speed."""
    facts = flat(plain(options)) if options else {}
    if history:
        speed = history[-1].jets_per_second
        facts["epochs"] = str(len(history))
        facts["jets per second, last epoch"] = f"{speed:,.0f}" if speed else "not recorded"
    seconds = sum(epoch.seconds or 0 for epoch in history)
    if seconds:
        facts["time in epochs"] = f"{seconds:,.0f} s"
    return facts


@dataclasses.dataclass(frozen=True, kw_only=True)
class Data:
    """The jets of the run."""

    sets: Table | None
    test_jets: Mapping[str, str]
    fingerprints: Mapping[str, str]


def data(metrics: MetricsRecord, run: Run | None) -> Data:
    """Return the section on the data."""
    record = run.record if run else RunRecord()
    numbers = {
        "test jets that pass the selection": metrics.num_jets,
        "of these measured (finite answer, generator jet)": metrics.num_measured,
        "jets without a finite answer": metrics.num_without_answer,
    }
    far = "jets off by more than a factor e, |log(pT / pT_gen)| ≥ 1"
    for name, number in metrics.num_far.by_calibration().items():
        numbers[f"{far}: {CALIBRATIONS[name].label}"] = number
    for cause, number in metrics.left_out.items():
        numbers[f"not measured: {cause}"] = number
    for names, number in record.shared_jets.items():
        numbers[f"jets in common, {names}"] = number
    return Data(
        sets=table_of_sets(record.data) if record.data else None,
        test_jets={name: f"{number:,}" for name, number in numbers.items()},
        fingerprints=flat({name: plain(data_set) for name, data_set in record.data.items()}),
    )


def table_of_sets(sets: Mapping[str, DataSet]) -> Table:
    """Return the number of files and jets of each set."""
    rows = []
    for name, data_set in sets.items():
        numbers = [f"{data_set.files:,}", f"{data_set.read:,}", f"{data_set.jets:,}"]
        rows.append([name, *numbers, USES.get(name, "")])
    return Table(head=["Set", "Files", "Jets read", "Jets selected", "Used for"], rows=rows)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reproduce:
    """Names, commands and versions with which the run can be repeated."""

    names: Mapping[str, str]
    commands: Sequence[str]
    folder: str
    parameters: Mapping[str, str]
    versions: Mapping[str, str]


def reproduce(metrics: MetricsRecord, run: Run | None) -> Reproduce:
    """Return the section on how to repeat the run."""
    record = run.record if run else RunRecord()
    config = run.config.parameters() if run else {}
    names = {
        "run id": run.id if run else "",
        "git commit": record.git_commit,
        "data fingerprint": record.data_fingerprint,
        "best trial": metrics.trial,
    }
    commands = [pipeline_command(run.config, metrics.run)] if run else []
    return Reproduce(
        names={name: text or "not recorded" for name, text in names.items()},
        commands=[*commands, evaluate_command(metrics)],
        folder=metrics.run,
        parameters=flat(config),
        versions={**record.versions, **_images(record)},
    )


def _images(record: RunRecord) -> dict[str, str]:
    """Return the images of the run by name, with the digest after a tag if it is recorded."""
    rows = {}
    for name, image in record.images.items():
        digest = record.image_digests.get(name)
        rows[f"image {name}"] = image if not digest or digest in image else f"{image} ({digest})"
    return rows


def evaluate_command(metrics: MetricsRecord) -> str:
    """Return the command that writes the report again from the folder of the run."""
    config = metrics.config
    values = {
        "run": metrics.run,
        "name": metrics.model,
        "trial": metrics.trial,
        "baseline": metrics.baseline,
        "min-improvement": f"{config.min_improvement:g}",
        "max-closure": f"{config.max_closure:g}",
        **_other_limits(config),
        "seed": config.seed,
        "replicates": metrics.replicates,
    }
    words = ["python", "-m", "evaluating.evaluate"]
    for name, value in values.items():
        # Without --trial the command takes the best trial; without --baseline it compares with
        # none.
        if value is not None:
            words += [f"--{name}", str(value)]
    return shlex.join(words)


def _other_limits(config: GateSettings) -> dict[str, str | None]:
    """Return the remaining settings of the gate that differ from their defaults, by flag."""
    values: dict[str, str | None] = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if field.default is not dataclasses.MISSING and value != field.default:
            values[flag(field.name)] = value if isinstance(value, str) else f"{value:g}"
    return values


def pipeline_command(config: RunConfig, folder: str) -> str:
    """Return the command that repeats the run, with the parameters that differ from defaults."""
    defaults = RunConfig().parameters()
    words = ["python", "pipeline.py"]
    for name, value in config.parameters().items():
        # A repeated run gets its own id and folder.
        if name in ("run_id", "s3_bucket") or value == defaults[name]:
            continue
        # The search space is long, so that the command reads it from the file in the run's folder.
        text = RunFolder(folder).search_space if name == "search_space" else str(value)
        words += [f"--{flag(name)}", text]
    return shlex.join(words)
