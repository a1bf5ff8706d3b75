"""Tokens by how hard the language model finds what follows them, and the error of an SAE within each tenth."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from saelab.activations.store import Store, StoredHook
from saelab.evaluation.autoencoder import tiles
from saelab.evaluation.tokens import EvaluatedTokens, padded_rows
from saelab.lm.load import LanguageModel
from saelab.lm.losses import next_token_losses
from saelab.lm.run import final_hidden, unembedding
from saelab.text.packing import predictions_that_count
from saelab_kernels.shapes import Float, Int, Tensor

N_BINS = 10


@dataclass(frozen=True)
class DifficultyBins:
    """The evaluated tokens whose prediction counts, in tenths of equal size by the loss of that prediction."""

    members: tuple[Int[Tensor, " _"], ...]
    """Indices of the tokens in each bin, int64, easiest bin first."""
    mean_loss: tuple[float, ...]
    """Mean loss in each bin, nats."""


def token_losses(
    store: Store, hook: StoredHook, chosen: EvaluatedTokens, lm: LanguageModel | None, *, batch_rows: int
) -> Float[Tensor, " tokens"] | None:
    """Return the clean loss of the next-token prediction made at each evaluated token.

    Taken from the store where that holds losses, else measured with the model.

    Args:
        store: Holds the tokens.
        hook: The hookpoint of the evaluated activations.
        chosen: The evaluated tokens.
        lm: The store's model; needed where the store holds no losses.
        batch_rows: Sequences in one forward pass.

    Returns:
        Float64 nats, NaN where the prediction does not count; None where there are no losses at all.
    """
    if not store.has_tokens or not chosen.n_tokens:
        return None
    counts = predictions_that_count(store.sequences)
    if store.losses is not None:
        by_position = np.where(counts, store.losses, np.nan).astype(np.float64)
    elif lm is not None and lm.unembedding is not None:
        by_position = _measured(store, counts, chosen, lm, batch_rows)
    else:
        return None
    positions = store.rows(hook, "heldout", 0, chosen.n_tokens).token_index.numpy()
    return torch.from_numpy(by_position[positions])


def difficulty_bins(losses: Float[Tensor, " tokens"]) -> DifficultyBins | None:
    """Sort tokens into ten bins of equal size by their loss; equal losses fall by their order.

    Args:
        losses: Nats; NaN for tokens that belong to no bin.

    Returns:
        None where fewer tokens than bins have a loss.
    """
    counted = (~losses.isnan()).nonzero()[:, 0]
    if len(counted) < N_BINS:
        return None
    order = counted[losses[counted].argsort(stable=True)]
    members = tuple(order.tensor_split(N_BINS))
    return DifficultyBins(members, tuple(losses[index].mean().item() for index in members))


def fvu_by_difficulty(
    bins: DifficultyBins,
    squared_error: Float[Tensor, " tokens"],
    squared_deviation: Float[Tensor, " tokens"],
) -> tuple[float | None, ...]:
    """Return the FVU within each bin: its squared errors over its squared deviations from the mean of all tokens.

    The mean is that of every evaluated token, so the FVU over several bins is their average weighted by deviation.
    None for a bin whose tokens do not deviate.
    """
    found: list[float | None] = []
    for index in bins.members:
        deviation = squared_deviation[index].sum().item()
        ratio = squared_error[index].sum().item() / deviation if deviation > 0 else float("nan")
        found.append(ratio if np.isfinite(ratio) else None)
    return tuple(found)


def _measured(
    store: Store, counts: np.ndarray, chosen: EvaluatedTokens, lm: LanguageModel, batch_rows: int
) -> np.ndarray:
    by_position = np.full(len(counts), np.nan)
    head = unembedding(lm)
    for piece in tiles(len(chosen.sequence_rows), batch_rows):
        rows = chosen.sequence_rows[piece]
        batch = padded_rows(store, counts, rows, batch_rows)
        if not batch.counted.any():
            continue
        ids, counted = batch.ids.to(head.weight.device), batch.counted.to(head.weight.device)
        targets = ids.roll(-1, dims=1)[counted]
        losses = next_token_losses(final_hidden(lm, ids)[counted], head, targets)
        spans = [np.arange(int(store.row_starts[row]), int(store.row_starts[row + 1])) for row in rows]
        positions = np.concatenate(spans)
        by_position[positions[counts[positions]]] = losses.double().cpu().numpy()
    return by_position
