"""Evaluate SAEs on the held-out tokens of a store: for each one record with every metric.

SAEs of one hookpoint are evaluated together on one reading of the activations and one clean pass of the
model; what one of them gets does not depend on which others there are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
import torch

from saelab.activations.store import Store, StoredHook
from saelab.errors import UsageError
from saelab.evaluation.autoencoder import Autoencoder, model_hash, reconstruct_tile, require_fit, tiles
from saelab.evaluation.loss_recovered import LossMetrics, loss_recovered
from saelab.evaluation.origin import Origin
from saelab.evaluation.outliers import Outliers, find_outliers
from saelab.evaluation.reconstruction import ReconstructionAccumulator, ReconstructionMetrics
from saelab.evaluation.spec import EvaluationConfig
from saelab.evaluation.tokens import EvaluatedTokens, choose_tokens
from saelab.lm.hooks import resolve
from saelab.lm.load import LanguageModel
from saelab.progress import Progress
from saelab.sae.feature_statistics import FeatureStatistics
from saelab.sae.model_match import ModelMismatch
from saelab_kernels.shapes import Float, Tensor


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Every metric of one SAE on one set of tokens."""

    reconstruction: ReconstructionMetrics
    """Sparsity and reconstruction."""
    loss: LossMetrics
    """Loss of the language model with and without the SAE; all None without a model that has one."""
    undefined: dict[str, str]
    """Each metric that is not defined, with the reason."""
    warnings: tuple[str, ...]
    """What makes the numbers doubtful, one sentence each."""
    outlier_ratio: float | None
    """Largest norm of an evaluated activation / their median norm."""
    origin: Origin
    """Where the tokens come from; ``source`` in the JSON record."""
    hook: str
    """Module path of the hookpoint."""
    tokens_hash: str
    """Digest of the evaluated tokens and positions; evaluations compare only where it is equal."""
    store_identity: str
    """Identity of the store."""
    model_identity: str
    """Identity of the model whose activations were evaluated; empty for activations without one."""
    model_mismatch: ModelMismatch | None
    """The two models, where the SAE was trained on another one than it was evaluated on."""
    config: EvaluationConfig
    """How much was evaluated, and how."""
    features: FeatureStatistics
    """How often and how strongly each feature fired; not part of the JSON record."""

    def to_json(self) -> dict[str, Any]:
        """Return the record as plain JSON values, metrics at the top level."""
        named = {
            field.name: getattr(self, field.name)
            for field in fields(self)
            if field.name
            not in ("reconstruction", "loss", "features", "config", "warnings", "model_mismatch", "origin")
        }
        return {
            **asdict(self.reconstruction),
            **asdict(self.loss),
            **named,
            "source": self.origin.to_json(),
            "warnings": list(self.warnings),
            "model_mismatch": None if self.model_mismatch is None else self.model_mismatch.to_json(),
            "config": asdict(self.config),
        }


def evaluate(
    sae: Autoencoder,
    store: Store,
    hookpoint_name: str | None = None,
    lm: LanguageModel | None = None,
    *,
    mean: Float[Tensor, " d_in"] | None = None,
    config: EvaluationConfig | None = None,
    allow_model_mismatch: bool = False,
    progress: bool = True,
) -> Evaluation:
    """Evaluate one SAE; see `evaluate_together`."""
    return evaluate_together(
        [sae],
        store,
        hookpoint_name,
        lm,
        mean=mean,
        config=config,
        allow_model_mismatch=allow_model_mismatch,
        progress=progress,
    )[0]


def evaluate_together(
    saes: Sequence[Autoencoder],
    store: Store,
    hookpoint_name: str | None = None,
    lm: LanguageModel | None = None,
    *,
    mean: Float[Tensor, " d_in"] | None = None,
    config: EvaluationConfig | None = None,
    allow_model_mismatch: bool = False,
    progress: bool = True,
    origin: Origin | None = None,
    warnings: Sequence[str] = (),
) -> list[Evaluation]:
    """Evaluate SAEs of one hookpoint on the kept tokens of the held-out documents of a store.

    The activations are read once; N SAEs cost N + 3 passes of the model.

    Args:
        saes: Each computes on the device where its weights are.
        store: Activations of the hookpoint that the SAEs were trained at.
        hookpoint_name: Either spelling; None where the store has one hookpoint only.
        lm: The store's model; without it, or where it does not predict the next token, the losses are not defined.
        mean: Mean of the kept training activations for mean ablation; None takes it from the store's
            statistics. A store of held-out text alone has none of its own.
        config: How much is evaluated.
        allow_model_mismatch: Evaluate SAEs of another model on this one, where tokenizer and width fit.
        progress: Show progress on standard error.
        origin: Where the tokens come from, where that is not just the store.
        warnings: What makes the tokens doubtful, one sentence each.

    Returns:
        One record for each SAE, in their order; the same bits as alone.

    Raises:
        UsageError: An SAE or the model does not belong to these activations.
    """
    config = config or EvaluationConfig()
    hook = store.hook(hookpoint_name)
    origin = origin or Origin(kind="store", store=str(store.path), store_identity=store.identity)
    mismatches = [require_fit(sae, store, hook, allow_model_mismatch=allow_model_mismatch) for sae in saes]
    if lm is not None:
        _require_own_model(store, lm)
    chosen = choose_tokens(store, hook, config.tokens)
    accumulators, outliers = _measure_reconstruction(saes, store, hook, chosen, config.tile, progress)
    losses = [LossMetrics()] * len(saes)
    why_no_loss = _why_no_loss(lm)
    if lm is not None and not why_no_loss:
        mean = store.statistics(hook).mean if mean is None else mean
        losses = _measure_loss(saes, lm, store, hook, chosen, mean, config, progress)
    evaluations = []
    for accumulator, loss, mismatch in zip(accumulators, losses, mismatches, strict=True):
        reconstruction = accumulator.result()
        evaluations.append(
            Evaluation(
                reconstruction=reconstruction,
                loss=loss,
                undefined=_undefined(reconstruction, loss, why_no_loss),
                warnings=(
                    *warnings,
                    *outliers.warnings,
                    *loss.warnings(),
                    *(() if mismatch is None else (mismatch.warning(),)),
                ),
                outlier_ratio=outliers.ratio,
                origin=origin,
                hook=hook.module_path,
                tokens_hash=chosen.digest,
                store_identity=store.identity,
                model_identity=model_hash(store),
                model_mismatch=mismatch,
                config=config,
                features=accumulator.features(),
            )
        )
    return evaluations


