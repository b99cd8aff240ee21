"""The report's figures, drawn from the numbers in metrics.json, history.json and search.json in
mplhep's CMS style.

Every function takes such numbers and returns a Drawing, or None where there is nothing to draw.
Text and axes are drawn in INK, which `svg` turns into the page's text colour, so that one figure
suits light and dark pages. Letters become outlines: a figure needs no font of the reader's machine.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from reporting import page

INK = "#010203"  # a colour that nothing else uses, so that it can be found in the SVG
# Of the CMS palette, as readable on dark as on light.
COLOURS = {
    "model": "#e42536",
    "standard": "#5790fc",
    "baseline": "#f89c20",
    "uncorrected": "#9c9ca1",
}
LABELS = {
    "model": "This model",
    "standard": "Standard JEC",
    "baseline": "Baseline model",
    "uncorrected": "Uncorrected",
}
MARKERS = {"model": "o", "standard": "s", "baseline": "D", "uncorrected": "^"}
RESIDUAL_LABELS = {
    "rhoAll": r"$\rho$ (GeV)",
    "PV_npvsGood": "Reconstructed vertices",
    "jetMult": "Particles in the jet",
    "QG_mult": "Particles in the jet (tracks, neutrals above 1 GeV)",
}
FLAVOUR_LOOKS = {
    "uds": ("o", "#5790fc"),
    "c": ("^", "#f89c20"),
    "b": ("s", "#e42536"),
    "g": ("D", "#b05aa6"),
}  # also told apart without colour
REGION_LOOKS = {"barrel": ("o", COLOURS["model"]), "endcap": ("s", COLOURS["standard"])}
REGION_TEXT = {"barrel": r"$|\eta^{gen}| < 1.3$", "endcap": r"$1.3 < |\eta^{gen}| < 2.5$"}
PT_TICKS = (30, 60, 100, 200, 500, 1000, 2000)
PT_RANGE = (28, 2600)  # the same in every figure, so that they can be compared by eye
PT_LABEL = r"$p_T^{gen}$ (GeV)"
# between the points of two calibrations in a bin, so that error bars stand side by side on a log
# axis
SHIFT = 1.03


@dataclasses.dataclass(frozen=True, kw_only=True)
class Drawing:
    """A figure with the words that go with it."""

    name: str
    """File name without ending."""
    caption: str
    alt: str
    """What a reader who cannot see the figure should know."""
    figure: Any


def drawings(
    metrics: Mapping, history: Sequence[Mapping] | None, search: Mapping | None, max_closure: float
) -> Iterator[Drawing]:
    """All figures that these numbers allow, in the order of the report."""
    regions = sorted({record["region"] for record in metrics["curves"]})
    makers = [
        lambda region=region: response_curve(metrics, region, max_closure) for region in regions
    ]
    makers += [lambda region=region: resolution_curve(metrics, region) for region in regions]
    makers += [lambda region=region: distribution(metrics, region) for region in regions]
    makers += [lambda: closure(metrics, max_closure), lambda: eta(metrics, max_closure)]
    makers += [
        lambda name=name: residual(metrics, name, max_closure)
        for name in metrics.get("residuals", {})
    ]
    makers += [lambda region=region: flavour(metrics, region) for region in regions]
    makers += [lambda: coverage(metrics), lambda: widths(metrics)]
    makers += [
        lambda: training(history or []),
        lambda: search_history(search or {}),
        lambda: parallel(search or {}),
    ]
    for make in makers:
        with style():
            drawing = make()
        if drawing:
            yield drawing


# ------------------------------------------------------------------------------------------ style


@contextlib.contextmanager
def style() -> Iterator[None]:
    """mplhep's CMS style, in INK, on a transparent ground.

    Both drawing and saving must happen inside.
    """
    import matplotlib

    matplotlib.use("Agg")  # no display in a job
    import mplhep

    ink = dict.fromkeys(
        ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), INK
    )
    ground = {"figure.facecolor": "none", "axes.facecolor": "none", "savefig.facecolor": "none"}
    with matplotlib.rc_context(
        {**mplhep.style.CMS, **ink, **ground, "svg.fonttype": "path", "axes.unicode_minus": True}
    ):
        yield


def svg(drawing: Drawing) -> str:
    """The figure as an <svg> element to stand inside a page: page's text colour, names of its own,
    title for screen readers.
    """
    buffer = io.StringIO()
    with style():
        drawing.figure.savefig(
            buffer, format="svg", bbox_inches="tight", metadata={"Date": None, "Creator": None}
        )
    text = buffer.getvalue()
    text = text[text.index("<svg") :].replace(INK, "currentColor")
    # Two figures on one page must not share names: a clip path of one would cut the other.
    text = re.sub(r'\bid="', f'id="{drawing.name}-', text)
    text = re.sub(r'(href="#|url\(#)', rf"\g<1>{drawing.name}-", text)
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", text, count=1)
    return text.replace("<svg", f'<svg role="img" aria-label="{page.escaped(drawing.alt)}"', 1)


def gallery(chosen: Iterable[Drawing]) -> str:
    """Figures with their captions, as many side by side as the page has room for
    (reporting.page).
    """
    shown = "".join(
        f'<figure class="{drawing.name}">{svg(drawing)}'
        f"<figcaption>{page.escaped(drawing.caption)}</figcaption></figure>"
        for drawing in chosen
    )
    return f'<div class="figures">{shown}</div>' if shown else ""


def pdf(drawing: Drawing) -> bytes:
    """The figure as a PDF file, for slides and papers."""
    buffer = io.BytesIO()
    with style():
        drawing.figure.savefig(
            buffer,
            format="pdf",
            bbox_inches="tight",
            facecolor="white",
            metadata={"CreationDate": None},
        )
    return buffer.getvalue()


def panels(heights: Sequence[float] = (1,), size: tuple[float, float] = (10, 9)):
    """A figure with panels of these relative heights on one x axis; returns (figure, axes from the
    top down).
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=size)
    axes = figure.subplots(
        len(heights),
        1,
        sharex=True,
        squeeze=False,
        gridspec_kw={"height_ratios": heights, "hspace": 0.06},
    )[:, 0]
    return figure, list(axes)


