"""search.html: a search as one self-contained page: its history, its parameters, what mattered, all
trials.

Made of search.json alone. The figures are SVG written here, as the image of the steps has no
plotting library: without scripts, readable on light and dark pages, each with its content in words.
"""

from __future__ import annotations

import csv
import datetime
import io
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from reporting import page
from reporting.importance import LEAST_TRIALS, Importance, importances

# as readable on dark as on light
BLUE, RED, ORANGE, GREY = "#5790fc", "#e42536", "#f89c20", "#8c8c91"
LOOKS = {"Succeeded": BLUE, "EarlyStopped": ORANGE}  # any other trial has no loss that counts
WORDS = {
    "Succeeded": "succeeded",
    "EarlyStopped": "stopped early",
    "Failed": "failed",
    "MetricsUnavailable": "without metrics",
    "Killed": "killed",
}
# a range of losses or values whose ends differ by more than this factor is drawn on a logarithmic
# scale
WIDE = 3.0

Record = Mapping[str, Any]
"""The content of search.json."""


def search_page(record: Record) -> str:
    """The page as text."""
    trials = record["trials"]
    best = next(trial for trial in trials if trial["name"] == record["optimal"])
    objective = record["objective"]["name"]
    counts = ", ".join(
        f"{count} {WORDS.get(status, status)}"
        for status, count in Counter(trial["status"] for trial in trials).items()
    )
    how = (
        f"algorithm {record['algorithm']}, seed {record['seed']}, early stopping"
        f" {record.get('early_stopping', 'none')}"
    )
    lead = (
        f"<p>{len(trials)} trials: {page.escaped(counts)}."
        f" {page.escaped(how[0].upper() + how[1:])}.</p>"
    )
    title = f"Best trial: {best['name']}, {objective} {loss(best, record):.5f}"
    body = [
        page.section(title, lead, page.facts(best["parameters"], "Parameters", shown=True)),
        page.section("History", _history(record), LEGEND),
        page.section("Parameters of all trials", _parallel(record), LEGEND),
        page.section("What mattered", _importance(record)),
        page.section(
            "All trials",
            page.table(
                *_table(record), marked=[t is best for t in _by_loss(record)], kind="trials"
            ),
        ),
    ]
    return page.document(f"Search {record['experiment']}", "\n".join(body))


def markdown(record: Record) -> str:
    """All trials as a table in Markdown, best first; Kubeflow shows it beside the step."""
    head, rows = _table(record)
    cells = [[cell.replace("|", "\\|").replace("\n", " ") for cell in row] for row in rows]
    lines = [head, ["---"] * len(head), *cells]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def as_csv(record: Record) -> str:
    """All trials in the order in which they were made, one line each, for a spreadsheet."""
    names, buffer = parameter_names(record), io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    metrics = sorted({name for trial in record["trials"] for name in trial["metrics"]})
    writer.writerow(
        [
            "trial",
            "status",
            *(f"{name} ({kind})" for name in metrics for kind in ("min", "latest")),
            *names,
            "started",
            "finished",
            "reason",
        ]
    )
    for trial in record["trials"]:
        seen = [
            trial["metrics"].get(name, {}).get(kind, "")
            for name in metrics
            for kind in ("min", "latest")
        ]
        chosen = [trial["parameters"].get(name, "") for name in names]
        writer.writerow(
            [
                trial["name"],
                trial["status"],
                *seen,
                *chosen,
                trial["started"],
                trial["finished"],
                trial["reason"],
            ]
        )
    return buffer.getvalue()


def loss(trial: Mapping[str, Any], record: Record) -> float | None:
    """The trial's objective; None where it has none that counts."""
    seen = trial["metrics"].get(record["objective"]["name"])
    return seen["min"] if seen and trial["status"] in LOOKS else None


def parameter_names(record: Record) -> list[str]:
    """Parameters in the order of the search space."""
    return list(dict.fromkeys(name for trial in record["trials"] for name in trial["parameters"]))


# -------------------------------------------------------------------------------------- the table


