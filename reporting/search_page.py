"""A search as HTML page, Markdown table and CSV file, from search.json alone."""

from __future__ import annotations

import csv
import datetime
import io
from collections import Counter

from common.records import SearchRecord, Trial
from reporting import markdown, page, search_figures
from reporting.importance import MIN_TRIALS

STATUS_WORDS = {
    "Succeeded": "succeeded",
    "EarlyStopped": "stopped early",
    "Failed": "failed",
    "MetricsUnavailable": "without metrics",
    "Killed": "killed",
}


def search_page(search: SearchRecord) -> str:
    """Return the HTML of the page: history, parameters, their importance and all trials."""
    counts = []
    for status, number in Counter(trial.status for trial in search.trials).items():
        counts.append(f"{number} {status_words(status)}")
    return page.render(
        "search.html",
        title=f"Search {search.experiment}",
        best=search.best,
        objective=search.objective.name,
        best_value=f"{search.best_value:.5f}",
        num_trials=len(search.trials),
        counts=", ".join(counts),
        algorithm=search.algorithm,
        seed=search.seed,
        early_stopping=search.early_stopping,
        figures={drawing.name: drawing for drawing in search_figures.drawings(search)},
        num_counted=len(search.trials_with_values),
        least_trials=MIN_TRIALS,
        trials=trials_table(search),
        common_parameters=common_parameters(search),
        unsuccessful=unsuccessful(search),
    )


def trials_table(search: SearchRecord) -> page.Table:
    """Return all trials, best first, without parameters that are the same in all of them."""
    names, best = differing_parameters(search), search.best
    rows, highlighted = [], []
    for place, trial in enumerate(search.objective.best_first(search.trials)):
        value = search.objective.value(trial)
        row = [trial.name, status_words(trial.status)]
        if trial is best:
            row[0] += " ★ best"
            highlighted.append(place)
        row.append(page.MISSING if value is None else f"{value:.5f}")
        for name in names:
            # All digits are in trials.csv.
            row.append(page.short_number(trial.parameters.get(name, page.MISSING)))
        row.append(minutes(trial))
        rows.append(row)
    return page.Table(
        head=["Trial", "Status", search.objective.name, *names, "Minutes"],
        rows=rows,
        kind="trials",
        highlighted=highlighted,
    )


def unsuccessful(search: SearchRecord) -> list[str]:
    """Return a line on each trial that did not succeed: name, status and reason."""
    lines = []
    for trial in search.objective.best_first(search.trials):
        if trial.status != "Succeeded":
            # A reason may be a traceback, whose last line names the error.
            reason = "".join(trial.reason.splitlines()[-1:]) or "no reason is recorded"
            lines.append(f"{trial.name} {status_words(trial.status)}: {reason}")
    return lines


def differing_parameters(search: SearchRecord) -> list[str]:
    """Return the parameters whose values differ between trials; all of them for a single trial."""
    names = []
    for name in search.parameter_names:
        values = {trial.parameters.get(name, page.MISSING) for trial in search.trials}
        if len(values) > 1 or len(search.trials) == 1:
            names.append(name)
    return names


def common_parameters(search: SearchRecord) -> str:
    """Return the parameters with the same value in all trials, as text; empty without any."""
    differing = differing_parameters(search)
    words = []
    for name in search.parameter_names:
        if name not in differing:
            words.append(f"{name} {search.trials[0].parameters[name]}")
    return ", ".join(words)


def status_words(status: str) -> str:
    """Return the status of a trial as pages show it."""
    return STATUS_WORDS.get(status, status)


def minutes(trial: Trial) -> str:
    """Return the duration of a trial in minutes; a dash where its times are not recorded."""
    if not (trial.started and trial.finished):
        return page.MISSING
    start = datetime.datetime.fromisoformat(trial.started)
    end = datetime.datetime.fromisoformat(trial.finished)
    return f"{(end - start).total_seconds() / 60:.1f}"


def as_markdown(search: SearchRecord) -> str:
    """Return all trials as a Markdown table, best first, for the narrow panel of Kubeflow.

    A trial is named by the last eight characters of its name. Parameters that never change and
    trials that did not succeed follow below the table. search.html has the rest.
    """
    differing = differing_parameters(search)
    rows, others = [], []
    for rank, trial in enumerate(search.objective.best_first(search.trials), 1):
        loss = search.objective.value(trial)
        # The UI leaves two pixels between columns: without the bracket "1 0.02" looks like one
        # number.
        row = [f"{rank})", page.MISSING if loss is None else f"{loss:.4g}", trial.name[-8:]]
        for name in differing:
            row.append(markdown.text(page.short_number(trial.parameters.get(name, page.MISSING))))
        rows.append(row)
        if trial.status != "Succeeded":
            # A reason may be a traceback, whose last line names the error.
            reason = "".join(trial.reason.splitlines()[-1:])
            why = f": {markdown.text(reason)}" if reason else ""
            others.append(f"- {trial.name[-8:]} {status_words(trial.status)}{why}")
    names = [markdown.text(name) for name in (search.objective.name, "trial", *differing)]
    parts = [
        f"Best trial: {markdown.text(search.best.name)}\n",
        markdown.table(["#", *names], rows),
    ]
    if same := common_parameters(search):
        parts.append(f"The same in all trials: {markdown.text(same)}\n")
    if others:
        parts.append("\n".join(["Trials that did not succeed:", "", *others, ""]))
    return "\n".join(parts)


def as_csv(search: SearchRecord) -> str:
    """Return all trials in order of creation as CSV, one line each, for a spreadsheet."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    parameters = search.parameter_names
    metrics = sorted({name for trial in search.trials for name in trial.metrics})
    head = ["trial", "status"]
    for name in metrics:
        head += [f"{name} (min)", f"{name} (latest)"]
    writer.writerow([*head, *parameters, "started", "finished", "reason"])
    for trial in search.trials:
        row: list[str | float] = [trial.name, trial.status]
        for name in metrics:
            # A trial that failed early has none.
            observation = trial.metrics.get(name)
            row += [observation.min, observation.latest] if observation else ["", ""]
        for name in parameters:
            row.append(trial.parameters.get(name, ""))
        writer.writerow([*row, trial.started, trial.finished, trial.reason])
    return buffer.getvalue()
