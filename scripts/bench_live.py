"""Live training against cache-then-train, side by side in one run, and how well each mixes documents.

    python scripts/bench_live.py --tokens 400k

Both read the same model and text and train the same SAE on the same number of tokens. Rounds alternate, so
that a busy machine disturbs both alike; the ratio is what counts.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import saelab
from saelab.activations.live import LiveSource
from saelab.activations.mixing import mixing_quality
from saelab.activations.source import Order
from saelab.activations.stream import StoreStream
from saelab.quantities import parse_count
from saelab.text.load import load_documents


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--text", default="stdlib")
    parser.add_argument("--at", default="blocks.2.hook_resid_post")
    parser.add_argument("--tokens", type=parse_count, default=400_000)
    parser.add_argument("--width", default="x16")
    parser.add_argument("--pool-rows", type=parse_count, default=131_072)
    parser.add_argument("--rounds", type=int, default=2)
    options = parser.parse_args()
    lm = saelab.load_model(saelab.ModelSpec(name=options.model))
    seconds: dict[str, list[float]] = {"cache": [], "train": [], "live": []}
    mixing: dict[str, float] = {}
    for _ in range(options.rounds):
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place)
            clock = time.perf_counter()
            store = saelab.cache(
                lm, options.text, at=options.at, tokens=options.tokens, out=folder / "store", quiet=True
            )
            seconds["cache"].append(time.perf_counter() - clock)
            settings = {"width": options.width, "tokens": options.tokens, "quiet": True}
            clock = time.perf_counter()
            saelab.train(store, out=folder / "run", **settings)
            seconds["train"].append(time.perf_counter() - clock)
            shutil.rmtree(folder / "run")
            clock = time.perf_counter()
            live = saelab.live(lm, options.text, at=options.at, pool_rows=options.pool_rows)
            saelab.train(live, out=folder / "run", **settings)
            seconds["live"].append(time.perf_counter() - clock)
            mixing = {"store": _of_store(store), "live": _of_live(live)}
    best = {name: min(values) for name, values in seconds.items()}
    both = best["cache"] + best["train"]
    for name, value in [*best.items(), ("cache, then train", both)]:
        print(f"{name:<20} {value:8.1f} s {options.tokens / value:10,.0f} tokens/s")
    print(f"live / cache-then-train: {both / best['live']:.2f} times as fast")
    for name, value in mixing.items():
        print(f"mixing of the {name}: {value:.2f} times as many pairs from one document as in a full shuffle")


def _of_store(store: saelab.Store, n_batches: int = 20) -> float:
    with StoreStream(store, None, batch_size=2048, seed=0) as stream:
        return mixing_quality(stream, n_batches)


def _of_live(source: LiveSource, n_batches: int = 20) -> float:
    hook = source.hooks[0].module_path
    order = Order(batch=2048, seed=0, pool_rows=source.config.pool_rows, total_rows=n_batches * 2048)
    stream = source.open([hook], order, None)
    try:
        batches = [stream.next()[hook].document for _ in range(n_batches)]
    finally:
        stream.close()
    same = np.mean([_same_pairs(batch.numpy()) for batch in batches if batch is not None])
    return float(same / _same_pairs_of_text(source))


def _same_pairs(documents: NDArray[np.int64]) -> float:
    counts = np.unique(documents, return_counts=True)[1]
    return float((counts * (counts - 1)).sum() / (len(documents) * (len(documents) - 1)))


def _same_pairs_of_text(source: LiveSource) -> float:
    """Share of pairs of tokens of the whole training text that are of one document."""
    train = [d.text for d in load_documents(source.config.text) if d.split == "train"]
    lengths: Iterable[int] = (len(ids) for ids in source.lm.tokenizer(train, verbose=False)["input_ids"])
    counts = np.fromiter(lengths, dtype=np.int64)
    return float((counts * (counts - 1)).sum() / (counts.sum() * (counts.sum() - 1)))


if __name__ == "__main__":
    main()
