"""The formats that are known: a name and the module that reads or writes it, loaded when it is used.

A reader module has `recognises(location)` and `read(reading)`; a writer module has `write(request)`. Adding a format
is one module and one line here. Imports no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Protocol, cast, runtime_checkable

from saelab.errors import UsageError
from saelab.features.export.registry import INDEX_EXPORTS

if TYPE_CHECKING:
    from saelab.interop.foreign import ForeignSAE
    from saelab.interop.locations import Location
    from saelab.interop.reading import Reading
    from saelab.interop.writing import Exported, ExportRequest

READERS = {
    "saelens": "saelab.interop.readers.saelens",
    "sparsify": "saelab.interop.readers.sparsify",
    "dictionary-learning": "saelab.interop.readers.dictionary_learning",
    "gemma-scope": "saelab.interop.readers.gemma_scope",
    "gemma-scope-2": "saelab.interop.readers.gemma_scope_2",
    "llama-scope": "saelab.interop.readers.llama_scope",
    "openai": "saelab.interop.readers.openai_gpt2",
    "bare": "saelab.interop.readers.bare",
}
"""From a format to the module that reads it, in the order in which they are tried."""

WRITERS = {
    "saelens": "saelab.interop.writers.saelens",
    "sparsify": "saelab.interop.writers.sparsify",
    "dictionary-learning": "saelab.interop.writers.dictionary_learning",
}
"""From a format of SAEs to the module that writes it; those of feature indexes are in `INDEX_EXPORTS`."""

_FALLBACK = "bare"
_SHOWN = 8


@runtime_checkable
class Reader(Protocol):
    """A module that reads a format."""

    def recognises(self, location: Location) -> bool:
        """Whether a place looks like one of this format, by the names of its files."""
        ...

    def read(self, reading: Reading) -> ForeignSAE:
        """Read an SAE."""
        ...


@runtime_checkable
class Writer(Protocol):
    """A module that writes a format."""

    def write(self, request: ExportRequest) -> Exported:
        """Write a run's SAE, or what is known of its features, into a new folder."""
        ...


def reader(name: str) -> Reader:
    """Return the reader of a format.

    Raises:
        UsageError: There is none of that name.
    """
    return cast(Reader, _module(name, READERS, "read"))


def writer(name: str) -> Writer:
    """Return the writer of a format.

    Raises:
        UsageError: There is none of that name.
    """
    if name in INDEX_EXPORTS:
        from saelab.interop.writers.indexed import IndexWriter

        return IndexWriter(name)
    return cast(Writer, _module(name, WRITERS, "written"))


def detect(location: Location) -> str | None:
    """Return the format that the files of a place have; None where they have none that is known.

    Raises:
        UsageError: They look like several formats, or the place holds several SAEs.
    """
    found = [name for name in READERS if reader(name).recognises(location)]
    found = [name for name in found if name != _FALLBACK] or found
    if len(found) > 1:
        raise UsageError(f"{location} may be of the formats {' and '.join(found)}; say which with --from")
    if not found and (inside := _saes_below(location)):
        more = ", ..." if len(inside) > _SHOWN else ""
        raise UsageError(
            f"{location} holds {len(inside)} SAE(s) below it; name one: {', '.join(inside[:_SHOWN])}{more}"
        )
    return found[0] if found else None


def _saes_below(location: Location) -> list[str]:
    readers = [reader(name) for name in READERS if name != _FALLBACK]
    inside = location.folders().items()
    return [folder for folder, place in inside if any(one.recognises(place) for one in readers)]


def _module(name: str, known: dict[str, str], done: str) -> object:
    if name not in known:
        raise UsageError(f"the format {name!r} cannot be {done}; known are {', '.join(known)}")
    return import_module(known[name])
