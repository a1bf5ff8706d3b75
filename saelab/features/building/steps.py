"""The steps after encoding: each makes files that are whole or absent, and is left out where they are there."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray

from saelab.errors import Interrupted
from saelab.features.building.by_feature import ByFeature
from saelab.features.building.coactivation import CodeRows, companions
from saelab.features.building.corpus import Corpus, Stretch
from saelab.features.building.describe import Describer, GroupTables
from saelab.features.building.draw import lots, smallest
from saelab.features.building.logits import LogitLens, TokenLeaders, logit_blocks
from saelab.features.building.neighbors import decoder_neighbors
from saelab.features.schema import (
    COACTIVATION,
    COACTIVATION_SCHEMA,
    CODES,
    DETAIL_SCHEMA,
    EXAMPLES_SCHEMA,
    FEATURES_SCHEMA,
    LOGIT_INVERSE,
    LOGIT_INVERSE_SCHEMA,
    NEIGHBORS,
    NEIGHBORS_SCHEMA,
    RANDOM,
)
from saelab.features.spec import IndexConfig
from saelab.features.tables import ROWS_OF_LISTS, ROWS_OF_PAIRS, write_table
from saelab.interrupts import StopRequest
from saelab.progress import Progress
from saelab.sae.autoencoder import SparseAutoencoder
from saelab.storage.tensors import write_tensors

LOGITS = "logits.safetensors"


@dataclass(frozen=True, kw_only=True)
class Bench:
    """What all steps work on."""

    building: Path
    """The index that is being built."""
    work: Path
    """What is gone at the end."""
    corpus: Corpus
    stretches: list[Stretch]
    sae: SparseAutoencoder
    config: IndexConfig
    stop: StopRequest
    quiet: bool

    @property
    def codes(self) -> Path:
        """Folder of the code shards."""
        return self.building / CODES

    def check(self) -> None:
        """Stop here if that was asked for.

        Raises:
            Interrupted: It was.
        """
        if self.stop.requested:
            raise Interrupted("stopped; the same command goes on with what is there")


def describe_groups(bench: Bench, by_feature: ByFeature) -> None:
    """Write what the corpus says of each group of features."""
    groups = by_feature.groups()
    left = [group for group in groups if not group_file(bench.work, "examples", group).exists()]
    done = len(by_feature.counts) - sum(map(len, left))
    with Progress("describing", len(by_feature.counts), "features", done=done, quiet=bench.quiet) as progress:
        describer = Describer(bench.corpus, bench.config) if left else None
        for group in left:
            bench.check()
            assert describer is not None
            tables = describer.describe(by_feature.firings(group))
            write_group(bench.work, group, tables)
            progress.advance(len(group))


def write_group(work: Path, group: range, tables: GroupTables) -> None:
    """Write the tables of a group; that of the examples last, since it says that all are there."""
    for name, columns, schema in (
        ("numbers", tables.numbers, FEATURES_SCHEMA),
        ("lists", tables.lists, DETAIL_SCHEMA),
    ):
        part = pa.schema([schema.field(column) for column in columns])
        table = pa.table(columns, schema=part)
        write_table(group_file(work, name, group), table.to_batches(), part, len(table) or 1)
    write_table(group_file(work, "examples", group), tables.examples, EXAMPLES_SCHEMA, ROWS_OF_LISTS)


def group_file(work: Path, name: str, group: range) -> Path:
    """Return the file of a group's table."""
    return work / "groups" / f"{name}-{group.start:09d}.parquet"


def read_groups(work: Path, name: str, groups: list[range]) -> pa.Table:
    """Return the rows of all groups, in the order of the features."""
    return pa.concat_tables([pq.read_table(group_file(work, name, group)) for group in groups])


