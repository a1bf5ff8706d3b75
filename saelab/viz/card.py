"""The card of a feature: what it is called, how often and how strongly it is active, on what, and what it promotes."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from saelab.features.records import FeatureView, Histogram, TokenEffect
from saelab.text.vocabulary import Vocabulary
from saelab.viz import bars
from saelab.viz.document import HtmlDoc
from saelab.viz.example_rows import ExampleGroup, example_groups
from saelab.viz.feature_numbers import explained_numbers, fired_line, percent
from saelab.viz.small_table import small_table
from saelab.viz.text import html_text
from saelab.viz.token_style import Theme, themed, token_style
from saelab.viz.tokens import Scale, TokenRow, markup, number_text, token_html
from saelab.viz.visible import visible_text

SHOWN_TOKENS, SHOWN_FEATURES = 10, 10
"""Rows of the lists of tokens and of features; the index knows more."""
_OPEN = ("top", "random")
"""Groups of examples that are open at first: the strongest alone would show a feature as purer than it is."""
_FIRST = 8
"""Rows of a group that are seen before more is asked for."""

_LAYOUT = """
.saelab-card { color: var(--sl-ink); background: var(--sl-paper); font: 14px/1.45 Helvetica, Arial, sans-serif;
  padding: 1em; border: 1px solid var(--sl-line); border-radius: 6px; margin: 0 0 1.5em; text-align: left; }
.saelab-card h2 { font-size: 1.25em; margin: 0 0 0.3em; overflow-wrap: anywhere; }
.saelab-card h3 { font-size: 1em; margin: 1em 0 0.3em; }
.saelab-card p { margin: 0.2em 0; } .saelab-card .quiet { color: var(--sl-quiet); font-size: 0.87em; }
.saelab-card .columns { display: grid; grid-template-columns: repeat(auto-fit, minmax(19em, 1fr)); gap: 0 2em;
  align-items: start; }
.saelab-card .columns > * { min-width: 0; } .saelab-card code, .saelab-card .name { overflow-wrap: anywhere; }
.saelab-card .effects { grid-template-columns: repeat(auto-fit, minmax(9em, 1fr)); }
.saelab-card table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 0.9em; margin: 0;
  color: inherit; background: none; }
.saelab-card th, .saelab-card td { padding: 0.12em 0.9em 0.12em 0; text-align: left; vertical-align: baseline;
  border: 0; border-bottom: 1px solid var(--sl-line); white-space: normal; max-width: none; background: none; }
.saelab-card th { font-weight: 600; } .saelab-card td.number, .saelab-card th.number { text-align: right;
  white-space: nowrap; }
.saelab-card .numbers td.number { white-space: normal; overflow-wrap: anywhere; min-width: 4.5em; }
.saelab-card code { font: 13px ui-monospace, "DejaVu Sans Mono", Menlo, Consolas, monospace; white-space: pre-wrap;
  color: inherit; background: none; }
.saelab-card .chip { font-size: 0.8em; border: 1px solid var(--sl-quiet); border-radius: 3px; padding: 0 0.25em; }
.saelab-card .flag { border: 1px solid var(--sl-quiet); border-radius: 1em; padding: 0 0.6em; font-size: 0.8em;
  font-weight: normal; white-space: nowrap; }
