"""Compare finished runs on the same tokens: a table, Pareto fronts, and what each SAE does token by token."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from saelab.activations.store import Store
from saelab.errors import SaelabError
from saelab.evaluation.comparison.common import (
    Common,
    common_tokens,
    harvest_model,
    require_one_target,
    without_repeats,
)
from saelab.evaluation.comparison.difficulty import (
    DifficultyBins,
    difficulty_bins,
    fvu_by_difficulty,
    token_losses,
)
from saelab.evaluation.comparison.pareto import Front, common_l0, fronts_of, value_at_l0
from saelab.evaluation.comparison.profile import (
    DensityCurve,
    active_histogram,
    density_curve,
    measure,
    squared_deviations,
)
from saelab.evaluation.comparison.records import Record, records_of
from saelab.evaluation.comparison.result import ComparedRun, Comparison
from saelab.evaluation.comparison.rows import make_row
from saelab.evaluation.comparison.seeds import Dictionary, SeedConsistency, seed_consistency
from saelab.evaluation.comparison.settings import Setting, settings_of
from saelab.evaluation.comparison.table import METRICS, TableRow
from saelab.evaluation.runs import HowToEvaluate, evaluate_runs
from saelab.evaluation.sources import Shared, Tokens, TokenSource, open_tokens
from saelab.evaluation.spec import EvaluationConfig
from saelab.evaluation.tokens import EvaluatedTokens, choose_tokens
from saelab.lm.load import LanguageModel
from saelab.progress import Progress
from saelab.sae.autoencoder import SparseAutoencoder
from saelab.sae.config import SAEConfig
from saelab.storage.manifest import digest_of
from saelab.training.run import Run
from saelab_kernels.shapes import Bool, Float, Tensor

RECORDS = "records"


@dataclass(frozen=True, kw_only=True)
class HowToCompare:
    """What a comparison is told beside the runs and the tokens."""

    out: Path
    """The comparison's folder; evaluations that had to be made are kept below it."""
    config: EvaluationConfig = field(default_factory=EvaluationConfig)
    """How much is evaluated."""
    device: str = "auto"
    """Where models are loaded."""
    quiet: bool = False
    """Show no progress."""


@dataclass(frozen=True)
class _Details:
    """What was measured of one run beside its record."""

    active_histogram: tuple[int, ...]
    density: DensityCurve
    fvu_by_difficulty: tuple[float | None, ...]
    alive: Bool[Tensor, " d_sae"]


@dataclass(frozen=True)
class _OfTokens:
    """What is the same for every SAE on the same tokens."""

    chosen: EvaluatedTokens
    squared_deviation: Float[Tensor, " tokens"]
    bins: DifficultyBins | None


def compare_runs(
    runs: Sequence[Run],
    source: TokenSource | None = None,
    *,
    how: HowToCompare,
    lm: LanguageModel | None = None,
    left_out: Sequence[str] = (),
) -> Comparison:
    """Measure finished runs on the same tokens, or take what earlier evaluations on these tokens found.

    Args:
        runs: Finished runs that reconstruct the same; repeats count once.
        source: Where the tokens come from; the held-out documents of the runs' one store or text where not given.
        how: How much is evaluated, and where new records go.
        lm: The model of the tokens, if it is loaded already.
        left_out: Runs that were asked for and are not finished, one sentence each, for the report.

    Raises:
        UsageError: The runs have no target or no tokens in common; nothing was measured.
        SaelabError: A model cannot be loaded, or the tokens changed meanwhile.
    """
    source, runs = source or TokenSource(), without_repeats(runs)
    target = require_one_target(runs)
    with Shared(lm, how.device) as shared:
        common = common_tokens(runs, target, source, how.config.tokens, shared)

        def evaluate(missing: Sequence[Run], tokens: Tokens) -> list[Record]:
            return _evaluate(missing, source, how, tokens, common.digest, _model(tokens, shared))

        records = records_of(runs, common, how.config, how.out / RECORDS, evaluate)
        details, difficulty = _measure(runs, target, common, shared, how)
    settings = settings_of([run.description for run in runs])
    consistency = _consistency(runs, settings, details)
    shares = {one.setting: one.partnered_share for one in consistency}
    rows = [
        make_row(run, setting, record, one.density.zipf, shares.get(setting.setting))
        for run, setting, record, one in zip(runs, settings, records, details, strict=True)
    ]
    fronts = fronts_of([(row.front, row.setting, _metrics(row)) for row in rows], METRICS)
    at = common_l0(fronts)
    return Comparison(
        runs=tuple(
            ComparedRun(
                row=row,
                active_histogram=one.active_histogram,
                density=one.density,
                fvu_by_difficulty=one.fvu_by_difficulty,
                warnings=tuple(map(str, record.get("warnings", ()))),
            )
            for row, record, one in zip(rows, records, details, strict=True)
        ),
        fronts=fronts,
        common_l0=at,
        at_common_l0={} if at is None else {front.label: _at(front, at) for front in fronts},
        consistency=consistency,
        difficulty=difficulty,
        hook=", ".join(target.output_hooks),
        source=common.origin.to_json(),
        tokens_hash=common.digest,
        n_tokens=rows[0].n_tokens,
        left_out=tuple(left_out),
    )


