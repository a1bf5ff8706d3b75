"""A run as one page: what it is, what was measured, how its features are spread, and the clearest of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from saelab.evaluation.origin import describe_origin
from saelab.features.records import FeatureRow, FeatureView
from saelab.features.telling import RULE
from saelab.text.vocabulary import Vocabulary
from saelab.viz.card import html_feature_card
from saelab.viz.feature_figures import fig_density_strength, fig_feature_density, fig_max_act
from saelab.viz.page import FigureOnPage, FiguresOnPage, HtmlOnPage, OnPage, TableOnPage, html_page
from saelab.viz.text import html_text

EXAMPLES = 6
"""Examples of each group on a card of the report."""
_METRICS: tuple[tuple[str, str, str, str], ...] = (
    ("l0", "L0", "{:.2f}", "features active on a token, on average"),
    (
        "fvu",
        "FVU",
        "{:.4f}",
        "squared error of the reconstruction over the variance of the activations; 0 is perfect",
    ),
    ("cosine", "cosine", "{:.4f}", "between activation and reconstruction, mean over tokens"),
    (
        "ce_recovered_zero",
        "loss recovered (zeros)",
        "{:.2%}",
        "(loss with zeros - loss with the reconstruction) / (loss with zeros - clean loss)",
    ),
    (
        "ce_recovered_mean",
        "loss recovered (mean)",
        "{:.2%}",
        "the same against the mean activation instead of zeros",
    ),
    ("kl", "KL", "{:.4f}", "nats: how far next-token predictions move with the reconstruction in place"),
    ("ce_clean", "loss, clean", "{:.4f}", "nats a token: cross entropy of the model as it is"),
    ("ce_spliced", "loss, reconstructed", "{:.4f}", "nats a token: with the reconstruction in place"),
    (
        "dead_fraction",
        "dead",
        "{:.2%}",
        "features that fired on none of the evaluated tokens; more would find fewer",
    ),
    ("dense_fraction", "dense", "{:.2%}", "features that fired on more than a tenth of them"),
    ("n_tokens", "tokens", "{:,}", "that were evaluated"),
)


@dataclass(frozen=True, kw_only=True)
class IndexOnReport:
    """What the report takes from a feature index."""

    rows: Sequence[FeatureRow]
    """All features."""
    views: Sequence[FeatureView]
    """Those whose cards are shown."""
    vocabulary: Vocabulary
    source: str
    """What the index was made from, in one line."""
    n_tokens: int
    parts: frozenset[str]
    """Parts that it has."""


@dataclass(frozen=True, kw_only=True)
class Report:
    """What is reported."""

    run: str
    """Name of the run."""
    identity: str
    """Identity of its SAE."""
    facts: Mapping[str, str]
    """What it is and what it was trained on: names and values."""
    evaluations: Mapping[str, Mapping[str, Any]]
    """Records of evaluations by name."""
    index: IndexOnReport | None


def report_page(report: Report) -> str:
    """Return the page as one HTML file, with every text escaped and no request to anywhere."""
    parts: list[OnPage] = [
        TableOnPage("What it is", ("", ""), [*report.facts.items()], text_columns=2),
        _metrics(report.evaluations),
        *(_features(report.index) if report.index else ()),
    ]
    lines = [
        f"SAE {report.identity}. A reconstruction is what the SAE gives for an activation; numbers are of the tokens "
        "named beside them.",
        *_warnings(report.evaluations),
        *([] if report.evaluations else [f"It was not evaluated: saelab evaluate {report.run}"]),
        *([] if report.index else [f"Its features were not indexed: saelab index {report.run}"]),
    ]
    return html_page(f"Sparse autoencoder {report.run}", lines, parts)


def _metrics(records: Mapping[str, Mapping[str, Any]]) -> TableOnPage:
    names = list(records)
    rows = [
        (label, *(_cell(records[name].get(key), form) for name in names), meaning)
        for key, label, form, meaning in _METRICS
        if any(records[name].get(key) is not None for name in names)
    ]
    told = "; ".join(f"{name}: {_origin(record)}" for name, record in records.items())
    undefined = {
        f"{metric}: {why}"
        for record in records.values()
        for metric, why in (record.get("undefined") or {}).items()
    }
    note = (
        " ".join([f"{told}.", *(f"Not defined: {reason}." for reason in sorted(undefined))]) if told else ""
    )
    return TableOnPage("Evaluation", ("metric", *names, "what it is"), rows, note=note, text_last=True)


def _origin(record: Mapping[str, Any]) -> str:
    source = record.get("source")
    where = describe_origin(source) if isinstance(source, Mapping) else "tokens of unknown origin"
    return f"{where} at {record.get('hook', 'an unknown hookpoint')}"


def _warnings(records: Mapping[str, Mapping[str, Any]]) -> list[str]:
    return [
        f"Warning ({name}): {text}" for name, record in records.items() for text in record.get("warnings", ())
    ]


def _features(index: IndexOnReport) -> list[OnPage]:
    dead = sum(row.n_fires == 0 for row in index.rows)
    bound = (
        f" One that never fired has a density below {3 / index.n_tokens:.2g} with 95 % confidence (3 / N)."
    )
    figures = FiguresOnPage(
        "Features",
        [
            FigureOnPage(
                fig_feature_density(index.rows),
                f"Share of the {index.n_tokens:,} indexed tokens on which a feature is active; {dead:,} of "
                f"{len(index.rows):,} never were.{bound if dead and index.n_tokens else ''}",
            ),
            FigureOnPage(
                fig_max_act(index.rows), "The strongest activation of each feature on these tokens."
            ),
            FigureOnPage(
                fig_density_strength(index.rows),
                "Each point a feature, at most 2,000, evenly chosen by density; names under the pointer.",
            ),
        ],
    )
    cards: list[OnPage] = [HtmlOnPage("Clear features", _clear(index))]
    for view in index.views:
        card = html_feature_card(view, index.vocabulary, parts=index.parts, most=EXAMPLES)
        cards.append(HtmlOnPage("", card.html, card.style))
    return [figures, *cards]


def _clear(index: IndexOnReport) -> str:
    none = "" if index.views else " None is shown: no feature qualifies, or none was asked for."
    return f"<p>{html_text(RULE + none)}</p>\n<p>{html_text(index.source)}</p>"


def _cell(value: object, form: str) -> str:
    return "\N{EN DASH}" if value is None else form.format(value)
