"""Rounds in which every variant runs once, and what is made of them: medians of ratios within a round."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, Literal

from saelab_kernels.bench.peer_worker import timed

Clock = Literal["cpu", "wall"]


@dataclass(frozen=True, slots=True)
class Sample:
    """One run of one variant."""

    wall: float
    """Seconds; between two events on CUDA."""
    cpu: float
    """Seconds of the processor, all threads of the variant's process together."""
    loss: float | None = None
    """Squared error of a token before the step, where the variant is a step."""


class VariantFailed(Exception):
    """A variant cannot go on; the message says why."""


Variant = Callable[[int], Sample]
"""Runs once on the batch of that number."""


def clocks(device: str) -> tuple[Clock, ...]:
    """The clocks that mean something on a device, the main one first."""
    return ("cpu", "wall") if device == "cpu" else ("wall",)


def local(call: Callable[[], object], device: str) -> Variant:
    """A variant that runs in this process, on the same arguments in every round."""

    def run(batch: int) -> Sample:
        _, wall, cpu = timed(call, device)
        return Sample(wall, cpu)

    return run


@dataclass(frozen=True, slots=True)
class Rounds:
    """What was measured."""

    samples: dict[str, list[Sample]]
    """Of each variant that finished, one a round."""
    warm_up: dict[str, list[Sample]]
    """Of its first runs, which do not count."""
    failed: dict[str, str]
    """Why the others did not."""

    def ratio(self, over: Sequence[str], under: Sequence[str], clock: Clock) -> float:
        """The median over the rounds of the summed times of `over` divided by those of `under`."""
        pairs = zip(self._sums(over, clock), self._sums(under, clock), strict=True)
        return median(top / bottom for top, bottom in pairs)

    def ratios(self, over: Sequence[str], under: Sequence[str], device: str) -> dict[str, float]:
        """The same by every clock of a device."""
        return {clock: self.ratio(over, under, clock) for clock in clocks(device)}

    def added(self, more: str, less: str, under: Sequence[str], device: str) -> dict[str, float]:
        """By every clock of a device, the median over the rounds of what `more` takes above `less`, as a ratio."""
        found: dict[str, float] = {}
        for clock in clocks(device):
            sums = [self._sums(names, clock) for names in ([more], [less], under)]
            found[clock] = median((a - b) / bottom for a, b, bottom in zip(*sums, strict=True))
        return found

    def _sums(self, names: Sequence[str], clock: Clock) -> list[float]:
        """For each round, the times of these variants together."""
        rounds = zip(*(self.samples[name] for name in names), strict=True)
        return [sum(getattr(sample, clock) for sample in samples) for samples in rounds]

    def times(self, name: str) -> dict[str, Any]:
        """Best and median milliseconds and those of all rounds, by both clocks."""
        record: dict[str, Any] = {}
        for clock in ("cpu", "wall"):
            ms = [1e3 * getattr(sample, clock) for sample in self.samples[name]]
            record[f"{clock}_ms"] = {"best": min(ms), "median": median(ms), "rounds": ms}
        return record


def interleave(
    variants: Mapping[str, Variant],
    rounds: int,
    n_batches: int,
    warm_up: int = 2,
    say: Callable[[str], None] = lambda line: None,
) -> Rounds:
    """Run every variant once a round, in turn; one that fails is left out from then on and its reason kept."""
    found = Rounds({name: [] for name in variants}, {name: [] for name in variants}, {})
    for round_ in range(-warm_up, rounds):
        for name, variant in variants.items():
            if name in found.failed:
                continue
            try:
                sample = variant(round_ % n_batches)
            except VariantFailed as failure:
                found.failed[name] = f"in round {round_ + 1}: {failure}" if round_ >= 0 else str(failure)
                del found.samples[name], found.warm_up[name]
                continue
            (found.samples if round_ >= 0 else found.warm_up)[name].append(sample)
        say(f"round {round_ + 1} of {rounds}" if round_ >= 0 else "warming up")
    return found
