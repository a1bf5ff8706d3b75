"""One HTML file that needs nothing else: figures, tables and text, printable, and unable to reach a network."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass

import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

from saelab.viz.text import html_text

GENERATOR = '<meta name="generator" content="saelab">'
"""Stands at the beginning of every page, so that a page of ours is known."""
_STYLE = """
body { font: 15px/1.5 Helvetica, Arial, sans-serif; color: #000; background: #fff; margin: 2em auto; max-width: 1290px;
       padding: 0 1em; }
h1 { font-size: 1.5em; } h2 { font-size: 1.2em; margin-top: 2em; }
.figures { display: flex; flex-wrap: wrap; gap: 1em 2em; }
figure { margin: 0; width: 620px; break-inside: avoid; }
figcaption { font-size: 0.87em; color: #333; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: 0.87em; font-variant-numeric: tabular-nums; }
th, td { padding: 0.2em 0.7em; text-align: right; white-space: nowrap; border-bottom: 1px solid #ccc; }
th { border-bottom: 1px solid #000; vertical-align: bottom; white-space: normal; max-width: 6.5em; }
th.text, td.text { text-align: left; }
@media screen and (prefers-color-scheme: dark) { body { color: #f5f5f5; background: #101216; }
  th, td { border-color: #3e424a; } th { border-bottom-color: #aaa; } figcaption { color: #afb2b8; }
  [data-figure] { background: #fff; } }
@media print { .modebar { display: none; } body { margin: 0; max-width: none; }
  table { font-size: 0.7em; } th, td { padding: 0.1em 0.4em; } }
"""
_SCRIPT = """
for (const place of document.querySelectorAll("[data-figure]")) {
  const figure = JSON.parse(document.getElementById(place.dataset.figure).textContent);
  Plotly.newPlot(place, figure.data, figure.layout, { displaylogo: false });
}
"""
_ESCAPES = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"}


@dataclass(frozen=True)
class FigureOnPage:
    """A figure with what it says in words."""

    figure: go.Figure
    caption: str
    """Plain text below it; also what a screen reader reads."""


@dataclass(frozen=True)
class TableOnPage:
    """A table of cells that are text already."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    text_columns: int = 1
    """Columns, from the left, that hold text and not numbers."""
    note: str = ""
    """Plain text below it."""
    text_last: bool = False
    """Whether the last column holds text too."""


@dataclass(frozen=True)
class FiguresOnPage:
    """Figures side by side where there is room."""

    title: str
    figures: Sequence[FigureOnPage]


@dataclass(frozen=True)
class HtmlOnPage:
    """HTML that a renderer of this package made, in which every text is escaped already."""

    title: str
    html: str
    style: str = ""
    """Its stylesheet; parts may have the same, which is written once."""


OnPage = TableOnPage | FiguresOnPage | HtmlOnPage


def html_page(title: str, lines: Sequence[str], parts: Sequence[OnPage], *, heading: bool = True) -> str:
    """Return a page, with plotly.js inside, once, where it has figures; every text is escaped.

    A content security policy lets only the page's own two scripts run, by their digests, and forbids every request.

    Args:
        title: Its heading.
        lines: Paragraphs below it.
        parts: Tables, figures and HTML, in order.
        heading: Whether the title is shown at the top; a part may have its own.
    """
    has_figures = any(isinstance(part, FiguresOnPage) for part in parts)
    scripts = (get_plotlyjs(), _SCRIPT) if has_figures else ()
    allowed = " ".join(f"'sha256-{_digest(script)}'" for script in scripts) or "'none'"
    policy = f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data: blob:"
    styles = dict.fromkeys(part.style for part in parts if isinstance(part, HtmlOnPage) and part.style)
    body = [
        *([f"<h1>{html_text(title)}</h1>"] if heading else []),
        *(f"<p>{html_text(line)}</p>" for line in lines),
    ]
    for number, part in enumerate(parts):
        body.append(_part(part, number))
    return "\n".join(
        [
            '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n' + GENERATOR,
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
            f"<title>{html_text(title)}</title>\n<style>{''.join([_STYLE, *styles])}</style>\n</head>\n<body>",
            *body,
            *(f"<script>{script}</script>" for script in scripts),
            "</body>\n</html>\n",
        ]
    )


def script_json(raw: str) -> str:
    """Return JSON that can stand in a script element: nothing in it can end the element."""
    for character, escaped in _ESCAPES.items():
        raw = raw.replace(character, escaped)
    return raw


def _part(part: OnPage, number: int) -> str:
    if isinstance(part, TableOnPage):
        return _table(part)
    if isinstance(part, FiguresOnPage):
        return _figures(part, number)
    return (f"<h2>{html_text(part.title)}</h2>\n" if part.title else "") + part.html


def _figures(part: FiguresOnPage, number: int) -> str:
    shown = [_figure(f"figure-{number}-{index}", figure) for index, figure in enumerate(part.figures)]
    heading = f"<h2>{html_text(part.title)}</h2>"
    return "\n".join([heading, '<div class="figures">', *shown, "</div>"])


def _figure(name: str, shown: FigureOnPage) -> str:
    plain = json.dumps(json.loads(str(shown.figure.to_json())), sort_keys=True)
    caption = html_text(shown.caption)
    height = int(shown.figure.layout.height or 0)
    return (
        f'<figure>\n<script type="application/json" id="{name}">{script_json(plain)}</script>\n'
        f'<div data-figure="{name}" role="img" aria-label="{caption}" style="height:{height}px"></div>\n'
        f"<figcaption>{caption}</figcaption>\n</figure>"
    )


def _table(table: TableOnPage) -> str:
    def row(cells: Sequence[str], tag: str) -> str:
        last = len(cells) - 1 if table.text_last else len(cells)
        kinds = ["text" if n < table.text_columns or n >= last else "number" for n in range(len(cells))]
        marked = (
            f'<{tag} class="{kind}">{html_text(cell)}</{tag}>'
            for kind, cell in zip(kinds, cells, strict=True)
        )
        return f"<tr>{''.join(marked)}</tr>"

    note = f"<p>{html_text(table.note)}</p>" if table.note else ""
    return (
        f'<h2>{html_text(table.title)}</h2>\n<div class="scroll"><table>\n<thead>{row(table.header, "th")}</thead>\n'
        f"<tbody>\n{chr(10).join(row(cells, 'td') for cells in table.rows)}\n</tbody>\n</table></div>\n{note}"
    )


def _digest(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
