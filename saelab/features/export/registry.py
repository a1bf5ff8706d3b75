"""The formats that an index is written in: a name and its module, loaded when it is used.

A module has `write(index, out, options) -> list[Path]`: a new folder `out`, whole or absent. Adding a format is one
module and one line here. Imports no torch.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, cast, runtime_checkable

from saelab.errors import UsageError

if TYPE_CHECKING:
    from saelab.features.export.options import IndexExportOptions
    from saelab.features.index import FeatureIndex

INDEX_EXPORTS = {
    "saedashboard": "saelab.features.export.saedashboard",
    "neuronpedia": "saelab.features.export.neuronpedia",
}
"""From a format to the module that writes it."""


@runtime_checkable
class IndexExport(Protocol):
    """A module that writes an index in a format."""

    def write(self, index: FeatureIndex, out: Path, options: IndexExportOptions) -> list[Path]:
        """Write it into a new folder, and return the files."""
        ...


def index_export(name: str) -> IndexExport:
    """Return the writer of a format.

    Raises:
        UsageError: There is none of that name.
    """
    if name not in INDEX_EXPORTS:
        raise UsageError(f"an index cannot be written as {name!r}; known are {', '.join(INDEX_EXPORTS)}")
    return cast(IndexExport, import_module(INDEX_EXPORTS[name]))
