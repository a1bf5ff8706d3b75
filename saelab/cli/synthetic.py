"""`saelab synthetic`: train SAEs on data whose features are known, and tell which of them they found."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from saelab.cli.options import Common, Count, Result
from saelab.cli.recipe_options import recipe_options
from saelab.evaluation.synthetic.spec import PlantedSpec

if TYPE_CHECKING:
    from saelab.evaluation.synthetic.experiment import SyntheticReport
    from saelab.training.grid import Grid


@dataclass(frozen=True, kw_only=True)
class Options(PlantedSpec, Common):
    """Train SAEs on planted data and measure recovery, sparsity and agreement between seeds on fresh rows.

    Several values of --arch, --k, --width, --lr or --seed train every combination on one pass. The same command
    finishes what was interrupted, and new values add SAEs.
    """

    out: Path
    """Folder for the data, the runs and recovery.json."""
    arch: tuple[str, ...] = ("topk",)
    """Recipes: allocation, objective and their defaults."""
    k: tuple[int, ...] = ()
    """Mean active features per token; one more than planted features are on, where not given."""
    width: tuple[str, ...] = ()
    """Numbers of features: 256, or x8 for 8 times the width of the data; twice the planted ones where not given."""
    lr: tuple[float, ...] = ()
    """Peak learning rates; following the width and the length of the run where not given."""
    seed: tuple[int, ...] = (0,)
    """Seeds of the weights; two or more tell how far SAEs agree."""
    tokens: Count = 2_000_000
    """Rows that each SAE is trained on, passes over the data included."""
    rows: Count = 262_144
    """Planted rows on the disk; training goes over them as often as it needs."""
    evaluation_rows: Count = 65_536
    """Fresh rows to measure on."""
    batch: Count = 512
    """Rows in a step."""
    normalisation: Literal["scale", "none", "layer_norm", "unit_norm"] | None = None
    """How the data are scaled in training; as the recipe wants it where not given (gba data have unit norm)."""
    set: tuple[str, ...] = ()
    """Options of a recipe, for example topk.k=4."""
    checkpoint_every: Count = 5_000
    """Steps between checkpoints."""
    max_time: str | None = None
    """Save and stop after so long (90s, 30m); the same command goes on."""
    device: str = "auto"
    """Device to train on."""


def run(options: Options) -> Result:
    """Run the command."""
    from saelab.evaluation.synthetic.experiment import SyntheticConfig, run_synthetic
    from saelab.interrupts import stop_on_signals
    from saelab.lm.devices import choose_device
    from saelab.quantities import parse_duration
    from saelab.training.passes import HowToTrain

    planted = PlantedSpec(**{field.name: getattr(options, field.name) for field in fields(PlantedSpec)})
    config = SyntheticConfig(
        planted=planted,
        tokens=options.tokens,
        rows=options.rows,
        evaluation_rows=options.evaluation_rows,
    )
    grid = _grid(options, planted)
    normalisation = {} if options.normalisation is None else {"normalisation": options.normalisation}
    with stop_on_signals(None if options.max_time is None else parse_duration(options.max_time)) as stop:
        report = run_synthetic(
            config,
            grid,
            options.out,
            HowToTrain(stop=stop),
            batch=options.batch,
            checkpoint_every=options.checkpoint_every,
            device=str(choose_device(options.device)),
            **normalisation,
        )
    return _result(report)


def _grid(options: Options, planted: PlantedSpec) -> Grid:
    from saelab.training.grid import Grid

    of_recipes = recipe_options(options.arch, options.k, options.set)
    data = planted.make()
    if not options.k:
        mean_active = float(data.frequencies().sum()) + 1e-9  # a sum that should be 8 may be 7.9999...
        k = min(data.n_features, 1 + int(mean_active))
        of_recipes = {name: {"k": k} | of_recipes.get(name, {}) for name in options.arch}
    return Grid(
        recipes=options.arch,
        k=options.k,
        widths=options.width or (2 * data.n_features,),
        lrs=options.lr,
        seeds=options.seed,
        recipe_options=of_recipes,
    )


def _result(report: SyntheticReport) -> Result:
    from saelab.evaluation.synthetic.experiment import RUNS

    data: dict[str, Any] = report.to_json() | {"folder": str(report.folder)}
    for found in data.get("runs", [data]):
        found["run"] = str(report.folder / RUNS / found["run"])
    return Result(data, _as_text(report), exit_code=1 if report.parked else 0)


_COLUMNS = (
    ("frr_80", "FRR 0.8", "{:.1%}"),
    ("frr_90", "FRR 0.9", "{:.1%}"),
    ("one_to_one_90", "1:1 0.9", "{:.1%}"),
    ("mmcs", "MMCS", "{:.3f}"),
    ("precision", "precision", "{:.1%}"),
    ("recall", "recall", "{:.1%}"),
    ("absorption", "absorption", "{:.1%}"),
    ("l0", "L0", "{:.2f}"),
    ("fvu", "FVU", "{:.4f}"),
    ("dead_fraction", "dead", "{:.1%}"),
)


def _as_text(report: SyntheticReport) -> str:
    said = ", ".join(f"{name} {value}" for name, value in report.planted.items())
    rows = [["", *(label for _, label, _ in _COLUMNS)]]
    for name, found in report.runs.items():
        values = found.to_json()
        shown = ["-" if values[key] is None else form.format(values[key]) for key, _, form in _COLUMNS]
        rows.append([name, *shown])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [f"{report.folder}: {said}"]
    for first, *rest in rows:
        cells = [first.ljust(widths[0]), *(c.rjust(w) for c, w in zip(rest, widths[1:], strict=True))]
        lines.append("  " + "  ".join(cells))
    lines += [
        f"  {len(names)} seeds ({', '.join(names)}): {found.partnered_90:.1%} of the alive features have a partner of "
        f"their own in another seed (cosine > 0.9), {found.mcs_90:.1%} one that may be shared"
        for names, found in report.seeds.items()
    ]
    lines += [f"  {name}: {reason}; left behind" for name, reason in report.parked.items()]
    return "\n".join(lines)
