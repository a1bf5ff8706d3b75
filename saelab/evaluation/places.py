"""The hookpoints that an SAE reads and those that it reconstructs, and the rows of a store there."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import torch

from saelab.activations.rows import joined
from saelab.activations.store import Store
from saelab.errors import UsageError
from saelab.sae.config import SAEConfig
from saelab.text.documents import Split
from saelab.training.config import TrainConfig
from saelab_kernels.shapes import Float, Int, Tensor

_MEAN_ROWS = 4096
"""Rows that are summed at a time."""


@dataclass(frozen=True)
class Places:
    """Module paths in the order in which their activations are joined side by side."""

    inputs: tuple[str, ...]
    """What the encoder reads."""
    outputs: tuple[str, ...]
    """What is reconstructed: the same for an autoencoder or a crosscoder, another one for a transcoder."""

    @classmethod
    def of_sae(cls, config: SAEConfig) -> Places:
        """Return the places of an SAE."""
        return cls(config.input_hooks, config.output_hooks)

    @classmethod
    def of_run(cls, config: TrainConfig) -> Places:
        """Return the places of a run."""
        return cls(config.input_hooks, config.target_hooks)

    @property
    def all(self) -> tuple[str, ...]:
        """Every hookpoint once."""
        return tuple(dict.fromkeys((*self.inputs, *self.outputs)))

    def __str__(self) -> str:
        read, given = ", ".join(self.inputs), ", ".join(self.outputs)
        return read if self.inputs == self.outputs else f"{read} to {given}"


class PlaceRows(NamedTuple):
    """Consecutive rows of a split as an SAE sees them, float32 in raw units."""

    x: Float[Tensor, "rows d_in"]
    """What it reads."""
    target: Float[Tensor, "rows d_out"]
    """What it should give; ``x`` itself where it reconstructs what it reads."""
    gradients: Float[Tensor, "rows d_out"] | None
    """Gradients of the model's summed loss with respect to the target, where the store has them."""
    token_index: Int[Tensor, " rows"]
    """Position of each row's token in the store's tokens, int64."""


def read_rows(store: Store, places: Places, split: Split | None, start: int, stop: int) -> PlaceRows:
    """Read rows ``start`` to ``stop`` of a split (None: of both) at an SAE's places; each hookpoint is read once.

    Raises:
        UsageError: The store has no such hookpoint, or fewer rows.
        DamagedFileError: A shard is missing, cut or unreadable.
    """
    found = {hook: store.rows(hook, split, start, stop) for hook in places.all}
    x = joined([found[hook].x for hook in places.inputs])
    target = x if places.inputs == places.outputs else joined([found[hook].x for hook in places.outputs])
    gradients = [g for hook in places.outputs if (g := found[hook].gradients) is not None]
    return PlaceRows(
        x,
        target,
        joined(gradients) if len(gradients) == len(places.outputs) else None,
        found[places.inputs[0]].token_index,
    )


def has_gradients(store: Store, places: Places) -> bool:
    """Whether a store holds the gradients of all that is reconstructed."""
    return all(store.hook(hook).has_gradients for hook in places.outputs)


def target_mean(store: Store, places: Places) -> Float[Tensor, " d_out"]:
    """Return the mean of a store's training rows of all that is reconstructed, float64."""
    return joined([store.statistics(hook).mean for hook in places.outputs])


def heldout_mean(store: Store, places: Places) -> Float[Tensor, " d_out"]:
    """Return the mean of a store's held-out rows of all that is reconstructed, float64, summed in document order."""

    def mean(hook: str) -> Float[Tensor, " d"]:
        n_rows, total = store.n_rows(hook, "heldout"), 0.0
        for start in range(0, n_rows, _MEAN_ROWS):
            rows = store.rows(hook, "heldout", start, min(start + _MEAN_ROWS, n_rows))
            total = total + rows.x.double().sum(0)
        return torch.as_tensor(total) / n_rows

    return joined([mean(hook) for hook in places.outputs])


def require_hooks(places: Places, known: Iterable[str], *, what: str, where: object) -> None:
    """Refuse what needs a hookpoint that is not there.

    Args:
        places: What is needed.
        known: Module paths that there are.
        what: What needs it, for the message.
        where: What has those that there are.

    Raises:
        UsageError: Naming the hookpoints that are missing, and those that there are.
    """
    there = list(known)
    missing = [hook for hook in places.all if hook not in there]
    if missing:
        raise UsageError(
            f"evaluate: {where} has no activations of {', '.join(missing)}, which {what} needs ({places}); "
            f"it has {', '.join(there)}"
        )
