"""A small source of activations in memory: two hookpoints of different widths, with gradients."""

from dataclasses import dataclass

import torch

from saelab.activations.source import spread_tiles
from saelab.activations.statistics import StatisticsAccumulator
from saelab.activations.stream import Batch
from saelab.evaluation.synthetic.generator import PlantedFeatures

ROWS = 4096


@dataclass(frozen=True)
class MemoryHook:
    module_path: str
    d_in: int
    alias: str | None = None
    has_gradients: bool = True


class MemorySource:
    """Planted features at ``a``; at ``b`` a nonlinear function of the same tokens."""

    identity, earlier_identities, model_identity = "memory", (), None

    def __init__(self, d_in=16, d_out=12):
        planted = PlantedFeatures(n_features=32, d_in=d_in, mean_active=3.0, seed=0)
        generator = torch.Generator().manual_seed(1)
        a = planted.batch(0, ROWS).x + 0.5
        b = torch.relu(a @ torch.randn(d_in, d_out, generator=generator)) + 0.1
        self.x = {"a": a, "b": b}
        self.gradients = {hook: torch.randn(x.shape, generator=generator) for hook, x in self.x.items()}
        self.hooks = tuple(MemoryHook(hook, x.shape[1]) for hook, x in self.x.items())

    def hook(self, name):
        return next(hook for hook in self.hooks if name in (None, hook.module_path))

    def prepare(self, stop, *, quiet):
        pass

    def statistics(self, hook):
        accumulator = StatisticsAccumulator(self.x[hook].shape[1])
        accumulator.add(self.x[hook])
        return accumulator.finish()

    def spread_rows(self, hooks, rows):
        yield from spread_tiles(ROWS, rows, lambda a, b: {hook: self.x[hook][a:b] for hook in hooks})

    def default_pool_rows(self, hook):
        return ROWS

    def pool_bytes(self, hooks, pool_rows):
        return 0

    def open(self, hooks, order, position):
        return MemoryStream(self, hooks, order, 0 if position is None else position["step"])

    def describe(self, folder):
        return {"store": "memory", "source_identity": self.identity}


class MemoryStream:
    def __init__(self, source, hooks, order, step):
        self.source, self.hooks, self.order, self.step = source, hooks, order, step

    def next(self):
        generator = torch.Generator().manual_seed(1000 * self.order.seed + self.step)
        chosen = torch.randint(ROWS, (self.order.batch,), generator=generator)
        self.step += 1
        return {hook: self._batch(hook, chosen) for hook in self.hooks}

    def position(self):
        return {"step": self.step}

    def close(self):
        pass

    def _batch(self, hook, chosen):
        gradients = self.source.gradients[hook][chosen] if self.order.gradients else None
        return Batch(x=self.source.x[hook][chosen], token_index=chosen, gradients=gradients)
