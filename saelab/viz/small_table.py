"""A small table within a card."""

from __future__ import annotations

from collections.abc import Sequence

from saelab.viz.text import html_text


def small_table(header: Sequence[str], rows: Sequence[Sequence[str]], *, text: Sequence[int] = (0,)) -> str:
    """Return a table.

    Args:
        header: Plain text of each column; none for a table without a head.
        rows: Cells, escaped already.
        text: Columns that hold text; the others hold numbers and stand to the right.
    """
    head = f"<thead>{_row([html_text(name) for name in header], 'th', text)}</thead>" if header else ""
    return f"<table>{head}<tbody>{''.join(_row(cells, 'td', text) for cells in rows)}</tbody></table>"


def _row(cells: Sequence[str], tag: str, text: Sequence[int]) -> str:
    kinds = ("" if place in text else ' class="number"' for place in range(len(cells)))
    return (
        f"<tr>{''.join(f'<{tag}{kind}>{cell}</{tag}>' for kind, cell in zip(kinds, cells, strict=True))}</tr>"
    )
