"""What report.html says of the run: its search, its training, its data, and how to repeat it.

Each function takes the content of the run's JSON documents and returns what templates/report.html
shows of it, as text and tables.
"""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Mapping, Sequence

from common.config import RunConfig, flag
from reporting.drawing import LABELS
from reporting.page import MISSING, Table, flat
from reporting.records import Record, counted
from reporting.search_page import trials_table


@dataclasses.dataclass(frozen=True, kw_only=True)
class Search:
    """How the trials were chosen, and all of them."""

    algorithm: str
    objective: str
    seed: str
    num_counted: int
    trials: Table


def search(record: Record) -> Search:
    seed = record.get("seed")
    return Search(
        algorithm=record.get("algorithm", "not recorded"),
        objective=f"{record['objective']['type']} {record['objective']['name']}",
        seed="" if seed is None else str(seed),
        num_counted=len(counted(record)),
        trials=trials_table(record),
    )


def training(options: Record, history: Sequence[Record]) -> dict[str, str]:
    """The options of the best trial, and its speed."""
    facts = flat(options)
    if history:
        speed = history[-1].get("jets_per_second")
        facts["epochs"] = str(len(history))
        facts["jets per second, last epoch"] = f"{speed:,.0f}" if speed else "not recorded"
    seconds = sum(epoch.get("seconds") or 0 for epoch in history)
    if seconds:
        facts["time in epochs"] = f"{seconds:,.0f} s"
    return facts


@dataclasses.dataclass(frozen=True, kw_only=True)
class Data:
    """The jets of the run."""

    sets: Table | None
    test_jets: Mapping[str, str]
    fingerprints: Mapping[str, str]


def data(metrics: Record, run: Record) -> Data:
    sets = run.get("data") or {}
    far = "jets off by more than a factor e, |log(pT / pT_gen)| ≥ 1"
    numbers = {
        "test jets that pass the selection": metrics["num_jets"],
        "of these measured (finite answer, generator jet)": metrics["num_measured"],
        "jets without a finite answer": metrics["num_without_answer"],
    }
    for name, number in metrics["num_far"].items():
        numbers[f"{far}: {LABELS[name]}"] = number
    for names, number in (run.get("shared_jets") or {}).items():
        numbers[f"jets in common, {names}"] = number
    return Data(
        sets=_sets(sets) if sets else None,
        test_jets={name: f"{number:,}" for name, number in numbers.items()},
        fingerprints=flat(sets),
    )


def _sets(sets: Record) -> Table:
    """The three sets of jets, one a row."""
    uses = {
        "train": "the weights",
        "val": "the best epoch and trial, parity",
        "test": "this page, once",
    }
    rows = []
    for name, record in sets.items():
        numbers = [
            f"{record[key]:,}" if key in record else MISSING for key in ("files", "read", "jets")
        ]
        rows.append([name, *numbers, uses.get(name, "")])
    return Table(head=["Set", "Files", "Jets read", "Jets selected", "Used for"], rows=rows)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reproduce:
    """Names, commands and versions by which the run can be repeated."""

    names: Mapping[str, str]
    commands: Sequence[str]
    folder: str
    parameters: Mapping[str, str]
    versions: Mapping[str, str]


def reproduce(metrics: Record, run: Record) -> Reproduce:
    names = {
        name.replace("_", " "): str(run.get(name) or "not recorded")
        for name in ("run_id", "git_commit", "data_fingerprint")
    }
    names["best trial"] = metrics.get("trial") or "not recorded"
    config = run.get("config") or {}
    commands = [_pipeline_command(config, metrics["run"])] if config else []
    return Reproduce(
        names=names,
        commands=[*commands, _evaluate_command(metrics)],
        folder=metrics["run"],
        parameters=flat(config),
        versions=flat({**(run.get("versions") or {}), **(run.get("images") or {})}),
    )


def _evaluate_command(metrics: Record) -> str:
    """The command that writes this page again from the run's folder."""
    config = metrics["config"]
    values = {
        "run": metrics["run"],
        "name": metrics["model"],
        "trial": metrics.get("trial"),
        "baseline": metrics.get("baseline"),
        "min-improvement": f"{config['min_improvement']:g}",
        "max-closure": f"{config['max_closure']:g}",
        "seed": config["seed"],
        "replicates": metrics["replicates"],
    }
    words = ["python", "-m", "physics.evaluate"]
    for name, value in values.items():
        if value is not None:
            words += [f"--{name}", str(value)]
    return shlex.join(words)


def _pipeline_command(config: Record, folder: str) -> str:
    """The command of such a run: the parameters that differ from their defaults.

    The search space is the one kept in the run's folder.
    """
    defaults = RunConfig().parameters()
    words = ["python", "pipeline.py"]
    for name, value in config.items():
        if name in ("run_id", "s3_bucket") or value == defaults.get(name):
            continue
        if name == "search_space":
            value = f"{folder}/config/search_space.json"
        words += [f"--{flag(name)}", str(value)]
    return shlex.join(words)
