"""Build an index step by step, from nothing or from what an interrupted build left."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from saelab.features.building.assemble import check_examples, renew_features, write_corpus, write_tables
from saelab.features.building.by_feature import ByFeature, write_by_feature
from saelab.features.building.corpus import Corpus
from saelab.features.building.encode import tokens_per_shard, write_codes
from saelab.features.building.folder import WORK, IndexFolder
from saelab.features.building.logits import LogitLens
from saelab.features.building.near_miss import write_near_misses
from saelab.features.building.steps import (
    Bench,
    describe_groups,
    sampled_firings,
    write_coactivation,
    write_logits,
    write_neighbors,
)
from saelab.features.schema import COACTIVATION, CODES, EXAMPLES, FEATURES
from saelab.features.spec import IndexConfig, Part
from saelab.features.streaming.builder import STRETCHES, stream_tables
from saelab.interrupts import StopRequest
from saelab.sae.autoencoder import SparseAutoencoder
from saelab.storage.files import remove_leftovers
from saelab.storage.manifest import write_manifest
from saelab.text.vocabulary import Vocabulary

KEPT_CODES = 10 * 10**9
"""Code shards are kept where they take no more bytes than this."""


@dataclass(frozen=True, kw_only=True)
class Ingredients:
    """What an index is made of."""

    sae: SparseAutoencoder
    corpus: Corpus
    config: IndexConfig
    parts: Sequence[Part]
    lens: LogitLens | str
    """Or why there is none."""
    vocabulary: Vocabulary
    keep_codes: bool | None
    """None keeps them where they are not too large."""
    facts: dict[str, Any]
    """The content of the manifest, but for what the build finds out."""


def build(made_of: Ingredients, folder: IndexFolder, stop: StopRequest, *, quiet: bool = False) -> None:
    """Build an index in its building folder, and put it in its place.

    Raises:
        Interrupted: A stop was asked for; the same call goes on.
        SaelabError: The disk is full, or a check at the end failed.
    """
    sae, corpus, config = made_of.sae, made_of.corpus, made_of.config
    is_streamed = config.mode == "streaming"
    kept = tokens_per_shard(sae, corpus)
    bench = Bench(
        building=folder.building,
        work=folder.work,
        corpus=corpus,
        stretches=corpus.stretches(max(kept, corpus.n_kept // STRETCHES) if is_streamed else kept),
        sae=sae,
        config=config,
        stop=stop,
        quiet=quiet,
    )
    if "neighbors" in made_of.parts:
        write_neighbors(bench)
    approximate: list[str] = []
    if is_streamed:
        approximate = stream_tables(bench, made_of.parts, made_of.lens, made_of.vocabulary, folder)
    else:
        _exact_tables(bench, made_of, folder)
    write_corpus(bench, made_of.vocabulary)
    check_examples(bench)
    finish(folder, made_of, approximate)


def _exact_tables(bench: Bench, made_of: Ingredients, folder: IndexFolder) -> None:
    """Write the tables that come from the corpus, out of all codes."""
    d_sae, sorted_shards = bench.sae.config.d_sae, bench.work / "by-feature"
    write_codes(bench.sae, bench.corpus, bench.stretches, bench.codes, bench.stop, quiet=bench.quiet)
    write_by_feature(bench.codes, sorted_shards, len(bench.stretches), d_sae, bench.stop, quiet=bench.quiet)
    with ByFeature(sorted_shards, bench.stretches, d_sae) as by_feature:
        if "coactivation" in made_of.parts and not (bench.building / COACTIVATION).exists():
            write_coactivation(bench, sampled_firings(bench, by_feature), by_feature.counts, bench.codes)
        if "near-miss" in made_of.parts:
            write_near_misses(bench, by_feature)
        if not (bench.building / EXAMPLES).exists():
            if isinstance(made_of.lens, LogitLens):
                write_logits(bench, made_of.lens)
            describe_groups(bench, by_feature)
            write_tables(bench, by_feature.groups(), made_of.vocabulary)
        elif not (bench.building / FEATURES).exists():  # the tables of an index to which a part is added
            renew_features(bench, folder.place)


def finish(folder: IndexFolder, made_of: Ingredients, approximate: list[str]) -> None:
    """Decide about the codes, write the manifest, and put the index in its place."""
    codes = folder.building / CODES
    size = sum(file.stat().st_size for file in codes.glob("shard-*")) if codes.exists() else 0
    keeps = codes.exists() and (size <= KEPT_CODES if made_of.keep_codes is None else made_of.keep_codes)
    if not keeps:
        shutil.rmtree(codes, ignore_errors=True)
    remove_leftovers(folder.building)
    n_fires = pq.read_table(folder.building / FEATURES, columns=["n_fires"])["n_fires"].to_numpy()
    content = made_of.facts | {
        "has_codes": keeps,
        "parts": sorted(made_of.parts),
        "n_alive": int((n_fires > 0).sum()),
        "approximate": approximate,
    }
    write_manifest(folder.building, "index", files_of(folder.building), content)
    folder.finish()


def files_of(building: Path) -> list[str]:
    """Return the data files of an index, by their names within its folder."""
    found = (file for file in building.rglob("*") if file.is_file())
    names = sorted(str(file.relative_to(building)) for file in found)
    return [name for name in names if not name.startswith((WORK, ".")) and name != "manifest.json"]
