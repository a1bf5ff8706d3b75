"""HTML that shows itself in a notebook and can be saved as one file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from saelab.errors import SaelabError, UsageError
from saelab.storage.files import write_bytes
from saelab.viz.page import GENERATOR, HtmlOnPage, html_page

_BEGINNING = 4_096
"""Bytes of a file in which a page of ours says what it is."""


@dataclass(frozen=True)
class HtmlDoc:
    """A piece of HTML made by the renderers of this package, with its stylesheet."""

    title: str
    """Plain text."""
    html: str
    style: str

    def _repr_html_(self) -> str:
        return f"<style>{self.style}</style>\n{self.html}"

    def page(self) -> str:
        """Return it as a whole page that needs nothing else and can reach no network."""
        return html_page(self.title, [], [HtmlOnPage("", self.html, self.style)], heading=False)

    def save(self, path: Path | str, *, force: bool = False) -> Path:
        """Write the page; the file appears whole or not at all.

        Args:
            path: A new file, or an earlier page of saelab, which is replaced.
            force: Replace any file.

        Raises:
            UsageError: Something else is there.
            SaelabError: The file cannot be written.
        """
        return save_page(Path(path), self.page(), force=force)


def save_page(path: Path, page: str, *, force: bool = False) -> Path:
    """Write a page; an earlier page of saelab is replaced, anything else only by force.

    Raises:
        UsageError: Something else is there; nothing was changed.
        SaelabError: The file cannot be written.
    """
    require_free_page(path, force=force)
    write_bytes(path, page.encode())
    return path


def require_free_page(path: Path, *, force: bool = False) -> None:
    """Refuse a place where no page may be written.

    Raises:
        UsageError: It is a folder, or a file that is no page of saelab.
        SaelabError: The file that is there cannot be read.
    """
    if path.is_dir():
        raise UsageError(f"{path} is a folder; give the name of a file")
    if force or not path.exists():
        return
    try:
        with path.open("rb") as file:
            is_ours = GENERATOR.encode() in file.read(_BEGINNING)
    except OSError as error:
        raise SaelabError(f"cannot read {path}: {error.strerror}") from error
    if not is_ours:
        raise UsageError(f"{path} is no page of saelab; give another name, or --force to replace it")
