"""What both passes found of a group of features, to rows of the tables."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from saelab.features.building.corpus import Corpus
from saelab.features.building.describe import GroupTables
from saelab.features.building.numbers import quantiles
from saelab.features.building.rows import Description, ExampleRows, example_batch
from saelab.features.building.token_statistics import TokenStatistics, tokens_around
from saelab.features.records import TokenShare
from saelab.features.schema import INTERVAL, NON_ACTIVE, RANDOM, TOP
from saelab.features.spec import IndexConfig
from saelab.features.streaming.collection import Collection, ranks
from saelab.features.streaming.smallest import Entries
from saelab.features.streaming.survey import Survey, sample_size

GROUP = 2048
"""Features that are described together."""
FROM_SAMPLE: tuple[str, ...] = (
    "features.p50",
    "features.p90",
    "features.p99",
    "features.top_token",
    "features.top_token_share",
    "features.previous_token",
    "features.previous_token_share",
    "features.next_token",
    "features.next_token_share",
    "features.flags",
    "features.name",
    "feature_detail.tokens",
    "feature_detail.token_shares",
    "feature_detail.token_fires",
)
"""Columns that are estimates where a feature fired more often than its sample holds; of the flags that of one token."""
TOGETHER = tuple(f"coactivation.{name}" for name in ("n_sampled", "n_both", "p_other", "lift", "phi"))
"""Columns that come from fewer firings than the configuration asks for where the sample is smaller."""


def approximate_columns(survey: Survey, config: IndexConfig, *, with_coactivation: bool) -> list[str]:
    """Return the columns that are not what the exact build gives; none where the samples hold everything."""
    most, size = int(survey.sums.counts.max(initial=0)), sample_size(config, survey.d_sae)
    found = list(FROM_SAMPLE) if most > size else []
    if with_coactivation and min(most, config.coactivation_samples) > size:
        found += TOGETHER
    return found if survey.has_all_top else [*found, "examples.top"]


class StreamedDescriber:
    """Describes features by what the passes found.

    Args:
        corpus: Where they fire.
        config: What is kept.
        survey: The first pass.
        collection: The second pass.
    """

    def __init__(self, corpus: Corpus, config: IndexConfig, survey: Survey, collection: Collection) -> None:
        self._corpus, self._config = corpus, config
        self._survey, self._collection = survey, collection

    def describe(self, group: range) -> GroupTables:
        """Return the tables of a group."""
        tables = GroupTables()
        sample = self._survey.sample.of(group.start, group.stop)
        bounds = np.searchsorted(sample.groups, np.arange(group.start, group.stop + 1))
        for feature, first, last in zip(group, bounds[:-1].tolist(), bounds[1:].tolist(), strict=True):
            if first == last:
                tables.add_dead(feature)
            else:
                # In the order of the corpus, as the exact build adds them up.
                order = first + np.argsort(sample.positions[first:last])
                found = self._describe(feature, sample.positions[order], sample.values[order])
                tables.add(found, self._config)
        tables.examples += self._examples(group)
        return tables

    def _describe(
        self, feature: int, positions: NDArray[np.int64], values: NDArray[np.float32]
    ) -> Description:
        sums, collection = self._survey.sums, self._collection
        n_fires = int(sums.counts[feature])
        return Description(
            feature=feature,
            n_fires=n_fires,
            density=n_fires / self._corpus.n_kept,
            n_documents=int(sums.n_documents[feature]),
            maximum=float(sums.maxima[feature]),
            moments=sums.moments(feature),
            quantiles=quantiles(np.sort(values)),
            tokens=self._tokens(feature, positions, values),
            histogram=collection.histograms.counts[feature].tolist(),
            log_histogram=sums.log_histogram[feature].tolist(),
            intervals=collection.intervals.counts[feature].tolist(),
        )

    def _tokens(
        self, feature: int, positions: NDArray[np.int64], values: NDArray[np.float32]
    ) -> TokenStatistics:
        sums, around = self._survey.sums, tokens_around(self._corpus, positions, values)
        n_fires = int(sums.counts[feature])
        tokens = tuple(
            TokenShare(token=one.token, share=one.share, n_fires=round(one.n_fires * n_fires / len(values)))
            for one in around.tokens
        )
        return TokenStatistics(
            tokens=tokens,
            previous=around.previous,
            next=around.next,
            first_position_share=float(sums.first_mass[feature] / sums.mass[feature]),
            positions=tuple((sums.places[feature] / n_fires).tolist()),
        )

    def _examples(self, group: range) -> Iterator[pa.RecordBatch]:
        found, n, top = self._collection, self._config.intervals, self._config.top
        known = found.known.result().of(group.start, group.stop)
        between = found.of_intervals.result().of(group.start * n, group.stop * n)
        silent = found.silent.result().of(group.start, group.stop)
        number = known.keys.astype(np.int64)
        everything = Entries.cat([known, between, silent])
        if not len(everything):
            return
        features = np.concatenate([known.groups, between.groups // n, silent.groups])
        kinds = np.concatenate(
            [
                np.where(number < top, TOP, RANDOM),
                np.full(len(between), INTERVAL),
                np.full(len(silent), NON_ACTIVE),
            ]
        )
        bins = np.concatenate([np.zeros(len(known)), between.groups % n, np.zeros(len(silent))])
        rank = np.concatenate([np.where(number < top, number, number - top), ranks(between), ranks(silent)])
        order = np.lexsort((rank, bins, kinds, features))
        shown = everything.take(order)
        rows = ExampleRows(
            features=features[order],
            kinds=kinds[order],
            bins=bins[order],
            ranks=rank[order],
            positions=shown.positions,
            values=shown.values,
            sizes=shown.sizes.astype(np.int64),
            offsets=shown.offsets,
            activations=shown.activations,
        )
        yield example_batch(self._corpus, rows)
