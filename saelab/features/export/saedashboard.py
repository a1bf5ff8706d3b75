"""SAEDashboard's batches: `batch-N.json` with all that is known of some features, and `skipped_indexes.json`.

Their reader makes objects of the keys, so there are these keys and no others. Features that never fired are named in
`skipped_indexes` alone, as their own runs do it; its `log_sparsity` is log10 of one token in all, below which only they
lie. Their converter counts `qualifying_token_index` without the token that begins a text; here it is the place of the
peak in `tokens`, from 0.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from saelab.features.export.facts import (
    Shown,
    decoder_rows,
    rounded,
    shared_keys,
    shown_examples,
    shown_tokens,
    vector_of,
)
from saelab.features.export.folder import new_folder, write_lines
from saelab.features.export.names import Names, names_of
from saelab.features.export.options import IndexExportOptions
from saelab.features.index import FeatureIndex
from saelab.progress import Progress


def write(index: FeatureIndex, out: Path, options: IndexExportOptions) -> list[Path]:
    """Write an index as SAEDashboard's batches.

    Args:
        index: The index.
        out: A new folder.
        options: Names and sizes.

    Returns:
        Every file.

    Raises:
        UsageError: Something is in that place, or a name is not known.
        SaelabError: The folder cannot be written.
        DamagedFileError: The index or the SAE is damaged.
    """
    names = names_of(index, options)
    top = {"model_id": names.model, "layer": names.layer, "sae_set": names.sae_set}
    written: list[str] = []
    skipped: list[int] = []
    with (
        new_folder(out) as folder,
        Progress("export", index.d_sae, "features", quiet=options.quiet) as progress,
    ):
        for number, start in enumerate(range(0, index.d_sae, options.batch)):
            features = range(start, min(index.d_sae, start + options.batch))
            found = []
            for feature, row in zip(features, decoder_rows(index, features), strict=True):
                if index.row(feature).is_dead:
                    skipped.append(feature)
                else:
                    found.append(_feature(index, feature, names, row, options))
                progress.advance(1)
            batch = top | {"sae_id_suffix": names.suffix or None, "features": found}
            written.append(_write(folder, f"batch-{number}.json", batch))
        log_sparsity = rounded(math.log10(1 / index.n_tokens))
        facts = top | {"log_sparsity": log_sparsity, "skipped_indexes": skipped}
        written.append(_write(folder, "skipped_indexes.json", facts))
    return [out / name for name in written]


def _feature(
    index: FeatureIndex,
    feature: int,
    names: Names,
    row: NDArray[np.float32] | None,
    options: IndexExportOptions,
) -> dict[str, Any]:
    view = index.feature(feature, context=options.context)
    return {
        "feature_index": feature,
        **shared_keys(index, view, row),
        "n_prompts_total": names.n_prompts,
        "n_tokens_in_prompt": names.n_tokens_in_prompt,
        "dataset": names.dataset,
        "activations": [
            _activation(one, shown_tokens(index, one.example.tokens)) for one in shown_examples(view)
        ],
        "vector": vector_of(row, options.vectors),
    }


def _activation(one: Shown, tokens: Sequence[str]) -> dict[str, Any]:
    return {
        "bin_min": one.bin_min,
        "bin_max": one.bin_max,
        "bin_contains": one.bin_contains,
        "tokens": list(tokens),
        "values": [rounded(value) for value in one.example.activations],
        "qualifying_token_index": one.example.peak,
    }


def _write(folder: Path, name: str, content: dict[str, Any]) -> str:
    write_lines(folder / name, [content])
    return name
