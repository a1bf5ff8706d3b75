"""The engine reads the index's tables and can do nothing else; several threads may ask it at once."""

import threading

import duckdb
import pytest
from index_helpers import D_SAE

from saelab.errors import DamagedFileError, SaelabError, UsageError
from saelab.features.index import open_index
from saelab.features.queries.database import Database
from saelab.features.queries.filters import FeatureFilter
from saelab.features.queries.opened import TABLES


@pytest.fixture
def database(run_with_index):
    found = Database(run_with_index / "indexes" / "main", list(TABLES))
    yield found
    found.close()


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT * FROM read_text('{outside}')",
        "SELECT * FROM read_csv('{outside}')",
        "SELECT * FROM '{outside}'",
        "SELECT * FROM read_parquet('{index}/../../other.parquet')",
        "SELECT * FROM glob('/etc/*')",
    ],
)
def test_other_files_cannot_be_read(database, run_with_index, tmp_path, sql):
    (tmp_path / "outside.csv").write_text("secret\n1\n")
    (run_with_index / "other.parquet").write_bytes(
        (run_with_index / "indexes" / "main" / "features.parquet").read_bytes()
    )
    filled = sql.format(
        outside=tmp_path / "outside.csv", index=str(run_with_index / "indexes" / "main").replace("'", "''")
    )
    with pytest.raises(DamagedFileError, match="disabled by configuration"):
        database.select(filled)


@pytest.mark.parametrize(
    "sql",
    [
        "COPY numbers TO '{out}'",
        "INSTALL httpfs",
        "LOAD httpfs",
        "SET enable_external_access=true",
        "SET lock_configuration=false",
        "RESET allowed_directories",
        "ATTACH '{out}'",
        "DROP TABLE numbers",
        "DELETE FROM numbers",
        "CREATE TABLE more AS SELECT 1",
        "PRAGMA threads=1",
        "SELECT 1; DROP TABLE numbers",
        "",
    ],
)
def test_nothing_but_a_select_is_run(database, run_with_index, tmp_path, sql):
    files = sorted((run_with_index / "indexes" / "main").rglob("*"))
    with pytest.raises(UsageError, match="only one SELECT"):
        database.select(sql.format(out=tmp_path / "out"))
    assert not (tmp_path / "out").exists()
    assert sorted((run_with_index / "indexes" / "main").rglob("*")) == files
    assert database.select("SELECT count(*) AS n FROM numbers") == [{"n": D_SAE}]


@pytest.mark.parametrize(
    "sql",
    [
        "SET enable_external_access=true",
        "SET lock_configuration=false",
        "SET allowed_directories=['/']",
        "COPY numbers TO '{out}'",
        "INSTALL httpfs",
        "LOAD httpfs",
        "ATTACH '{out}'",
    ],
)
def test_the_engine_itself_is_locked(database, tmp_path, sql):
    with database._connection.cursor() as cursor, pytest.raises(duckdb.Error):
        cursor.execute(sql.format(out=tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_several_threads_ask_at_once(run_with_index):
    with open_index(run_with_index) as alone:
        expected = [alone.feature(feature) for feature in range(D_SAE)]
        page = alone.features(FeatureFilter(active_on=(1, 2)), "max_act", descending=True)
        search = alone.search_token("import")
    wrong: list[object] = []
    start = threading.Barrier(6)

    with open_index(
        run_with_index
    ) as index:  # none has asked for tokens yet: the first to ask makes the table

        def ask(number: int) -> None:
            start.wait()
            for i in range(12):
                feature = (7 * number + i) % D_SAE
                try:
                    if index.feature(feature) != expected[feature]:
                        wrong.append(feature)
                    if index.features(FeatureFilter(active_on=(1, 2)), "max_act", descending=True) != page:
                        wrong.append("page")
                    if index.search_token("import") != search:
                        wrong.append("search")
                except SaelabError as error:
                    wrong.append(error)

        threads = [threading.Thread(target=ask, args=(number,)) for number in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert wrong == []


def test_labels_change_while_others_read(run_with_index):
    seen: set[str | None] = set()
    wrong: list[object] = []
    done = threading.Event()
    with open_index(run_with_index) as index:

        def read() -> None:
            while not done.is_set():
                try:
                    page = index.features(FeatureFilter(features=(1, 2)))
                    labels = {row.label for row in page.rows}
                    seen.update(labels)
                    if len(labels) != 1:
                        wrong.append(labels)
                except SaelabError as error:
                    wrong.append(error)

        readers = [threading.Thread(target=read) for _ in range(3)]
        for reader in readers:
            reader.start()
        for i in range(30):
            index.use_labels({1: str(i), 2: str(i)})
        done.set()
        for reader in readers:
            reader.join()
        assert {row.label for row in index.features(FeatureFilter(features=(1, 2))).rows} == {"29"}
    assert wrong == []
    assert seen <= {None, *map(str, range(30))}
