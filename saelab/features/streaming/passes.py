"""Run a pass over the corpus, stretch by stretch, from where an interrupted one was last saved."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Mapping

from saelab.features.building.steps import Bench
from saelab.features.streaming.batches import Batch, read_batches
from saelab.features.streaming.state import State, load, save
from saelab.progress import Progress

SAVE_SECONDS = 120
"""Seconds between two savings of the state, at least; what is read since the last one is read again."""


class Pass(ABC):
    """Something that reads the corpus once."""

    @property
    @abstractmethod
    def states(self) -> Mapping[str, State]:
        """Everything that it knows and is saved."""

    @abstractmethod
    def add(self, batch: Batch) -> None:
        """Read some rows of tokens."""

    def end_stretch(self, number: int) -> None:
        """Do what is left to do at the end of a stretch, before the state is saved."""
        del number


def run_pass(bench: Bench, name: str, one: Pass) -> None:
    """Read the corpus, or what is left of it.

    Raises:
        Interrupted: A stop was asked for; the same call goes on.
    """
    path = bench.work / f"{name}.safetensors"
    done = load(path, one.states)
    read = bench.stretches[done - 1].last_row if done else 0
    saved = time.monotonic()
    with Progress(name, bench.corpus.n_kept, "tokens", done=read, quiet=bench.quiet) as progress:
        for number in range(done, len(bench.stretches)):
            for batch in read_batches(bench.sae, bench.corpus, bench.stretches[number], bench.stop):
                one.add(batch)
                progress.advance(len(batch.tokens))
            one.end_stretch(number)
            is_last = number + 1 == len(bench.stretches)
            if is_last or bench.stop.requested or time.monotonic() - saved >= SAVE_SECONDS:
                save(path, one.states, number + 1)
                saved = time.monotonic()