def _by_loss(record: Record) -> list[Mapping[str, Any]]:
    """Best first, those without a loss last."""
    return sorted(
        record["trials"],
        key=lambda trial: math.inf if loss(trial, record) is None else loss(trial, record),
    )


def _table(record: Record) -> tuple[list[str], list[list[str]]]:
    names = parameter_names(record)
    rows = []
    for trial in _by_loss(record):
        value = loss(trial, record)
        mark = " ★" if trial["name"] == record["optimal"] else ""
        chosen = [str(trial["parameters"].get(name, "–")) for name in names]
        status = WORDS.get(trial["status"], trial["status"])
        reason = (trial["reason"] or "").splitlines()
        rows.append(
            [
                trial["name"] + mark,
                status,
                "–" if value is None else f"{value:.5f}",
                *chosen,
                _minutes(trial),
                *reason[-1:],
            ]
        )
    return ["Trial", "Status", record["objective"]["name"], *names, "Minutes", "Reason"], [
        [*row, ""][: len(names) + 5] for row in rows
    ]


def _minutes(trial: Mapping[str, Any]) -> str:
    if not (trial["started"] and trial["finished"]):
        return "–"
    started, finished = (
        datetime.datetime.fromisoformat(trial[key]) for key in ("started", "finished")
    )
    return f"{(finished - started).total_seconds() / 60:.1f}"


# ------------------------------------------------------------------------------------ the figures


LEGEND = (
    f'<p class="small"><span style="color:{BLUE}" aria-hidden="true">●</span> succeeded <span'
    f' style="color:{ORANGE}" aria-hidden="true">▼</span> stopped early (with the best loss it had'
    f' by then) <span style="color:{GREY}" aria-hidden="true">✕</span> without a loss that counts'
    f' <span style="color:{RED}" aria-hidden="true">━</span> the best</p>'
)


class Scale:
    """Text or numbers -> a coordinate from `start` to `end`; logarithmic over a wide positive
    range, words by their rank.
    """

    def __init__(self, values: Iterable[Any], start: float, end: float) -> None:
        texts = list(dict.fromkeys(str(value) for value in values))
        self.start, self.end = start, end
        self.numbers = {text: number for text in texts if (number := _number(text)) is not None}
        self.words = [] if len(self.numbers) == len(texts) else sorted(texts)
        self.low, self.high = (
            min(self.numbers.values(), default=0.0),
            max(self.numbers.values(), default=1.0),
        )
        self.log = not self.words and self.low > 0 and self.high > WIDE * self.low

    def __call__(self, value: Any) -> float:
        if self.words:
            share = self.words.index(str(value)) / max(len(self.words) - 1, 1)
        else:
            low, high, at = (
                math.log(v) if self.log else v for v in (self.low, self.high, float(value))
            )
            share = (at - low) / ((high - low) or 1.0)
        return self.start + share * (self.end - self.start)

    def ticks(self) -> list[str]:
        """What stands at the axis: every word, every number of a short list, else both ends and the
        middle.
        """
        if self.words or len(self.numbers) <= 5:
            return self.words or list(self.numbers)
        middle = math.sqrt(self.low * self.high) if self.log else (self.low + self.high) / 2
        return [f"{value:.4g}" for value in (self.low, middle, self.high)]


def _number(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _svg(width: int, height: int, words: str, *parts: str) -> str:
    """A figure with its content in words, for those who cannot see it and for those who point at
    it.
    """
    told = page.escaped(words)
    head = (
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{told}"'
        ' font-family="system-ui,sans-serif" font-size="14">'
    )
    return (
        f"<figure>{head}<title>{told}</title>{''.join(parts)}</svg><figcaption"
        f' class="small">{told}</figcaption></figure>'
    )


def _label(x: float, y: float, text: str, anchor: str = "start") -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"'
        f' fill="currentColor">{page.escaped(text)}</text>'
    )


def _line(
    points: Sequence[tuple[float, float]], colour: str, width: float = 1.5, extra: str = ""
) -> str:
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    return (
        f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="{width}" {extra}/>'
    )


