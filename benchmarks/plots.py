"""Draw the plots of docs/performance.md from the newest results in benchmarks/results.

python -m benchmarks.plots FOLDER
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes

RESULTS = Path(__file__).resolve().parent / "results"
NUMBER = re.compile(r"[-+]?[\d,]+(?:\.\d+)?")
OURS, OTHERS = "#3b6ea8", "#9a9aa0"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bar:
    """A measured value with what it spread over."""

    label: str
    value: float
    low: float
    high: float
    ours: bool


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plot:
    """One plot: which column of which section of a benchmark it shows."""

    name: str
    benchmark: str
    section: str
    column: str
    title: str
    unit: str
    logarithmic: bool = False


PLOTS = (
    Plot(
        name="feeding",
        benchmark="feeding",
        section="ROOT to ready batches, first pass",
        column="jets/s: median (least - most)",
        title="From ROOT files to ready batches, first pass",
        unit="jets/s",
        logarithmic=True,
    ),
    Plot(
        name="training-pfn",
        benchmark="training",
        section="pfn, cpu, batch 500: whole training loop",
        column="jets/s: median (least - most)",
        title="Training, Particle Flow Network",
        unit="jets/s",
    ),
    Plot(
        name="training-particle-net",
        benchmark="training",
        section="particle_net, cpu, batch 500: whole training loop",
        column="jets/s: median (least - most)",
        title="Training, ParticleNet",
        unit="jets/s",
    ),
    Plot(
        name="calibrating",
        benchmark="calibrate",
        section="pfn-raw",
        column="jets/s",
        title="Calibrating files without a server",
        unit="jets/s",
    ),
    Plot(
        name="inputs",
        benchmark="physics",
        section="pfn: what each choice brings",
        column="gain, all (%)",
        title="Gain in resolution over the standard JEC, generated jets",
        unit="%",
    ),
)


def section_of(plot: Plot) -> tuple[str, dict[str, Any]]:
    """The section that a plot shows, and the name of its file.

    Of several files it is the one with the most rows, and of these the newest. Raises KeyError
    where no file has the section.
    """
    sections = {}
    for path in sorted(RESULTS.glob(f"{plot.benchmark}-*.json")):
        content = json.loads(path.read_text())["sections"]
        if plot.section in content:
            sections[path.stem] = content[plot.section]
    if not sections:
        raise KeyError(f"no {plot.benchmark}-*.json in {RESULTS} has the section {plot.section}")
    name = max(sections, key=lambda file: (len(sections[file]["rows"]), file))
    return name, sections[name]


def bars_of(plot: Plot) -> list[Bar]:
    """The bars of a plot, one for each row whose cell has a value."""
    _, section = section_of(plot)
    column = section["columns"].index(plot.column)
    bars = []
    for row in section["rows"]:
        numbers = [
            float(text.replace(",", "")) for text in NUMBER.findall(with_spaces(row[column]))
        ]
        if numbers:
            value, low, high = numbers if len(numbers) == 3 else [numbers[0]] * 3
            ours = not row[0].startswith(("weaver-core", "published"))
            bars.append(Bar(label=row[0], value=value, low=low, high=high, ours=ours))
    return bars


def with_spaces(cell: str) -> str:
    """A cell whose spread has no sign that could be a minus: '5 (4 - 6)' -> '5 (4  6)'."""
    return cell.replace(" - ", "  ").replace(", +", "  +").replace(", -", "  -")


def digest_of(bars: Sequence[Bar]) -> str:
    """SHA-256 of the numbers, which the picture carries: a test finds a picture of older ones."""
    text = json.dumps([dataclasses.asdict(bar) for bar in bars])
    return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"


def draw(axes: Axes, plot: Plot, bars: Sequence[Bar]) -> None:
    """Draw horizontal bars, the first one on top."""
    places = range(len(bars))
    spread = [[bar.value - bar.low for bar in bars], [bar.high - bar.value for bar in bars]]
    colours = [OURS if bar.ours else OTHERS for bar in bars]
    axes.barh(places, [bar.value for bar in bars], color=colours, xerr=spread, ecolor="#333")
    axes.set_yticks(places, [bar.label for bar in bars])
    axes.invert_yaxis()
    axes.set(title=plot.title, xlabel=plot.unit)
    if plot.logarithmic:
        axes.set_xscale("log")
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def write(plot: Plot, folder: Path) -> Path:
    """Write a plot as SVG; returns its path."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    bars = bars_of(plot)
    settings = {"svg.hashsalt": plot.name, "font.size": 9, "svg.fonttype": "path"}
    with matplotlib.rc_context(settings):
        figure, axes = plt.subplots(figsize=(7, 0.9 + 0.34 * len(bars)))
        draw(axes, plot, bars)
        path = folder / f"{plot.name}.svg"
        metadata = {"Date": None, "Description": digest_of(bars)}
        figure.savefig(path, bbox_inches="tight", facecolor="white", metadata=metadata)
        plt.close(figure)
    return path


def main(argv: list[str] | None = None) -> int:
    """The command `python -m benchmarks.plots`."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.plots", description=__doc__)
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="folder of the SVG files")
    folder = parser.parse_args(argv).folder
    folder.mkdir(parents=True, exist_ok=True)
    for plot in PLOTS:
        name, _ = section_of(plot)
        print(f"{write(plot, folder)} from {name}.json")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
