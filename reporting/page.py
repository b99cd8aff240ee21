"""A self-contained HTML page of sections, tables and facts: what reports are made of.

No script, no address, no font from elsewhere: a page opens from a disk, in the Kubeflow UI's
sandboxed frame, on a phone, in dark mode and on paper. Everything that goes in is escaped.
"""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping, Sequence


def escaped(value: object) -> str:
    """Text as it may stand in a page."""
    return html.escape(str(value), quote=True)


def section(title: str, *parts: str) -> str:
    """A heading with parts that are HTML already."""
    return f"<section><h2>{escaped(title)}</h2>{''.join(parts)}</section>"


def table(
    head: Sequence[str],
    rows: Sequence[Sequence[str]],
    marked: Sequence[bool] = (),
    kind: str = "numbers",
) -> str:
    """Rows of text below a head;

    `marked` rows stand out. Scrolls by itself where it is wider than the page.
    """
    marks = [*marked, *([False] * len(rows))]
    body = "".join(
        f"<tr{' class=best' if mark else ''}>"
        + "".join(f"<td>{escaped(cell)}</td>" for cell in row)
        + "</tr>"
        for row, mark in zip(rows, marks, strict=False)
    )
    heads = "".join(f'<th scope="col">{escaped(name)}</th>' for name in head)
    return (
        '<div class="wide" tabindex="0"><table'
        f' class="{kind}"><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table></div>'
    )


def facts(values: Mapping[str, object], title: str, shown: bool = False) -> str:
    """Names and values in two columns, folded away unless `shown`."""
    if not values:
        return f"<p class='small'>{escaped(title)}: not recorded.</p>"
    rows = "".join(
        f'<tr><th scope="row">{escaped(name)}</th><td>{escaped(value)}</td></tr>'
        for name, value in values.items()
    )
    found = f'<div class="wide" tabindex="0"><table class="facts">{rows}</table></div>'
    return found if shown else f"<details><summary>{escaped(title)}</summary>{found}</details>"


def flat(values: Mapping, prefix: str = "") -> Iterable[tuple[str, str]]:
    """Nested names joined by spaces -> value as text.

    Lists of plain values on one line, of dictionaries numbered.
    """
    for name, value in values.items():
        key = f"{prefix}{name}"
        if isinstance(value, Mapping):
            yield from flat(value, f"{key} ")
        elif isinstance(value, list) and any(isinstance(one, Mapping) for one in value):
            for number, one in enumerate(value, 1):
                yield from flat(one if isinstance(one, Mapping) else {"": one}, f"{key} {number} ")
        else:
            yield key, _plain(value)


def _plain(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list):
        return ", ".join(map(_plain, value))
    return "none" if value is None else str(value)


def document(title: str, body: str) -> str:
    """The whole page."""
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{escaped(title)}</title>
<style>{CSS}</style>
</head>
<body>
<main>
<h1>{escaped(title)}</h1>
{body}
</main>
</body>
</html>
"""


CSS = """
:root {
  --ground: #fff; --card: #f5f6f8; --ink: #1b1f24; --faint: #57606a; --line: #d0d7de; --good:
  #1a7f37; --bad: #c62828;
}
@media (prefers-color-scheme: dark) {
  :root {
    --ground: #14171b; --card: #1e2329; --ink: #e8eaed; --faint: #a3acb6; --line: #3a424b; --good:
    #4cc26b; --bad: #ff7b72;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0; background: var(--ground); color: var(--ink); font: 16px/1.5 system-ui, "Segoe UI",
  Helvetica, Arial, sans-serif;
}
main { max-width: 1120px; margin: 0 auto; padding: 1rem; }
h1 { font-size: 1.5rem; line-height: 1.25; margin: .5rem 0 1rem; overflow-wrap: anywhere; }
h2 { font-size: 1.2rem; margin: 2.2rem 0 .6rem; }
h3 { font-size: 1rem; margin: 1.4rem 0 .4rem; }
.small, figcaption { font-size: .85rem; color: var(--faint); }
.verdict {
  border: 1px solid var(--line); border-radius: .5rem; padding: .8rem 1rem; background: var(--card);
}
.verdict { border-left: .5rem solid var(--bad); }
.verdict.good { border-left-color: var(--good); }
.verdict h2 { margin: 0 0 .6rem; color: var(--bad); }
.verdict.good h2 { color: var(--good); }
.tiles { display: grid; gap: .8rem; grid-template-columns: repeat(auto-fit, minmax(13rem, 1fr)); }
.tile {
  background: var(--ground); border: 1px solid var(--line); border-radius: .5rem; padding: .6rem
  .8rem;
}
.tile h3 { margin: 0; font-size: .85rem; font-weight: 600; color: var(--faint); }
.tile p { margin: .2rem 0 0; }
.tile .number { font-size: 1.5rem; font-weight: 700; line-height: 1.2; }
.tile .interval { font-size: .95rem; font-weight: 400; white-space: nowrap; }
.figures {
  display: grid; gap: 1.2rem; grid-template-columns: repeat(auto-fit, minmax(min(26rem, 100%),
  1fr));
}
figure { margin: 0; min-width: 0; }
figure.parallel { grid-column: 1 / -1; }
figure svg { width: 100%; height: auto; max-height: 34rem; display: block; color: var(--ink); }
.wide { overflow-x: auto; }
table {
  border-collapse: collapse; font-size: .85rem; font-variant-numeric: tabular-nums; margin: .4rem 0;
}
th, td {
  text-align: left; padding: .25rem .8rem .25rem 0; border-bottom: 1px solid var(--line);
  vertical-align: top;
}
thead th { color: var(--faint); font-weight: 600; vertical-align: bottom; }
td { white-space: nowrap; }
.facts td { white-space: normal; overflow-wrap: anywhere; min-width: 8rem; }
.trials td:last-child { white-space: normal; min-width: 14rem; }
.facts th { font-weight: 400; color: var(--faint); }
tr.best td { font-weight: 700; }
details { margin: .5rem 0; }
summary { cursor: pointer; padding: .2rem 0; }
pre {
  background: var(--card); border: 1px solid var(--line); border-radius: .4rem; padding: .6rem
  .8rem;
}
pre { white-space: pre-wrap; overflow-wrap: anywhere; }
@media print {
  :root {
    --ground: #fff; --card: #fff; --ink: #000; --faint: #444; --line: #bbb; --good: #1a7f37; --bad:
    #c62828;
  }
  body { font-size: 10pt; }
  main { max-width: none; padding: 0; }
  figure, .tile, tr, pre { break-inside: avoid; }
  h2, h3 { break-after: avoid; }
  .figures { grid-template-columns: 1fr 1fr; }
  .wide { overflow: visible; }
  details::details-content { content-visibility: visible; block-size: auto; }
  table { font-size: 8pt; }
}
"""
