"""Progress of long work: a bar with rate and time left on a terminal, a plain line every 30 s elsewhere."""

from __future__ import annotations

import sys
import time
from types import TracebackType

LINE_SECONDS = 30.0


class Progress:
    """Counts work that is done and shows it on standard error.

    Args:
        what: What is being done, for example ``caching``.
        total: Units of work in all; None where that is not known, so that no share and no time left is shown.
        unit: Name of a unit, for example ``tokens``.
        done: Units that an earlier, interrupted run has already done.
        quiet: Show nothing.
    """

    def __init__(self, what: str, total: int | None, unit: str, done: int = 0, quiet: bool = False) -> None:
        self.what, self.total, self.unit, self.quiet = what, total, unit, quiet
        self._first = self._done = done
        self._started = self._last_line = time.monotonic()
        self._note = ""
        self._bar = None
        if not quiet and sys.stderr.isatty():
            from tqdm import tqdm

            self._bar = tqdm(
                total=total, initial=done, desc=what, unit=f" {unit}", unit_scale=True, leave=False
            )

    def note(self, text: str) -> None:
        """Show a short text beside the rate from now on."""
        self._note = text
        if self._bar is not None:
            self._bar.set_postfix_str(text, refresh=False)

    def say(self, text: str) -> None:
        """Show a line that stays."""
        if self._bar is not None:
            self._bar.write(text, file=sys.stderr)
        elif not self.quiet:
            print(text, file=sys.stderr, flush=True)

    def advance(self, count: int) -> None:
        """Count ``count`` more units."""
        self._done += count
        if self._bar is not None:
            self._bar.update(count)
        elif not self.quiet and time.monotonic() - self._last_line >= LINE_SECONDS:
            self._last_line = time.monotonic()
            print(self._line(), file=sys.stderr, flush=True)

    @property
    def rate(self) -> float:
        """Units per second since this object was made."""
        return (self._done - self._first) / max(time.monotonic() - self._started, 1e-9)

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()
        if not self.quiet and kind is None:
            seconds = time.monotonic() - self._started
            count = self._done - self._first
            print(
                f"{self.what}: {count:,} {self.unit} in {seconds:.1f} s ({self.rate:,.0f}/s)", file=sys.stderr
            )

    def _line(self) -> str:
        note = f", {self._note}" if self._note else ""
        if self.total is None:
            return f"{self.what}: {self._done:,} {self.unit}, {self.rate:,.0f}/s{note}"
        left = (self.total - self._done) / max(self.rate, 1e-9)
        share = self._done / max(self.total, 1)
        return (
            f"{self.what}: {share:.0%}, {self._done:,} of {self.total:,} {self.unit}, "
            f"{self.rate:,.0f}/s, {left:.0f} s left{note}"
        )
