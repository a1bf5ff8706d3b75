"""A small index made by hand: every table is known, row by row, and questions are answered by looking through them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from saelab.activations import layout
from saelab.features.codes import CodeShard, shard_name, write_shard
from saelab.features.queries.opened import FILE_OF_PART, TABLES
from saelab.features.schema import (
    COACTIVATION,
    CODES,
    DEAD,
    DENSE,
    DETAIL,
    EXAMPLES,
    FEATURES,
    FEATURES_SCHEMA,
    INTERVAL,
    LOG_BINS,
    LOGIT_INVERSE,
    NEAR,
    NEAR_MISS,
    NEIGHBORS,
    NON_ACTIVE,
    ONE_TOKEN,
    RANDOM,
    TOP,
    VOCABULARY,
)
from saelab.features.spec import IndexConfig
from saelab.features.tables import write_table
from saelab.sae.autoencoder import SAEParameters, SparseAutoencoder
from saelab.sae.config import Normalisation, SAEConfig
from saelab.sae.files import sae_identity, save_sae
from saelab.storage.manifest import write_manifest
from saelab.text.packing import DocumentTable
from saelab_kernels.code import SparseCode

D_IN, D_SAE, N_TOKENS, WINDOW = 8, 40, 64, 4
DEAD_FEATURES = (3, 7)
ROW_STARTS = [0, 16, 32, 40, 64]
DOCUMENT_STARTS = [0, 20, 40]
TOKENS: list[tuple[bytes, str, bool, bool]] = [
    (b"<s>", "<s>", True, False),
    (b" import", " import", False, False),
    (b"import", "import", False, False),
    (b"self", "self", False, False),
    (b".", ".", False, False),
    (b"(", "(", False, False),
    (b"\xe6\xbc", "\ufffd", False, True),
    (b"\xa2", "\ufffd", False, True),
    (b"\n", "\n", False, False),
    (b" $x$ ![i](http://h)", " $x$ ![i](http://h)", False, False),
    (b"<b>&\"'", "<b>&\"'", False, False),
    (b" importlib", " importlib", False, False),
]
Rows = list[dict[str, Any]]


@dataclass
class Known:
    """What the index holds, to be changed by tests before it is written."""

    tokens: np.ndarray
    keep: np.ndarray
    dense: np.ndarray
    """Activations ``[tokens, features]``, of which the examples' windows are cut."""
    tables: dict[str, Rows]
    parts: tuple[str, ...] = ("neighbors", "coactivation", "near-miss")
    has_logits: bool = True
    has_codes: bool = True
    content: dict[str, Any] = field(default_factory=dict)
    """Entries of the manifest that replace the usual ones."""

    def row(self, feature: int) -> dict[str, Any]:
        return self.tables[FEATURES][feature]

    def of(self, table: str, feature: int) -> Rows:
        return [row for row in self.tables[table] if row["feature"] == feature]


def make_known(seed: int = 0) -> Known:
    """Draw everything that an index holds; rows of tables are in their order on disk."""
    chance = np.random.default_rng(seed)
    tokens = chance.integers(1, len(TOKENS), N_TOKENS).astype(np.int32)
    keep = np.ones(N_TOKENS, dtype=bool)
    tokens[ROW_STARTS[:-1]], keep[ROW_STARTS[:-1]] = 0, False
    active = chance.random((N_TOKENS, D_SAE)) < 0.15
    active[:, DEAD_FEATURES] = False
    active[:, 5] = True
    active[~keep] = False
    dense = np.where(active, chance.uniform(0.1, 5, active.shape), 0).astype(np.float32)
    known = Known(tokens, keep, dense, {})
    known.tables[FEATURES] = [_numbers(known, chance, feature) for feature in range(D_SAE)]
    known.tables[DETAIL] = [_lists(known, chance, feature) for feature in range(D_SAE)]
    known.tables[EXAMPLES] = [row for f in range(D_SAE) for row in _examples(known, chance, f)]
    known.tables[NEAR_MISS] = [
        _example(known, f, NEAR, 0, rank, int(position), 0.5 - 0.1 * rank)
        for f in range(D_SAE)
        for rank, position in enumerate(chance.choice(np.flatnonzero(keep), 3, replace=False))
    ]
    known.tables[LOGIT_INVERSE] = _logit_inverse(chance)
    known.tables[NEIGHBORS] = [
        {"feature": f, "rank": rank, "other": (f + rank + 1) % D_SAE, "cosine": 0.9 - 0.1 * rank}
        for f in range(D_SAE)
        for rank in range(4)
    ]
    known.tables[COACTIVATION] = [
        {
            "feature": f,
            "rank": rank,
            "other": (f + 2 * rank + 1) % D_SAE,
            "n_sampled": 8,
            "n_both": 8 - rank,
            "p_other": 1 - rank / 8,
            "lift": 4.0 - rank,
            "phi": 0.5 - rank / 4,
        }
        for f in range(D_SAE)
        if f not in DEAD_FEATURES
        for rank in range(3)
    ]
    known.tables[VOCABULARY] = [
        {"token_id": i, "bytes": raw, "text": text, "is_special": special, "is_partial": partial}
        for i, (raw, text, special, partial) in enumerate(TOKENS)
    ]
    return known