def _mark(x: float, y: float, trial: Mapping[str, Any], words: str) -> str:
    """A point of a trial: a disc, a triangle if it was stopped early, a cross if it has no loss.

    Its words show where one points at it.
    """
    shapes = {
        "Succeeded": f'<circle cx="{x:.1f}" cy="{y:.1f}" r="5" fill="{BLUE}"/>',
        "EarlyStopped": f'<path d="M{x - 6:.1f} {y - 4:.1f}h12l-6 9z" fill="{ORANGE}"/>',
    }
    cross = (
        f'<path d="M{x - 5:.1f} {y - 5:.1f}l10 10m0-10l-10 10" stroke="{GREY}" stroke-width="2.5"/>'
    )
    return f"<g><title>{page.escaped(words)}</title>{shapes.get(trial['status'], cross)}</g>"


def _history(record: Record) -> str:
    """The loss of each trial in the order in which they were made, and the best so far."""
    trials, objective = record["trials"], record["objective"]["name"]
    losses = [loss(trial, record) for trial in trials]
    counted = [value for value in losses if value is not None]
    left, right, top, bottom = 90, 880, 50, 300
    x = Scale(range(1, len(trials) + 1), left + 20, right - 20)
    x.log = False
    y = Scale(counted, bottom - 15, top)
    parts = [_line([(left, top - 25), (left, bottom), (right, bottom)], "currentColor", 1)]
    parts += [_label(left - 8, y(tick) + 5, f"{float(tick):.4g}", "end") for tick in y.ticks()]
    parts += [
        _label(x(number), bottom + 20, str(number), "middle") for number in _numbers(len(trials))
    ]
    parts += [
        _label(right, bottom + 38, "trial", "end"),
        _label(left - 60, top - 30, objective + (" (logarithmic)" if y.log else "")),
    ]
    parts.append(_line(_so_far(losses, x, y, right), RED, 2.5))
    for number, (trial, value) in enumerate(zip(trials, losses, strict=True), 1):
        words = f"{trial['name']}: " + (
            f"{objective} {value:.5f}" if value is not None else trial["reason"] or trial["status"]
        )
        parts.append(_mark(x(number), top - 20 if value is None else y(value), trial, words))
    words = (
        f"{objective} of {len(trials)} trials in the order in which they were made; the best so far"
        f" (red) ends at {min(counted):.5f}"
    )
    missing = len(trials) - len(counted)
    return _svg(
        900,
        345,
        words + (f"; {missing} without a loss stand at the upper edge." if missing else "."),
        *parts,
    )


def _numbers(count: int) -> list[int]:
    """Some of the numbers 1 ... count, evenly spaced."""
    step = max(1, math.ceil(count / 15))
    return list(range(1, count + 1, step))


def _so_far(
    losses: Sequence[float | None], x: Scale, y: Scale, right: float
) -> list[tuple[float, float]]:
    """The steps of the best loss so far, to the right edge."""
    points, best = [], math.inf
    for number, value in enumerate(losses, 1):
        if value is not None and value < best:
            if points:
                points.append((x(number), points[-1][1]))
            best = value
            points.append((x(number), y(value)))
    return [*points, (right, points[-1][1])]


def _parallel(record: Record) -> str:
    """One line a trial through its parameters to its loss; the best one thick."""
    trials, names, objective = (
        record["trials"],
        parameter_names(record),
        record["objective"]["name"],
    )
    left, right, top, bottom = 60, 815, 40, 330
    counted = [value for trial in trials if (value := loss(trial, record)) is not None]
    place = {
        name: left + number * (right - left) / len(names)
        for number, name in enumerate([*names, objective])
    }
    scales = {
        name: Scale(
            (trial["parameters"][name] for trial in trials if name in trial["parameters"]),
            bottom,
            top,
        )
        for name in names
    }
    scales[objective] = Scale(counted, bottom, top)
    lines = []
    # the best above the others
    for trial in sorted(trials, key=lambda trial: trial["name"] == record["optimal"]):
        points = [
            (place[name], scales[name](trial["parameters"][name]))
            for name in names
            if name in trial["parameters"]
        ]
        if (value := loss(trial, record)) is not None:
            points.append((place[objective], scales[objective](value)))
        lines.append(_line(points, *_look(trial, record)))
    axes = [
        part
        for number, name in enumerate(place)
        for part in _axis(name, place[name], scales[name], top, bottom, number % 2)
    ]
    best = next(trial for trial in trials if trial["name"] == record["optimal"])
    chosen = ", ".join(f"{name} {value}" for name, value in best["parameters"].items())
    return _svg(
        900,
        380,
        f"Parameters and {objective} of {len(trials)} trials; the best (red): {chosen}.",
        *lines,
        *axes,
    )