.saelab-card summary { cursor: pointer; } .saelab-card .group { margin: 0.5em 0; }
@media print { .saelab-card { border: 0; padding: 0; } }
"""


def html_feature_card(
    view: FeatureView,
    vocabulary: Vocabulary,
    *,
    parts: Collection[str] | None = None,
    scale: Scale = "feature",
    breaks: bool = False,
    most: int | None = None,
    theme: Theme | None = None,
) -> HtmlDoc:
    """Return the card of a feature.

    Args:
        view: What the index knows of it.
        vocabulary: The index's tokens.
        parts: Parts that the index has, to say how one that it lacks is added; None where that is not known.
        scale: What the strongest colour of a token stands for.
        breaks: Break lines where the text does.
        most: Examples of a group at most; None for all that the index has.
        theme: Light or dark; None for what the reader's system prefers.
    """
    title = f"Feature {view.row.feature}: {visible_text(view.row.shown_name)}"
    body = "\n".join(
        [
            '<div class="saelab-card">',
            _head(view),
            f'<div class="columns">{_activations(view)}{_numbers(view, vocabulary)}{_logits(view, vocabulary)}</div>',
            _examples(example_groups(view, vocabulary, most=most), view, scale, breaks=breaks),
            f'<div class="columns">{_neighbors(view, parts)}{_companions(view, parts)}</div>',
            f'<p class="quiet">{html_text(visible_text(view.source))}</p>',
            "</div>",
        ]
    )
    return HtmlDoc(title, body, card_style(theme))


def card_style(theme: Theme | None = None) -> str:
    """Return the stylesheet of cards."""
    return themed(".saelab-card", theme) + _LAYOUT + bars.STYLE + token_style(theme)


def _head(view: FeatureView) -> str:
    row = view.row
    flags = [name for name, is_set in (("dead", row.is_dead), ("dense", row.is_dense)) if is_set]
    marks = "".join(f' <span class="flag">{flag}</span>' for flag in flags)
    name = f'<p class="quiet">name from token statistics: {markup(row.name)}</p>' if row.label else ""
    return (
        f"<h2>Feature {row.feature}: {markup(row.shown_name)}{marks}</h2>{name}"
        f"<p>{html_text(fired_line(row, view.n_tokens))}</p>"
    )


def _activations(view: FeatureView) -> str:
    row = view.row
    if row.n_fires == 0:
        return ""
    marks = [
        (name, value)
        for name, value in (("p50", row.p50), ("p90", row.p90), ("p99", row.p99))
        if value is not None
    ]
    drawn = bars.bars_svg(view.detail.activations, "Activations where active", marks=marks, noun="tokens")
    table = _bins(view.detail.activations, "tokens")
    return (
        f'<div><h3>Activations</h3>{drawn}<p class="quiet">Tokens on which it is active, by activation; heights are '
        f"log(1 + count). Dashed: median, 90 % and 99 % quantile.</p>{table}{_positions(view)}</div>"
    )


def _positions(view: FeatureView) -> str:
    shares = view.detail.positions
    if not shares or not any(shares):
        return ""
    edges = tuple(place / len(shares) for place in range(len(shares) + 1))
    counts = tuple(round(share * view.row.n_fires) for share in shares)
    drawn = bars.bars_svg(Histogram(edges=edges, counts=counts), "Places in the context", noun="tokens")
    return f'<h3>Places</h3>{drawn}<p class="quiet">Where in the context it fires: 0 the beginning, 1 the end.</p>'


def _numbers(view: FeatureView, vocabulary: Vocabulary) -> str:
    rows = [
        (html_text(one.name), html_text(one.value), f'<span class="quiet">{html_text(one.meaning)}</span>')
        for one in explained_numbers(view.row, vocabulary)
    ]
    return f'<div class="numbers"><h3>Numbers</h3>{small_table((), rows, text=(0, 2))}</div>'


def _logits(view: FeatureView, vocabulary: Vocabulary) -> str:
    detail = view.detail
    tokens = _tokens(view, vocabulary)
    if not detail.promoted and not detail.suppressed:
        return (
            f"<div>{tokens}<h3>Effect on the next token</h3><p>Not known: the index was made without the model's "
            "unembedding.</p></div>"
        )
    drawn = bars.bars_svg(detail.logits, "Effects on all logits", noun="tokens of the vocabulary")
    lists = _effects("promotes", detail.promoted, vocabulary) + _effects(
        "suppresses", detail.suppressed, vocabulary
    )
    return (
        f'<div>{tokens}<h3>Effect on the next token</h3><div class="columns effects">{lists}</div>{drawn}'
        '<p class="quiet">What an activation of 1 adds to the logits by its decoder row alone, through the final '
        "norm's gain and the unembedding, less the mean over the vocabulary; later layers are left out. Bars: "
        "all tokens of the vocabulary, heights are log(1 + count).</p></div>"
    )


def _effects(title: str, effects: Sequence[TokenEffect], vocabulary: Vocabulary) -> str:
    rows = [(_token(one.token, vocabulary), number_text(one.logit)) for one in effects[:SHOWN_TOKENS]]
    return small_table((title, "logit"), rows)


def _tokens(view: FeatureView, vocabulary: Vocabulary) -> str:
    rows = [
        (_token(one.token, vocabulary), percent(one.share), f"{one.n_fires:,}")
        for one in view.detail.tokens[:SHOWN_TOKENS]
    ]
    return f"<h3>Active on</h3>{small_table(('token', 'share of activation', 'times'), rows)}" if rows else ""


def _token(token: int, vocabulary: Vocabulary) -> str:
    raw = vocabulary.bytes_of(token)
    if raw is not None and vocabulary.is_partial(token):  # alone it is no text
        return f'<code><span class="chip">bytes {raw.hex(" ")}</span></code>'
    return f"<code>{markup(vocabulary.text(token), spaces=True)}</code>"


def _examples(groups: Sequence[ExampleGroup], view: FeatureView, scale: Scale, *, breaks: bool) -> str:
    if not groups:
        return "<h3>Examples</h3><p>None: it was active on no kept token.</p>"
    reference = view.row.max_act if scale == "feature" else view.row.p99

    def rows(shown: Sequence[TokenRow], *, legend: bool = False) -> str:
        return token_html(shown, scale=scale, reference=reference, breaks=breaks, legend=legend)

    parts = []
    for place, group in enumerate(groups):
        first, rest = group.rows[:_FIRST], group.rows[_FIRST:]
        more = f"<details><summary>{len(rest)} more</summary>{rows(rest)}</details>" if rest else ""
        hidden = f"; {group.hidden} with equal surroundings left out" if group.hidden else ""
        said = _counted(len(group.rows), "example") + hidden
        parts.append(
            f'<details class="group"{" open" if group.key in _OPEN else ""}><summary><b>{html_text(group.title)}</b> '
            f'<span class="quiet">{html_text(group.note)}; {said}</span></summary>'
            f"{rows(first, legend=place == 0)}{more}</details>"
        )
    return f"<h3>Examples</h3>{''.join(parts)}"


def _counted(n: int, noun: str) -> str:
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"


def _neighbors(view: FeatureView, parts: Collection[str] | None) -> str:
    rows = [(one.other, (f"{one.cosine:.3f}",)) for one in view.neighbors]
    note = "Features whose decoder rows point most nearly the same way."
    return _features("Neighbours", ("cosine",), rows, view, note, _why_none("neighbors", parts))


def _companions(view: FeatureView, parts: Collection[str] | None) -> str:
    rows = [
        (one.other, (percent(one.p_other), f"{one.lift:.3g}", f"{one.phi:.3f}")) for one in view.companions
    ]
    sampled = view.companions[0].n_sampled if view.companions else 0
    note = (
        f"Features active on the same tokens, from {sampled:,} of its tokens. With it: their share of these; lift: how "
        "many times as often as elsewhere; phi: correlation of the two firings."
    )
    why = _why_none("coactivation", parts)
    return _features("Companions", ("with it", "lift", "phi"), rows, view, note, why)


def _why_none(part: str, parts: Collection[str] | None) -> str:
    if parts is None:
        return f"None known. Where the index lacks this part, it is added with: saelab index add RUN {part}"
    return "None." if part in parts else f"Not built. Add it with: saelab index add RUN {part}"


def _features(
    title: str,
    columns: Sequence[str],
    rows: Sequence[tuple[int, Sequence[str]]],
    view: FeatureView,
    note: str,
    why_none: str,
) -> str:
    if not rows:
        return f"<div><h3>{title}</h3><p>{html_text(why_none)}</p></div>"
    cells = [
        (
            str(other),
            f'<span class="name">{markup(view.names.get(other, "-"))}</span>',
            *map(html_text, numbers),
        )
        for other, numbers in rows[:SHOWN_FEATURES]
    ]
    table = small_table(("feature", "name", *columns), cells, text=(1,))
    return f'<div><h3>{title}</h3>{table}<p class="quiet">{html_text(note)}</p></div>'


def _bins(histogram: Histogram, noun: str) -> str:
    edges = zip(histogram.edges[:-1], histogram.edges[1:], histogram.counts, strict=True)
    rows = [(number_text(low), number_text(high), f"{count:,}") for low, high, count in edges]
    table = small_table(("from", "below", noun), rows, text=())
    return f'<details class="quiet"><summary>as a table</summary>{table}</details>'
