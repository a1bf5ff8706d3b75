"""Which tokens are evaluated, and their digest: two evaluations compare only when it is equal."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from saelab.activations.store import Store, StoredHook
from saelab.storage.manifest import digest_of
from saelab.text.documents import Split
from saelab_kernels.shapes import Bool, Int, Tensor


@dataclass(frozen=True)
class EvaluatedTokens:
    """The first kept tokens of a split, in whole sequences."""

    n_tokens: int
    """Kept tokens: activation rows 0 to ``n_tokens`` of the split."""
    sequence_rows: np.ndarray
    """Indices of the sequences (rows of tokens) that they stand in, int64; empty without tokens."""
    digest: str
    """Digest of token ids, sequence lengths, masks and tokenizer; equal for equal text at any hook."""


class PaddedRows(NamedTuple):
    """Sequences side by side, filled up on the right and with blank rows."""

    ids: Int[Tensor, "rows length"]
    """Token ids, int64; 0 where there is no token."""
    kept: Bool[Tensor, "rows length"]
    """Positions whose activation is replaced; never a filled-up one."""
    counted: Bool[Tensor, "rows length"]
    """Positions whose prediction of the next token counts; never a filled-up one."""
    token_index: Int[Tensor, "rows length"]
    """Position of each token in the store's tokens, int64; 0 where there is no token."""


def choose_tokens(store: Store, hook: StoredHook, at_most: int, split: Split = "heldout") -> EvaluatedTokens:
    """Choose whole sequences, in document order, until another would exceed ``at_most`` kept tokens.

    At least one sequence is chosen where the split has any. A store without tokens (activations
    that somebody brought) gives its first ``at_most`` rows, and a digest of the store's identity.
    """
    if not store.has_tokens:
        n_tokens = min(at_most, store.n_rows(hook, split))
        digest = digest_of(f"{store.identity} {split} {n_tokens}".encode())
        return EvaluatedTokens(n_tokens, np.zeros(0, dtype=np.int64), digest)
    rows = store.sequence_rows(split)
    kept_before = np.concatenate([[0], np.cumsum(store.keep, dtype=np.int64)])
    kept = kept_before[store.row_starts[rows + 1]] - kept_before[store.row_starts[rows]]
    n_rows = max(1, int(np.searchsorted(np.cumsum(kept), at_most, side="right")))
    rows = rows[:n_rows]
    return EvaluatedTokens(int(kept[:n_rows].sum()), rows, _digest_of_rows(store, rows))


def padded_rows(store: Store, counts: np.ndarray, rows: np.ndarray, height: int) -> PaddedRows:
    """Lay out the sequences ``rows`` as one batch of exactly ``height`` rows.

    Args:
        store: Holds tokens and masks.
        counts: For each token of the store, whether the prediction made from it counts; bool.
        rows: At most ``height`` indices of sequences.
        height: Rows of the batch.
    """
    spans = [slice(int(store.row_starts[row]), int(store.row_starts[row + 1])) for row in rows]
    length = max(span.stop - span.start for span in spans)

    def laid_out(per_token: np.ndarray, dtype: torch.dtype) -> Tensor:
        batch = torch.zeros(height, length, dtype=dtype)
        for index, span in enumerate(spans):
            batch[index, : span.stop - span.start] = torch.from_numpy(np.array(per_token[span])).to(dtype)
        return batch

    return PaddedRows(
        laid_out(store.tokens, torch.int64),
        laid_out(store.keep, torch.bool),
        laid_out(counts, torch.bool),
        laid_out(np.arange(len(store.tokens)), torch.int64),
    )


def _digest_of_rows(store: Store, rows: np.ndarray) -> str:
    digest = hashlib.blake2b(str(store.tokenizer_hash).encode(), digest_size=16)
    for row in rows:
        span = slice(int(store.row_starts[row]), int(store.row_starts[row + 1]))
        digest.update((span.stop - span.start).to_bytes(8, "little"))
        digest.update(np.asarray(store.tokens[span], dtype="<i4").tobytes())
        digest.update(np.asarray(store.keep[span], dtype=np.uint8).tobytes())
    return digest.hexdigest()