def _look(trial: Mapping[str, Any], record: Record) -> tuple[str, float, str]:
    if trial["name"] == record["optimal"]:
        return RED, 3.5, ""
    dashes = {"Succeeded": "", "EarlyStopped": 'stroke-dasharray="8 4"'}.get(
        trial["status"], 'stroke-dasharray="2 4"'
    )
    return LOOKS.get(trial["status"], GREY), 1.5, f'opacity="0.75" {dashes}'


def _axis(name: str, x: float, scale: Scale, top: float, bottom: float, lower: int) -> list[str]:
    """A vertical line with its values; names stand in two rows, so that long ones do not meet."""
    ticks = [
        _label(x + 5, scale(tick) - 3, tick if scale.words else f"{float(tick):.4g}")
        for tick in scale.ticks()
    ]
    return [
        _line([(x, top), (x, bottom)], "currentColor", 1),
        *ticks,
        _label(x, bottom + 22 + 18 * lower, name, "middle"),
    ]


def _importance(record: Record) -> str:
    """Bars of importance with the level that chance reaches, and what to make of them."""
    trials = [trial for trial in record["trials"] if loss(trial, record) is not None]
    names = [
        name
        for name in parameter_names(record)
        if all(name in trial["parameters"] for trial in trials)
    ]
    columns = {name: [str(trial["parameters"][name]) for trial in trials] for name in names}
    found = importances(columns, [loss(trial, record) for trial in trials])
    if not found:
        return (
            f"<p>Not estimated: that takes at least {LEAST_TRIALS} trials with a loss, and"
            " parameters that vary.</p>"
        )
    return (
        _bars(found)
        + '<p class="small">Share of the variance of the losses\' ranks between groups of the'
        " parameter's values (eta squared), by itself. The tick is what chance alone reaches in"
        f" 1 of 20 searches with {len(trials)} trials: a bar that does not pass it (grey) says"
        " nothing. What to keep in mind: a parameter matters only within the range that was"
        " searched; two that act together may show in neither; an algorithm that learns (tpe,"
        " cmaes) tries good regions more often, which bends the shares; a trial that was stopped"
        " early counts with the loss it had by then; failed trials do not count; and one"
        " parameter in twenty passes its tick by chance.</p>"
    )


def _bars(found: Sequence[Importance]) -> str:
    left, right, step = 230, 840, 34
    parts = []
    for number, one in enumerate(found):
        y, width, at = (
            10 + step * number,
            (right - left) * one.share,
            left + (right - left) * one.chance,
        )
        colour = BLUE if one.beyond_chance else GREY
        parts.append(_label(left - 10, y + 16, one.name, "end"))
        parts.append(
            f'<rect x="{left}" y="{y}" width="{max(width, 1):.1f}" height="22" fill="{colour}"/>'
        )
        parts.append(_line([(at, y - 4), (at, y + 26)], "currentColor", 2))
        parts.append(_label(max(left + width, at) + 8, y + 16, f"{100 * one.share:.0f} %"))
    words = "; ".join(
        f"{one.name} {100 * one.share:.0f} % (chance: up to {100 * one.chance:.0f} %)"
        for one in found
    )
    return _svg(900, 20 + step * len(found), f"Importance: {words}.", *parts)
