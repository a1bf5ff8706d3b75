"""Check that a folder is a sound feature index before anything in it is believed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from saelab.activations import layout
from saelab.errors import DamagedFileError
from saelab.features.schema import (
    COACTIVATION,
    COACTIVATION_SCHEMA,
    CODES,
    DETAIL,
    DETAIL_SCHEMA,
    EXAMPLES,
    EXAMPLES_SCHEMA,
    FEATURES,
    FEATURES_SCHEMA,
    LOGIT_INVERSE,
    LOGIT_INVERSE_SCHEMA,
    NEAR_MISS,
    NEIGHBORS,
    NEIGHBORS_SCHEMA,
    VOCABULARY,
    VOCABULARY_SCHEMA,
)
from saelab.features.spec import PARTS, IndexConfig, index_config_from_json
from saelab.storage.manifest import MANIFEST_NAME, Manifest, check_file, read_manifest

TABLES: Final[dict[str, pa.Schema]] = {
    FEATURES: FEATURES_SCHEMA,
    DETAIL: DETAIL_SCHEMA,
    EXAMPLES: EXAMPLES_SCHEMA,
    VOCABULARY: VOCABULARY_SCHEMA,
    NEIGHBORS: NEIGHBORS_SCHEMA,
    COACTIVATION: COACTIVATION_SCHEMA,
    NEAR_MISS: EXAMPLES_SCHEMA,
    LOGIT_INVERSE: LOGIT_INVERSE_SCHEMA,
}
FILE_OF_PART: Final = {"neighbors": NEIGHBORS, "coactivation": COACTIVATION, "near-miss": NEAR_MISS}
_ALWAYS = (
    FEATURES,
    DETAIL,
    EXAMPLES,
    VOCABULARY,
    layout.TOKENS,
    layout.ROWS,
    layout.KEEP,
    layout.DOCUMENTS,
)


@dataclass(frozen=True, kw_only=True)
class OpenedIndex:
    """What the manifest of an index says, checked."""

    path: Path
    manifest: Manifest
    config: IndexConfig
    """How it was built."""
    sae_identity: str
    d_sae: int
    n_tokens: int
    """All tokens of the corpus."""
    n_kept: int
    """Those that were looked at."""
    n_rows: int
    """Rows of tokens."""
    n_documents: int
    n_vocabulary: int
    parts: tuple[str, ...]
    source: str
    """SAE, model, hookpoint and corpus in one line."""
    tables: tuple[str, ...]
    """Names of the Parquet files that are there."""

    @property
    def has_roles(self) -> bool:
        """Whether the corpus is of conversations."""
        return layout.ROLES in self.manifest.files

    @property
    def code_shards(self) -> tuple[str, ...]:
        """Names of the code shards, in the order of the tokens."""
        return tuple(sorted(name for name in self.manifest.files if name.startswith(f"{CODES}/")))


def check_index(path: Path) -> OpenedIndex:
    """Check the manifest of an index, the size of each file, and the columns and rows of each table.

    Raises:
        DamagedFileError: It is no index, or a file is missing, has another size or other columns; naming the file.
    """
    manifest = read_manifest(path, "index")
    for name in (*_ALWAYS, *manifest.files):
        check_file(path, name, manifest, content=False)
    where, content = path / MANIFEST_NAME, manifest.content
    sae, corpus = _entry(content, "sae", dict, where), _entry(content, "corpus", dict, where)
    parts = tuple(_entry(content, "parts", list, where))
    if unknown := [part for part in parts if part not in PARTS]:
        raise DamagedFileError(f"{where} speaks of the part {unknown[0]!r}; known: {', '.join(PARTS)}")
    d_sae = _count(sae, "d_sae", where)
    for part in parts:
        check_file(path, FILE_OF_PART[part], manifest, content=False)
    rows = {name: _check_table(path / name, TABLES[name]) for name in TABLES if name in manifest.files}
    for name in (FEATURES, DETAIL):
        if rows[name] != d_sae:
            raise DamagedFileError(
                f"{path / name} has {rows[name]:,} rows, the SAE of the index {d_sae:,} features"
            )
    return OpenedIndex(
        path=path,
        manifest=manifest,
        config=index_config_from_json(content.get("config"), f"{where}: config"),
        sae_identity=_entry(sae, "identity", str, where),
        d_sae=d_sae,
        n_tokens=_count(corpus, "n_tokens", where),
        n_kept=_count(corpus, "n_kept", where),
        n_rows=_count(corpus, "n_rows", where),
        n_documents=_count(corpus, "n_documents", where),
        n_vocabulary=rows[VOCABULARY],
        parts=parts,
        source=_entry(content, "source", str, where),
        tables=tuple(rows),
    )


def _check_table(path: Path, schema: pa.Schema) -> int:
    """Return the number of rows of a table with the right columns."""
    try:
        with pq.ParquetFile(path) as file:
            found, n_rows = file.schema_arrow, file.metadata.num_rows
    except (OSError, pa.ArrowException) as error:
        raise DamagedFileError(f"cannot read {path}: {str(error).splitlines()[0]}") from error
    if found != schema:
        differing = [
            name
            for name in dict.fromkeys((*schema.names, *found.names))
            if name not in found.names or name not in schema.names or found.field(name) != schema.field(name)
        ]
        what = f"column {differing[0]!r}" if differing else "order of the columns"
        raise DamagedFileError(f"{path} is not that table of an index: its {what} is another")
    return n_rows


def _entry(content: dict[str, Any], name: str, kind: type, where: Path) -> Any:
    value = content.get(name)
    if not isinstance(value, kind) or isinstance(value, bool):
        raise DamagedFileError(f"{where} does not say what {name!r} is")
    return value


def _count(content: dict[str, Any], name: str, where: Path) -> int:
    value = _entry(content, name, int, where)
    if not 1 <= value < 2**40:
        raise DamagedFileError(f"{where}: {name} is {value}")
    return value
