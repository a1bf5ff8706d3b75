"""Data sets through `datasets`: from the hub by name, or a local folder that holds one.

The set is opened first (this resolves a hub set's commit and checks subset, split and columns), then
read one record at a time from a memory-mapped file or, streaming, over the network. No code of a
data set is ever run: `datasets` no longer can.
"""

from __future__ import annotations

import difflib
import json
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saelab.errors import SaelabError, UsageError
from saelab.storage.manifest import digest_of, digest_of_file
from saelab.storage.places import why_not_there
from saelab.text.documents import Document
from saelab.text.records import document_of, fields_there
from saelab.text.spec import TextSpec

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset

HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")
# Names that `datasets` takes for a file format with its own options, and not for a data set.
_FORMATS = {"csv", "json", "pandas", "parquet", "arrow", "text", "xml", "sql", "webdataset", "imagefolder"}
_LISTED = re.compile(r"(?:Available|available configs|Should be one of)[^\[]*(\[.*\])")
# Files of a data set that was saved with `save_to_disk`: of one split, and of several in folders below.
_SAVED_SPLIT, _SAVED_SPLITS = "state.json", "dataset_dict.json"


@dataclass(frozen=True, kw_only=True, eq=False)
class DataSet:
    """An opened data set; nothing of it is read yet."""

    name: str
    """Hub name with its subset, or the name of the folder."""
    split: str
    """Which split is read."""
    commit: str | None
    """Commit of a hub set; None where it lies in a local folder."""
    folder: Path | None
    """The local folder."""
    data: Dataset | IterableDataset
    """The records, with the columns that are needed."""

    def documents(self, spec: TextSpec, start: int) -> Iterator[Document]:
        """Read the documents from number `start` on; their splits are not set.

        Raises:
            SaelabError: The connection broke; the message names the document.
            UsageError: A record has no text.
        """
        records, number = iter(_from(self.data, start)), start
        while True:
            try:
                record = next(records, None)
            # The hub's client, its HTTP library and the readers of the formats raise unrelated types.
            except Exception as error:
                raise SaelabError(
                    f"text: reading {self.name} stopped at document {number:,} ({_first_line(error)}); "
                    "check the network, then run the same command again"
                ) from error
            if record is None:
                return
            where = f"text: {self.name}, {self.split} {number:,}"
            yield document_of(record, spec, f"{self.split}:{number}", self.name, where)
            number += 1

    def identity(self) -> list[str]:
        """Return what names the records: name, split and commit, or the digest of a folder's files."""
        content = self.commit if self.folder is None else _digest_below(self.folder)
        return [self.name, self.split, str(content)]


def is_saved_data_set(folder: Path) -> bool:
    """Whether a folder was written by `save_to_disk` of `datasets`."""
    return (folder / _SAVED_SPLIT).is_file() or (folder / _SAVED_SPLITS).is_file()


def open_data_set(spec: TextSpec) -> DataSet:
    """Open a data set of the hub, or a local folder that holds one.

    Raises:
        UsageError: There is no such set, subset, split or column; the message names the ones there are.
        SaelabError: `datasets` is not installed, the set is gated, or the hub is out of reach.
    """
    folder = Path(spec.source).expanduser()
    if not folder.is_dir() and (reason := why_not_there(spec.source, "file or folder")):
        raise UsageError(f"text: {reason}")
    try:
        import datasets
    except ImportError as error:
        raise SaelabError(
            f"text: {spec.source!r} is no local file, and data sets need the package `datasets`: "
            'pip install "saelab[data]"'
        ) from error
    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
    if not folder.is_dir():
        data, split, commit = _open_builder(spec)
        name, folder = spec.source, None
    else:
        if spec.revision is not None:
            raise UsageError(f"text: {folder} is a local folder: it has no revision {spec.revision!r}")
        data, split = _open_saved(folder, spec) if is_saved_data_set(folder) else _open_builder(spec)[:2]
        name, commit = folder.resolve().name, None
    if spec.subset is not None:
        name += f"/{spec.subset}"
    return DataSet(name=name, split=split, commit=commit, folder=folder, data=_with_columns(data, spec, name))


