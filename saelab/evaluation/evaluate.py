"""Evaluate SAEs on the held-out tokens of a store: for each one record with every metric.

SAEs of the same hookpoints are evaluated together on one reading of the activations and one clean pass of
the model; what one of them gets does not depend on which others there are. Metrics are about what an SAE
reconstructs, whatever it reads. A g-SAE is measured in both of its inference forms: without gradients, as any
other, and with them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from saelab.activations.store import Store
from saelab.errors import UsageError
from saelab.evaluation.autoencoder import Autoencoder, Form, model_hash, reconstruct_tile, require_fit, tiles
from saelab.evaluation.gradients import SAMPLED, TRUE, ModelGradients
from saelab.evaluation.loss_recovered import LossMetrics, loss_recovered
from saelab.evaluation.origin import Origin
from saelab.evaluation.outliers import Outliers, find_outliers
from saelab.evaluation.places import Places, has_gradients, read_rows, target_mean
from saelab.evaluation.reconstruction import ReconstructionAccumulator
from saelab.evaluation.result import Evaluation, FormMetrics, WithGradients, undefined_metrics
from saelab.evaluation.spec import EvaluationConfig
from saelab.evaluation.tokens import EvaluatedTokens, choose_tokens
from saelab.lm.load import LanguageModel
from saelab.progress import Progress
from saelab.sae.feature_statistics import FeatureStatistics
from saelab_kernels.shapes import Float, Tensor

GradientSource = Literal["store", "model"]


@dataclass(frozen=True, kw_only=True)
class _Task:
    """What is measured, on what."""

    store: Store
    places: Places
    chosen: EvaluatedTokens
    lm: LanguageModel | None
    """The model; None where no losses are measured."""
    mean: Float[Tensor, " d_out"] | None
    """Of the training activations of what is reconstructed; None for that of the store."""
    gradients: GradientSource | None
    """Where gradients come from, for SAEs that rank by them."""
    config: EvaluationConfig
    progress: bool


def evaluate(
    sae: Autoencoder,
    store: Store,
    hookpoint_name: str | None = None,
    lm: LanguageModel | None = None,
    *,
    mean: Float[Tensor, " d_out"] | None = None,
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
    mean: Float[Tensor, " d_out"] | None = None,
    config: EvaluationConfig | None = None,
    allow_model_mismatch: bool = False,
    progress: bool = True,
    origin: Origin | None = None,
    warnings: Sequence[str] = (),
) -> list[Evaluation]:
    """Evaluate SAEs of the same hookpoints on the kept tokens of the held-out documents of a store.

    The activations are read once; N SAEs cost N + 3 passes of the model, g-SAEs one more each and one with
    gradients together.

    Args:
        saes: Each computes on the device where its weights are.
        store: Activations of all hookpoints that the SAEs read and reconstruct; for SAEs that rank by
            gradients also these, if it has them.
        hookpoint_name: The one hookpoint that they read, in either spelling; they say themselves where not given.
        lm: The store's model; without it, or where it does not predict the next token, the losses are not defined.
        mean: Mean of the kept training activations of what is reconstructed, hookpoints joined in order, for
            mean ablation; None takes it from the store's statistics. A store of held-out text alone has none
            of its own.
        config: How much is evaluated.
        allow_model_mismatch: Evaluate SAEs of another model on this one, where tokenizer and width fit.
        progress: Show progress on standard error.
        origin: Where the tokens come from, where that is not just the store.
        warnings: What makes the tokens doubtful, one sentence each.

    Returns:
        One record for each SAE, in their order; the same bits as alone.

    Raises:
        UsageError: An SAE or the model does not belong to these activations, the SAEs to other hookpoints than
            the first one, or the mean to another width.
    """
    if not saes:
        return []
    config = config or EvaluationConfig()
    origin = origin or Origin(kind="store", store=str(store.path), store_identity=store.identity)
    places = _places(saes)
    hook = None if hookpoint_name is None else store.hook(hookpoint_name)
    mismatches = [require_fit(sae, store, hook, allow_model_mismatch=allow_model_mismatch) for sae in saes]
    if lm is not None:
        _require_own_model(store, lm)
    if mean is not None:
        _require_width(mean, store, places)
    why_no_loss = _why_no_loss(lm)
    with_losses = None if why_no_loss else lm
    task = _Task(
        store=store,
        places=places,
        chosen=choose_tokens(store, store.hook(places.inputs[0]), config.tokens),
        lm=with_losses,
        mean=mean,
        gradients="store" if has_gradients(store, places) else None if with_losses is None else "model",
        config=config,
        progress=progress,
    )
    ranked = [
        index for index, sae in enumerate(saes) if sae.config.attribution is not None and task.gradients
    ]
    forms = [*map(Form, saes), *(Form(saes[index], uses_gradients=True) for index in ranked)]
    metrics, features, outliers = _measure(task, forms, why_no_loss)
    with_gradients = {
        index: WithGradients(
            **vars(found),
            gradients_from=task.gradients or "model",
            labels=TRUE if store.label_seed is None else SAMPLED,
        )
        for index, found in zip(ranked, metrics[len(saes) :], strict=True)
    }
    return [
        Evaluation(
            **vars(metrics[index]),
            with_gradients=with_gradients.get(index),
            warnings=(
                *warnings,
                *outliers.warnings,
                *metrics[index].loss.warnings(),
                *(() if mismatch is None else (mismatch.warning(),)),
            ),
            outlier_ratio=outliers.ratio,
            origin=origin,
            hook=", ".join(places.outputs),
            input_hooks=places.inputs,
            output_hooks=places.outputs,
            tokens_hash=task.chosen.digest,
            store_identity=store.identity,
            model_identity=model_hash(store),
            model_mismatch=mismatch,
            config=config,
            features=features[index],
        )
        for index, mismatch in enumerate(mismatches)
    ]


def _measure(
    task: _Task, forms: Sequence[Form], why_no_loss: str
) -> tuple[list[FormMetrics], list[FeatureStatistics], Outliers]:
    """Return the metrics of each form, how its features fired, and the outliers among the tokens."""
    accumulators, outliers = _measure_reconstruction(task, forms)
    losses = _measure_loss(task, forms)
    metrics = []
    for form, accumulator, loss in zip(forms, accumulators, losses, strict=True):
        reconstruction, by_part = accumulator.result(), accumulator.fvu_of_parts()
        by_hook = dict(zip(task.places.outputs, by_part, strict=True)) if by_part else {}
        undefined = undefined_metrics(reconstruction, by_hook, loss, why_no_loss)
        if form.sae.config.attribution is not None and task.gradients is None:
            undefined["with_gradients"] = f"the store holds no gradients, and {why_no_loss}"
        metrics.append(
            FormMetrics(reconstruction=reconstruction, fvu_by_hook=by_hook, loss=loss, undefined=undefined)
        )
    return metrics, [accumulator.features() for accumulator in accumulators], outliers


def _measure_loss(task: _Task, forms: Sequence[Form]) -> list[LossMetrics]:
    if task.lm is None:
        return [LossMetrics()] * len(forms)
    mean = target_mean(task.store, task.places) if task.mean is None else task.mean
    rows = task.chosen.sequence_rows
    with Progress("measuring the loss", len(rows), "sequences", quiet=not task.progress) as bar:
        return loss_recovered(
            forms,
            task.lm,
            task.store,
            task.places,
            rows=rows,
            mean=mean,
            batch_rows=task.config.batch_rows,
            tile=task.config.tile,
            progress=bar,
        )


def _measure_reconstruction(
    task: _Task, forms: Sequence[Form]
) -> tuple[list[ReconstructionAccumulator], Outliers]:
    accumulators = [_accumulator(form.sae) for form in forms]
    norms, token_index = [np.zeros(0)], [np.zeros(0, dtype=np.int64)]
    tile, made = task.config.tile, _made_gradients(task, forms)
    with Progress("evaluating", task.chosen.n_tokens, "tokens", quiet=not task.progress) as bar:
        for piece in tiles(task.chosen.n_tokens, tile):
            rows = read_rows(task.store, task.places, "heldout", piece.start, piece.stop)
            gradients = rows.gradients if made is None else made.take(len(rows.x))
            for form, accumulator in zip(forms, accumulators, strict=True):
                device = form.sae.W_dec.device
                x, target = rows.x.to(device, torch.float32), rows.target.to(device, torch.float32)
                ranking = gradients.to(device) if form.uses_gradients and gradients is not None else None
                accumulator.update(target, *reconstruct_tile(form.sae, x, tile, ranking))
            norms.append(rows.target.double().norm(dim=1).numpy())
            token_index.append(rows.token_index.numpy())
            bar.advance(len(rows.x))
    return accumulators, find_outliers(task.store, np.concatenate(norms), np.concatenate(token_index))


def _accumulator(sae: Autoencoder) -> ReconstructionAccumulator:
    return ReconstructionAccumulator(sae.config.d_out, sae.config.d_sae, sae.config.output_widths)


def _made_gradients(task: _Task, forms: Sequence[Form]) -> ModelGradients | None:
    """Return the gradients that the model makes, where they are needed and the store has none."""
    if task.gradients != "model" or task.lm is None or not any(form.uses_gradients for form in forms):
        return None
    return ModelGradients(task.lm, task.store, task.places, task.chosen.sequence_rows, task.config.batch_rows)


def _places(saes: Sequence[Autoencoder]) -> Places:
    first = Places.of_sae(saes[0].config)
    for sae in saes:
        if (places := Places.of_sae(sae.config)) != first:
            raise UsageError(
                f"evaluate: SAEs of the same hookpoints are evaluated together, not of {first} and of {places}"
            )
    return first


def _require_width(mean: Float[Tensor, " d"], store: Store, places: Places) -> None:
    d_out = sum(store.hook(hook).d_in for hook in places.outputs)
    if len(mean) != d_out:
        raise UsageError(
            f"evaluate: mean has {len(mean)} values; what is reconstructed has {d_out} ({places})"
        )


def _require_own_model(store: Store, lm: LanguageModel) -> None:
    if lm.identity.hash != (found := model_hash(store)):
        raise UsageError(
            f"evaluate: {store.path} holds activations of model {found or '(none)'}, but "
            f"{lm.identity.name} is model {lm.identity.hash}; give the store's own model"
        )


def _why_no_loss(lm: LanguageModel | None) -> str:
    """Return why no loss is measured at all; empty where it is."""
    if lm is None:
        return "no language model was given"
    return f"{lm.identity.name} {lm.no_losses}" if lm.unembedding is None else ""
