"""Errors that are meant for users: one line that names what went wrong and what to do about it."""

from __future__ import annotations


class SaelabError(Exception):
    """Something that the user can act on; the command line prints its one line and exits with 1."""


class UsageError(SaelabError):
    """A wrong option, name or value; exit code 2, and nothing was started."""


class DamagedFileError(SaelabError):
    """A file is not what its manifest says, or cannot be read as what it claims to be."""


class Interrupted(SaelabError):
    """The work was stopped on request and saved; the same command goes on. Exit code 130."""
