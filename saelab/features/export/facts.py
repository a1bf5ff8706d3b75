"""What both formats say of a feature, with the same keys: numbers rounded as SAEDashboard rounds them.

Lists that an index does not have are empty: correlated neurons and features (an index knows which features are active
together, not how their activations correlate), and the distribution of decoder weights over heads.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from saelab.errors import DamagedFileError
from saelab.features.index import FeatureIndex
from saelab.features.records import Example, FeatureView, Histogram
from saelab.sae.files import WEIGHTS
from saelab.storage.tensors import TensorFile
from saelab.training.run import SAE

DECIMALS = 3
"""Of activations, logits and bounds, as SAEDashboard writes them."""
DIGITS = 6
"""Significant digits of decoder rows and of shares of tokens, which are small."""
ALIGNED = 3
"""Neurons of the basis that a decoder row has most of."""


@dataclass(frozen=True, kw_only=True)
class Shown:
    """An example and the group that it was drawn from."""

    example: Example
    """Where it is."""
    bin_min: float
    """Lower bound of the group; -1 for the strongest examples."""
    bin_max: float
    """Upper bound; the largest activation for the strongest examples."""
    bin_contains: float
    """Share of the feature's active tokens within the bounds; -1 for the strongest examples."""
    rank: int
    """Place among all that are shown."""


def shown_examples(view: FeatureView) -> list[Shown]:
    """Return the strongest examples, and those of the intervals from the highest to the lowest."""
    edges, counts = view.detail.intervals.edges, view.detail.intervals.counts
    found: list[tuple[Example, float, float, float]] = [
        (one, -1.0, view.row.max_act or 0.0, -1.0) for one in view.examples["top"]
    ]
    for one in view.examples["interval"]:
        if one.bin >= len(counts):
            raise DamagedFileError(f"an example of feature {view.row.feature} is of the interval {one.bin}")
        share = counts[one.bin] / max(sum(counts), 1)
        found.append((one, edges[one.bin], edges[one.bin + 1], share))
    return [
        Shown(
            example=one,
            bin_min=rounded(low),
            bin_max=rounded(high),
            bin_contains=significant(share),
            rank=rank,
        )
        for rank, (one, low, high, share) in enumerate(found)
    ]


def shared_keys(
    index: FeatureIndex, view: FeatureView, decoder_row: NDArray[np.float32] | None
) -> dict[str, Any]:
    """Return the keys that both formats have.

    Args:
        index: The index.
        view: The feature.
        decoder_row: Its direction; None where the SAE is not at hand.
    """
    text, detail = index.vocabulary.text, view.detail
    neurons = _aligned(decoder_row)
    return {
        "neuron_alignment_indices": [neuron for neuron, _, _ in neurons],
        "neuron_alignment_values": [rounded(value) for _, value, _ in neurons],
        "neuron_alignment_l1": [rounded(share) for _, _, share in neurons],
        "correlated_neurons_indices": [],
        "correlated_neurons_l1": [],
        "correlated_neurons_pearson": [],
        "correlated_features_indices": [],
        "correlated_features_l1": [],
        "correlated_features_pearson": [],
        "neg_str": [clean(text(one.token)) for one in detail.suppressed],
        "neg_values": [rounded(one.logit) for one in detail.suppressed],
        "pos_str": [clean(text(one.token)) for one in detail.promoted],
        "pos_values": [rounded(one.logit) for one in detail.promoted],
        "frac_nonzero": significant(view.row.density),
        "freq_hist_data_bar_values": _centres(detail.activations),
        "freq_hist_data_bar_heights": list(detail.activations.counts),
        "logits_hist_data_bar_heights": list(detail.logits.counts),
        "logits_hist_data_bar_values": _centres(detail.logits),
        "decoder_weights_dist": [],
    }


def decoder_rows(index: FeatureIndex, features: range) -> Iterator[NDArray[np.float32] | None]:
    """Return the decoder row of each feature, read together; None where the index does not lie in its run.

    Raises:
        DamagedFileError: The weights are not those of the index, or not finite.
    """
    if index.run_path is None:
        yield from (None for _ in features)
        return
    with TensorFile(index.run_path / SAE / WEIGHTS) as file:
        shape = file.shape("W_dec")
        if len(shape) != 2 or shape[0] != index.d_sae:
            raise DamagedFileError(f"{file.path}: W_dec of shape {shape} does not have {index.d_sae:,} rows")
        rows = file.read_rows("W_dec", features.start, features.stop).float().numpy()
        if not np.isfinite(rows).all():
            raise DamagedFileError(f"{file.path}: W_dec holds NaN or inf")
    yield from rows


def clean(text: str) -> str:
    """Return a text that any database keeps: NUL becomes a space, half a character a replacement character."""
    if text.isascii() and "\0" not in text:
        return text
    return text.replace("\0", " ").encode(errors="replace").decode()


def shown_tokens(index: FeatureIndex, tokens: Sequence[int]) -> list[str]:
    """Return the text of each token of an example."""
    return [clean(text) for text in index.vocabulary.display(tokens)]


def rounded(value: float) -> float:
    """Return a number with three decimals."""
    return round(float(value), DECIMALS)


def significant(value: float) -> float:
    """Return a number with six significant digits."""
    return float(f"{float(value):.{DIGITS}g}")


def vector_of(row: NDArray[np.float32] | None, wanted: bool) -> list[float]:
    """Return a decoder row with six significant digits; empty where it is not known or not wanted."""
    return [significant(value) for value in row.tolist()] if wanted and row is not None else []


def _centres(histogram: Histogram) -> list[float]:
    edges = histogram.edges
    return [rounded((low + high) / 2) for low, high in pairwise(edges)]


def _aligned(row: NDArray[np.float32] | None) -> list[tuple[int, float, float]]:
    """Return the neurons of the output basis with the largest values, each with its share of the row's L1 norm."""
    if row is None:
        return []
    total = float(np.abs(row).sum(dtype=np.float64)) or 1.0
    largest = np.argsort(-row, kind="stable")[:ALIGNED].tolist()
    return [(neuron, float(row[neuron]), float(row[neuron]) / total) for neuron in largest]
