"""Style, axes and file formats that all figures share, in the CMS style of mplhep.

Text and axes are drawn in INK, which `svg` replaces by the text colour of the page, so that a
figure suits light and dark pages. Letters are drawn as outlines, so that a reader needs no font.
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

INK = "#010203"
"""Colour of text and axes. Nothing else uses it, so that `svg` can find and replace it."""

GROUND = "#fdfcfe"
"""Colour of the background of letters; unique for the same reason."""


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
"""Look of each calibration. It is defined here only.

The hues are those of the CMS palette (M. A. Petroff, arXiv:2107.02270), darkened until each stands
out from the white and from the dark page by a contrast of 3; colour-blind readers can distinguish
all of them. No figure uses these colours for anything else: flavours and trials differ by marker,
sets of jets by SET_LOOKS.
"""

TEAL, BROWN = "#12967e", "#a8703e"
SET_LOOKS: tuple[Look, ...] = (
    {"color": TEAL, "linestyle": "-"},
    {"color": BROWN, "linestyle": "--"},
    {"color": INK, "linestyle": ":"},
)
"""Looks of sets of jets, in the order of drawing, for figures that show no calibration."""

FLAVOURS = {"uds": "P", "c": "*", "b": "<", "g": "h"}
"""Marker of each flavour, distinct from those of calibrations, whose colour a point keeps."""

OPEN: Mapping[str, bool] = {"barrel": False, "endcap": True}
"""Whether the markers of a region are open, in panels that show both regions."""
REGION_TEXT = {"barrel": r"$|\eta^{gen}| < 1.3$", "endcap": r"$1.3 < |\eta^{gen}| < 2.5$"}
PT_TICKS = (30, 60, 100, 200, 500, 1000, 2000)
PT_RANGE = (28, 2600)  # GeV; the same in all figures, so that they can be compared by eye
PT_LABEL = r"$p_T^{gen}$ (GeV)"
# Factor in pT between the points of two calibrations in a bin, so that error bars stand side by
# side on a logarithmic axis.
SHIFT = 1.03


@dataclasses.dataclass(frozen=True, kw_only=True)
class Drawing:
    """A figure with its caption and its description."""

    name: str
    """File name without ending; made of letters, digits and hyphens (see `slug`)."""
    caption: str
    alt: str
    """Description of the figure for screen readers."""
    figure: Figure
    titles: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Tooltip of each artist, by its gid in the SVG."""


def slug(text: str) -> str:
    """Return text with all characters but letters, digits and _ replaced by hyphens.

    The result serves as part of a file name, a CSS class or an identifier.
    """
    return re.sub(r"[^A-Za-z0-9_]+", "-", text)


def draw_all(makers: Iterable[Callable[[], Drawing | None]]) -> Iterator[Drawing]:
    """Call each function in the CMS style and yield its figure; skip those that return None."""
    for make in makers:
        with style():
            drawing = make()
        if drawing:
            yield drawing


@contextlib.contextmanager
def style() -> Iterator[None]:
    """Set the CMS style of mplhep, with INK for text and a transparent background.

    Both drawing and saving must happen inside this context.
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
    """Return the figure as an <svg> element of a page.

    It takes the text colour of the page and has identifiers of its own, a description for screen
    readers, and the tooltips of `titles`.
    """
    buffer = io.StringIO()
    with style():
        drawing.figure.savefig(
            buffer, format="svg", bbox_inches="tight", metadata={"Date": None, "Creator": None}
        )
    text = buffer.getvalue()
    text = text[text.index("<svg") :].replace(INK, "currentColor").replace(GROUND, "var(--ground)")
    # Comments only repeat the text of each label.
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
    """Return the figure as a PDF file, for slides and papers."""
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
    """Make a figure of panels that share one x axis.

    Args:
        heights: Relative heights of the panels, from the top.
        size: Width and height of the figure (inches).

    Returns:
        The figure and the axes of its panels, from the top.
    """
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
    """Write the title above the frame: "Simulation" on the left, `right` on the right.

    A response needs a generator jet, so that all jets are simulated. No experiment is named,
    because the jets need not come from one.
    """
    axes.set_title("Simulation", loc="left", fontstyle="italic", fontsize=22, pad=10)
    axes.set_title(right, loc="right", fontsize=22, pad=10)


def pt_axis(axes: Axes) -> None:
    """Make x a logarithmic axis of pT_gen, with the same range in all figures."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter

    axes.set_xscale("log")
    axes.xaxis.set_major_locator(FixedLocator(PT_TICKS))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlim(PT_RANGE)
    axes.set_xlabel(PT_LABEL)


