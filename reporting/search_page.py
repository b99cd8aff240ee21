"""A search as search.html, as a table in Markdown and as CSV, from search.json alone."""

from __future__ import annotations

import csv
import datetime
import io
from collections import Counter

from common.records import SearchRecord, Trial
from reporting import markdown, page, search_figures
from reporting.importance import LEAST_TRIALS

STATUS_WORDS = {
    "Succeeded": "succeeded",
    "EarlyStopped": "stopped early",
    "Failed": "failed",
    "MetricsUnavailable": "without metrics",
    "Killed": "killed",
}


def search_page(search: SearchRecord) -> str:
    """The page as text: history, parameters, what mattered, all trials."""
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
        num_counted=len(search.counted),
        least_trials=LEAST_TRIALS,
        trials=trials_table(search),
        common_parameters=common_parameters(search),
        unsuccessful=unsuccessful(search),
    )


def trials_table(search: SearchRecord) -> page.Table:
    """All trials, best first; parameters that are the same in all of them are left out."""
    names, best = varied_parameters(search), search.best
    rows, marked = [], []
    for place, trial in enumerate(search.objective.ranked(search.trials)):
        value = search.objective.value(trial)
        row = [trial.name, status_words(trial.status)]
        if trial is best:
            row[0] += " ★ best"
            marked.append(place)
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
        marked=marked,
    )


def unsuccessful(search: SearchRecord) -> list[str]:
    """A line on each trial that did not succeed: its name, its status and the reason."""
    lines = []
    for trial in search.objective.ranked(search.trials):
        if trial.status != "Succeeded":
            # A reason may be a traceback, whose last line says what happened.
            reason = "".join(trial.reason.splitlines()[-1:]) or "no reason is recorded"
            lines.append(f"{trial.name} {status_words(trial.status)}: {reason}")
    return lines


def varied_parameters(search: SearchRecord) -> list[str]:
    """The parameters of which trials have different values, or all where there is one trial."""
    varied = []
    for name in search.parameter_names:
        values = {trial.parameters.get(name, page.MISSING) for trial in search.trials}
        if len(values) > 1 or len(search.trials) == 1:
            varied.append(name)
    return varied


def common_parameters(search: SearchRecord) -> str:
    """The parameters that are the same in all trials, with their values; empty without any."""
    varied = varied_parameters(search)
    words = []
    for name in search.parameter_names:
        if name not in varied:
            words.append(f"{name} {search.trials[0].parameters[name]}")
    return ", ".join(words)


def status_words(status: str) -> str:
    """A trial's status as pages show it."""
    return STATUS_WORDS.get(status, status)


def minutes(trial: Trial) -> str:
    """How long a trial took; a dash where its times are not known."""
    if not (trial.started and trial.finished):
        return page.MISSING
    started = datetime.datetime.fromisoformat(trial.started)
    finished = datetime.datetime.fromisoformat(trial.finished)
    return f"{(finished - started).total_seconds() / 60:.1f}"


def as_markdown(search: SearchRecord) -> str:
    """All trials as a table in Markdown, best first; Kubeflow shows it in a narrow panel.

    So a trial goes by the last eight characters of its name. What never changes stands below the
    table, and so do the trials that did not succeed. The page has the rest.
    """
    varied = varied_parameters(search)
    rows, others = [], []
    for rank, trial in enumerate(search.objective.ranked(search.trials), 1):
        loss = search.objective.value(trial)
        # the UI leaves two pixels between columns: "1 0.02" would be read as one number
        row = [f"{rank})", page.MISSING if loss is None else f"{loss:.4g}", trial.name[-8:]]
        for name in varied:
            row.append(markdown.text(page.short_number(trial.parameters.get(name, page.MISSING))))
        rows.append(row)
        if trial.status != "Succeeded":
            # A reason may be a traceback, whose last line says what happened.
            reason = "".join(trial.reason.splitlines()[-1:])
            why = f": {markdown.text(reason)}" if reason else ""
            others.append(f"- {trial.name[-8:]} {status_words(trial.status)}{why}")
    names = [markdown.text(name) for name in (search.objective.name, "trial", *varied)]
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
    """All trials in the order in which they were made, one line each, for a spreadsheet."""
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
