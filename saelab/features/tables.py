"""Write a table of an index: batches in, one whole Parquet file out, in row groups of a fixed size.

A reader that wants one feature reads one row group of each column, so small groups make single features quick and
large ones whole columns. Equal rows give equal bytes, however they were cut into batches.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO, Final

import pyarrow as pa
import pyarrow.parquet as pq

from saelab.storage.files import write_aside

ROWS_OF_NUMBERS: Final = 16_384
"""Rows of a group where a row is a few numbers and whole columns are read: ``features.parquet``."""
ROWS_OF_DETAIL: Final = 1_024
"""Rows of a group where a row is all lists of one feature: ``feature_detail.parquet``."""
ROWS_OF_LISTS: Final = 40_960
"""Rows of a group where a feature has about 80 rows, so 512 features: ``examples.parquet``."""
ROWS_OF_PAIRS: Final = 65_536
"""Rows of a group where a row is a pair and a number: neighbors, logits by token, the vocabulary."""


def write_table(
    path: Path, batches: Iterable[pa.RecordBatch], schema: pa.Schema, row_group_size: int
) -> None:
    """Write batches as one Parquet file that appears whole or not at all.

    Args:
        path: Final name.
        batches: Any number of rows each, in the table's order and with exactly ``schema``; one row group of them is
            held in memory.
        schema: Columns and types.
        row_group_size: Rows of each group but the last.

    Raises:
        ValueError: A batch has another schema.
        SaelabError: The disk is full, or the folder cannot be written.
    """

    def fill(file: BinaryIO) -> None:
        with pq.ParquetWriter(file, schema, compression="zstd", compression_level=3) as writer:
            for group in _groups(batches, schema, row_group_size):
                writer.write_table(group, row_group_size=row_group_size)

    write_aside(path, fill)


def _groups(batches: Iterable[pa.RecordBatch], schema: pa.Schema, size: int) -> Iterator[pa.Table]:
    held, rows = [], 0
    for batch in batches:
        if batch.schema != schema:
            raise ValueError(f"a batch has the columns {batch.schema}, the table {schema}")
        held.append(batch)
        rows += batch.num_rows
        if rows >= size:
            table = pa.Table.from_batches(held, schema)
            whole = rows - rows % size
            for start in range(0, whole, size):
                # Pages are cut by the chunks of a column: one chunk, so that the bytes follow from the rows alone.
                yield table.slice(start, size).combine_chunks()
            held, rows = table.slice(whole).to_batches(), rows - whole
    if rows:
        yield pa.Table.from_batches(held, schema).combine_chunks()
