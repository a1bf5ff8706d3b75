"""What the SAE's reconstruction costs the language model: its loss with the activations replaced.

Runs of the model over the same sequences: clean; with zeros in place of the activations; with the
mean of the training activations; and one with the reconstruction of each SAE. The first three are
shared by all SAEs of the same hookpoints, so N of them cost N + 3 passes; SAEs that rank features by
gradients cost one more each, and one with its backward pass together. What is replaced is what is
reconstructed, all of it at once where that is several hookpoints, by the reconstruction of what the
clean run holds where the SAE reads. Only kept positions are replaced: masked ones (BOS, outliers) are
left alone in every run. The same predictions count in all of them: those made from kept positions of a
token of the same document. The share of the loss that the reconstruction recovers is the ratio of
SAEBench's core evaluation (reference code), for zero and for mean ablation; which positions count is
stricter than there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from saelab.activations.store import Store
from saelab.evaluation.autoencoder import Form, reconstruct_rows, tiles
from saelab.evaluation.gradients import gradients_at_kept
from saelab.evaluation.places import Places
from saelab.evaluation.splice import by_hookpoint, clean_run, run_with
from saelab.evaluation.tokens import PaddedRows, padded_rows
from saelab.lm.hooks import Hookpoint, resolve
from saelab.lm.load import LanguageModel
from saelab.lm.losses import losses_and_kl, next_token_losses
from saelab.lm.run import unembedding
from saelab.progress import Progress
from saelab.text.packing import predictions_that_count
from saelab_kernels.shapes import Float, Tensor


@dataclass(frozen=True, kw_only=True)
class LossMetrics:
    """Losses in nats per counted prediction; None where a value is not defined or was not measured."""

    ce_clean: float | None = None
    """Cross entropy of the model as it is."""
    ce_spliced: float | None = None
    """With x_hat in place of the target at the kept positions."""
    ce_zero_ablation: float | None = None
    """With zeros in place of the target at the kept positions."""
    ce_mean_ablation: float | None = None
    """With the mean of the training activations in place of the target at the kept positions."""
    ce_recovered_zero: float | None = None
    """(ce_zero - ce_spliced) / (ce_zero - ce_clean); None where zero ablation changes nothing."""
    ce_recovered_mean: float | None = None
    """The same with mean ablation."""
    kl: float | None = None
    """Mean KL(clean || spliced) of the next-token distributions, nats."""
    n_predictions: int = 0
    """Predictions that counted, the same in every run."""

    def warnings(self) -> tuple[str, ...]:
        """Say where the share of the loss that is recovered means nothing: the ablation does no harm."""
        ablations = {
            "ce_recovered_zero": ("zeros", self.ce_zero_ablation),
            "ce_recovered_mean": ("the mean", self.ce_mean_ablation),
        }
        return tuple(
            f"{name} means nothing here: the model is better with {what} put in ({ablated:.4f} nats/token) than as "
            f"it is ({self.ce_clean:.4f}), so there is no loss to recover"
            for name, (what, ablated) in ablations.items()
            if ablated is not None and self.ce_clean is not None and ablated < self.ce_clean
        )


def loss_recovered(
    forms: Sequence[Form],
    lm: LanguageModel,
    store: Store,
    places: Places,
    *,
    rows: np.ndarray,
    mean: Float[Tensor, " d_out"],
    batch_rows: int,
    tile: int = 1024,
    progress: Progress | None = None,
) -> list[LossMetrics]:
    """Measure the loss with and without each of some SAEs in the model.

    Args:
        forms: SAEs of ``places``; the metrics of one do not depend on which others there are.
        lm: The model that the store's tokens were made for.
        store: Its tokens, masks and documents say what is replaced and what counts.
        places: Where activations are read, and where they are replaced.
        rows: Indices of the store's sequences to evaluate.
        mean: Mean of the kept training activations ``[d_out]`` of what is replaced, for mean ablation.
        batch_rows: Sequences in one forward pass. The last pass is filled up with blank ones, so a
            sequence's losses do not depend on how many follow; another value changes them by the
            rounding of the model's matrix products alone.
        tile: Tokens that an SAE sees at once.
        progress: Told the sequences that are done.
    """
    counts = predictions_that_count(store.sequences)
    read = [resolve(hook, lm.hookpoints) for hook in places.inputs]
    given = [resolve(hook, lm.hookpoints) for hook in places.outputs]
    losses: list[Float[Tensor, "forms 5 predictions"]] = []
    for piece in tiles(len(rows), batch_rows):
        batch = padded_rows(store, counts, rows[piece], batch_rows)
        losses.append(_losses_of_batch(lm, read, given, forms, mean, batch, tile, store.label_seed))
        if progress is not None:
            progress.advance(piece.stop - piece.start)
    joined_losses = torch.cat(losses, dim=2) if losses else torch.zeros(len(forms), 5, 0)
    return [_metrics(of_one) for of_one in joined_losses]


def _losses_of_batch(
    lm: LanguageModel,
    read: Sequence[Hookpoint],
    given: Sequence[Hookpoint],
    forms: Sequence[Form],
    mean: Float[Tensor, " d_out"],
    batch: PaddedRows,
    tile: int,
    label_seed: int | None,
) -> Float[Tensor, "forms 5 predictions"]:
    """Return clean, spliced, zero and mean cross entropy and KL of each counted prediction, in order."""
    if not batch.counted.any():
        return torch.zeros(len(forms), 5, 0)
    head = unembedding(lm)
    # Not the device of the input, where the model is spread over several.
    batch = PaddedRows(*(tensor.to(head.weight.device) for tensor in batch))
    targets = batch.ids.roll(-1, dims=1)[batch.counted]

    def hidden_with(values: Float[Tensor, "*kept d_out"]) -> Float[Tensor, "predictions d"]:
        return run_with(lm, by_hookpoint(given, values), batch.ids, batch.kept)[batch.counted]

    hidden, x = clean_run(lm, read, batch.ids, batch.kept)
    clean = hidden[batch.counted]
    ce_zero = next_token_losses(hidden_with(torch.zeros_like(mean)), head, targets)
    ce_mean = next_token_losses(hidden_with(mean), head, targets)
    ranked = any(form.uses_gradients for form in forms)
    gradients = gradients_at_kept(lm, given, batch, label_seed) if ranked else None
    found = []
    for form in forms:
        spliced = hidden_with(reconstruct_rows(form, x, gradients, tile))
        ce_clean, ce_spliced, kl = losses_and_kl(clean, spliced, head, targets)
        found.append(torch.stack([ce_clean, ce_spliced, ce_zero, ce_mean, kl]).cpu())
    return torch.stack(found)


def _metrics(losses: Float[Tensor, "5 predictions"]) -> LossMetrics:
    n_predictions = losses.shape[1]
    # One float64 sum over all predictions in token order: batches leave no trace in it.
    means = losses.double().mean(1)
    clean, spliced, zero, mean, kl = (value if np.isfinite(value) else None for value in means.tolist())
    return LossMetrics(
        ce_clean=clean,
        ce_spliced=spliced,
        ce_zero_ablation=zero,
        ce_mean_ablation=mean,
        ce_recovered_zero=_recovered(clean, spliced, zero),
        ce_recovered_mean=_recovered(clean, spliced, mean),
        kl=kl,
        n_predictions=n_predictions,
    )


def _recovered(clean: float | None, spliced: float | None, ablated: float | None) -> float | None:
    if clean is None or spliced is None or ablated is None or ablated == clean:
        return None
    return (ablated - spliced) / (ablated - clean)
