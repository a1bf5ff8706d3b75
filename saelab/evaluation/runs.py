"""Evaluate run folders, many at once: stores and models are opened once, and clean passes are shared.

Runs of the same hookpoints on the same tokens share the clean pass of the model and both ablations, so N of
them cost N + 3 passes. Their SAEs are in memory together as long as they take no more than 4 GiB; more
are evaluated in several rounds, each with a clean pass of its own. No number depends on the company.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from saelab.activations.rows import joined
from saelab.activations.store import Store
from saelab.evaluation.evaluate import evaluate_together
from saelab.evaluation.places import heldout_mean, require_hooks
from saelab.evaluation.records import (
    check_record_name,
    require_same_origin,
    require_writable,
    write_record,
)
from saelab.evaluation.result import Evaluation
from saelab.evaluation.sources import Shared, Tokens, TokenSource, open_tokens, tokens_for
from saelab.evaluation.spec import EvaluationConfig
from saelab.lm.identity import ModelIdentity
from saelab.lm.load import LanguageModel
from saelab.lm.spec import ModelSpec
from saelab.sae.files import WEIGHTS, load_sae_config
from saelab.sae.model_match import require_same_model
from saelab.training.run import SAE, Run
from saelab_kernels.shapes import Float, Tensor

SAE_BYTES = 4 * 2**30
"""SAEs that are in memory at once take no more than this, or are one."""


@dataclass(frozen=True, kw_only=True)
class HowToEvaluate:
    """What an evaluation of runs is told beside the runs and the tokens."""

    config: EvaluationConfig = field(default_factory=EvaluationConfig)
    """How much is evaluated."""
    name: str | None = None
    """Name of the records; None derives it from where the tokens come from: ``heldout`` for a run's own."""
    out: Path | None = None
    """An overlay folder for the records of runs that are read-only; None keeps each in its run."""
    allow_model_mismatch: bool = False
    """Evaluate SAEs on another model than their own, where tokenizer and width fit."""
    device: str = "auto"
    """Where models are loaded."""
    quiet: bool = False
    """Show no progress."""


def evaluate_runs(
    runs: Sequence[Run],
    source: TokenSource | None = None,
    how: HowToEvaluate | None = None,
    *,
    lm: LanguageModel | None = None,
) -> list[Evaluation]:
    """Evaluate finished runs and keep a record of each, as soon as it is there.

    Args:
        runs: Finished runs.
        source: Where the tokens come from; each run's own held-out documents where not given.
        how: How much is evaluated and where the records go.
        lm: The model of all these tokens, if it is loaded already.

    Returns:
        One evaluation for each run, in their order.

    Raises:
        UsageError: Source and runs do not belong together, or a record cannot be kept; nothing was started.
        SaelabError: A model cannot be loaded.
    """
    source, how = source or TokenSource(), how or HowToEvaluate()
    if how.name is not None:
        check_record_name(how.name)
    for run in runs:
        require_writable(run, how.out)
    found: dict[int, Evaluation] = {}
    with Shared(lm, how.device) as shared:
        together = _together(runs, source, how, shared)
        for tokens, members in together.items():
            for index in members:
                require_same_origin(runs[index], _record_name(tokens, how), tokens.origin, how.out)
            if tokens.harvest is None or source.model is not None:
                _require_fits([runs[index] for index in members], tokens, shared, how)
        for tokens, members in together.items():
            for index, evaluation in _evaluate_members(runs, members, tokens, shared, how):
                write_record(runs[index], _record_name(tokens, how), evaluation, how.out)
                found[index] = evaluation
    return [found[index] for index in range(len(runs))]


def _record_name(tokens: Tokens, how: HowToEvaluate) -> str:
    return how.name or tokens.origin.record_name


