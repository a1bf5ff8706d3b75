"""A language model and a text as a source of activations for training: read live, nothing on the disk.

Statistics and calibration come from the first pool, which is kept: the training itself never waits
for a second pass over the text.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from saelab.activations.facts import find_hook
from saelab.activations.live_pool import LivePool, PoolMaker, PoolStart, PoolStopped
from saelab.activations.live_stream import LiveStream
from saelab.activations.packed import require_context
from saelab.activations.source import Order, RowStream, spread_tiles
from saelab.activations.spec import ITEM_BYTES, LiveConfig
from saelab.activations.statistics import HookStatistics, StatisticsAccumulator
from saelab.errors import Interrupted, UsageError
from saelab.interrupts import StopRequest
from saelab.lm.hooks import resolve_all
from saelab.lm.identity import ModelIdentity
from saelab.lm.load import LanguageModel, load_model
from saelab.progress import Progress
from saelab.storage.manifest import digest_of
from saelab.text.load import text_identity
from saelab_kernels.shapes import Tensor

POOLS_IN_MEMORY = 4
"""The first one, which is kept, the one that is consumed, and the one that is made, twice while it is joined."""

# Named by hashes, or without a part in the rows: the places that are read, whether gradients stand beside the rows.
_NOT_IN_SETTINGS = ("model", "text", "at", "gradients")


@dataclass(frozen=True)
class LiveHook:
    """A hookpoint of a live stream."""

    module_path: str
    alias: str | None
    d_in: int
    has_gradients: bool
    """Whether the stream gives gradients beside the activations."""


def live_identity(config: LiveConfig, model: dict[str, Any]) -> str:
    """Return the identity of a live source as its text is now.

    Args:
        config: What is read; its hookpoints by module paths.
        model: Identity of the model, as JSON.

    Raises:
        UsageError: The text is not there.
        SaelabError: A data set of the hub is gated or out of reach.
    """
    settings = {k: v for k, v in asdict(config).items() if k not in _NOT_IN_SETTINGS}
    if config.mask_norm_ratio is not None:  # an outlier at any of the places is left out at all
        settings["at"] = sorted(config.at)
    return digest_of(json.dumps([model, text_identity(config.text), settings], sort_keys=True).encode())


class LiveSource:
    """A model, a text and the hookpoints to read.

    Args:
        config: What to read.
        lm: The model that ``config.model`` names, if it is loaded already.

    Raises:
        UsageError: A hookpoint is unknown, or the context is longer than the model's.
        SaelabError: The model or the text cannot be loaded.
    """

    def __init__(self, config: LiveConfig, lm: LanguageModel | None = None) -> None:
        config = config.resolved()
        self.lm = lm or load_model(config.model)
        # Nothing of a live stream is stored, so no column can be kept.
        self.config = config = replace(config, text=replace(config.text, keep_columns=()))
        require_context(config, self.lm)
        self._hookpoints = resolve_all(config.at, self.lm.hookpoints)
        self.config = config = replace(config, at=tuple(hp.module_path for hp in self._hookpoints))
        self._maker = PoolMaker(self.lm, self._hookpoints, config)
        self._first: LivePool | None = None
        self._identity: str | None = None
        self._statistics: dict[str, HookStatistics] = {}
        self._making = threading.Lock()

    @property
    def identity(self) -> str:
        """Digest of model, text, packing, masks and pools: what decides the rows and how they are mixed."""
        if self._identity is None:
            self._identity = live_identity(self.config, self.lm.identity.to_json())
        return self._identity

    @property
    def earlier_identities(self) -> tuple[str, ...]:
        return ()

    @property
    def model_identity(self) -> ModelIdentity | None:
        return self.lm.identity

    @property
    def hooks(self) -> tuple[LiveHook, ...]:
        gradients = self.config.gradients
        return tuple(LiveHook(hp.module_path, hp.alias, hp.d_in, gradients) for hp in self._hookpoints)

    def hook(self, name: str | None) -> LiveHook:
        return find_hook(self.hooks, name, "the live stream")

    def prepare(self, stop: StopRequest, *, quiet: bool) -> None:
        """Make the first pool, from which statistics and samples come.

        Raises:
            Interrupted: A stop was asked for; nothing had been written.
        """
        with self._making:
            if self._first is not None:
                return
            try:
                with Progress("reading the first pool", self.config.pool_rows, "tokens", quiet=quiet) as bar:
                    self._first = self._maker.make(PoolStart(), lambda: stop.requested, bar.advance)
            except PoolStopped:
                raise Interrupted("stopped while the first pool was read; the same command goes on") from None

    def statistics(self, hook: str) -> HookStatistics:
        path = self.hook(hook).module_path
        if path not in self._statistics:
            x = self.first_pool.x[path]
            accumulator = StatisticsAccumulator(x.shape[1])
            accumulator.add(x)
            self._statistics[path] = accumulator.finish()
        return self._statistics[path]

    def spread_rows(self, hooks: Sequence[str], rows: int) -> Iterator[dict[str, Tensor]]:
        x = {hook: self.first_pool.x[self.hook(hook).module_path] for hook in hooks}
        yield from spread_tiles(
            self.first_pool.n_rows,
            rows,
            lambda start, stop: {hook: found[start:stop].float() for hook, found in x.items()},
        )

    def default_pool_rows(self, hook: str) -> int:
        return self.config.pool_rows

    def pool_bytes(self, hooks: Iterable[str], pool_rows: int) -> int:
        width = sum(hook.d_in for hook in self.hooks)  # a pool holds all of them
        kept = 2 if self.config.gradients else 1
        return POOLS_IN_MEMORY * pool_rows * width * ITEM_BYTES[self.config.dtype] * kept

    def open(self, hooks: Sequence[str], order: Order, position: dict[str, Any] | None) -> RowStream:
        if order.pool_rows != self.config.pool_rows:
            raise UsageError(
                f"live: pool_rows is {order.pool_rows:,} in the training and {self.config.pool_rows:,} in the stream"
            )
        first = self.first_pool
        maker = PoolMaker(self.lm, self._hookpoints, self.config)  # each stream reads the text by itself
        maker.norm_limits = self._maker.norm_limits
        return LiveStream(maker, hooks, order, position, first)

    def describe(self, folder: Path) -> dict[str, Any]:
        return {
            "live": asdict(self.config),
            "model": self.lm.identity.to_json(),
            "source_identity": self.identity,
        }

    @property
    def first_pool(self) -> LivePool:
        """The first pool of the stream, made when it is first wanted, and kept."""
        self.prepare(StopRequest(), quiet=True)
        assert self._first is not None
        return self._first
