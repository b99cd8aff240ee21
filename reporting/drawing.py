"""Style, axes and file formats that all figures share, in mplhep's CMS style.

Text and axes are drawn in INK, which `svg` turns into the page's text colour, so that one figure
suits light and dark pages. Letters become outlines: a figure needs no font on the reader's machine.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

from markupsafe import escape

from common.measurements import Interval, PtBin

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.legend import Legend
    from numpy.typing import ArrayLike

Bin = TypeVar("Bin", bound=PtBin)

Look: TypeAlias = dict[str, Any]
"""Keywords of matplotlib's artists: colour, marker, line and label."""

Dashes: TypeAlias = str | tuple[float, tuple[float, ...]]
"""A line style of matplotlib."""

INK = "#010203"  # a colour that nothing else uses, so that it can be found in the SVG

GROUND = "#fdfcfe"  # likewise, for what lies under letters


@dataclasses.dataclass(frozen=True, kw_only=True)
class CalibrationLook:
    """How one calibration is drawn in every figure: points by marker, lines by dashes."""

    colour: str
    marker: str
    dashes: Dashes
    label: str


CALIBRATIONS = {
    "model": CalibrationLook(colour="#e42536", marker="o", dashes="-", label="This model"),
    "standard": CalibrationLook(colour="#4a86f5", marker="s", dashes="--", label="Standard JEC"),
    "trees": CalibrationLook(colour="#cc8400", marker="^", dashes="-.", label="Boosted trees"),
    "baseline": CalibrationLook(
        colour="#a84d9e", marker="D", dashes=(0, (6, 1.5, 1, 1.5, 1, 1.5)), label="Baseline model"
    ),
    "uncorrected": CalibrationLook(colour="#8c8c91", marker="v", dashes=":", label="Uncorrected"),
}
"""Calibration -> its look, the only place where it is defined.

The hues are those of the CMS palette (M. A. Petroff, arXiv:2107.02270), darkened until each stands
out from the white and from the dark page by a contrast of 3; readers who see fewer colours tell all
of them apart. No figure uses these colours for anything else: flavours and trials differ by marker,
sets of jets by SET_LOOKS.
"""

TEAL, BROWN = "#12967e", "#a8703e"
SET_LOOKS: tuple[Look, ...] = (
    {"color": TEAL, "linestyle": "-"},
    {"color": BROWN, "linestyle": "--"},
    {"color": INK, "linestyle": ":"},
)
"""Looks of sets of jets, in the order in which they are drawn, where no calibration is shown."""

FLAVOURS = {"uds": "P", "c": "*", "b": "<", "g": "h"}
"""Flavour -> marker, which no calibration has; the colour is that of the calibration."""

OPEN: Mapping[str, bool] = {"barrel": False, "endcap": True}
"""Region -> whether its markers are open, where one panel has both regions."""
REGION_TEXT = {"barrel": r"$|\eta^{gen}| < 1.3$", "endcap": r"$1.3 < |\eta^{gen}| < 2.5$"}
PT_TICKS = (30, 60, 100, 200, 500, 1000, 2000)
PT_RANGE = (28, 2600)  # the same in every figure, so that they can be compared by eye
PT_LABEL = r"$p_T^{gen}$ (GeV)"
# Between the points of two calibrations in a bin, so that error bars stand side by side on a
# logarithmic axis.
SHIFT = 1.03


@dataclasses.dataclass(frozen=True, kw_only=True)
class Drawing:
    """A figure with the words that go with it."""

    name: str
    """File name without ending; made of letters, digits and hyphens (see `slug`)."""
    caption: str
    alt: str
    """What a reader who cannot see the figure should know."""
    figure: Figure
    titles: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """gid of an artist -> words that show where one points at it."""


def slug(text: str) -> str:
    """Text as part of a file name, of a class and of an identifier."""
    return re.sub(r"[^A-Za-z0-9_]+", "-", text)


def drawn(makers: Iterable[Callable[[], Drawing | None]]) -> Iterator[Drawing]:
    """The figures of functions that return one, or None where there is nothing to draw."""
    for make in makers:
        with style():
            drawing = make()
        if drawing:
            yield drawing


@contextlib.contextmanager
def style() -> Iterator[None]:
    """The CMS style of mplhep, in INK, on a transparent ground.

    Both drawing and saving must happen inside.
    """
    import matplotlib

    matplotlib.use("Agg")  # no display in a job
    import mplhep

    settings: dict[Any, Any] = dict(mplhep.style.CMS)
    for part in ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"):
        settings[part] = INK
    for part in ("figure.facecolor", "axes.facecolor", "savefig.facecolor"):
        settings[part] = "none"
    settings |= {"svg.fonttype": "path", "axes.unicode_minus": True}
    with matplotlib.rc_context(settings):
        yield


# ----------------------------------------------------------------------------------- file formats


