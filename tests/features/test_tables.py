"""Tables are whole or absent, and their bytes follow from their rows."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from saelab.features.schema import NEIGHBORS_SCHEMA
from saelab.features.tables import write_table


def rows_of(n):
    return pa.table(
        {
            "feature": [i // 3 for i in range(n)],
            "rank": [i % 3 for i in range(n)],
            "other": list(range(n)),
            "cosine": [i / 7 for i in range(n)],
        },
        schema=NEIGHBORS_SCHEMA,
    )


@pytest.mark.parametrize(("n", "groups"), [(0, []), (9, [9]), (10, [10]), (25, [10, 10, 5])])
def test_row_groups_have_the_size_that_was_asked_for(tmp_path, n, groups):
    table = rows_of(n)
    write_table(tmp_path / "t.parquet", table.to_batches(4), NEIGHBORS_SCHEMA, 10)
    file = pq.ParquetFile(tmp_path / "t.parquet")
    assert [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)] == groups
    assert file.read() == table and file.schema_arrow == NEIGHBORS_SCHEMA
    assert all(file.metadata.row_group(i).column(0).compression == "ZSTD" for i in range(len(groups)))


def test_bytes_do_not_depend_on_how_rows_were_cut_into_batches(tmp_path):
    table = rows_of(1000)
    for name, size in (("a", 1), ("b", 333), ("c", 1000)):
        write_table(tmp_path / name, table.to_batches(size), NEIGHBORS_SCHEMA, 128)
    found = {(tmp_path / name).read_bytes() for name in "abc"}
    assert len(found) == 1


def test_an_interrupted_table_is_absent(tmp_path):
    def batches():
        yield rows_of(20).to_batches()[0]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_table(tmp_path / "t.parquet", batches(), NEIGHBORS_SCHEMA, 10)
    assert not (tmp_path / "t.parquet").exists()


def test_batches_of_another_schema_are_refused(tmp_path):
    other = pa.record_batch({"feature": pa.array([1])})
    with pytest.raises(ValueError, match="a batch has the columns"):
        write_table(tmp_path / "t.parquet", [other], NEIGHBORS_SCHEMA, 10)
    assert not (tmp_path / "t.parquet").exists()
