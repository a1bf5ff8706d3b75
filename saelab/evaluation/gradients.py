"""Gradients of the model's loss at the evaluated tokens, for SAEs that rank features by them (g-SAE).

They are those that a store of activations holds: of the summed loss of the predictions that count, made from
kept positions. The label is the true next token or, for a store whose gradients are of labels that the model drew,
the same draw again.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch

from saelab.activations.rows import joined
from saelab.activations.store import Store
from saelab.activations.uniform import uniform_numbers
from saelab.evaluation.autoencoder import tiles
from saelab.evaluation.places import Places
from saelab.evaluation.tokens import PaddedRows, padded_rows
from saelab.lm.hooks import Hookpoint, resolve
from saelab.lm.load import LanguageModel
from saelab.lm.run import capture_with_gradients
from saelab.text.packing import predictions_that_count
from saelab_kernels.shapes import Float, Tensor

TRUE, SAMPLED = "true next token", "drawn from the model"
"""Whose loss the gradients are of."""
LEAK = (
    "features were ranked with gradients of the loss of the true next token, so the selection knows what comes "
    "next: these numbers are not those of an encoder that sees the activations alone"
)
NO_LEAK = (
    "features were ranked with gradients of the loss of labels that the model drew itself: the selection knows more "
    "than an encoder that sees the activations alone, but not which token comes next"
)


class ModelGradients:
    """Gradients of the kept tokens of some sequences, in their order, made by the model as they are wanted.

    Args:
        lm: The model.
        store: Its tokens.
        places: Where: at what is reconstructed.
        rows: Indices of the store's sequences.
        batch_rows: Sequences at once; the last ones are filled up with blank ones.
    """

    def __init__(
        self, lm: LanguageModel, store: Store, places: Places, rows: np.ndarray, batch_rows: int
    ) -> None:
        hookpoints = [resolve(hook, lm.hookpoints) for hook in places.outputs]
        self._batches = _batches(lm, store, hookpoints, rows, batch_rows)
        self._waiting = torch.zeros(0, sum(hookpoint.d_in for hookpoint in hookpoints))

    def take(self, n_rows: int) -> Float[Tensor, "n_rows d_out"]:
        """Return the gradients of the next kept tokens, float32 in host memory."""
        while len(self._waiting) < n_rows:
            self._waiting = torch.cat([self._waiting, next(self._batches).float().cpu()])
        taken, self._waiting = self._waiting[:n_rows], self._waiting[n_rows:]
        return taken


def gradients_at_kept(
    lm: LanguageModel, hookpoints: Sequence[Hookpoint], batch: PaddedRows, label_seed: int | None = None
) -> Float[Tensor, "kept d_out"]:
    """Return the gradients at the kept positions of a batch, hookpoints joined side by side, in the model's dtype.

    Args:
        lm: The model.
        hookpoints: Where.
        batch: The tokens.
        label_seed: Draws labels from the model as a store with this seed does; true next tokens where not given.
    """
    uniform = None if label_seed is None else uniform_numbers(batch.token_index, label_seed)
    _, found, _ = capture_with_gradients(lm, batch.ids, hookpoints, batch.counted, uniform)
    parts = [found[hookpoint][batch.kept.to(found[hookpoint].device)] for hookpoint in hookpoints]
    return joined([part.to(parts[0].device) for part in parts])


def _batches(
    lm: LanguageModel, store: Store, hookpoints: Sequence[Hookpoint], rows: np.ndarray, batch_rows: int
) -> Iterator[Float[Tensor, "kept d_out"]]:
    counts = predictions_that_count(store.sequences)
    for piece in tiles(len(rows), batch_rows):
        yield gradients_at_kept(
            lm, hookpoints, padded_rows(store, counts, rows[piece], batch_rows), store.label_seed
        )
