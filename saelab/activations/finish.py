"""The last step of writing a store: documents, kept tokens, statistics, and then the manifest."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from saelab.activations import layout
from saelab.activations.facts import StoredHook, StoreFacts
from saelab.activations.row_map import RowMap
from saelab.activations.statistics import HookStatistics, StatisticsAccumulator
from saelab.activations.store import Store
from saelab.storage.manifest import write_manifest
from saelab.storage.tensors import TensorFile, write_tensors
from saelab.text.documents import Split
from saelab.text.packing import DocumentTable


def finish_store(
    out: Path,
    facts: StoreFacts,
    keep: NDArray[np.bool_],
    documents: DocumentTable,
    names: list[str],
    known: dict[str, dict[str, Any]] | None = None,
    after_shard: Callable[[], None] = lambda: None,
) -> Store:
    """Complete a store whose shards are written.

    Args:
        out: The store's folder.
        facts: What it holds; the statistics are filled in here.
        keep: Whether each token has an activation row.
        documents: The documents of the token stream.
        names: Further files that the manifest lists.
        known: Entries of files whose checksums were taken when they were written.
        after_shard: Called whenever the statistics of one more shard were gathered.

    Statistics are taken over the training rows; a store of held-out text alone, which serves an
    evaluation, takes them over all its rows.
    """
    row_map = RowMap(keep, documents)
    split: Split = "train" if row_map.count("train") else "heldout"
    layout.write_documents(out / layout.DOCUMENTS, documents)
    layout.write_bits(out / layout.KEEP, keep)
    statistics = {}
    for hook in facts.hooks:
        found = _statistics(out, hook, facts.shards, row_map, split, after_shard)
        write_tensors(out / layout.statistics_name(hook.slug), {"mean": found.mean})
        statistics[hook.slug] = found.scalars()
    facts = replace(facts, statistics=statistics)
    known = known or {}
    all_names = [*names, layout.DOCUMENTS, layout.KEEP, *facts.data_names()]
    write_manifest(out, "store", [name for name in all_names if name not in known], facts.to_content(), known)
    return Store.open(out)


def _statistics(
    out: Path,
    hook: StoredHook,
    shards: tuple[int, ...],
    row_map: RowMap,
    split: Split,
    after_shard: Callable[[], None],
) -> HookStatistics:
    accumulator = StatisticsAccumulator(hook.d_in)
    first = 0
    for shard, n_rows in enumerate(shards):
        pieces = row_map.pieces_within(split, first, first + n_rows)
        if pieces:
            with TensorFile(out / layout.shard_name(hook.slug, shard)) as file:
                x = file.read("activations")
            accumulator.add(torch.cat([x[start - first : stop - first] for start, stop in pieces]))
        first += n_rows
        after_shard()
    return accumulator.finish()