def _measure_loss(
    saes: Sequence[Autoencoder],
    lm: LanguageModel,
    store: Store,
    hook: StoredHook,
    chosen: EvaluatedTokens,
    mean: Float[Tensor, " d_in"],
    config: EvaluationConfig,
    progress: bool,
) -> list[LossMetrics]:
    rows = chosen.sequence_rows
    with Progress("measuring the loss", len(rows), "sequences", quiet=not progress) as bar:
        return loss_recovered(
            saes,
            lm,
            store,
            resolve(hook.module_path, lm.hookpoints),
            rows=rows,
            mean=mean,
            batch_rows=config.batch_rows,
            tile=config.tile,
            progress=bar,
        )


def _measure_reconstruction(
    saes: Sequence[Autoencoder],
    store: Store,
    hook: StoredHook,
    chosen: EvaluatedTokens,
    tile: int,
    progress: bool,
) -> tuple[list[ReconstructionAccumulator], Outliers]:
    accumulators = [ReconstructionAccumulator(sae.config.d_out, sae.config.d_sae) for sae in saes]
    norms, token_index = [np.zeros(0)], [np.zeros(0, dtype=np.int64)]
    with Progress("evaluating", chosen.n_tokens, "tokens", quiet=not progress) as bar:
        for piece in tiles(chosen.n_tokens, tile):
            rows = store.rows(hook, "heldout", piece.start, piece.stop)
            for sae, accumulator in zip(saes, accumulators, strict=True):
                x = rows.x.to(sae.W_dec.device, torch.float32)
                accumulator.update(x, *reconstruct_tile(sae, x, tile))
            norms.append(rows.x.double().norm(dim=1).numpy())
            token_index.append(rows.token_index.numpy())
            bar.advance(len(rows.x))
    return accumulators, find_outliers(store, np.concatenate(norms), np.concatenate(token_index))


def _require_own_model(store: Store, lm: LanguageModel) -> None:
    if lm.identity.hash != (found := model_hash(store)):
        raise UsageError(
            f"evaluate: {store.path} holds activations of model {found or '(none)'}, but "
            f"{lm.identity.name} is model {lm.identity.hash}; give the store's own model"
        )


def _undefined(reconstruction: ReconstructionMetrics, loss: LossMetrics, why_no_loss: str) -> dict[str, str]:
    """Say for each metric that is None why it is."""
    reasons: dict[str, str] = {}
    for name, value in asdict(reconstruction).items():
        if value is None:
            reasons[name] = _why_no_reconstruction(name, reconstruction)
    for name, value in asdict(loss).items():
        if value is None:
            reasons[name] = why_no_loss or _why_undefined(name, loss)
    return reasons


def _why_no_reconstruction(name: str, metrics: ReconstructionMetrics) -> str:
    if metrics.n_tokens == 0:
        return "no held-out tokens"
    if metrics.mse is None:
        return "the reconstruction holds values that are not finite"
    if name == "cosine":
        return "every evaluated activation is zero"
    return "the evaluated activations are all equal"


def _why_no_loss(lm: LanguageModel | None) -> str:
    """Return why no loss is measured at all; empty where it is."""
    if lm is None:
        return "no language model was given"
    return f"{lm.identity.name} {lm.no_losses}" if lm.unembedding is None else ""


def _why_undefined(name: str, metrics: LossMetrics) -> str:
    if metrics.n_predictions == 0:
        return "no prediction counts in the evaluated tokens"
    if name in ("ce_recovered_zero", "ce_recovered_mean") and metrics.ce_spliced is not None:
        return "the ablation does not change the loss"
    return "the loss is not finite"
