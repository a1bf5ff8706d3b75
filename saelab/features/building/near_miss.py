"""The part near-miss: where a feature was just below what the SAE keeps.

A second pass encodes with a looser rule and takes away what the SAE itself keeps: a quarter more features for each
token where a fixed number is kept, thresholds 0.8 times as high where there are thresholds (the band is ours). Of what
is left the strongest places are shown, one of each document, with what the encoder gave there.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

from saelab.errors import UsageError
from saelab.features.building.by_feature import ByFeature, write_by_feature
from saelab.features.building.describe import examples_of
from saelab.features.building.encode import encoded
from saelab.features.building.examples import Chooser, Chosen
from saelab.features.building.steps import Bench
from saelab.features.codes import CodeShard, read_shard, shard_name, write_shard
from saelab.features.schema import EXAMPLES_SCHEMA, NEAR, NEAR_MISS
from saelab.features.tables import ROWS_OF_LISTS, write_table
from saelab.progress import Progress
from saelab.sae.autoencoder import SAEParameters, SparseAutoencoder
from saelab_kernels.code import SparseCode
from saelab_kernels.rules import PerToken, Threshold

MORE = 0.25
"""Share of further features for each token."""
BAND = 0.8
"""Where the band below a threshold begins, as a share of it."""


def looser(sae: SparseAutoencoder) -> SparseAutoencoder:
    """Return the same SAE with a rule that keeps a little more.

    Raises:
        UsageError: Its rule keeps everything that is positive, or is of another kind.
    """
    parameters = SAEParameters(sae.W_enc, sae.b_enc, sae.W_dec, sae.b_dec)
    if isinstance(sae.rule, PerToken):
        k = min(sae.config.d_sae, sae.rule.k + max(1, round(MORE * sae.rule.k)))
        config = replace(sae.config, inference=sae.config.inference | {"k": k})
        return SparseAutoencoder(config, parameters, sae.theta, sae.W_skip)
    if isinstance(sae.rule, Threshold) and sae.theta is not None and bool((sae.theta > 0).any()):
        theta = torch.where(sae.theta > 0, BAND * sae.theta, sae.theta)
        return SparseAutoencoder(sae.config, parameters, theta, sae.W_skip)
    raise UsageError(
        f"index: an SAE of the recipe {sae.config.recipe} keeps everything above 0, so that nothing is just below what "
        "it keeps; leave the part near-miss out"
    )


def write_near_misses(bench: Bench, by_feature: ByFeature) -> None:
    """Write the part ``near-miss``."""
    if (bench.building / NEAR_MISS).exists():
        return
    codes, by_near = bench.work / "near", bench.work / "near-by-feature"
    _write_codes(bench, codes)
    d_sae = bench.sae.config.d_sae
    write_by_feature(codes, by_near, len(bench.stretches), d_sae, bench.stop, quiet=bench.quiet)
    config = replace(bench.config, top=max(1, bench.config.near_miss))
    chooser = Chooser(bench.corpus, config)

    def batches() -> Iterator[pa.RecordBatch]:
        with (
            ByFeature(by_near, bench.stretches, d_sae) as near,
            Progress("near misses", d_sae, "features", quiet=bench.quiet) as progress,
        ):
            for group in by_feature.groups():
                for own, missed in zip(by_feature.firings(group), near.firings(group), strict=True):
                    bench.check()
                    if len(missed.rows) and config.near_miss:
                        best = chooser.top(missed)
                        chosen = Chosen(NEAR, 0, chooser.positions[missed.rows[best]], missed.values[best])
                        yield examples_of(bench.corpus, chooser, own, [chosen])
                    progress.advance(1)

    write_table(bench.building / NEAR_MISS, batches(), EXAMPLES_SCHEMA, ROWS_OF_LISTS)


def _write_codes(bench: Bench, folder: Path) -> None:
    """Write what the looser rule keeps and the SAE does not, shard by shard."""
    loose = looser(bench.sae)
    missing = [n for n in range(len(bench.stretches)) if not (folder / shard_name(n)).exists()]
    with Progress("encoding", bench.corpus.n_kept, "tokens", quiet=bench.quiet) as progress:
        for number in missing:
            own = read_shard(bench.codes / shard_name(number), bench.sae.config.d_sae)
            codes: list[SparseCode] = []
            for x, _ in bench.corpus.activations(bench.stretches[number]):
                codes += encoded(loose, x, bench.stop)
                progress.advance(len(x))
            code = without(SparseCode.cat(codes).ragged(), own.code)
            write_shard(folder / shard_name(number), CodeShard(token_index=own.token_index, code=code))


def without(code: SparseCode, own: SparseCode) -> SparseCode:
    """Return the pairs of a code that another one does not have; both ragged, columns ascending within a row."""

    def keys(one: SparseCode) -> np.ndarray:
        return (one.row_ids() * one.d_sae + one.columns).numpy()

    taken = torch.from_numpy(~np.isin(keys(code), keys(own), assume_unique=True))
    rows = code.row_ids()[taken]
    offsets = torch.zeros(code.n_rows + 1, dtype=torch.int64)
    torch.cumsum(torch.bincount(rows, minlength=code.n_rows), 0, out=offsets[1:])
    return SparseCode(code.values[taken], code.columns[taken], code.d_sae, offsets)