def _numbers(known: Known, chance: np.random.Generator, feature: int) -> dict[str, Any]:
    values = known.dense[:, feature]
    fired = values[values > 0]
    density = len(fired) / int(known.keep.sum())
    row: dict[str, Any] = dict.fromkeys(FEATURES_SCHEMA.names)
    row |= {
        "feature": feature,
        "n_fires": len(fired),
        "density": density,
        "n_documents": int(feature % 3),
        "flags": DEAD
        if not len(fired)
        else (DENSE if density > 0.1 else 0) | (ONE_TOKEN if feature % 4 == 0 else 0),
        "name": "never active"
        if not len(fired)
        else f'on "{TOKENS[feature % 12][1].strip()}" (%_\' {feature})',
        "decoder_norm": 1.0,
        "encoder_bias": round(float(chance.normal()), 3),
        "logit_max": 1.0 + feature % 5,
        "logit_min": -1.0,
        "max_decoder_cosine": round(float(chance.random()), 3),
        "max_decoder_cosine_feature": (feature + 1) % D_SAE,
    }
    if len(fired):
        row |= {
            "max_act": float(fired.max()),
            "mean_active": float(fired.mean()),
            "p50": float(np.median(fired)),
        }
        row |= {"top_token": int(known.tokens[values.argmax()]), "top_token_share": 0.5}
    return row


def _lists(known: Known, chance: np.random.Generator, feature: int) -> dict[str, Any]:
    dead = feature in DEAD_FEATURES
    on = [] if dead else chance.choice(len(TOKENS), 3, replace=False).tolist()
    return {
        "feature": feature,
        "histogram_edges": [] if dead else [0.0, 1.0, 2.0],
        "histogram_counts": [] if dead else [3, feature],
        "log_histogram_counts": [0] * LOG_BINS,
        "interval_edges": [] if dead else [0.0, 2.5, 5.0],
        "interval_counts": [] if dead else [feature, 1],
        "promoted": [feature % 12, (feature + 1) % 12],
        "promoted_logits": [2.0, 1.5],
        "suppressed": [(feature + 2) % 12],
        "suppressed_logits": [-1.0],
        "logit_edges": [-1.0, 0.0, 2.0],
        "logit_counts": [9, 3],
        "tokens": on,
        "token_shares": [0.5, 0.25, 0.125][: len(on)],
        "token_fires": [4, 2, 1][: len(on)],
        "position_shares": [0.0625] * 16,
    }


def _examples(known: Known, chance: np.random.Generator, feature: int) -> Iterable[dict[str, Any]]:
    fired = np.flatnonzero(known.dense[:, feature])
    if not len(fired):
        return
    order = fired[np.argsort(-known.dense[fired, feature], kind="stable")]
    for rank, position in enumerate(order[:4].tolist()):
        yield _example(known, feature, TOP, 0, rank, position)
    for number in (0, 1):
        for rank, position in enumerate(chance.choice(fired, 2).tolist()):
            yield _example(known, feature, INTERVAL, number, rank, position)
    yield _example(known, feature, RANDOM, 0, 0, int(fired[0]))
    silent = np.flatnonzero((known.dense[:, feature] == 0) & known.keep)
    if len(silent):
        yield _example(known, feature, NON_ACTIVE, 0, 0, int(silent[-1]))


def _example(
    known: Known, feature: int, kind: int, number: int, rank: int, peak: int, value: float | None = None
) -> dict[str, Any]:
    row = np.searchsorted(ROW_STARTS, peak, side="right") - 1
    inside = range(max(ROW_STARTS[row], peak - WINDOW), min(ROW_STARTS[row + 1], peak + WINDOW + 1))
    active = [position for position in inside if known.dense[position, feature] > 0]
    return {
        "feature": feature,
        "kind": kind,
        "bin": number,
        "rank": rank,
        "token_index": peak,
        "document": int(np.searchsorted(DOCUMENT_STARTS, peak, side="right")) - 1,
        "activation": float(known.dense[peak, feature]) if value is None else value,
        "window_hash": 2**63 + peak,
        "offsets": [position - peak for position in active],
        "activations": [float(known.dense[position, feature]) for position in active],
    }