def svg(drawing: Drawing) -> str:
    """The figure as an <svg> element of a page.

    It has the page's text colour, identifiers of its own, words for screen readers and, on the
    artists of `titles`, words for those who point at them.
    """
    buffer = io.StringIO()
    with style():
        drawing.figure.savefig(
            buffer, format="svg", bbox_inches="tight", metadata={"Date": None, "Creator": None}
        )
    text = buffer.getvalue()
    text = text[text.index("<svg") :].replace(INK, "currentColor").replace(GROUND, "var(--ground)")
    # Comments repeat the text of each label.
    text = re.sub(r"<!--.*?-->|<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    # Two figures on one page must not share names: a clip path of one would cut the other.
    text = re.sub(r'\bid="', f'id="{drawing.name}-', text)
    text = re.sub(r'(href="#|url\(#)', rf"\g<1>{drawing.name}-", text)
    text = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", text, count=1)
    for gid, words in drawing.titles.items():
        group = f'<g id="{drawing.name}-{gid}">'
        text = text.replace(group, f"{group}<title>{escape(words)}</title>")
    return text.replace("<svg", f'<svg role="img" aria-label="{escape(drawing.alt)}"', 1)


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


# ------------------------------------------------------------------------------------------- axes


def panels(
    heights: Sequence[float] = (1,), size: tuple[float, float] = (10, 9)
) -> tuple[Figure, list[Axes]]:
    """A figure with panels of these relative heights on one x axis, and its axes from the top."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=size)
    axes = figure.subplots(
        len(heights),
        1,
        sharex=True,
        squeeze=False,
        gridspec_kw={"height_ratios": heights, "hspace": 0.06},
    )
    return figure, list(axes[:, 0])


def head(axes: Axes, right: str) -> None:
    """Write over the frame what the figure shows.

    'Simulation': a response needs a generator jet; no experiment's name is claimed.
    """
    axes.set_title("Simulation", loc="left", fontstyle="italic", fontsize=22, pad=10)
    axes.set_title(right, loc="right", fontsize=22, pad=10)


def pt_axis(axes: Axes) -> None:
    """Make x the logarithmic axis of pT_gen that all figures share."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter

    axes.set_xscale("log")
    axes.xaxis.set_major_locator(FixedLocator(PT_TICKS))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlim(PT_RANGE)
    axes.set_xlabel(PT_LABEL)


def whole_number_axis(axes: Axes, label: str) -> None:
    """Make x an axis of epochs, trials or the like."""
    from matplotlib.ticker import MaxNLocator

    axes.set_xlabel(label)
    # Without min_n_ticks a range of two numbers gets ticks between them.
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.xaxis.minorticks_off()


def legend_above(axes: Axes, **options: Any) -> Legend:
    """Draw and return a legend at the upper right, and make the y axis longer by its height.

    So that it covers nothing. To be called when all else is drawn and the y axis has its range.
    """
    legend = axes.legend(loc="upper right", **options)
    share = legend.get_window_extent().height / axes.get_window_extent().height
    lowest, highest = axes.get_ylim()
    margins = 0.04  # above the legend and below
    axes.set_ylim(lowest, lowest + (highest - lowest) / (1 - min(share + margins, 0.7)))
    return legend


def plain_legend(axes: Axes, **options: Any) -> None:
    """Draw a legend whose labels come from the user, and are not read as mathematics."""
    for text in axes.legend(**options).get_texts():
        text.set_parse_math(False)


def level(axes: Axes, at: float) -> None:
    """Draw a dotted line to compare with."""
    axes.axhline(at, color=INK, linewidth=1.5, linestyle=":")


def points(
    axes: Axes, x: ArrayLike, intervals: Sequence[Interval], scale: float = 1.0, **look: Any
) -> None:
    """Draw intervals as points with error bars at x (N,); `look` goes to matplotlib's errorbar."""
    values, down, up = [], [], []
    for interval in intervals:
        values.append(scale * interval.value)
        # A percentile interval may leave out its value, and no error bar has a negative length.
        down.append(max(scale * (interval.value - interval.low), 0.0))
        up.append(max(scale * (interval.high - interval.value), 0.0))
    defaults: Look = {"linestyle": "none", "markersize": 9, "elinewidth": 2}
    axes.errorbar(x, values, yerr=[down, up], **(defaults | look))


def calibration_look(name: str) -> Look:
    """Colour, marker and label of a calibration's points."""
    look = CALIBRATIONS[name]
    return {"color": look.colour, "marker": look.marker, "label": look.label}


def region_look(name: str, region: str) -> Look:
    """The look of a calibration's points in one region, labelled by the region.

    For a panel that has the points of both regions.
    """
    ground: Look = {"markerfacecolor": "none", "markeredgewidth": 2} if OPEN[region] else {}
    return {**calibration_look(name), "label": region, **ground}


def in_region(bins: Iterable[Bin], region: str) -> list[Bin]:
    """The bins of one region."""
    return [one for one in bins if one.region == region]


def middle(one: PtBin) -> float:
    """The geometric middle of a pT bin (GeV); for an open bin, a value a little above its edge."""
    return float((one.pt_low * (one.pt_high or 1.7 * one.pt_low)) ** 0.5)
