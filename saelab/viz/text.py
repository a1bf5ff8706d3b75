"""Text of users and corpora on its way into figures and pages."""

from __future__ import annotations

import html

LONGEST = 200


def plotly_text(text: object) -> str:
    """Return a text that Plotly shows as it is: it reads a small HTML subset in titles, legends and hovers.

    Cut at 200 characters, on one line, ``<`` and ``&`` escaped.
    """
    shown = " ".join(str(text).split())
    if len(shown) > LONGEST:
        shown = shown[: LONGEST - 1] + "…"
    return shown.replace("&", "&amp;").replace("<", "&lt;")


def html_text(text: object) -> str:
    """Return a text that a browser shows as it is, between tags and in quoted attributes."""
    return html.escape(str(text), quote=True)
