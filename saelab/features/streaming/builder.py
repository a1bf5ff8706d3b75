"""Build the tables of an index in two passes, without codes on disk."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from saelab.errors import UsageError
from saelab.features.building.assemble import renew_features, write_tables
from saelab.features.building.folder import IndexFolder
from saelab.features.building.logits import LogitLens
from saelab.features.building.steps import (
    Bench,
    group_file,
    write_coactivation,
    write_group,
    write_logits,
)
from saelab.features.schema import COACTIVATION, EXAMPLES, FEATURES
from saelab.features.spec import Part
from saelab.features.streaming.collection import Collection, ranks
from saelab.features.streaming.describe import GROUP, StreamedDescriber, approximate_columns
from saelab.features.streaming.passes import run_pass
from saelab.features.streaming.survey import Survey
from saelab.progress import Progress
from saelab.text.vocabulary import Vocabulary

STRETCHES = 512
"""Stretches that a long corpus is cut into; each has a file of sampled codes that is open at the end."""


def require_streamable(parts: Sequence[Part], keep_codes: bool | None) -> None:
    """Refuse what a bounded state cannot give.

    Raises:
        UsageError: Near misses or codes are asked for.
    """
    if "near-miss" in parts:
        raise UsageError(
            "index: the part near-miss needs all codes, which --mode streaming does not keep; leave it out, or use "
            "--mode exact"
        )
    if keep_codes:
        raise UsageError(
            "index: --mode streaming keeps no codes; leave --keep-codes out, or use --mode exact"
        )


def stream_tables(
    bench: Bench, parts: Sequence[Part], lens: LogitLens | str, vocabulary: Vocabulary, folder: IndexFolder
) -> list[str]:
    """Write the tables that come from the corpus.

    Returns:
        The columns that are estimates from samples.

    Raises:
        Interrupted: A stop was asked for; the same call goes on.
    """
    together = bench.building / COACTIVATION
    with_coactivation = "coactivation" in parts
    survey = Survey(bench.corpus, bench.config, bench.sae.config.d_sae)
    run_pass(bench, "survey", survey)
    columns = approximate_columns(survey, bench.config, with_coactivation=with_coactivation)
    needs_coactivation = with_coactivation and not together.exists()
    if needs_coactivation or not (bench.building / EXAMPLES).exists():
        codes = bench.work / "sampled" if with_coactivation else None
        collection = Collection(bench.corpus, bench.config, survey, codes)
        run_pass(bench, "collection", collection)
        if codes is not None and needs_coactivation:
            write_coactivation(bench, _samples(bench, survey), survey.sums.counts, codes)
        if not (bench.building / EXAMPLES).exists():
            if isinstance(lens, LogitLens):
                write_logits(bench, lens)
            write_tables(bench, _describe(bench, survey, collection), vocabulary)
    if not (bench.building / FEATURES).exists():  # the tables of an index to which a part is added
        renew_features(bench, folder.place)
    return columns


def _samples(bench: Bench, survey: Survey) -> Iterator[tuple[int, NDArray[np.int64]]]:
    """Yield every feature with the positions that are looked at for co-activation."""
    sample = survey.sample
    taken = sample.take(np.flatnonzero(ranks(sample) < bench.config.coactivation_samples))
    bounds = np.searchsorted(taken.groups, np.arange(survey.d_sae + 1))
    for feature in range(survey.d_sae):
        yield feature, taken.positions[bounds[feature] : bounds[feature + 1]]


def _describe(bench: Bench, survey: Survey, collection: Collection) -> list[range]:
    """Write the tables of all groups of features, and return the groups."""
    d_sae = survey.d_sae
    groups = [range(first, min(first + GROUP, d_sae)) for first in range(0, d_sae, GROUP)]
    describer = StreamedDescriber(bench.corpus, bench.config, survey, collection)
    with Progress("describing", d_sae, "features", quiet=bench.quiet) as progress:
        for group in groups:
            bench.check()
            if not group_file(bench.work, "examples", group).exists():
                write_group(bench.work, group, describer.describe(group))
            progress.advance(len(group))
    return groups
