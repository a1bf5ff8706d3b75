"""A comparison as one page: what was measured on what, the table, and every figure."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from saelab.evaluation.comparison.result import ComparedRun, Comparison
from saelab.evaluation.comparison.table import TableRow
from saelab.evaluation.origin import describe_origin
from saelab.viz.active import fig_active
from saelab.viz.consistency import fig_consistency
from saelab.viz.curves import MOST_CURVES, Shown, shown_settings
from saelab.viz.density import fig_density
from saelab.viz.difficulty import fig_difficulty
from saelab.viz.fronts import fig_front, has_values
from saelab.viz.page import FigureOnPage, FiguresOnPage, TableOnPage, html_page

_BARS = " Points are means over seeds, bars span the smallest and the largest value."
_FRONTS = {
    "fvu": "Sum of squared errors over the sum of squared deviations from the mean, against the measured L0."
    + _BARS,
    "ce_recovered_zero": (
        "(loss with zeros - loss with the reconstruction) / (loss with zeros - clean loss); 100 % is the model itself."
        + _BARS
    ),
    "ce_recovered_mean": "The same against the mean of the training activations instead of zeros." + _BARS,
    "kl": "How far the next-token predictions move with the reconstruction in place." + _BARS,
    "dead_fraction": "Features that fired on none of the evaluated tokens; more tokens would find fewer dead."
    + _BARS,
    "dense_fraction": "Features that fired on more than a tenth of the evaluated tokens." + _BARS,
    "seconds_per_step": (
        "Wall time that training recorded on the machine where it ran, loading, metrics and checkpoints included; the "
        "time of a pass is divided evenly among the SAEs that were trained on it." + _BARS
    ),
}
Cell = Callable[[TableRow], object]
_COLUMNS: tuple[tuple[str, Cell, str], ...] = (
    ("setting", lambda row: row.setting, "{}"),
    ("seed", lambda row: row.seed, "{}"),
    ("width", lambda row: row.width, "{:,}"),
    ("lr", lambda row: row.lr, "{:.2g}"),
    ("L0", lambda row: row.l0, "{:.2f}"),
    ("FVU", lambda row: row.fvu, "{:.4f}"),
    ("cosine", lambda row: row.cosine, "{:.4f}"),
    ("loss recovered (zeros)", lambda row: row.ce_recovered_zero, "{:.2%}"),
    ("loss recovered (mean)", lambda row: row.ce_recovered_mean, "{:.2%}"),
    ("KL, nats", lambda row: row.kl, "{:.4f}"),
    ("dead", lambda row: row.dead_fraction, "{:.2%}"),
    ("dense", lambda row: row.dense_fraction, "{:.2%}"),
    ("Zipf exponent", lambda row: row.zipf_exponent, "{:.2f}"),
    ("partnered", lambda row: row.partnered_share, "{:.1%}"),
    ("s/step", lambda row: row.seconds_per_step, "{:.3g}"),
)
_AT_L0 = {
    "fvu": ("FVU", "{:.4f}"),
    "ce_recovered_zero": ("loss recovered (zeros)", "{:.2%}"),
    "ce_recovered_mean": ("loss recovered (mean)", "{:.2%}"),
    "kl": ("KL, nats", "{:.4f}"),
    "dead_fraction": ("dead", "{:.2%}"),
    "dense_fraction": ("dense", "{:.2%}"),
    "seconds_per_step": ("s/step", "{:.3g}"),
}


def comparison_page(comparison: Comparison) -> str:
    """Return the page as one HTML file, with every text escaped and no request to anywhere."""
    parts: list[TableOnPage | FiguresOnPage] = []
    if comparison.common_l0 is not None and len(comparison.fronts) > 1:
        parts.append(_table_at_common_l0(comparison, comparison.common_l0))
    parts += [FiguresOnPage("Figures", comparison_figures(comparison)), _table_of_runs(comparison)]
    return html_page("Comparison of sparse autoencoders", _lines(comparison), parts)


def comparison_figures(comparison: Comparison) -> list[FigureOnPage]:
    """Return the figures for which the comparison has data, each with its caption."""
    settings = shown_settings(comparison)
    reduced = len({run.row.setting for run in comparison.runs}) > len(settings)
    which = (
        f" Of the many settings, one of each front near the common L0 is drawn, {MOST_CURVES} at most."
        if reduced
        else ""
    )
    fronts = {
        name: FigureOnPage(fig_front(comparison.fronts, name), caption)
        for name, caption in _FRONTS.items()
        if has_values(comparison.fronts, name)
    }
    time = fronts.pop("seconds_per_step", None)
    return [*fronts.values(), *_curves(comparison, settings, which), *([] if time is None else [time])]


def _curves(comparison: Comparison, settings: Sequence[Shown], which: str) -> list[FigureOnPage]:
    found = [
        FigureOnPage(
            fig_active(settings), "Cumulative: the share of tokens with at most n active features." + which
        ),
        FigureOnPage(
            fig_density(settings),
            "Thick: densities of the first seed. Thin: the Zipf curve exp(c) (rank + shift)^-a, fitted to the "
            "densest nine tenths of the ranks; a is its exponent." + which,
        ),
    ]
    if comparison.consistency:
        found.append(
            FigureOnPage(
                fig_consistency(comparison.consistency),
                "Features that fired on the evaluated tokens, mean over ordered pairs of seeds; several may have the "
                "same nearest feature. Marker: share with a partner of their own, one to one, at a cosine above 0.9.",
            )
        )
    if comparison.difficulty:
        found.append(
            FigureOnPage(
                fig_difficulty(settings, comparison.difficulty),
                "Evaluated tokens in tenths by the clean loss of the prediction made at them. FVU within a tenth: its "
                "squared errors over its squared deviations from the mean of all evaluated tokens. Means over seeds, "
                "bars span the smallest and the largest value." + which,
            )
        )
    return found


def _lines(comparison: Comparison) -> list[str]:
    warnings: dict[str, list[ComparedRun]] = {}
    for run in comparison.runs:
        for warning in run.warnings:
            warnings.setdefault(warning, []).append(run)
    told = [f"Warning ({_which(runs, comparison)}): {text}" for text, runs in warnings.items()]
    return [
        f"{len(comparison.runs)} {'SAE' if len(comparison.runs) == 1 else 'SAEs'} of {comparison.hook}, on the same "
        f"{comparison.n_tokens:,} {describe_origin(comparison.source)} (digest {comparison.tokens_hash}).",
        *told,
        *comparison.left_out,
    ]


def _which(runs: Sequence[ComparedRun], comparison: Comparison) -> str:
    if len(runs) == len(comparison.runs):
        return "all runs"
    return runs[0].row.run if len(runs) == 1 else f"{len(runs)} runs, {runs[0].row.run} among them"


def _table_of_runs(comparison: Comparison) -> TableOnPage:
    rows = [run.row for run in comparison.runs]
    columns = [column for column in _COLUMNS if any(column[1](row) is not None for row in rows)]
    return TableOnPage(
        "Runs",
        [name for name, _, _ in columns],
        [[_cell(value(row), form) for _, value, form in columns] for row in rows],
        note="Partnered: share of features with a partner in another seed (one to one, cosine above 0.9), a value of "
        "the setting.",
    )


def _table_at_common_l0(comparison: Comparison, l0: float) -> TableOnPage:
    return TableOnPage(
        f"At a common L0 of {l0:.3g}",
        ["front", *(name for name, _ in _AT_L0.values())],
        [
            [front, *(_cell(values.get(key), form) for key, (_, form) in _AT_L0.items())]
            for front, values in comparison.at_common_l0.items()
        ],
        note="Means over seeds, interpolated linearly in the logarithm of the measured L0 between neighbours; nothing "
        "is extrapolated.",
    )


def _cell(value: object, form: str) -> str:
    return "\N{EN DASH}" if value is None else form.format(value)