def _logit_inverse(chance: np.random.Generator) -> Rows:
    rows: Rows = []
    for token in range(len(TOKENS)):
        logits = sorted(chance.uniform(1, 9, 5).astype(np.float32).tolist(), reverse=True)
        for rank, feature in enumerate(chance.choice(D_SAE, 5, replace=False).tolist()):
            rows.append({"token": token, "rank": rank, "feature": feature, "logit": logits[rank]})
    return rows


def make_run(folder: Path, seed: int = 0) -> Path:
    """Write the least that is a run: its manifest, and a random SAE."""
    config = SAEConfig(
        recipe="topk",
        d_in=D_IN,
        d_out=D_IN,
        d_sae=D_SAE,
        input_hooks=("model.layers.0.output",),
        input_widths=(D_IN,),
        output_hooks=("model.layers.0.output",),
        output_widths=(D_IN,),
        hook_aliases=(),
        input_normalisation=Normalisation(),
        target_normalisation=Normalisation(),
        apply_b_dec_to_input=False,
        has_skip=False,
        inference={"name": "per_token", "k": 4},
        attribution=None,
        units="",
        model_identity="",
        model_name="",
        source_identity="",
        tokenizer_hash="",
    )
    chance = torch.Generator().manual_seed(seed)
    parameters = SAEParameters(
        W_enc=torch.randn(D_IN, D_SAE, generator=chance),
        b_enc=torch.zeros(D_SAE),
        W_dec=torch.randn(D_SAE, D_IN, generator=chance),
        b_dec=torch.zeros(D_IN),
    )
    save_sae(folder / "sae", SparseAutoencoder(config, parameters))
    write_manifest(folder, "run", [], {})
    return folder


def write_index(folder: Path, known: Known, sae: Path) -> Path:
    """Write an index as its builder does, through the same writers."""
    absent = {file for part, file in FILE_OF_PART.items() if part not in known.parts}
    absent |= set() if known.has_logits else {LOGIT_INVERSE}
    names = [name for name in TABLES if name not in absent]
    for name in names:
        table = pa.Table.from_pylist(known.tables[name], TABLES[name])
        write_table(folder / name, table.to_batches(), TABLES[name], 16)
    layout.write_array(folder / layout.TOKENS, known.tokens)
    layout.write_array(folder / layout.ROWS, np.asarray(ROW_STARTS, dtype=np.int64))
    layout.write_bits(folder / layout.KEEP, known.keep)
    starts = np.asarray(DOCUMENT_STARTS, dtype=np.int64)
    documents = DocumentTable(
        ids=("a", "b", "c"),
        starts=starts,
        lengths=np.diff(np.append(starts, N_TOKENS)),
        sources=("here", "here", "there"),
        heldout=np.asarray([False, False, True]),
        columns={},
    )
    layout.write_documents(folder / layout.DOCUMENTS, documents)
    names += [layout.TOKENS, layout.ROWS, layout.KEEP, layout.DOCUMENTS]
    if known.has_codes:
        names.append(f"{CODES}/{shard_name(0)}")
        write_shard(folder / names[-1], _codes(known))
    content = {
        "config": IndexConfig().to_json(),
        "sae": {"identity": sae_identity(sae), "d_sae": D_SAE},
        "corpus": {
            "n_tokens": N_TOKENS,
            "n_kept": int(known.keep.sum()),
            "n_rows": len(ROW_STARTS) - 1,
            "n_documents": len(DOCUMENT_STARTS),
        },
        "parts": list(known.parts),
        "logits": "of the decoder" if known.has_logits else "none: there is no model",
        "source": "by hand; 60 tokens",
        "has_codes": known.has_codes,
    }
    write_manifest(folder, "index", names, content | known.content)
    return folder


def _codes(known: Known) -> CodeShard:
    kept = np.flatnonzero(known.keep)
    rows, columns = np.nonzero(known.dense[kept])
    offsets = np.append(0, np.cumsum(np.bincount(rows, minlength=len(kept))))
    values = torch.from_numpy(known.dense[kept][rows, columns])
    code = SparseCode(values, torch.from_numpy(columns.astype(np.int32)), D_SAE, torch.from_numpy(offsets))
    return CodeShard(token_index=torch.from_numpy(kept), code=code)


def as_stored(table: str, row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row with its numbers rounded as the table keeps them."""
    (found,) = pa.Table.from_pylist([dict(row)], TABLES[table]).to_pylist()
    return found