def write_logits(bench: Bench, lens: LogitLens) -> None:
    """Write the logit columns of all features, and the features that promote each token."""
    if (bench.building / LOGIT_INVERSE).exists() and (bench.work / LOGITS).exists():
        return
    W_dec = bench.sae.W_dec.detach().float()
    leaders = TokenLeaders(lens.weight.shape[0], bench.config.logits)
    columns: dict[str, list[np.ndarray]] = {}
    with Progress("logits", len(W_dec), "features", quiet=bench.quiet) as progress:
        for block, logits in logit_blocks(lens, W_dec, bench.config.logits, bench.config.logit_bins):
            bench.check()
            leaders.add(block.features, logits)
            for name in ("promoted", "promoted_logits", "suppressed", "suppressed_logits", "edges", "counts"):
                columns.setdefault(name, []).append(getattr(block, name))
            columns.setdefault("kurtosis", []).append(block.kurtosis)
            progress.advance(len(block.features))
    tokens, features, values = leaders.result()
    _, starts = np.unique(tokens, return_index=True)
    ranks = np.arange(len(tokens)) - np.repeat(starts, np.diff(np.append(starts, len(tokens))))
    table = pa.table(
        {"token": tokens, "rank": ranks, "feature": features, "logit": values}, schema=LOGIT_INVERSE_SCHEMA
    )
    tensors = {name: torch.from_numpy(np.concatenate(parts)) for name, parts in columns.items()}
    write_tensors(bench.work / LOGITS, tensors)
    write_table(bench.building / LOGIT_INVERSE, table.to_batches(), LOGIT_INVERSE_SCHEMA, ROWS_OF_PAIRS)


def write_neighbors(bench: Bench) -> None:
    """Write the part ``neighbors``."""
    if (bench.building / NEIGHBORS).exists():
        return
    W_dec = bench.sae.W_dec.detach()

    def batches() -> Iterator[pa.RecordBatch]:
        with Progress("neighbors", len(W_dec), "features", quiet=bench.quiet) as progress:
            for rows, others, cosines in decoder_neighbors(W_dec, bench.config.neighbors):
                bench.check()
                k = others.shape[1]
                yield pa.record_batch(
                    {
                        "feature": np.repeat(np.arange(rows.start, rows.stop, dtype=np.uint32), k),
                        "rank": np.tile(np.arange(k, dtype=np.uint8), len(rows)),
                        "other": others.reshape(-1).numpy().astype(np.uint32),
                        "cosine": cosines.reshape(-1).numpy(),
                    },
                    schema=NEIGHBORS_SCHEMA,
                )
                progress.advance(len(rows))

    write_table(bench.building / NEIGHBORS, batches(), NEIGHBORS_SCHEMA, ROWS_OF_PAIRS)


def write_coactivation(
    bench: Bench, samples: Iterable[tuple[int, NDArray[np.int64]]], counts: NDArray[np.int64], codes: Path
) -> None:
    """Write the part ``coactivation``.

    Args:
        bench: What is worked on.
        samples: Every feature with token positions that were drawn of those where it is active.
        counts: Firings of every feature, ``[d_sae]``.
        codes: Folder of shards with the codes of these tokens.
    """
    rows = CodeRows(codes, bench.corpus, bench.stretches)

    def batches() -> Iterator[pa.RecordBatch]:
        with Progress("co-activation", len(counts), "features", quiet=bench.quiet) as progress:
            for feature, sampled in samples:
                bench.check()
                found = companions(
                    feature, sampled, rows, counts, bench.corpus.n_kept, bench.config.neighbors
                )
                n = len(found.others)
                yield pa.record_batch(
                    {
                        "feature": np.full(n, feature, dtype=np.uint32),
                        "rank": np.arange(n, dtype=np.uint8),
                        "other": found.others.astype(np.uint32),
                        "n_sampled": np.full(n, found.n_sampled, dtype=np.uint32),
                        "n_both": found.n_both.astype(np.uint32),
                        "p_other": found.p_other.astype(np.float32),
                        "lift": found.lift.astype(np.float32),
                        "phi": found.phi.astype(np.float32),
                    },
                    schema=COACTIVATION_SCHEMA,
                )
                progress.advance(1)

    try:
        write_table(bench.building / COACTIVATION, batches(), COACTIVATION_SCHEMA, ROWS_OF_PAIRS)
    finally:
        rows.close()


def sampled_firings(bench: Bench, by_feature: ByFeature) -> Iterator[tuple[int, NDArray[np.int64]]]:
    """Yield every feature with the positions of the firings that are looked at for co-activation.

    The random examples are the first of them.
    """
    positions = np.flatnonzero(bench.corpus.keep)
    for group in by_feature.groups():
        for firings in by_feature.firings(group):
            active = positions[firings.rows]
            draws = lots(bench.config.seed, RANDOM, firings.feature, active)
            yield firings.feature, active[smallest(draws, bench.config.coactivation_samples)]