def _together(
    runs: Sequence[Run], source: TokenSource, how: HowToEvaluate, shared: Shared
) -> Mapping[Tokens, list[int]]:
    """Return the runs by their tokens, those of one model after one another."""
    found: dict[Tokens, list[int]] = {}
    for index, run in enumerate(runs):
        found.setdefault(tokens_for(run, source, how.config.tokens, shared), []).append(index)
    specs = list(dict.fromkeys(_model_spec(tokens, shared) for tokens in found))
    return dict(sorted(found.items(), key=lambda item: specs.index(_model_spec(item[0], shared))))


def _model_spec(tokens: Tokens, shared: Shared) -> ModelSpec | None:
    """Return which model the tokens are for; None for activations without one."""
    if tokens.harvest is not None:
        return tokens.harvest.model
    return _store(tokens, shared).model_spec()


def _store(tokens: Tokens, shared: Shared) -> Store:
    assert tokens.store is not None
    return shared.store(tokens.store)


def _require_fits(runs: Sequence[Run], tokens: Tokens, shared: Shared, how: HowToEvaluate) -> None:
    """Refuse SAEs that do not belong to the tokens, by their configurations alone."""
    model, widths, where = _model_and_widths(tokens, shared)
    for run in runs:
        require_hooks(tokens.places, widths, what=str(run.path), where=where)
        require_same_model(
            load_sae_config(run.path / SAE),
            model,
            widths,
            doing=f"evaluate: {run.path}",
            allow_mismatch=how.allow_model_mismatch,
        )


def _model_and_widths(tokens: Tokens, shared: Shared) -> tuple[ModelIdentity | None, dict[str, int], str]:
    """Return the model, the widths of all hookpoints that there are, and what has them."""
    if tokens.harvest is None:
        store = _store(tokens, shared)
        return store.model_identity, {hook.module_path: hook.d_in for hook in store.hooks}, str(store.path)
    lm = shared.model(tokens.harvest.model)
    widths = {hookpoint.module_path: hookpoint.d_in for hookpoint in lm.hookpoints}
    return lm.identity, widths, f"the model {lm.identity.name}"


def _training_mean(run: Run, tokens: Tokens) -> Float[Tensor, " d_out"] | None:
    """Return the mean of the training tokens, which a text that is cached for the evaluation has none of.

    None where the store has its own, or nobody knows the training tokens.
    """
    if tokens.mean_of is None:
        return None
    return joined([run.activation_statistics(hook).mean for hook in tokens.places.outputs])


def _evaluate_members(
    runs: Sequence[Run], members: Sequence[int], tokens: Tokens, shared: Shared, how: HowToEvaluate
) -> Iterator[tuple[int, Evaluation]]:
    """Evaluate the runs that have their tokens in common."""
    spec = _model_spec(tokens, shared)
    lm = None if spec is None else shared.model(spec)
    if tokens.harvest is not None:
        _require_fits([runs[index] for index in members], tokens, shared, how)
    mean = _training_mean(runs[members[0]], tokens)
    with open_tokens(tokens, shared, lm, how.quiet) as (store, warnings):
        if mean is None and tokens.harvest is not None:
            mean = heldout_mean(store, tokens.places)
        for one_round in _rounds(runs, members):
            device = torch.device("cpu") if lm is None else lm.device
            evaluations = evaluate_together(
                [runs[index].sae().to(device) for index in one_round],
                store,
                lm=lm,
                mean=mean,
                config=how.config,
                allow_model_mismatch=how.allow_model_mismatch,
                progress=not how.quiet,
                origin=tokens.origin,
                warnings=warnings,
            )
            yield from zip(one_round, evaluations, strict=True)


def _rounds(runs: Sequence[Run], members: Sequence[int]) -> Iterator[list[int]]:
    """Yield the runs whose SAEs are in memory together."""
    one_round: list[int] = []
    held = 0
    for index in members:
        size = (runs[index].path / SAE / WEIGHTS).stat().st_size
        if one_round and held + size > SAE_BYTES:
            yield one_round
            one_round, held = [], 0
        one_round.append(index)
        held += size
    if one_round:
        yield one_round
