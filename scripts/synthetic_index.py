"""Make a feature index of any size with random content, to measure queries and to try pages with.

    python scripts/synthetic_index.py build/index --features 131072 --tokens 10M
    python scripts/bench_index.py build/index

Everything is in the format of a built index; only one block of features is in memory at a time. With ``--hostile``
tokens, names and document ids are texts that try to leave the place where they are shown.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from saelab.activations import layout
from saelab.features import schema
from saelab.features.queries.opened import TABLES
from saelab.features.spec import IndexConfig
from saelab.features.tables import ROWS_OF_DETAIL, ROWS_OF_LISTS, ROWS_OF_NUMBERS, ROWS_OF_PAIRS, write_table
from saelab.quantities import parse_count
from saelab.storage.files import write_aside
from saelab.storage.manifest import digest_of, write_manifest
from saelab.text.packing import DocumentTable

BLOCK = 512
"""Features whose rows are made at a time."""
CONTEXT, DOCUMENT_TOKENS, TOKENS_AT_A_TIME = 256, 1024, 1 << 22
SYLLABLES = (
    "ka",
    "mi",
    "to",
    "re",
    "su",
    "lo",
    "na",
    "vi",
    "en",
    "ex",
    "or",
    "un",
    "str",
    "def",
    "im",
    "port",
)
HOSTILE = (
    "<script>alert(1)</script>",
    "![i](http://127.0.0.1:9/x.png)",
    "$\\frac{1}{0}$ :red[x]",
    '=HYPERLINK("http://127.0.0.1:9")',
    "\u202egnp.exe\u202c",
    "a\u200bb\ufeff",
    "\"' onmouseover=alert(1) x='",
    "'; DROP TABLE features; --",
    "</style><img src=x onerror=alert(1)>",
    "\x00\x07\x1b[31m",
    "A" * 5000,
    "\u0301" * 50,
)


@dataclass(frozen=True)
class Shape:
    """How large everything is."""

    features: int
    tokens: int
    vocabulary: int
    hostile: bool
    seed: int

    @property
    def alive(self) -> int:
        """Features from this one on are dead."""
        return max(1, self.features - self.features // 50)

    def chance(self, *what: int) -> np.random.Generator:
        """Return random numbers of a part of the index; equal seeds give equal files."""
        return np.random.default_rng((self.seed, *what))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path, help="a new folder")
    parser.add_argument("--features", type=parse_count, default=131_072)
    parser.add_argument("--tokens", type=parse_count, default=10_000_000)
    parser.add_argument("--vocabulary", type=parse_count, default=50_257)
    parser.add_argument("--hostile", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    place = vars(options).pop("out")
    make_index(place, Shape(**vars(options)))


def make_index(out: Path, shape: Shape) -> None:
    """Write the index; its folder must be new."""
    out.mkdir(parents=True)
    tables = {
        schema.VOCABULARY: (_vocabulary(shape), ROWS_OF_PAIRS),
        schema.FEATURES: (_numbers(shape), ROWS_OF_NUMBERS),
        schema.DETAIL: (_lists(shape), ROWS_OF_DETAIL),
        schema.EXAMPLES: (_examples(shape), ROWS_OF_LISTS),
        schema.LOGIT_INVERSE: (_logit_inverse(shape), ROWS_OF_PAIRS),
        schema.NEIGHBORS: (_pairs(shape, schema.NEIGHBORS_SCHEMA), ROWS_OF_PAIRS),
        schema.COACTIVATION: (_pairs(shape, schema.COACTIVATION_SCHEMA), ROWS_OF_PAIRS),
    }
    for name, (batches, rows) in tables.items():
        write_table(out / name, batches, TABLES[name], rows)
    names = [*tables, *_write_corpus(out, shape)]
    kept = shape.tokens - _n_rows(shape)
    content = {
        "config": IndexConfig().to_json(),
        "sae": {"identity": digest_of(b"synthetic"), "d_sae": shape.features},
        "model": None,
        "corpus": {
            "source": "random tokens",
            "n_tokens": shape.tokens,
            "n_kept": kept,
            "n_rows": _n_rows(shape),
            "n_documents": -(-shape.tokens // DOCUMENT_TOKENS),
        },
        "parts": ["coactivation", "neighbors"],
        "logits": "random",
        "has_codes": False,
        "source": f"synthetic ({shape.features:,} features); {kept:,} random tokens",
    }
    write_manifest(out, "index", names, content)


def _n_rows(shape: Shape) -> int:
    return -(-shape.tokens // CONTEXT)


def _blocks(shape: Shape) -> Iterator[NDArray[np.int64]]:
    for start in range(0, shape.features, BLOCK):
        yield np.arange(start, min(start + BLOCK, shape.features))


def _word(chance: np.random.Generator) -> str:
    return "".join(chance.choice(SYLLABLES, chance.integers(2, 6)))


def _vocabulary(shape: Shape) -> Iterator[pa.RecordBatch]:
    chance = shape.chance(1)
    texts = [("" if i % 3 else " ") + _word(chance) for i in range(shape.vocabulary)]
    texts[0] = "<s>"
    encoded: list[bytes] = [text.encode() for text in texts]
    for first in range(256, shape.vocabulary - 1, 97):  # two tokens that are one character together
        encoded[first], encoded[first + 1] = b"\xe6\xbc", b"\xa2"
    if shape.hostile:
        for place in range(1, shape.vocabulary, 5):
            encoded[place] = HOSTILE[place // 5 % len(HOSTILE)].encode()
    yield pa.record_batch(
        {
            "token_id": np.arange(shape.vocabulary, dtype=np.uint32),
            "bytes": encoded,
            "text": [raw.decode(errors="replace") for raw in encoded],
            "is_special": np.arange(shape.vocabulary) == 0,
            "is_partial": [raw in (b"\xe6\xbc", b"\xa2") for raw in encoded],
        },
        schema=schema.VOCABULARY_SCHEMA,
    )


def _numbers(shape: Shape) -> Iterator[pa.RecordBatch]:
    for block, features in enumerate(_blocks(shape)):
        chance, n = shape.chance(2, block), len(features)
        dead = features >= shape.alive
        density = np.where(dead, 0, np.minimum(0.5, 10 ** chance.normal(-3.5, 0.8, n)))
        fires = (density * shape.tokens).astype(np.uint64)
        columns: dict[str, Any] = {
            "feature": features.astype(np.uint32),
            "n_fires": fires,
            "density": density,
            "n_documents": np.minimum(fires, shape.tokens // DOCUMENT_TOKENS).astype(np.uint32),
            "flags": np.where(dead, schema.DEAD, np.where(density > 0.1, schema.DENSE, 0)).astype(np.uint8),
            "name": [_name(shape, chance, int(f)) for f in features],
        }
        for field in schema.FEATURES_SCHEMA:
            if field.name in columns:
                continue
            of_weights = field.name.startswith(("decoder", "encoder", "max_decoder", "logit", "threshold"))
            bound = shape.features if field.name.endswith("feature") else shape.vocabulary
            is_number = pa.types.is_float32(field.type)
            drawn = chance.random(n, dtype=np.float32) if is_number else chance.integers(0, bound, n)
            columns[field.name] = pa.array(drawn, mask=None if of_weights else dead).cast(field.type)
        yield pa.record_batch(
            {name: columns[name] for name in schema.FEATURES_SCHEMA.names}, schema=schema.FEATURES_SCHEMA
        )


def _name(shape: Shape, chance: np.random.Generator, feature: int) -> str:
    plain = f'on "{_word(chance)}" ({chance.integers(20, 99)} %)' if feature < shape.alive else "never active"
    return HOSTILE[feature // 3 % len(HOSTILE)] if shape.hostile and feature % 3 == 0 else plain


def _lists(shape: Shape) -> Iterator[pa.RecordBatch]:
    config = IndexConfig()
    lengths = {
        "histogram_edges": config.histogram_bins + 1,
        "histogram_counts": config.histogram_bins,
        "log_histogram_counts": schema.LOG_BINS,
        "interval_edges": config.intervals + 1,
        "interval_counts": config.intervals,
        "logit_edges": config.logit_bins + 1,
        "logit_counts": config.logit_bins,
        "position_shares": 16,
    }
    for block, features in enumerate(_blocks(shape)):
        chance = shape.chance(3, block)
        alive = features < shape.alive
        columns: dict[str, Any] = {"feature": features.astype(np.uint32)}
        for field in schema.DETAIL_SCHEMA:
            if field.name == "feature":
                continue
            of_weights = field.name.startswith(("promoted", "suppressed", "logit", "log_", "position"))
            length = lengths.get(field.name, config.logits)
            sizes = np.where(alive | of_weights, length, 0)
            columns[field.name] = _list_column(field, sizes, shape, chance, length)
        yield pa.record_batch(columns, schema=schema.DETAIL_SCHEMA)


def _list_column(
    field: pa.Field, sizes: NDArray[np.int64], shape: Shape, chance: np.random.Generator, length: int
) -> pa.ListArray:
    n, kind = int(sizes.sum()), field.type.value_type
    if field.name.endswith("edges"):
        values = np.tile(np.linspace(0, 9, length, dtype=np.float32), n // length)
    elif pa.types.is_float32(kind):
        values = (
            -np.sort(-chance.random((n // length, length), dtype=np.float32), axis=1).reshape(-1) / length
        )
    elif pa.types.is_uint32(kind):
        values = chance.integers(0, shape.vocabulary, n).astype(np.uint32)
    else:
        values = chance.integers(0, 1000, n).astype(np.uint64)
    return pa.ListArray.from_arrays(
        pa.array(np.append(0, np.cumsum(sizes)), pa.int32()), pa.array(values, kind)
    )


def _examples(shape: Shape) -> Iterator[pa.RecordBatch]:
    config = IndexConfig()
    kinds = [(schema.TOP, 0, rank) for rank in range(config.top)]
    kinds += [(schema.INTERVAL, i, r) for i in range(config.intervals) for r in range(config.per_interval)]
    pattern = np.asarray(kinds, dtype=np.uint8)
    for block, features in enumerate(_blocks(shape)):
        chance = shape.chance(4, block)
        features = features[features < shape.alive]
        n = len(features) * len(kinds)
        if not n:
            continue
        peaks = chance.integers(0, shape.tokens, n)
        strength = chance.random(n, dtype=np.float32) * 9
        sizes = 1 + chance.poisson(3, n)
        starts = np.append(0, np.cumsum(sizes))
        offsets = chance.integers(-config.window, config.window + 1, starts[-1])
        offsets[starts[:-1]] = 0
        offsets = offsets[np.lexsort((offsets, np.repeat(np.arange(n), sizes)))]
        lists = pa.array(starts, pa.int32())
        yield pa.record_batch(
            {
                "feature": np.repeat(features, len(kinds)).astype(np.uint32),
                "kind": np.tile(pattern[:, 0], len(features)),
                "bin": np.tile(pattern[:, 1], len(features)),
                "rank": np.tile(pattern[:, 2], len(features)),
                "token_index": peaks.astype(np.uint64),
                "document": (peaks // DOCUMENT_TOKENS).astype(np.uint32),
                "activation": strength,
                "window_hash": chance.integers(0, 2**63, n).astype(np.uint64),
                "offsets": pa.ListArray.from_arrays(lists, pa.array(offsets, pa.int16())),
                "activations": pa.ListArray.from_arrays(lists, pa.array(np.repeat(strength, sizes))),
            },
            schema=schema.EXAMPLES_SCHEMA,
        )


def _logit_inverse(shape: Shape) -> Iterator[pa.RecordBatch]:
    k = IndexConfig().logits
    for start in range(0, shape.vocabulary, 1024):
        chance = shape.chance(5, start)
        tokens = np.arange(start, min(start + 1024, shape.vocabulary), dtype=np.uint32)
        n = len(tokens) * k
        logits = -np.sort(-chance.random((len(tokens), k), dtype=np.float32), axis=1)
        yield pa.record_batch(
            {
                "token": np.repeat(tokens, k),
                "rank": np.tile(np.arange(k, dtype=np.uint32), len(tokens)),
                "feature": chance.integers(0, shape.features, n).astype(np.uint32),
                "logit": logits.reshape(-1),
            },
            schema=schema.LOGIT_INVERSE_SCHEMA,
        )


def _pairs(shape: Shape, table: pa.Schema) -> Iterator[pa.RecordBatch]:
    k = IndexConfig().neighbors
    for block, features in enumerate(_blocks(shape)):
        chance, n = shape.chance(len(table), block), len(features) * k
        columns: dict[str, Any] = {
            "feature": np.repeat(features, k).astype(np.uint32),
            "rank": np.tile(np.arange(k, dtype=np.uint8), len(features)),
            "other": chance.integers(0, shape.features, n).astype(np.uint32),
            "n_sampled": np.full(n, 512, dtype=np.uint32),
            "n_both": chance.integers(1, 513, n).astype(np.uint32),
        }
        numbers = {name: chance.random(n, dtype=np.float32) for name in ("cosine", "p_other", "lift", "phi")}
        yield pa.record_batch({name: (columns | numbers)[name] for name in table.names}, schema=table)


def _write_corpus(out: Path, shape: Shape) -> list[str]:
    def tokens(file: BinaryIO) -> None:
        for start in range(0, shape.tokens, TOKENS_AT_A_TIME):
            n = min(TOKENS_AT_A_TIME, shape.tokens - start)
            ids = shape.chance(8, start).integers(1, shape.vocabulary, n).astype("<i4")
            ids[::CONTEXT] = 0
            file.write(ids.tobytes())

    write_aside(out / layout.TOKENS, tokens)
    starts = np.append(np.arange(0, shape.tokens, CONTEXT), shape.tokens)
    layout.write_array(out / layout.ROWS, starts)
    layout.write_bits(out / layout.KEEP, np.arange(shape.tokens) % CONTEXT > 0)
    starts = np.arange(0, shape.tokens, DOCUMENT_TOKENS)
    n = len(starts)
    ids = [HOSTILE[i % len(HOSTILE)] if shape.hostile else f"document {i}" for i in range(n)]
    documents = DocumentTable(
        ids=tuple(ids),
        starts=starts,
        lengths=np.diff(np.append(starts, shape.tokens)),
        sources=("synthetic",) * n,
        heldout=np.zeros(n, dtype=bool),
        columns={},
    )
    layout.write_documents(out / layout.DOCUMENTS, documents)
    return [layout.TOKENS, layout.ROWS, layout.KEEP, layout.DOCUMENTS]


if __name__ == "__main__":
    main()
