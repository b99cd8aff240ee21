"""Write one page of several runs: gain, closure, resolution and tails (`--compare`)."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from common import storage
from common.errors import InputError
from common.layout import RunFolder
from common.records import MetricsRecord
from operations import previous_run
from reporting.comparison_page import MOST_RUNS, ComparedRun, comparison_page

PAGE = "comparison.html"


def compare(names: Sequence[str], args: argparse.Namespace) -> int:
    """Write the page of these runs into --output; return the exit code.

    `names` are run ids or folders of runs. Raises InputError if a run does not exist or was not
    evaluated, if two are the same run, or if their networks have different labels.
    """
    if not 2 <= len(names) <= MOST_RUNS:
        raise InputError(
            f"--compare takes 2 to {MOST_RUNS} runs, not {len(names)}; --list shows them"
        )
    runs: dict[str, ComparedRun] = {}
    labels: dict[str, str] = {}
    for name in names:
        folder = folder_of(name, args)
        metrics = MetricsRecord.find(folder.metrics)
        if metrics is None:
            raise InputError(
                f"--compare {name}: {folder.uri} has no metrics.json; the step evaluate writes it"
                f" (python pipeline.py --status {name} says how far the run is)"
            )
        if metrics.run_id in runs:
            raise InputError(f"--compare {name}: run {metrics.run_id} is named twice")
        runs[metrics.run_id] = ComparedRun(name=metrics.run_id, metrics=metrics)
        labels[metrics.run_id] = label_of(metrics, folder)
    first = next(iter(labels))
    for run_id, label in labels.items():
        if label != labels[first]:
            raise InputError(
                f"--compare: the label of {run_id} is {label}, that of {first} is {labels[first]}:"
                " the runs calibrate different quantities; compare runs of one label"
            )
    place = args.output / PAGE
    storage.write_text(str(place.resolve()), comparison_page(list(runs.values())))
    print(f"{place}: {', '.join(runs)}")
    return 0


def folder_of(name: str, args: argparse.Namespace) -> RunFolder:
    """Return the folder of a run, given its id or its folder.

    Raises InputError if there is no such run.
    """
    if uri := previous_run.run_folder(name, args):
        return RunFolder(uri)
    uri = storage.absolute(name)
    if "/" in name and storage.exists(RunFolder(uri).run):
        return RunFolder(uri)
    raise previous_run.no_such_run(name, args)


def label_of(metrics: MetricsRecord, folder: RunFolder) -> str:
    """Return the quantity that a run's network learned, in a form without names and spaces."""
    from weaver.config.data_config import DataConfig
    from weaver.config.expressions import Expression

    label = metrics.label
    if not label:  # metrics.json of an earlier version has no label
        value = DataConfig.load(folder.data_config).label_value
        label = value if isinstance(value, dict) else {"": " or ".join(map(str, value))}
    return ", ".join(Expression(text, "label").canonical() for text in label.values())
