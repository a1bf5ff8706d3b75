"""The tables of an index out of what the steps left, the corpus beside them, and the check at the end."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from saelab.activations import layout
from saelab.errors import SaelabError
from saelab.features.building.encode import TILE, encoded
from saelab.features.building.steps import LOGITS, Bench, group_file, read_groups
from saelab.features.building.weights import weight_columns
from saelab.features.names import NameFacts, name_of
from saelab.features.records import TokenEffect, TokenShare
from saelab.features.schema import (
    DETAIL,
    DETAIL_SCHEMA,
    EXAMPLES,
    EXAMPLES_SCHEMA,
    FEATURES,
    FEATURES_SCHEMA,
    NEIGHBORS,
    VOCABULARY,
    VOCABULARY_SCHEMA,
)
from saelab.features.tables import (
    ROWS_OF_DETAIL,
    ROWS_OF_LISTS,
    ROWS_OF_NUMBERS,
    ROWS_OF_PAIRS,
    write_table,
)
from saelab.features.vocabulary_table import vocabulary_table
from saelab.storage.tensors import read_tensors
from saelab.text.vocabulary import Vocabulary


def write_corpus(bench: Bench, vocabulary: Vocabulary) -> None:
    """Write tokens, rows, masks, roles and documents, and the vocabulary."""
    corpus, folder = bench.corpus, bench.building
    layout.write_array(folder / layout.TOKENS, np.asarray(corpus.tokens, dtype=np.int32))
    layout.write_array(folder / layout.ROWS, corpus.row_starts)
    layout.write_bits(folder / layout.KEEP, corpus.keep)
    if corpus.roles is not None:
        layout.write_array(folder / layout.ROLES, corpus.roles)
    layout.write_documents(folder / layout.DOCUMENTS, corpus.documents)
    table = vocabulary_table(vocabulary)
    write_table(folder / VOCABULARY, table.to_batches(), VOCABULARY_SCHEMA, ROWS_OF_PAIRS)


def write_tables(bench: Bench, groups: list[range], vocabulary: Vocabulary) -> None:
    """Write numbers, lists and examples of all features."""
    d_sae = bench.sae.config.d_sae
    lists = _lists(bench, read_groups(bench.work, "lists", groups), d_sae)
    write_table(bench.building / DETAIL, lists.to_batches(ROWS_OF_DETAIL), DETAIL_SCHEMA, ROWS_OF_DETAIL)
    numbers = _numbers(bench, read_groups(bench.work, "numbers", groups), d_sae)
    names = _names(numbers, lists, vocabulary)
    table = pa.table(
        [*numbers.columns, pa.array(names, pa.string())], names=[*numbers.column_names, "name"]
    ).select(FEATURES_SCHEMA.names)
    write_features(bench, table)
    write_table(bench.building / EXAMPLES, _examples(bench, groups), EXAMPLES_SCHEMA, ROWS_OF_LISTS)


def write_features(bench: Bench, table: pa.Table) -> None:
    """Write the numbers of all features."""
    table = table.cast(FEATURES_SCHEMA)
    write_table(
        bench.building / FEATURES, table.to_batches(ROWS_OF_NUMBERS), FEATURES_SCHEMA, ROWS_OF_NUMBERS
    )


def renew_features(bench: Bench, old: Path) -> None:
    """Write the numbers of an index that is there again, with the nearest neighbors that were added to it."""
    table = pq.read_table(old / FEATURES)
    for name, column in nearest_columns(bench, len(table)).items():
        table = table.set_column(table.schema.get_field_index(name), name, column)
    write_features(bench, table)


def nearest_columns(bench: Bench, d_sae: int) -> dict[str, pa.Array]:
    """Return each feature's nearest neighbor, of the part ``neighbors``, or nulls without it."""
    path = bench.building / NEIGHBORS
    if not path.exists():
        return {
            "max_decoder_cosine": pa.nulls(d_sae, pa.float32()),
            "max_decoder_cosine_feature": pa.nulls(d_sae, pa.uint32()),
        }
    first = pq.read_table(path, filters=[("rank", "==", 0)])
    by_feature: dict[int, tuple[float, int]] = dict(
        zip(
            first["feature"].to_pylist(),
            zip(first["cosine"].to_pylist(), first["other"].to_pylist(), strict=True),
            strict=True,
        )
    )
    found = [by_feature.get(feature, (None, None)) for feature in range(d_sae)]
    return {
        "max_decoder_cosine": pa.array([cosine for cosine, _ in found], pa.float32()),
        "max_decoder_cosine_feature": pa.array([other for _, other in found], pa.uint32()),
    }


