"""Build an index step by step, from nothing or from what an interrupted build left."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
    write_coactivation,
    write_logits,
    write_neighbors,
)
from saelab.features.schema import CODES, EXAMPLES, FEATURES
from saelab.features.spec import IndexConfig, Part
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
    sae, corpus = made_of.sae, made_of.corpus
    bench = Bench(
        building=folder.building,
        work=folder.work,
        corpus=corpus,
        stretches=corpus.stretches(tokens_per_shard(sae, corpus)),
        sae=sae,
        config=made_of.config,
        stop=stop,
        quiet=quiet,
    )
    d_sae, sorted_shards = sae.config.d_sae, bench.work / "by-feature"
    write_codes(sae, corpus, bench.stretches, bench.codes, stop, quiet=quiet)
    write_by_feature(bench.codes, sorted_shards, len(bench.stretches), d_sae, stop, quiet=quiet)
    if "neighbors" in made_of.parts:
        write_neighbors(bench)
    with ByFeature(sorted_shards, bench.stretches, d_sae) as by_feature:
        if "coactivation" in made_of.parts:
            write_coactivation(bench, by_feature)
        if "near-miss" in made_of.parts:
            write_near_misses(bench, by_feature)
        if not (bench.building / EXAMPLES).exists():
            if isinstance(made_of.lens, LogitLens):
                write_logits(bench, made_of.lens)
            describe_groups(bench, by_feature)
            write_tables(bench, by_feature.groups(), made_of.vocabulary)
        elif not (bench.building / FEATURES).exists():  # the tables of an index to which a part is added
            renew_features(bench, folder.place)
        n_alive = int((by_feature.counts > 0).sum())
    write_corpus(bench, made_of.vocabulary)
    check_examples(bench)
    finish(folder, made_of, n_alive)


def finish(folder: IndexFolder, made_of: Ingredients, n_alive: int) -> None:
    """Decide about the codes, write the manifest, and put the index in its place."""
    codes = folder.building / CODES
    size = sum(file.stat().st_size for file in codes.glob("shard-*")) if codes.exists() else 0
    keeps = codes.exists() and (size <= KEPT_CODES if made_of.keep_codes is None else made_of.keep_codes)
    if not keeps:
        shutil.rmtree(codes, ignore_errors=True)
    remove_leftovers(folder.building)
    content = made_of.facts | {"has_codes": keeps, "parts": sorted(made_of.parts), "n_alive": n_alive}
    write_manifest(folder.building, "index", files_of(folder.building), content)
    folder.finish()


def files_of(building: Path) -> list[str]:
    """Return the data files of an index, by their names within its folder."""
    found = (file for file in building.rglob("*") if file.is_file())
    names = sorted(str(file.relative_to(building)) for file in found)
    return [name for name in names if not name.startswith((WORK, ".")) and name != "manifest.json"]
