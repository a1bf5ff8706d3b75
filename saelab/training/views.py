"""Which activations an SAE reads and reconstructs, how each is scaled, and how several hookpoints are joined."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch

from saelab.activations.rows import joined
from saelab.activations.source import ActivationSource
from saelab.sae.config import Normalisation
from saelab.sae.normalisation import normalise, scale_to_unit_coordinates
from saelab.training.config import TrainConfig
from saelab.training.recipes.moments import Inputs
from saelab_kernels.shapes import Float, Tensor


class HookRows(NamedTuple):
    """Rows of one hookpoint on the device of the training, in raw units."""

    x: Float[Tensor, "tokens d"]
    gradients: Float[Tensor, "tokens d"] | None = None
    """Gradients of the model's summed loss, where they are wanted."""


class Scaled(NamedTuple):
    """Normalised activations of the same tokens."""

    inputs: Float[Tensor, "tokens d_in"]
    targets: Float[Tensor, "tokens d_out"]


@dataclass(frozen=True)
class View:
    """One hookpoint as an SAE sees it."""

    hook: str
    """Module path."""
    width: int
    """Width of its activations."""
    normalisation: Normalisation
    """How they are scaled."""


@dataclass(frozen=True)
class Views:
    """What an SAE reads and what it reconstructs; hookpoints are joined side by side, in order."""

    inputs: tuple[View, ...]
    targets: tuple[View, ...]

    @classmethod
    def of(cls, config: TrainConfig, source: ActivationSource) -> Views:
        """Return the views of a configuration, scaled by the source's statistics."""
        made = {hook: _view(hook, config, source) for hook in config.all_hooks}
        inputs = tuple(made[hook] for hook in config.input_hooks)
        return cls(inputs, tuple(made[hook] for hook in config.target_hooks))

    @property
    def d_in(self) -> int:
        """Width of the joined input."""
        return sum(view.width for view in self.inputs)

    @property
    def d_out(self) -> int:
        """Width of the joined target."""
        return sum(view.width for view in self.targets)

    @property
    def is_autoencoder(self) -> bool:
        """Whether the target is the input."""
        return self.inputs == self.targets

    def scaled(self, rows: Mapping[str, Tensor]) -> Scaled:
        """Return normalised inputs and targets of raw activations by hookpoint."""
        inputs = _joined(self.inputs, rows)
        return Scaled(inputs, inputs if self.is_autoencoder else _joined(self.targets, rows))

    def batch(
        self, rows: Mapping[str, HookRows], b_dec: Float[Tensor, " d_out"] | None, *, gradients: bool
    ) -> Inputs:
        """Return what a recipe sees of a batch.

        Args:
            rows: Raw activations by hookpoint.
            b_dec: Subtracted from what the encoder sees, where given.
            gradients: Also give the gradients of the model's loss with respect to the normalised target;
                where the scale differs between tokens, with respect to the raw one.
        """
        scaled = self.scaled({hook: found.x for hook, found in rows.items()})
        encoder = scaled.inputs if b_dec is None else scaled.inputs - b_dec
        return Inputs(encoder, scaled.targets, self._gradients(rows) if gradients else None)

    def _gradients(self, rows: Mapping[str, HookRows]) -> Float[Tensor, "tokens d_out"]:
        parts = []
        for view in self.targets:
            found = rows[view.hook].gradients
            assert found is not None, "the source was opened with gradients"
            parts.append(found / view.normalisation.factor)
        return joined(parts)

    def spread(self, source: ActivationSource, rows: int, device: torch.device | str) -> Iterator[Scaled]:
        """Yield about ``rows`` training rows of all hookpoints, spread over all of them, normalised."""
        hooks = tuple(dict.fromkeys(view.hook for view in (*self.inputs, *self.targets)))
        for tile in source.spread_rows(hooks, rows):
            yield self.scaled({hook: x.to(device) for hook, x in tile.items()})


def _view(hook: str, config: TrainConfig, source: ActivationSource) -> View:
    found, statistics = source.hook(hook), source.statistics(hook)
    if config.normalisation == "scale":
        how = scale_to_unit_coordinates(statistics.mean_square_norm, found.d_in)
    else:
        how = Normalisation(kind=config.normalisation)
    return View(hook, found.d_in, how)


def _joined(views: tuple[View, ...], rows: Mapping[str, Tensor]) -> Float[Tensor, "tokens d"]:
    return joined([normalise(rows[view.hook], view.normalisation)[0] for view in views])