def _numbers(bench: Bench, of_corpus: pa.Table, d_sae: int) -> pa.Table:
    columns: dict[str, Any] = {name: of_corpus[name] for name in of_corpus.column_names}
    columns |= weight_columns(bench.sae) | nearest_columns(bench, d_sae)
    if (bench.work / LOGITS).exists():
        logits = read_tensors(bench.work / LOGITS)
        kurtosis = logits["kurtosis"].numpy()
        columns |= {
            "logit_max": logits["promoted_logits"][:, 0].numpy(),
            "logit_min": logits["suppressed_logits"][:, 0].numpy(),
            "logit_kurtosis": pa.array(kurtosis, pa.float64(), mask=np.isnan(kurtosis)),
        }
    else:
        columns |= dict.fromkeys(("logit_max", "logit_min", "logit_kurtosis"), pa.nulls(d_sae, pa.float32()))
    schema = pa.schema([FEATURES_SCHEMA.field(name) for name in FEATURES_SCHEMA.names if name != "name"])
    return pa.table(
        {
            name: pa.chunked_array([columns[name]]) if isinstance(columns[name], pa.Array) else columns[name]
            for name in schema.names
        }
    ).cast(schema)


def _lists(bench: Bench, of_corpus: pa.Table, d_sae: int) -> pa.Table:
    columns: dict[str, Any] = {name: of_corpus[name] for name in of_corpus.column_names}
    names = {
        "promoted": "promoted",
        "promoted_logits": "promoted_logits",
        "suppressed": "suppressed",
        "suppressed_logits": "suppressed_logits",
        "logit_edges": "edges",
        "logit_counts": "counts",
    }
    if (bench.work / LOGITS).exists():
        logits = read_tensors(bench.work / LOGITS)
        columns |= {name: list(logits[key].numpy()) for name, key in names.items()}
    else:
        columns |= {name: [[]] * d_sae for name in names}
    return pa.table({name: columns[name] for name in DETAIL_SCHEMA.names}, schema=DETAIL_SCHEMA)


def _names(numbers: pa.Table, lists: pa.Table, vocabulary: Vocabulary) -> list[str]:
    found = []
    fields = ("n_fires", "previous_token", "previous_token_share", "next_token", "next_token_share")
    scalars = {name: numbers[name].to_pylist() for name in (*fields, "first_position_share")}
    listed = {
        name: lists[name].to_pylist()
        for name in ("tokens", "token_shares", "token_fires", "promoted", "promoted_logits")
    }
    for i in range(len(numbers)):
        shares = zip(listed["tokens"][i], listed["token_shares"][i], listed["token_fires"][i], strict=True)
        effects = zip(listed["promoted"][i], listed["promoted_logits"][i], strict=True)
        facts = NameFacts(
            n_fires=scalars["n_fires"][i],
            tokens=tuple(TokenShare(token=token, share=share, n_fires=n) for token, share, n in shares),
            previous=_pair(scalars["previous_token"][i], scalars["previous_token_share"][i]),
            next=_pair(scalars["next_token"][i], scalars["next_token_share"][i]),
            first_position_share=scalars["first_position_share"][i],
            promoted=tuple(TokenEffect(token=token, logit=logit) for token, logit in effects),
        )
        found.append(name_of(facts, vocabulary))
    return found


def _pair(token: int | None, share: float | None) -> tuple[int, float] | None:
    return None if token is None or share is None else (token, share)


def _examples(bench: Bench, groups: list[range]) -> Iterator[pa.RecordBatch]:
    for group in groups:
        yield from pq.ParquetFile(group_file(bench.work, "examples", group)).iter_batches()


def check_examples(bench: Bench) -> None:
    """Encode a stretch of the corpus again, and compare with every example that the tables have there.

    Raises:
        SaelabError: One is not what the SAE gives: the index would be wrong.
    """
    x, positions = next(bench.corpus.activations(bench.stretches[len(bench.stretches) // 2]))
    codes = encoded(bench.sae, x, bench.stop)
    row_of = {position: row for row, position in enumerate(positions.tolist())}
    file = pq.ParquetFile(bench.building / EXAMPLES)
    for batch in file.iter_batches(columns=["feature", "token_index", "activation"]):
        inside = np.isin(batch["token_index"].to_numpy(), np.fromiter(row_of, np.uint64, len(row_of)))
        rows = batch.filter(pa.array(inside))
        for example in rows.to_pylist():
            tile, row = divmod(row_of[example["token_index"]], TILE)
            here = codes[tile].slice_rows(row, row + 1)
            found = float(here.values[here.columns == example["feature"]].sum())
            if found != example["activation"]:
                raise SaelabError(
                    f"index: feature {example['feature']} on token {example['token_index']} has the activation "
                    f"{example['activation']} in the tables, and {found} when it is encoded again; please report this"
                )
