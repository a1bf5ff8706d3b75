"""How far a search is, and whether it should stop."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from saelab.errors import Interrupted
from saelab.features.codes import CodeShard
from saelab.interrupts import StopRequest
from saelab.progress import Progress

Shards = Callable[[], Iterable[CodeShard]]
"""Reads the codes of a corpus from the beginning."""


class Watch:
    """Shows progress and ends the work when a stop is asked for.

    Args:
        n_tokens: Tokens that have codes; None where that is not known.
        stop: Asks for a stop.
        quiet: Show nothing.
    """

    def __init__(
        self, n_tokens: int | None = None, stop: StopRequest | None = None, *, quiet: bool = True
    ) -> None:
        self._n_tokens, self._stop, self._quiet = n_tokens, stop or StopRequest(), quiet

    def progress(self, what: str, passes: int) -> Progress:
        """Return the progress of reading all codes so many times."""
        total = None if self._n_tokens is None else self._n_tokens * passes
        return Progress(what, total, "tokens", quiet=self._quiet)

    def placements(self, count: int) -> Progress:
        """Return the progress of so many random placements."""
        return Progress("placing at random", count, "placements", quiet=self._quiet)

    def read(self, shards: Shards, progress: Progress) -> Iterator[CodeShard]:
        """Yield the codes once; Interrupted when a stop is asked for."""
        for shard in shards():
            self.check()
            yield shard
            progress.advance(len(shard.token_index))

    def check(self) -> None:
        """Raise Interrupted if a stop was asked for."""
        if self._stop.requested:
            raise Interrupted("find: stopped; nothing was written")