def _open_builder(spec: TextSpec) -> tuple[Dataset | IterableDataset, str, str]:
    import datasets

    name = spec.source
    if not Path(name).is_dir() and (name in _FORMATS or not HUB_NAME.fullmatch(name)):
        raise UsageError(f"text: {name!r} is neither a file nor the name of a data set on the hub")
    try:
        with _quiet_client():
            builder = datasets.load_dataset_builder(name, spec.subset, revision=spec.revision)
    except Exception as error:  # of many unrelated types
        raise _refusal(spec, error) from error
    split = _choose_split(spec, builder)
    try:
        data: Any
        if spec.streaming:
            data = builder.as_streaming_dataset(split=split)
        else:
            builder.download_and_prepare()
            data = builder.as_dataset(split=split)
    except Exception as error:
        raise _refusal(spec, error) from error
    return data, split, str(builder.hash)


def _open_saved(folder: Path, spec: TextSpec) -> tuple[Dataset | IterableDataset, str]:
    import datasets

    if spec.subset is not None:
        raise UsageError(f"text: {folder} is one saved data set: it has no subset {spec.subset!r}")
    split = spec.split or "train"
    if (folder / _SAVED_SPLITS).is_file():
        there = sorted(path.name for path in folder.iterdir() if (path / _SAVED_SPLIT).is_file())
        if split not in there:
            raise UsageError(f"text: {folder} has no split {split!r}; {_nearest(split, there)}")
        folder /= split
    try:
        return datasets.Dataset.load_from_disk(str(folder)), split
    except Exception as error:  # damaged files fail anywhere in the library
        raise SaelabError(f"text: cannot read the data set in {folder} ({_first_line(error)})") from error


def _choose_split(spec: TextSpec, builder: Any) -> str:
    split = spec.split or "train"
    there = list(map(str, builder.info.splits or getattr(builder.config, "data_files", None) or ()))
    base = re.split(r"[\[+]", split)[0]
    if there and base not in there:
        raise UsageError(f"text: {spec.source} has no split {base!r}; {_nearest(base, there)}")
    return split


def _with_columns(data: Any, spec: TextSpec, name: str) -> Dataset | IterableDataset:
    there = data.column_names
    if there is None:  # a stream learns its columns from its first record
        try:
            there = list(next(iter(data), {}))
        except Exception as error:
            raise _refusal(spec, error) from error
    for column in (spec.column, *spec.keep_columns):
        if column not in there:
            near = difflib.get_close_matches(column, there, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise UsageError(f'text: {name} has no column "{column}"; {fields_there(there)}{hint}')
    wanted = {"id", spec.column, *spec.keep_columns}
    return data.select_columns([column for column in there if column in wanted])


def _from(data: Any, start: int) -> Any:
    if not start:
        return data
    if not hasattr(data, "select"):  # a stream
        return data.skip(start)
    return data.select(range(start, len(data))) if start < len(data) else ()


def _refusal(spec: TextSpec, error: Exception) -> SaelabError:
    """Say in one line why a set was not opened, and what to do."""
    name, text = spec.source, str(error)
    if listed := _LISTED.search(" ".join(text.split())):
        there = re.findall(r"'([^']+)'", listed.group(1))
        if spec.subset is None:
            return UsageError(
                f"text: {name} has several subsets, choose one with --subset: {', '.join(there[:20])}"
            )
        return UsageError(f"text: {name} has no subset {spec.subset!r}; {_nearest(spec.subset, there)}")
    if "gated" in text:
        return SaelabError(
            f"text: the hub's data set {name} is gated: accept the conditions on its page, then run `hf auth login`"
        )
    if "Revision" in text and spec.revision is not None:
        return UsageError(f"text: the hub's data set {name} has no revision {spec.revision!r}")
    if "scripts are no longer supported" in text:
        return SaelabError(
            f"text: {name} is a program and not files, and no code of a data set is run; choose a copy"
        )
    if type(error).__name__ == "DatasetNotFoundError":
        return UsageError(
            f"text: there is no file {name}, and no data set of that name that this machine may read"
        )
    return SaelabError(
        f"text: there is no file {name}, and the hub did not deliver a data set of that name ({_first_line(error)}); "
        "check the network, or name a local file"
    )


def _nearest(name: str, there: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, there, n=3)
    return f"did you mean {' or '.join(near)}?" if near else f"it has {', '.join(sorted(there)[:20])}"


@contextmanager
def _quiet_client() -> Iterator[None]:
    """Hide the warnings of the hub's client, which tells every attempt at a connection."""
    from huggingface_hub.utils import logging

    level = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)


def _digest_below(folder: Path) -> str:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    parts = [[path.relative_to(folder).as_posix(), digest_of_file(path)] for path in files]
    return digest_of(json.dumps(parts).encode())


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(" .:") if lines else type(error).__name__
