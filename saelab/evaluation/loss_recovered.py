"""What the SAE's reconstruction costs the language model: its loss with the activations replaced.

Runs of the model over the same sequences: clean; with zeros in place of the activations; with the
mean of the training activations; and one with the reconstruction of each SAE. The first three are
shared by all SAEs of a hookpoint, so N of them cost N + 3 passes. Only kept positions are
replaced: masked ones (BOS, outliers) stay clean in every run. The same predictions count in all of
them: those made from kept positions of a token of the same document. The share of the loss that the
reconstruction recovers is the ratio of SAEBench's core evaluation (reference code), for zero and for
mean ablation; which positions count is stricter than there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from saelab.activations.store import Store
from saelab.evaluation.autoencoder import Autoencoder, reconstruct_tile, tiles
from saelab.evaluation.tokens import PaddedRows, padded_rows
from saelab.lm.hooks import Hookpoint
from saelab.lm.load import LanguageModel
from saelab.lm.losses import losses_and_kl, next_token_losses
from saelab.lm.run import edited, final_hidden, unembedding
from saelab.progress import Progress
from saelab.text.packing import predictions_that_count
from saelab_kernels.shapes import Float, Tensor

Replace = Callable[[Float[Tensor, "tokens d"]], Float[Tensor, "tokens d"]]


@dataclass(frozen=True, kw_only=True)
class LossMetrics:
    """Losses in nats per counted prediction; None where a value is not defined or was not measured."""

    ce_clean: float | None = None
    """Cross entropy of the model as it is."""
    ce_spliced: float | None = None
    """With x_hat in place of x at the kept positions."""
    ce_zero_ablation: float | None = None
    """With zeros in place of x at the kept positions."""
    ce_mean_ablation: float | None = None
    """With the mean of the training activations in place of x at the kept positions."""
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
    saes: Sequence[Autoencoder],
    lm: LanguageModel,
    store: Store,
    hookpoint: Hookpoint,
    *,
    rows: np.ndarray,
    mean: Float[Tensor, " d"],
    batch_rows: int,
    tile: int = 1024,
    progress: Progress | None = None,
) -> list[LossMetrics]:
    """Measure the loss with and without each of some SAEs in the model.

    Args:
        saes: Each reads and reconstructs the activations at ``hookpoint``; the metrics of one do not
            depend on which others there are.
        lm: The model that the store's tokens were made for.
        store: Its tokens, masks and documents say what is replaced and what counts.
        hookpoint: Where the activations are replaced.
        rows: Indices of the store's sequences to evaluate.
        mean: Mean of the kept training activations ``[d]``, for mean ablation.
        batch_rows: Sequences in one forward pass. The last pass is filled up with blank ones, so a
            sequence's losses do not depend on how many follow; another value changes them by the
            rounding of the model's matrix products alone.
        tile: Tokens that an SAE sees at once.
        progress: Told the sequences that are done.
    """
    counts = predictions_that_count(store.sequences)
    splices = [_splice(sae, tile) for sae in saes]
    losses: list[Float[Tensor, "saes 5 predictions"]] = []
    for piece in tiles(len(rows), batch_rows):
        batch = padded_rows(store, counts, rows[piece], batch_rows)
        losses.append(_losses_of_batch(lm, hookpoint, splices, mean, batch))
        if progress is not None:
            progress.advance(piece.stop - piece.start)
    joined = torch.cat(losses, dim=2) if losses else torch.zeros(len(saes), 5, 0)
    return [_metrics(of_one) for of_one in joined]


def _splice(sae: Autoencoder, tile: int) -> Replace:
    def spliced(x: Float[Tensor, "tokens d"]) -> Float[Tensor, "tokens d"]:
        ready = x.to(sae.W_dec.device, torch.float32)
        pieces = [reconstruct_tile(sae, ready[piece], tile).x_hat for piece in tiles(len(ready), tile)]
        return torch.cat(pieces) if pieces else ready

    return spliced


def _losses_of_batch(
    lm: LanguageModel,
    hookpoint: Hookpoint,
    splices: Sequence[Replace],
    mean: Float[Tensor, " d"],
    batch: PaddedRows,
) -> Float[Tensor, "saes 5 predictions"]:
    """Return clean, spliced, zero and mean cross entropy and KL of each counted prediction, in order."""
    if not batch.counted.any():
        return torch.zeros(len(splices), 5, 0)
    head = unembedding(lm)
    # Not the device of the input, where the model is spread over several.
    ids, kept, counted = (tensor.to(head.weight.device) for tensor in batch)
    targets = ids.roll(-1, dims=1)[counted]

    def hidden_with(replace: Replace) -> Float[Tensor, "predictions d"]:
        return _hidden_with(lm, hookpoint, kept, replace, ids)[counted]

    clean = final_hidden(lm, ids)[counted]
    ce_zero = next_token_losses(hidden_with(torch.zeros_like), head, targets)
    ce_mean = next_token_losses(hidden_with(lambda x: mean.to(x.device, x.dtype).expand_as(x)), head, targets)
    found = []
    for splice in splices:
        ce_clean, ce_spliced, kl = losses_and_kl(clean, hidden_with(splice), head, targets)
        found.append(torch.stack([ce_clean, ce_spliced, ce_zero, ce_mean, kl]).cpu())
    return torch.stack(found)


def _hidden_with(
    lm: LanguageModel, hookpoint: Hookpoint, kept: Tensor, replace: Replace, ids: Tensor
) -> Float[Tensor, "rows length d"]:
    def edit(x: Float[Tensor, "rows length d"]) -> Float[Tensor, "rows length d"]:
        changed, here = x.clone(), kept.to(x.device)
        changed[here] = replace(x[here]).to(x.device, x.dtype)
        return changed

    with edited(lm, {hookpoint: edit}):
        return final_hidden(lm, ids)


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
