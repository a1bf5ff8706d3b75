"""What is known of a run's features, from its index, in the format of another tool's dashboards."""

from __future__ import annotations

from dataclasses import dataclass

from saelab.features.export.registry import index_export
from saelab.features.index import open_index
from saelab.interop.writing import Exported, ExportRequest


@dataclass(frozen=True)
class IndexWriter:
    """Writes an index in one of the formats of `saelab.features.export.registry`."""

    name: str
    """The format."""

    def write(self, request: ExportRequest) -> Exported:
        """Write the run's index into a new folder.

        Raises:
            UsageError: The run has no such index, something is in that place, or a name is missing.
        """
        with open_index(request.run.path, request.index) as index:
            files = index_export(self.name).write(index, request.out, request.of_index)
        return Exported(files=tuple(files), architecture="feature index")
