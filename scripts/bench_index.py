"""Time the queries of a feature index, each many times with other values.

python scripts/bench_index.py INDEX
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from saelab.features.index import FeatureIndex, open_index
from saelab.features.queries.filters import FeatureFilter
from saelab.features.schema import VOCABULARY


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("index", type=Path, help="an index, or a run that has one")
    parser.add_argument("--calls", type=int, default=200)
    options = parser.parse_args()
    began = time.perf_counter()
    index = open_index(options.index)
    opened = time.perf_counter() - began
    began = time.perf_counter()
    index.search_token("a")
    first = time.perf_counter() - began
    print(f"{index.source}")
    print(f"open: {1e3 * opened:.0f} ms; first question for a token: {1e3 * first:.0f} ms\n")
    print(f"| query ({options.calls} calls) | median | p95 |")
    print("|---|---|---|")
    for name, ask in queries(index).items():
        seconds = np.asarray([timed(ask, call) for call in range(options.calls)])
        print(f"| {name} | {1e3 * np.median(seconds):.1f} ms | {1e3 * np.quantile(seconds, 0.95):.1f} ms |")


def timed(ask: Callable[[int], object], call: int) -> float:
    """Return the seconds of one call."""
    began = time.perf_counter()
    ask(call)
    return time.perf_counter() - began


def queries(index: FeatureIndex) -> dict[str, Callable[[int], object]]:
    """Return the queries by what they are; each takes the number of the call."""
    chance = np.random.default_rng(0)
    features = chance.integers(0, index.d_sae, 10_000).tolist()
    texts = [text for text in pq.read_table(index.path / VOCABULARY)["text"].to_pylist() if text.strip()]
    words = [texts[i].strip()[:1000] for i in chance.integers(0, len(texts), 10_000)]
    positions = chance.integers(0, len(index.tokens), 80).tolist()

    def page(call: int) -> object:
        where = FeatureFilter(alive=True, min_density=1e-5 * (1 + call % 7), max_density=1e-2)
        return index.features(where, "max_act", descending=True, limit=100)

    def rebuild(call: int) -> object:
        windows = []
        for position in positions:
            first = max(0, min(position + call - 32, len(index.tokens) - 64))
            windows.append(index.tokens[first : first + 64].tolist())
        return windows

    return {
        "features: filter, sort, 100 rows, and count": page,
        "features: text in names, 100 rows, and count": lambda c: index.features(
            FeatureFilter(text=words[c][:4])
        ),
        "token to features (promoting, and active)": lambda c: index.search_token(words[c], limit=50),
        "tokens that contain a text to features": lambda c: index.search_token(
            words[c], contains=True, limit=50
        ),
        "one feature's examples, all kinds, with 64 tokens": lambda c: [
            index.examples(features[c], group, context=32) for group in ("top", "interval")
        ],
        "one feature's lists": lambda c: index.detail(features[c]),
        "one feature's numbers": lambda c: index.row(features[c]),
        "one feature, everything": lambda c: index.feature(features[c]),
        "80 windows of 64 tokens": rebuild,
    }


if __name__ == "__main__":
    main()
