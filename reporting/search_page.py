"""A search as search.html, as a table in Markdown and as CSV, from search.json alone."""

from __future__ import annotations

import csv
import datetime
import io
from collections import Counter

from reporting import page, search_figures
from reporting.importance import LEAST_TRIALS
from reporting.records import (
    STATUS_WORDS,
    Record,
    best_first,
    counted,
    objective_value,
    optimal_trial,
    parameter_names,
)


def search_page(search: Record) -> str:
    """The page as text: history, parameters, what mattered, all trials."""
    best = optimal_trial(search)
    statuses = Counter(trial["status"] for trial in search["trials"])
    figures = {drawing.name: drawing for drawing in search_figures.drawings(search)}
    return page.render(
        "search.html",
        title=f"Search {search['experiment']}",
        best=best,
        objective=search["objective"]["name"],
        best_value=f"{objective_value(best, search):.5f}",
        num_trials=len(search["trials"]),
        counts=", ".join(f"{n} {STATUS_WORDS.get(name, name)}" for name, n in statuses.items()),
        algorithm=search["algorithm"],
        seed=search["seed"],
        early_stopping=search.get("early_stopping", "none"),
        figures=figures,
        num_counted=len(counted(search)),
        least_trials=LEAST_TRIALS,
        trials=trials_table(search),
    )


def trials_table(search: Record) -> page.Table:
    """All trials, best first."""
    names, optimal = parameter_names(search), optimal_trial(search)
    trials = best_first(search)
    rows = []
    for trial in trials:
        value = objective_value(trial, search)
        # A reason may be a traceback, whose last line says what happened.
        reason = (trial["reason"] or "").splitlines()
        rows.append(
            [
                trial["name"] + (" ★ best" if trial is optimal else ""),
                STATUS_WORDS.get(trial["status"], trial["status"]),
                page.MISSING if value is None else f"{value:.5f}",
                *(str(trial["parameters"].get(name, page.MISSING)) for name in names),
                _minutes(trial),
                reason[-1] if reason else "",
            ]
        )
    return page.Table(
        head=["Trial", "Status", search["objective"]["name"], *names, "Minutes", "Reason"],
        rows=rows,
        kind="trials",
        marked=[place for place, trial in enumerate(trials) if trial is optimal],
    )


def _minutes(trial: Record) -> str:
    started, finished = trial.get("started"), trial.get("finished")
    if not (started and finished):
        return page.MISSING
    taken = datetime.datetime.fromisoformat(finished) - datetime.datetime.fromisoformat(started)
    return f"{taken.total_seconds() / 60:.1f}"


def markdown(search: Record) -> str:
    """All trials as a table in Markdown, best first; Kubeflow shows it beside the step."""
    table = trials_table(search)
    cells = [[cell.replace("|", "\\|").replace("\n", " ") for cell in row] for row in table.rows]
    lines = [table.head, ["---"] * len(table.head), *cells]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def as_csv(search: Record) -> str:
    """All trials in the order in which they were made, one line each, for a spreadsheet."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    names = parameter_names(search)
    metrics = sorted({name for trial in search["trials"] for name in trial["metrics"]})
    columns = [(name, kind) for name in metrics for kind in ("min", "latest")]
    writer.writerow(
        [
            "trial",
            "status",
            *(f"{name} ({kind})" for name, kind in columns),
            *names,
            "started",
            "finished",
            "reason",
        ]
    )
    for trial in search["trials"]:
        writer.writerow(
            [
                trial["name"],
                trial["status"],
                *(trial["metrics"].get(name, {}).get(kind, "") for name, kind in columns),
                *(trial["parameters"].get(name, "") for name in names),
                trial["started"],
                trial["finished"],
                trial["reason"],
            ]
        )
    return buffer.getvalue()
