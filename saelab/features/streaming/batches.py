"""What the passes read: whole rows of tokens with their codes, ordered by feature."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from saelab.evaluation.autoencoder import Autoencoder
from saelab.features.building.corpus import Corpus, Stretch
from saelab.features.building.encode import encoded
from saelab.interrupts import StopRequest
from saelab_kernels.code import SparseCode

BATCH = 16_384
"""Kept tokens of a batch, about: whole rows of tokens, so that windows around them are whole."""


@dataclass(frozen=True)
class Batch:
    """Some whole rows of tokens; pairs are ordered by feature, inside a feature by position."""

    first_row: int
    """Number of the first activation row."""
    tokens: NDArray[np.int64]
    """Positions of the kept tokens, ascending."""
    code: SparseCode
    """Their codes, ragged."""
    features: NDArray[np.int64]
    """Feature of each pair."""
    rows: NDArray[np.int64]
    """Which of the kept tokens each pair is on."""
    positions: NDArray[np.int64]
    """Position of that token."""
    values: NDArray[np.float32]
    """Activation of each pair, above 0."""


def read_batches(sae: Autoencoder, corpus: Corpus, stretch: Stretch, stop: StopRequest) -> Iterator[Batch]:
    """Encode a stretch batch by batch.

    Raises:
        Interrupted: A stop was asked for.
    """
    for part in corpus.stretches(BATCH, stretch):
        codes, tokens = [], []
        for x, token_index in corpus.activations(part):
            codes += encoded(sae, x, stop)
            tokens.append(token_index)
        if codes:
            yield batch_of(part.first_row, torch.cat(tokens).numpy(), SparseCode.cat(codes).ragged())


def batch_of(first_row: int, tokens: NDArray[np.int64], code: SparseCode) -> Batch:
    """Return a batch of some kept tokens and their codes."""
    major = code.feature_major()
    rows = major.rows.numpy().astype(np.int64, copy=False)
    features = np.repeat(np.arange(code.d_sae), np.diff(major.offsets.numpy()))
    return Batch(first_row, tokens, code, features, rows, tokens[rows], code.values[major.order].numpy())


def starts_of(*columns: NDArray[Any]) -> NDArray[np.int64]:
    """Return where a new run of equal values begins in columns of one length."""
    n = len(columns[0])
    new = np.zeros(n, dtype=np.bool_)
    new[:1] = True
    for column in columns:
        new[1:] |= column[1:] != column[:-1]
    return np.flatnonzero(new)
