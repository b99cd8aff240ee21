"""Draw the compiled pipeline: its steps, and the outputs that each takes from the others.

python -m operations.picture FILE.svg
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from xml.sax.saxutils import escape

from common.cli import Parser, output_file, run_main
from components import graph
from components.graph import Task
from components.steps import step_of

# in pixels
WIDTH, HEIGHT, GAP, MARGIN = 160, 44, 112, 16
ARC = 26  # distance between arrows that pass above the boxes

STYLE = """\
  <style>
    rect { fill: #eef3fb; stroke: #3b6ea8; stroke-width: 1.5 }
    text { text-anchor: middle; fill: #111 }
    .value { font-size: 11px; fill: #333; paint-order: stroke; stroke: #fff; stroke-width: 4 }
    path { stroke: #444; stroke-width: 1.4; fill: none; marker-end: url(#tip) }
    .wait { stroke-dasharray: 4 3 }
  </style>
  <defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" \
orient="auto"><path d="M0 0 8 4 0 8z" style="fill: #444; stroke: none; marker-end: none"/></marker>\
</defs>
"""


def svg(tasks: Sequence[Task]) -> str:
    """Return the picture of tasks as SVG; `tasks` are in topological order.

    A solid arrow is an output that a step takes; a dashed arrow means that a step only waits.
    """
    places = {task.name: number for number, task in enumerate(tasks)}
    arrows = []
    for task in tasks:
        for before in task.after:
            arrows.append((places[before], places[task.name], task.values_from(before)))
    # Leave out a wait that follows from the waits between neighbours.
    arrows = [arrow for arrow in arrows if arrow[2] or arrow[1] - arrow[0] == 1]
    # The shortest arrow is the lowest; each has a height of its own.
    arrows.sort(key=lambda arrow: (arrow[1] - arrow[0], arrow[0]))
    short = [arrow for arrow in arrows if arrow[1] - arrow[0] == 1]
    top = MARGIN + 14 + ARC * (len(arrows) - len(short))
    width = 2 * MARGIN + len(tasks) * WIDTH + (len(tasks) - 1) * GAP
    height = top + HEIGHT + MARGIN
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img"'
        ' font-family="system-ui, sans-serif" font-size="13"'
        f' aria-label="{escape(" → ".join(places))}">\n{STYLE}'
        f'  <rect width="{width}" height="{height}" style="fill: #fff; stroke: none"/>'
    ]
    for number, task in enumerate(tasks):
        x = MARGIN + number * (WIDTH + GAP)
        title = escape(step_of(task.name).title)
        lines.append(f'  <rect x="{x}" y="{top}" width="{WIDTH}" height="{HEIGHT}" rx="6"/>')
        lines.append(f'  <text x="{x + WIDTH // 2}" y="{top + HEIGHT // 2 + 5}">{title}</text>')
    for number, (start, end, values) in enumerate(arrows, start=1 - len(short)):
        lines.append(arrow(top, start, end, values, top - ARC * number))
    return "\n".join([*lines, "</svg>\n"])


def arrow(top: int, start: int, end: int, values: list[str], height: int) -> str:
    """Return an arrow between two boxes: straight to the next box, else above them at `height`."""
    style = "" if values else ' class="wait"'
    label = escape(", ".join(values))
    start_x = MARGIN + start * (WIDTH + GAP) + WIDTH
    end_x = MARGIN + end * (WIDTH + GAP)
    if end - start == 1:
        line, y = f"M{start_x} {top + HEIGHT // 2}H{end_x}", top + HEIGHT // 2 - 7
    else:
        # The arrows of one box are side by side: farther ones are nearer to its middle.
        leave_x = start_x - 6 - 14 * (end - start)
        arrive_x = end_x + 6 + 14 * (end - start)
        y = height - 4
        line = f"M{leave_x} {top}V{height + 8}q0 -8 8 -8H{arrive_x - 8}q8 0 8 8V{top}"
    text = f'  <text class="value" x="{(start_x + end_x) // 2}" y="{y}">{label}</text>'
    return f'  <path{style} d="{line}"/>' + (f"\n{text}" if label else "")


def main(argv: list[str] | None = None) -> int:
    """Return the command `python -m operations.picture`."""
    parser = Parser(prog="python -m operations.picture", description=__doc__)
    parser.add_argument("file", type=output_file, metavar="FILE.svg", help="file that is written")
    args = parser.parse_args(argv)

    def body() -> None:
        write(args.file)

    return run_main(body)


def write(file: Path) -> None:
    """Write the picture of the pipeline with its default parameters."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(svg(graph.tasks()), encoding="utf-8")


if __name__ == "__main__":
    raise SystemExit(main())