def whole_number_axis(axes: Axes, label: str) -> None:
    """Make x an axis with ticks at whole numbers: epochs or trials."""
    from matplotlib.ticker import MaxNLocator

    axes.set_xlabel(label)
    # Without min_n_ticks a range of two numbers gets ticks between them.
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.xaxis.minorticks_off()


def legend_above(axes: Axes, **options: Any) -> Legend:
    """Draw a legend at the upper right and extend the y axis, so that the legend covers no point.

    Call it when all else is drawn and the y axis has its range.
    """
    legend = axes.legend(loc="upper right", **options)
    share = legend.get_window_extent().height / axes.get_window_extent().height
    lowest, highest = axes.get_ylim()
    margins = 0.04  # above the legend and below
    axes.set_ylim(lowest, lowest + (highest - lowest) / (1 - min(share + margins, 0.7)))
    return legend


def plain_legend(axes: Axes, **options: Any) -> None:
    """Draw a legend without parsing its labels as mathematics, for labels given by users."""
    for text in axes.legend(**options).get_texts():
        text.set_parse_math(False)


def level(axes: Axes, at: float) -> None:
    """Draw a dotted horizontal line as a reference."""
    axes.axhline(at, color=INK, linewidth=1.5, linestyle=":")


def points(
    axes: Axes, x: ArrayLike, intervals: Sequence[Interval], scale: float = 1.0, **look: Any
) -> None:
    """Draw intervals as points with error bars.

    Args:
        axes: The axes to draw on.
        x: Positions of the points, (N,).
        intervals: Values with the ends of their intervals, N of them.
        scale: Factor for values and ends, for example 100 for per cent.
        **look: Keywords for matplotlib's errorbar.
    """
    values, down, up = [], [], []
    for interval in intervals:
        values.append(scale * interval.value)
        # A percentile interval may not contain its value; error bars must not be negative.
        down.append(max(scale * (interval.value - interval.low), 0.0))
        up.append(max(scale * (interval.high - interval.value), 0.0))
    defaults: Look = {"linestyle": "none", "markersize": 9, "elinewidth": 2}
    axes.errorbar(x, values, yerr=[down, up], **(defaults | look))


def calibration_look(name: str) -> Look:
    """Return colour, marker and label of the points of a calibration."""
    look = CALIBRATIONS[name]
    return {"color": look.colour, "marker": look.marker, "label": look.label}


def region_look(name: str, region: str) -> Look:
    """Return the look of the points of a calibration in one region, labelled by the region.

    For panels that show both regions.
    """
    ground: Look = {"markerfacecolor": "none", "markeredgewidth": 2} if OPEN[region] else {}
    return {**calibration_look(name), "label": region, **ground}


def bins_of_region(bins: Iterable[Bin], region: str) -> list[Bin]:
    """Return the bins of one region."""
    return [bin_ for bin_ in bins if bin_.region == region]


def middle(bin_: PtBin) -> float:
    """Return the geometric mean of the edges of a pT bin (GeV).

    An open bin has no upper edge; 1.7 times the lower edge serves instead.
    """
    return float((bin_.pt_low * (bin_.pt_high or 1.7 * bin_.pt_low)) ** 0.5)