def head(axes, right: str) -> None:
    """What the figure shows, over its frame.

    'Simulation': a response needs a generator jet; no experiment's name is claimed.
    """
    axes.set_title("Simulation", loc="left", fontstyle="italic", fontsize=22, pad=10)
    axes.set_title(right, loc="right", fontsize=22, pad=10)


def pt_axis(axes) -> None:
    """The log axis of pT_gen that all figures share."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter

    axes.set_xscale("log")
    axes.xaxis.set_major_locator(FixedLocator(PT_TICKS))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlim(PT_RANGE)
    axes.set_xlabel(PT_LABEL)


def _errors(
    intervals: Sequence[Mapping], scale: float = 1.0
) -> tuple[list[float], list[list[float]]]:
    """Values, and lengths of error bars down and up (never negative, which a percentile interval
    could give).
    """
    values = [scale * one["value"] for one in intervals]
    down = [max(scale * (one["value"] - one["low"]), 0.0) for one in intervals]
    up = [max(scale * (one["high"] - one["value"]), 0.0) for one in intervals]
    return values, [down, up]


def points(
    axes, x: Sequence[float], intervals: Sequence[Mapping], scale: float = 1.0, **options
) -> None:
    """Intervals {"value", "low", "high"} as points with error bars."""
    values, errors = _errors(intervals, scale)
    axes.errorbar(
        x,
        values,
        yerr=errors,
        **({"linestyle": "none", "markersize": 9, "elinewidth": 2} | options),
    )


def _look(name: str) -> dict:
    return {"color": COLOURS[name], "marker": MARKERS[name], "label": LABELS[name]}


def _calibrations(record: Mapping) -> list[str]:
    return [name for name in LABELS if name in record]


def _in(records: Iterable[Mapping], region: str) -> list[Mapping]:
    return [record for record in records if record["region"] == region]


def level(axes, at: float) -> None:
    """A dotted line to compare with."""
    axes.axhline(at, color=INK, linewidth=1.5, linestyle=":")


# --------------------------------------------------------------------------- response, resolution


def response_curve(metrics: Mapping, region: str, max_closure: float) -> Drawing | None:
    """Median response against pT_gen, with the ratio to the standard JEC below."""
    records = _in(metrics["curves"], region)
    if not records:
        return None
    figure, (top, below) = panels((3, 1), (10, 10))
    for place, name in enumerate(_calibrations(records[0])):
        points(
            top,
            [record["pt"] * SHIFT**place for record in records],
            [record[name]["median"] for record in records],
            **_look(name),
        )
    ratio = [
        record["model"]["median"]["value"] / record["standard"]["median"]["value"]
        for record in records
    ]
    below.plot(
        [record["pt"] for record in records],
        ratio,
        color=COLOURS["model"],
        marker="o",
        linestyle="none",
        markersize=9,
    )
    top.axhspan(1 - max_closure, 1 + max_closure, color=INK, alpha=0.1, linewidth=0)
    top.axvspan(PT_RANGE[0], metrics["closure"]["from_gev"], color=INK, alpha=0.06, linewidth=0)
    reach = max(0.01, 1.2 * max(abs(value - 1) for value in ratio))
    below.set_ylim(1 - reach, 1 + reach)
    for axes in (top, below):
        level(axes, 1)
    top.set_ylabel("Median response")
    below.set_ylabel("Ratio")
    top.legend(loc="best")
    head(top, REGION_TEXT[region])
    pt_axis(below)
    caption = (
        f"Median response in the {region}. Band: ±{100 * max_closure:g} %, the closure allowed."
        f" Grey below {metrics['closure']['from_gev']:g} GeV: the cut on reconstructed pT keeps"
        " upward fluctuations there, for any calibration."
    )
    return Drawing(
        name=f"response-{region}",
        caption=caption,
        alt=_ends(records, "median", f"Median response, {region}"),
        figure=figure,
    )


def resolution_curve(metrics: Mapping, region: str) -> Drawing | None:
    """Resolution against pT_gen, with the gain over the standard JEC below."""
    records = _in(metrics["curves"], region)
    if not records:
        return None
    figure, (top, below) = panels((3, 1.3), (10, 10))
    for place, name in enumerate(_calibrations(records[0])):
        x = [record["pt"] * SHIFT**place for record in records]
        points(top, x, [record[name]["resolution"] for record in records], **_look(name))
    points(
        below,
        [record["pt"] for record in records],
        [record["gain"] for record in records],
        color=COLOURS["model"],
        marker="o",
    )
    level(below, 0)
    top.set_ylim(bottom=0)
    top.set_ylabel("Resolution (IQR / median)")
    below.set_ylabel("Gain (%)")
    top.legend(loc="upper right")
    head(top, REGION_TEXT[region])
    pt_axis(below)
    caption = (
        f"Resolution in the {region}, and by how much the model's is better than the standard JEC's"
        " on the same jets (paired interval)."
    )
    return Drawing(
        name=f"resolution-{region}",
        caption=caption,
        alt=_ends(records, "resolution", f"Resolution, {region}"),
        figure=figure,
    )


def _ends(records: Sequence[Mapping], quantity: str, what: str) -> str:
    """The first and the last point of each curve in words."""
    first, last = records[0], records[-1]
    parts = [
        f"{LABELS[name]} {first[name][quantity]['value']:.3f} at {first['pt']:.0f} GeV, "
        f"{last[name][quantity]['value']:.3f} at {last['pt']:.0f} GeV"
        for name in _calibrations(first)
    ]
    return f"{what} against generated pT: " + "; ".join(parts) + "."


def distribution(metrics: Mapping, region: str) -> Drawing | None:
    """Histogram of the response above 30 GeV."""
    import mplhep

    counts = metrics["distribution"]["counts"].get(region, {})
    if not counts or not any(map(sum, counts.values())):
        return None
    figure, (axes,) = panels()
    for name in _calibrations(counts):
        mplhep.histplot(
            counts[name],
            metrics["distribution"]["edges"],
            ax=axes,
            color=COLOURS[name],
            label=LABELS[name],
            linewidth=2.5,
            yerr=False,
        )
    axes.axvline(1, color=INK, linewidth=1.5, linestyle=":")
    axes.set_xlabel(r"Response $p_T / p_T^{gen}$")
    axes.set_ylabel("Jets")
    axes.legend(loc="upper right")
    head(axes, REGION_TEXT[region])
    far = ", ".join(f"{LABELS[name]} {number:,}" for name, number in metrics["num_far"].items())
    caption = (
        f"Response of all {region} jets above 30 GeV. Jets off by more than a factor e, in both"
        f" regions: {far}."
    )
    return Drawing(name=f"distribution-{region}", caption=caption, alt=caption, figure=figure)


# ---------------------------------------------------------------------------------------- closure


def closure(metrics: Mapping, max_closure: float) -> Drawing | None:
    """Bias of the median response in the bins that the gate judges."""
    records = [record for record in metrics["closure"]["bins"] if not _is_whole(record, metrics)]
    if not records:
        return None
    figure, (axes,) = panels()
    for place, (region, (marker, colour)) in enumerate(REGION_LOOKS.items()):
        found = _in(records, region)
        x = [_middle(record) * SHIFT**place for record in found]
        points(
            axes,
            x,
            [record["model"] for record in found],
            100,
            marker=marker,
            color=colour,
            label=region,
        )
    _bias_axis(axes, max_closure)
    axes.legend(title="This model", loc="upper right", ncols=2)
    head(axes, "Closure")
    pt_axis(axes)
    caption = (
        f"Closure of the model from {metrics['closure']['from_gev']:g} GeV up. "
        f"The gate asks that each interval reaches into the band, ±{100 * max_closure:g} %."
    )
    farthest = max(records, key=lambda record: abs(record["model"]["value"]))
    most = (
        f"{100 * farthest['model']['value']:+.2f} % ({farthest['region']}, {farthest['pt_range']}"
        " GeV)"
    )
    alt = f"Closure in {len(records)} bins; the largest bias is {most}."
    return Drawing(name="closure", caption=caption, alt=alt, figure=figure)


def _bias_axis(axes, max_closure: float) -> None:
    """A y axis in per cent about zero, with the band allowed and room for a legend above the
    points.
    """
    axes.axhspan(-100 * max_closure, 100 * max_closure, color=INK, alpha=0.1, linewidth=0)
    level(axes, 0)
    reach = max(abs(edge) for edge in (*axes.get_ylim(), 100 * max_closure))
    axes.set_ylim(-1.1 * reach, 1.6 * reach)
    axes.set_ylabel("Median response − 1 (%)")


def _is_whole(record: Mapping, metrics: Mapping) -> bool:
    return record["pt_low"] == metrics["closure"]["from_gev"] and record["pt_high"] is None


def _middle(record: Mapping) -> float:
    """Geometric middle of a pT bin (GeV); an open bin stands a little above its edge."""
    return math.sqrt(record["pt_low"] * (record["pt_high"] or 1.7 * record["pt_low"]))


def eta(metrics: Mapping, max_closure: float) -> Drawing | None:
    """Bias of the median response against eta."""
    records = metrics["eta"]
    if not records:
        return None
    figure, (axes,) = panels()
    for place, name in enumerate(
        name for name in _calibrations(records[0]) if name != "uncorrected"
    ):
        x = [(record["eta_low"] + record["eta_high"]) / 2 + 0.05 * place for record in records]
        points(axes, x, [record[name] for record in records], 100, **_look(name))
    axes.set_xlabel(r"$\eta^{gen}$")
    _bias_axis(axes, max_closure)
    axes.legend(loc="upper right", ncols=2)
    head(axes, rf"$p_T^{{gen}} > {metrics['closure']['from_gev']:g}$ GeV")
    farthest = max(records, key=lambda record: abs(record["model"]["value"]))
    most = (
        f"{100 * farthest['model']['value']:+.2f} % between eta {farthest['eta_low']:g} and"
        f" {farthest['eta_high']:g}"
    )
    alt = f"Bias against eta; the model's largest is {most}."
    return Drawing(
        name="eta",
        caption=f"Residual bias against η from {metrics['closure']['from_gev']:g} GeV up.",
        alt=alt,
        figure=figure,
    )


def residual(metrics: Mapping, name: str, max_closure: float) -> Drawing | None:
    """Bias of the median response against another quantity of the jet or its event."""
    records = metrics["residuals"][name]
    if not records:
        return None
    figure, (axes,) = panels()
    middles = [record["middle"] for record in records]
    step = 0.01 * (middles[-1] - middles[0])
    for place, calibration in enumerate(
        found for found in _calibrations(records[0]) if found != "uncorrected"
    ):
        points(
            axes,
            [x + step * place for x in middles],
            [record[calibration] for record in records],
            100,
            **_look(calibration),
        )
    axes.set_xlabel(RESIDUAL_LABELS.get(name, name))
    _bias_axis(axes, max_closure)
    axes.legend(loc="upper right", ncols=2)
    head(axes, rf"$p_T^{{gen}} > {metrics['closure']['from_gev']:g}$ GeV")
    reach = {
        found: max(abs(record[found]["value"]) for record in records)
        for found in ("standard", "model")
    }
    most = (
        f"{100 * reach['standard']:.2f} % with the standard JEC, {100 * reach['model']:.2f} % with"
        " the model"
    )
    alt = f"Bias against {name}: at most {most}."
    caption = (
        f"Residual bias against {name}, slices of equally many jets from"
        f" {metrics['closure']['from_gev']:g} GeV up."
    )
    return Drawing(name=f"residual-{name}", caption=caption, alt=alt, figure=figure)


# --------------------------------------------------------------------------------------- flavours


def flavour(metrics: Mapping, region: str) -> Drawing | None:
    """Median response of each flavour in the pT bins of the summary: standard JEC open, model
    filled.
    """
    whole = metrics["flavour"]["from_gev"]
    records = [
        one
        for one in _in(metrics["flavour"]["bins"], region)
        if not (one["pt_low"] == whole and one["pt_high"] is None)
    ]
    if not records:
        return None
    figure, (top, below) = panels((1, 1), (10, 10))
    for axes, name in ((top, "standard"), (below, "model")):
        for place, (kind, (marker, colour)) in enumerate(FLAVOUR_LOOKS.items()):
            found = [record for record in records if record["flavour"] == kind]
            x = [_middle(record) * SHIFT ** (2 * place - 3) for record in found]
            points(
                axes, x, [record[name] for record in found], color=colour, marker=marker, label=kind
            )
        level(axes, 1)
        axes.text(0.03, 0.05, LABELS[name], transform=axes.transAxes, fontsize=22)
        axes.set_ylabel("Median response")
    limits = [
        min(a.get_ylim()[0] for a in (top, below)),
        max(a.get_ylim()[1] for a in (top, below)),
    ]
    for axes in (top, below):
        axes.set_ylim(limits)  # the same scale: the spread is what is compared
    top.legend(ncols=4, loc="upper right", columnspacing=1, handletextpad=0.2)
    head(top, REGION_TEXT[region])
    pt_axis(below)
    caption = (
        f"Response by flavour in the {region}: the closer together, the less the calibration"
        " depends on what made the jet."
    )
    return Drawing(
        name=f"flavour-{region}",
        caption=caption,
        alt=_flavour_words(metrics, region),
        figure=figure,
    )


def _flavour_words(metrics: Mapping, region: str) -> str:
    entry = metrics["flavour"]["regions"].get(region)
    if not entry:
        return f"Median response by flavour and pT, {region}."
    standard, model = (100 * entry["spread"][name]["value"] for name in ("standard", "model"))
    return (
        f"Median response by flavour, {region}: spread {standard:.2f} % with the standard JEC,"
        f" {model:.2f} % with the model."
    )


# ---------------------------------------------------------------------------- per-jet uncertainty


def coverage(metrics: Mapping) -> Drawing | None:
    """How many jets lie within the uncertainty predicted for them, against the pT of the file."""
    records = (metrics.get("uncertainty") or {}).get("pt")
    if not records:
        return None
    band = metrics["uncertainty"]["bands"][0]
    figure, (axes,) = panels()
    for place, (region, (marker, colour)) in enumerate(REGION_LOOKS.items()):
        found = _in(records, region)
        x = [record["pt"] * SHIFT**place for record in found]
        points(
            axes,
            x,
            [record["coverage"] for record in found],
            100,
            marker=marker,
            color=colour,
            label=region,
        )
    level(axes, 100 * band["nominal"])
    lowest, highest = axes.get_ylim()
    axes.set_ylim(lowest, highest + 0.25 * (highest - lowest))
    axes.set_ylabel("Jets within their uncertainty (%)")
    axes.legend(loc="upper right", ncols=2)
    pt_axis(axes)
    axes.set_xlabel("Corrected $p_T$ of the file (GeV)")
    head(axes, f"{band['low']} to {band['high']}")
    caption = (
        f"Jets whose generator jet lies between the {band['low']} and {band['high']} that the model"
        f" gives for them, against the pT of the file. Dotted: {100 * band['nominal']:g} %, which"
        " right quantiles cover. Bars: binomial intervals."
    )
    farthest = max(records, key=lambda record: abs(record["coverage"]["value"] - band["nominal"]))
    most = (
        f"{100 * farthest['coverage']['value']:.1f} % ({farthest['region']}, {farthest['pt_range']}"
        " GeV)"
    )
    alt = (
        f"Coverage of {len(records)} bins of pT, wanted {100 * band['nominal']:g} %; the farthest"
        f" from it is {most}."
    )
    return Drawing(name="uncertainty-coverage", caption=caption, alt=alt, figure=figure)


def widths(metrics: Mapping) -> Drawing | None:
    """The width found in slices of the predicted one, with their ratio below."""
    records = (metrics.get("uncertainty") or {}).get("widths")
    if not records:
        return None
    figure, (top, below) = panels((3, 1), (10, 10))
    predicted = [100 * record["predicted"] for record in records]
    points(
        top,
        predicted,
        [record["measured"] for record in records],
        100,
        color=COLOURS["model"],
        marker="o",
        label="Test jets",
    )
    ends = [0.9 * predicted[0], 1.05 * predicted[-1]]
    top.plot(ends, ends, color=INK, linewidth=1.5, linestyle=":", label="As predicted")
    ratios = [
        {key: record["measured"][key] / record["predicted"] for key in record["measured"]}
        for record in records
    ]
    points(below, predicted, ratios, color=COLOURS["model"], marker="o")
    level(below, 1)
    top.set_ylabel("Measured 68 % half-width (%)")
    below.set_ylabel("Ratio")
    below.set_xlabel("Predicted half-width (%)")
    top.legend(loc="upper left")
    head(top, "Per-jet uncertainty")
    caption = (
        "Slices of equally many jets by the uncertainty predicted for them, and the width of"
        f" log(pT / pT of the generator jet) found there. Predicted from {predicted[0]:.1f} to"
        f" {predicted[-1]:.1f} %."
    )
    first, last = (100 * record["measured"]["value"] for record in (records[0], records[-1]))
    ends = (
        f"{first:.1f} % where {predicted[0]:.1f} % is predicted, {last:.1f} % where"
        f" {predicted[-1]:.1f} %"
    )
    alt = f"Measured against predicted half-width of a jet: {ends}."
    return Drawing(name="uncertainty-width", caption=caption, alt=alt, figure=figure)


# ------------------------------------------------------------------------------- training, search


def training(history: Sequence[Mapping]) -> Drawing | None:
    """Training and validation loss against the epoch, of the best trial."""
    lines = {
        "train_loss": ("Training", COLOURS["standard"], "--"),
        "val_loss": ("Validation", COLOURS["model"], "-"),
    }
    found = {
        key: [(epoch["epoch"], epoch[key]) for epoch in history if epoch.get(key) is not None]
        for key in lines
    }
    if not any(found.values()):
        return None
    from matplotlib.ticker import MaxNLocator

    figure, (axes,) = panels()
    for key, (label, colour, dashes) in lines.items():
        if found[key]:
            axes.plot(
                *zip(*found[key], strict=True),
                color=colour,
                linestyle=dashes,
                label=label,
                linewidth=3,
                marker="o",
                markersize=6,
            )
    axes.set_xlabel("Epoch")
    axes.set_ylabel("Loss")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.xaxis.minorticks_off()
    axes.legend()
    head(axes, "Best trial")
    best = min(found["val_loss"], key=lambda pair: pair[1], default=None)
    alt = f"Loss over {len(history)} epochs." + (
        f" Lowest validation loss {best[1]:.5f} in epoch {best[0]}." if best else ""
    )
    return Drawing(
        name="training", caption="Training of the best trial. " + alt, alt=alt, figure=figure
    )


def objective(trial: Mapping, search: Mapping) -> float | None:
    """The objective's value of a trial as the search takes it (the best it ever had);

    None if it has none.
    """
    seen = trial.get("metrics", {}).get(search["objective"]["name"])
    return seen["max" if search["objective"]["type"] == "maximize" else "min"] if seen else None


def search_history(search: Mapping) -> Drawing | None:
    """Objective of each trial in order, and the best so far."""
    values = [
        (number, objective(trial, search))
        for number, trial in enumerate(search.get("trials", []), 1)
    ]
    values = [(number, value) for number, value in values if value is not None]
    if len(values) < 2:
        return None
    from matplotlib.ticker import MaxNLocator

    best = max if search["objective"]["type"] == "maximize" else min
    figure, (axes,) = panels()
    numbers = [number for number, _ in values]
    so_far = [best(value for _, value in values[: place + 1]) for place in range(len(values))]
    axes.plot(
        *zip(*values, strict=True), "o", color=COLOURS["standard"], markersize=11, label="Trial"
    )
    axes.step(
        numbers, so_far, where="post", color=COLOURS["model"], linewidth=3, label="Best so far"
    )
    axes.set_xlabel("Trial")
    axes.set_ylabel(search["objective"]["name"])
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.xaxis.minorticks_off()
    axes.legend()
    head(axes, "Search")
    alt = f"{search['objective']['name']} of {len(values)} trials; the best is {so_far[-1]:.5f}."
    return Drawing(name="search", caption="Search history. " + alt, alt=alt, figure=figure)


def parallel(search: Mapping) -> Drawing | None:
    """Parallel coordinates: one line a trial through its parameters to the objective; the best one
    thick.
    """
    trials = [trial for trial in search.get("trials", []) if objective(trial, search) is not None]
    names = [
        name
        for name in (trials[0]["parameters"] if trials else ())
        if len({trial["parameters"].get(name) for trial in trials}) > 1
    ]
    if len(trials) < 2 or not names:
        return None
    columns = {name: [trial["parameters"].get(name, "") for trial in trials] for name in names}
    columns[search["objective"]["name"]] = [str(objective(trial, search)) for trial in trials]
    scales = {name: _scale(values) for name, values in columns.items()}
    figure, (axes,) = panels(size=(max(10, 2.1 * len(columns)), 8))
    for row, trial in enumerate(trials):
        best = trial["name"] == search.get("optimal")
        heights = [scales[name][values[row]] for name, values in columns.items()]
        look = (
            {"color": COLOURS["model"], "linewidth": 4, "zorder": 3}
            if best
            else {"color": COLOURS["standard"], "linewidth": 2, "alpha": 0.7}
        )
        axes.plot(range(len(columns)), heights, **look)
    _parallel_axes(axes, scales)
    alt = (
        f"Parameters of {len(trials)} trials, the best in red: "
        + ", ".join(f"{name} {columns[name][_best(trials, search)]}" for name in names)
        + "."
    )
    return Drawing(
        name="parallel",
        caption="Parameters of each trial (the best in red), those that were searched.",
        alt=alt,
        figure=figure,
    )


def _best(trials: Sequence[Mapping], search: Mapping) -> int:
    return next(
        (row for row, trial in enumerate(trials) if trial["name"] == search.get("optimal")), 0
    )


def _scale(values: Sequence[str]) -> dict[str, float]:
    """Text of a parameter -> height between 0 and 1: by its number (its logarithm over a wide
    positive range), else by its rank.
    """
    try:
        numbers = {value: float(value) for value in values}
    except ValueError:
        kinds = sorted(set(values))
        return {kind: place / max(len(kinds) - 1, 1) for place, kind in enumerate(kinds)}
    if min(numbers.values()) > 0 and max(numbers.values()) > 20 * min(numbers.values()):
        numbers = {value: math.log(number) for value, number in numbers.items()}
    low, high = min(numbers.values()), max(numbers.values())
    return {value: (number - low) / ((high - low) or 1) for value, number in numbers.items()}


def _parallel_axes(axes, scales: Mapping[str, Mapping[str, float]]) -> None:
    """A vertical line a parameter with its lowest and highest value (every value of a category)."""
    axes.minorticks_off()
    axes.set_yticks([])
    axes.set_xticks(
        range(len(scales)),
        [name if len(name) < 10 else name.replace("-", "-\n", 1) for name in scales],
        fontsize=18,
    )
    axes.tick_params(top=False, length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
    for place, heights in enumerate(scales.values()):
        axes.axvline(place, color=INK, linewidth=1)
        for text, height in heights.items():
            if height in (0, 1) or not _is_number(text):
                shown = f"{float(text):.4g}" if _is_number(text) else text
                axes.text(place + 0.03, height + 0.015, shown, fontsize=16, va="bottom")
    axes.set_xlim(-0.2, len(scales) - 0.4)


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False
