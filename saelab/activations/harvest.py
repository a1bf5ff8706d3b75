"""Read one batch of token rows through the model: the work of a batch depends on its number alone.

Activations come from one forward pass without gradients, so that they are the same bits whether or
not losses or gradients are stored beside them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from saelab.activations.rounding import round_to
from saelab.activations.spec import HarvestConfig
from saelab.activations.uniform import uniform_numbers
from saelab.errors import SaelabError
from saelab.lm.hooks import Hookpoint
from saelab.lm.load import LanguageModel
from saelab.lm.losses import next_token_losses
from saelab.lm.run import capture, capture_with_gradients, edited, final_hidden, unembedding
from saelab.text.packing import TokenSequences
from saelab_kernels.shapes import Bool, Float, Int, Tensor


@dataclass(frozen=True, kw_only=True)
class TokenBatch:
    """Some rows of tokens, padded on the right with BOS (which changes nothing before it)."""

    ids: Int[Tensor, "rows length"]
    """Token ids, int64."""
    real: Bool[Tensor, "rows length"]
    """False where there is padding."""
    keep: Bool[Tensor, "rows length"]
    """True where an activation row is wanted."""
    index: Int[Tensor, "rows length"]
    """Position of each token in the token stream, int64; anything where there is padding."""


@dataclass(frozen=True, kw_only=True)
class Harvest:
    """What one batch contributes to a store."""

    token_index: Int[Tensor, " n"]
    """Positions of the kept tokens."""
    activations: dict[Hookpoint, Float[Tensor, "n d_in"]]
    """Activations of the kept tokens, in the stored dtype."""
    gradients: dict[Hookpoint, Float[Tensor, "n d_in"]]
    """Gradients of the kept tokens, in the stored dtype; empty unless asked for."""
    losses: Float[Tensor, " tokens"] | None
    """Next-token loss of all tokens of the batch in nats; NaN at the last token of a row."""


class Harvester:
    """Turns numbers of batches into activations.

    Args:
        lm: The model.
        hookpoints: Where to read.
        sequences: The tokens.
        config: Size of a batch, masks, dtype, whether losses and gradients are wanted.
        norm_limits: Largest norm that is kept at each hookpoint; found in the first batch where not given.
    """

    def __init__(
        self,
        lm: LanguageModel,
        hookpoints: Sequence[Hookpoint],
        sequences: TokenSequences,
        config: HarvestConfig,
        norm_limits: dict[Hookpoint, float] | None = None,
    ) -> None:
        self.lm, self.hookpoints, self.sequences, self.config = lm, tuple(hookpoints), sequences, config
        self.n_batches = -(-sequences.n_rows // config.batch_rows)
        self._unembedding = unembedding(lm) if config.stores_loss else None
        self.norm_limits = self._find_norm_limits() if norm_limits is None else norm_limits

    def tokens_of(self, batch: int) -> slice:
        """Return the stretch of the token stream that a batch reads."""
        first, last = self._rows_of(batch)
        starts = self.sequences.row_starts
        return slice(int(starts[first]), int(starts[last]))

    def token_batch(self, batch: int) -> TokenBatch:
        """Lay out the tokens of a batch."""
        first, last = self._rows_of(batch)
        lengths = np.diff(self.sequences.row_starts[first : last + 1])
        real = np.arange(lengths.max()) < lengths[:, None]
        stretch = self.tokens_of(batch)
        ids = np.full(real.shape, self.sequences.bos_token_id, dtype=np.int64)
        keep = np.zeros(real.shape, dtype=np.bool_)
        index = np.zeros(real.shape, dtype=np.int64)
        ids[real] = self.sequences.tokens[stretch]
        keep[real] = self.sequences.keep[stretch]
        index[real] = np.arange(stretch.start, stretch.stop)
        return TokenBatch(
            ids=torch.from_numpy(ids),
            real=torch.from_numpy(real),
            keep=torch.from_numpy(keep),
            index=torch.from_numpy(index),
        )

    def harvest(self, batch: int) -> Harvest:
        """Run the model on a batch.

        Raises:
            SaelabError: A value is NaN or infinite, or does not fit the stored dtype; the message
                names the token and the hookpoint.
        """
        rows = self.token_batch(batch)
        activations, losses = self._forward(rows)
        for hookpoint, x in activations.items():
            self._require_finite("activations", hookpoint, x, rows)
        rows = replace(rows, keep=rows.keep & ~self._outliers(activations))
        gradients = self._gradients(rows) if self.config.gradients else {}

        def stored(what: str, tensors: dict[Hookpoint, Tensor]) -> dict[Hookpoint, Tensor]:
            return {
                hp: round_to(x[rows.keep], self.config.dtype, f"{what} at {_name(hp)}")
                for hp, x in tensors.items()
            }

        return Harvest(
            token_index=rows.index[rows.keep],
            activations=stored("activations", activations),
            gradients=stored("gradients", gradients),
            losses=losses,
        )

    def _rows_of(self, batch: int) -> tuple[int, int]:
        first = batch * self.config.batch_rows
        return first, min(first + self.config.batch_rows, self.sequences.n_rows)

    def _forward(self, rows: TokenBatch) -> tuple[dict[Hookpoint, Tensor], Tensor | None]:
        if self._unembedding is None:
            seen = capture(self.lm, rows.ids, self.hookpoints, self.lm.mask_for(rows.real))
            return {hookpoint: x.cpu() for hookpoint, x in seen.items()}, None
        seen = {}

        def recorder(hookpoint: Hookpoint):
            def record(x: Tensor) -> Tensor:
                seen[hookpoint] = x.detach().cpu().clone()
                return x

            return record

        with edited(self.lm, {hookpoint: recorder(hookpoint) for hookpoint in self.hookpoints}):
            hidden = final_hidden(self.lm, rows.ids)
        follows = rows.real.roll(-1, dims=1)
        follows[:, -1] = False
        targets = rows.ids.roll(-1, dims=1)[follows].to(hidden.device)
        losses = torch.full(rows.ids.shape, torch.nan, dtype=torch.float32)
        losses[follows] = next_token_losses(
            hidden[follows.to(hidden.device)], self._unembedding, targets
        ).cpu()
        return {hookpoint: seen[hookpoint] for hookpoint in self.hookpoints}, losses[rows.real]

    def _gradients(self, rows: TokenBatch) -> dict[Hookpoint, Tensor]:
        # The same predictions as `predictions_that_count`: a document's end is followed by a BOS.
        followed = rows.real.roll(-1, dims=1) & (rows.ids.roll(-1, dims=1) != self.sequences.bos_token_id)
        followed[:, -1] = False
        sampled = self.config.gradient_labels == "sampled"
        uniform = uniform_numbers(rows.index, self.config.gradient_seed) if sampled else None
        counted = rows.keep & followed
        _, found, _ = capture_with_gradients(self.lm, rows.ids, self.hookpoints, counted, uniform)
        gradients = {hookpoint: gradient.cpu() for hookpoint, gradient in found.items()}
        for hookpoint, gradient in gradients.items():
            self._require_finite("gradients", hookpoint, gradient, rows)
        return gradients

    def _find_norm_limits(self) -> dict[Hookpoint, float]:
        """Largest norm that is kept, from the first batch with kept tokens; empty without a ratio."""
        ratio = self.config.mask_norm_ratio
        if ratio is None:
            return {}
        batches = (self.token_batch(batch) for batch in range(self.n_batches))
        rows = next((rows for rows in batches if rows.keep.any()), None)
        if rows is None:
            return {}
        activations, _ = self._forward(rows)
        return {hp: ratio * float(_norms(x)[rows.keep].median()) for hp, x in activations.items()}

    def _outliers(self, activations: dict[Hookpoint, Tensor]) -> Tensor:
        first = next(iter(activations.values()))
        outliers = torch.zeros(first.shape[:2], dtype=torch.bool)
        for hookpoint, limit in self.norm_limits.items():
            outliers |= _norms(activations[hookpoint]) > limit
        return outliers

    def _require_finite(self, what: str, hookpoint: Hookpoint, x: Tensor, rows: TokenBatch) -> None:
        bad = rows.keep & ~torch.isfinite(x).all(dim=-1)
        if not bad.any():
            return
        token = int(rows.index[bad][0])
        starts = self.sequences.row_starts
        position = token - int(starts[np.searchsorted(starts, token, side="right") - 1])
        document = self.sequences.documents.ids[self.sequences.document_of_token(np.array([token]))[0]]
        raise SaelabError(
            f"cache: {what} at {_name(hookpoint)} are NaN or infinite for {int(bad.sum())} of "
            f"{int(rows.keep.sum())} tokens, the first is token {token} (position {position} of its row, "
            f"document {document!r}); run the model in float32, or mask these positions"
        )


def _norms(x: Float[Tensor, "rows length d_in"]) -> Float[Tensor, "rows length"]:
    return torch.linalg.vector_norm(x.float(), dim=-1)


def _name(hookpoint: Hookpoint) -> str:
    return hookpoint.alias or hookpoint.module_path