def _at(front: Front, l0: float) -> dict[str, float | None]:
    return {name: value_at_l0(front.curve(name), l0) for name in METRICS if name != "l0"}


def _metrics(row: TableRow) -> dict[str, float | None]:
    return {name: getattr(row, name) for name in METRICS}


def _evaluate(
    runs: Sequence[Run],
    source: TokenSource,
    how: HowToCompare,
    tokens: Tokens,
    digest: str,
    lm: LanguageModel | None,
) -> list[Record]:
    # Equal tokens of another origin have another record: neither replaces the other.
    origin = json.dumps(tokens.origin.to_json(), sort_keys=True)
    evaluations = evaluate_runs(
        runs,
        source,
        HowToEvaluate(
            config=how.config,
            name=digest_of(f"{digest} {origin}".encode()),
            out=how.out / RECORDS,
            device=how.device,
            quiet=how.quiet,
        ),
        lm=lm,
    )
    for run, evaluation in zip(runs, evaluations, strict=True):
        if evaluation.tokens_hash != digest:
            raise SaelabError(
                f"compare: {run.path} was evaluated on tokens {evaluation.tokens_hash}, the others on {digest}; "
                "something changed them meanwhile: compare again"
            )
    return [evaluation.to_json() for evaluation in evaluations]


def _model(tokens: Tokens, shared: Shared) -> LanguageModel | None:
    """Return the model that the tokens are for; None for activations without one."""
    if tokens.harvest is not None:
        return harvest_model(tokens, shared)
    assert tokens.store is not None
    spec = shared.store(tokens.store).model_spec()
    return None if spec is None else shared.model(spec)


def _measure(
    runs: Sequence[Run], target: SAEConfig, common: Common, shared: Shared, how: HowToCompare
) -> tuple[list[_Details], tuple[float, ...]]:
    """Measure token by token, and return the mean loss of each tenth of the tokens."""
    found: dict[int, _Details] = {}
    difficulty: tuple[float, ...] = ()
    total = sum(map(len, common.members.values()))
    with Progress("comparing", total, "SAEs", quiet=how.quiet) as bar:
        for tokens, members in common.members.items():
            lm = harvest_model(tokens, shared)
            with open_tokens(tokens, shared, lm, quiet=True) as (store, _):
                if store.has_tokens and store.losses is None:
                    lm = _model(tokens, shared)
                of_tokens = _of_tokens(store, target, lm, how.config)
                if of_tokens.bins is not None:
                    difficulty = of_tokens.bins.mean_loss
                device = torch.device("cpu") if lm is None else lm.device
                for index in members:  # one SAE is in memory at a time
                    found[index] = _details(runs[index].sae().to(device), store, of_tokens, how.config)
                    bar.advance(1)
    return [found[index] for index in range(len(runs))], difficulty


def _of_tokens(
    store: Store, target: SAEConfig, lm: LanguageModel | None, config: EvaluationConfig
) -> _OfTokens:
    hook = store.hook(target.output_hooks[0])
    chosen = choose_tokens(store, hook, config.tokens)
    losses = token_losses(store, hook, chosen, lm, batch_rows=config.batch_rows)
    return _OfTokens(
        chosen,
        squared_deviations(store, target.output_hooks, chosen, tile=config.tile),
        None if losses is None else difficulty_bins(losses),
    )


def _details(
    sae: SparseAutoencoder, store: Store, of_tokens: _OfTokens, config: EvaluationConfig
) -> _Details:
    found, bins = measure(sae, store, of_tokens.chosen, tile=config.tile), of_tokens.bins
    return _Details(
        active_histogram(found.active),
        density_curve(found.densities),
        () if bins is None else fvu_by_difficulty(bins, found.squared_error, of_tokens.squared_deviation),
        found.densities > 0,
    )


def _consistency(
    runs: Sequence[Run], settings: Sequence[Setting], details: Sequence[_Details]
) -> tuple[SeedConsistency, ...]:
    """Compare seeds, setting by setting: the dictionaries of one are in memory at a time."""
    by_setting: dict[str, list[int]] = {}
    for index, setting in enumerate(settings):
        by_setting.setdefault(setting.setting, []).append(index)
    found = []
    for setting, members in by_setting.items():
        if len(members) > 1:
            dictionaries = [Dictionary(runs[i].sae().W_dec.detach(), details[i].alive) for i in members]
            found.append(seed_consistency(setting, dictionaries))
    return tuple(one for one in found if one is not None)
