"""DuckDB over the tables of one index: it reads the files of that folder, and nothing else in the world.

Every statement is a constant of saelab with parameters; the engine is locked besides: no other file can be read, no
extension loaded, no setting changed, and anything but a SELECT is refused before it runs.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from threading import Lock
from typing import Any

import duckdb
import pyarrow as pa

from saelab.errors import DamagedFileError, UsageError
from saelab.features.schema import DETAIL, FEATURES, FEATURES_SCHEMA
from saelab.storage.manifest import MANIFEST_NAME

THREADS = min(4, max(2, os.cpu_count() or 2))
"""Threads of the engine: queries are short, and several users of an app share a machine."""
_UNDEFINED = " OR ".join(
    f"{name} IS NULL"
    for name in ("n_fires", "density", "n_documents", "decoder_norm", "encoder_bias", "flags", "name")
)
_LABELS = pa.schema([("feature", pa.uint32()), ("label", pa.string())])


class Database:
    """The tables of an index, as views and two tables in memory; safe to use from several threads.

    Args:
        folder: The index.
        tables: Parquet files of it; ``examples.parquet`` becomes the view ``examples``.

    Raises:
        DamagedFileError: ``features.parquet`` cannot be read.
    """

    def __init__(self, folder: Path, tables: Sequence[str]) -> None:
        self.folder = folder.resolve()
        self._tables = tables
        self._manifest = _stamp(self.folder)
        self._lock = Lock()
        self._has_active_on = False
        self._connection = duckdb.connect(":memory:")
        try:
            self._prepare()
        except BaseException:
            self._connection.close()
            raise

    @property
    def is_current(self) -> bool:
        """Whether the folder still holds the index that was opened."""
        return _stamp(self.folder) == self._manifest

    def select(self, sql: str, parameters: Sequence[Any] = ()) -> list[dict[str, Any]]:
        """Return the rows of a query by the names of its columns; a cursor of its own for each call.

        Args:
            sql: One SELECT, a constant of this program.
            parameters: What stands for its question marks.

        Raises:
            UsageError: The index was built anew since it was opened.
            DamagedFileError: A table cannot be read, naming the files that were asked.
        """
        with self._connection.cursor() as cursor:
            try:
                statements = cursor.extract_statements(sql)
                if len(statements) != 1 or statements[0].type != duckdb.StatementType.SELECT:
                    raise UsageError("index: only one SELECT at a time can be asked of an index")
                found = cursor.execute(statements[0], list(parameters))
                names = [column[0] for column in found.description or ()]
                rows = [dict(zip(names, row, strict=True)) for row in found.fetchall()]
            except duckdb.Error as error:
                self._require_current()
                raise self._explained(sql, error) from error
        self._require_current()
        return rows

    def put_labels(self, labels: Mapping[int, str]) -> None:
        """Replace the labels that queries join to features; running queries see the old ones or the new."""
        table = pa.table({"feature": list(labels), "label": list(labels.values())}, schema=_LABELS)
        with self._lock, self._connection.cursor() as cursor:
            cursor.register("incoming", table)
            cursor.execute("BEGIN; DELETE FROM labels; INSERT INTO labels SELECT * FROM incoming; COMMIT")
            cursor.unregister("incoming")

    def require_active_on(self) -> None:
        """Turn the features' lists of tokens into a table by token, once: `active_on`.

        Raises:
            DamagedFileError: The table of lists cannot be read.
        """
        with self._lock:
            if self._has_active_on:
                return
            with self._connection.cursor() as cursor:
                try:
                    cursor.execute(
                        "CREATE TABLE active_on AS SELECT token, feature, share, n_fires FROM (SELECT feature, "
                        "unnest(tokens) AS token, unnest(token_shares) AS share, unnest(token_fires) AS n_fires "
                        "FROM feature_detail) ORDER BY token, share DESC, feature"
                    )
                except duckdb.Error as error:
                    self._require_current()
                    raise self._explained(DETAIL.removesuffix(".parquet"), error) from error
            self._has_active_on = True

    def close(self) -> None:
        """Free the memory of the tables; queries fail from now on."""
        self._connection.close()

    def _prepare(self) -> None:
        run = self._connection.execute
        run(f"SET threads={THREADS}")
        run("SET temp_directory=''")  # else a folder beside the user's files is used, and may be written
        run("SET autoinstall_known_extensions=false")
        run("SET autoload_known_extensions=false")
        run("SET parquet_metadata_cache=true")
        run(f"SET allowed_directories=[{_quoted(f'{self.folder}/')}]")
        run("SET enable_external_access=false")
        for name in self._tables:
            view = name.removesuffix(".parquet")
            if name != FEATURES:
                run(f"CREATE VIEW {view} AS SELECT * FROM read_parquet({_quoted(str(self.folder / name))})")
        try:
            # In memory, since every page and every other query needs some of it.
            run("CREATE TABLE numbers AS SELECT * FROM read_parquet(?)", [str(self.folder / FEATURES)])
        except duckdb.Error as error:
            raise self._explained(FEATURES.removesuffix(".parquet"), error) from error
        if run(
            f"SELECT count(*) FROM numbers WHERE feature IS DISTINCT FROM rowid OR {_UNDEFINED}"
        ).fetchall() != [(0,)]:
            raise DamagedFileError(
                f"{self.folder / FEATURES}: there is not one row for each feature, in order, with numbers and a name"
            )
        run("CREATE TABLE labels (feature UINTEGER, label VARCHAR)")
        columns = ", ".join(f"numbers.{name}" for name in FEATURES_SCHEMA.names)
        run(f"CREATE VIEW features AS SELECT {columns}, label FROM numbers LEFT JOIN labels USING (feature)")
        run("SET lock_configuration=true")

    def _require_current(self) -> None:
        if not self.is_current:
            raise UsageError(f"{self.folder} was built anew since it was opened; open it again")

    def _explained(self, sql: str, error: duckdb.Error) -> Exception:
        """Return a refusal for what a damaged file causes, and a mistake of this program as it is."""
        if isinstance(error, duckdb.ParserException | duckdb.BinderException | duckdb.CatalogException):
            return error
        asked = [name for name in self._tables if name.removesuffix(".parquet") in sql]
        where = ", ".join(str(self.folder / name) for name in asked) or str(self.folder)
        return DamagedFileError(f"cannot read {where}: {str(error).splitlines()[0]}; build the index again")


def _stamp(folder: Path) -> tuple[int, int, int]:
    try:
        found = (folder / MANIFEST_NAME).stat()
    except OSError:
        return (0, 0, 0)
    return (found.st_dev, found.st_ino, found.st_mtime_ns)


def _quoted(text: str) -> str:
    """Return a text as a literal: views and settings take no parameters."""
    return "'" + text.replace("'", "''") + "'"
