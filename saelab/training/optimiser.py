"""Adam under the constraint that decoder rows have norm 1, with clipping and a learning-rate schedule."""

from __future__ import annotations

from saelab.sae.autoencoder import SAEParameters
from saelab.training.config import TrainConfig
from saelab_kernels.adam import SparseAdam
from saelab_kernels.adam_state import AdamOptions, Weights


def make_optimiser(params: SAEParameters, config: TrainConfig) -> SparseAdam:
    """Return the optimiser of a run; it changes ``params`` in place.

    One step is: project, clip by the norm of the projected gradient, Adam, renormalise. Adam moves rows a
    little off the sphere even with a projected gradient (its update is not orthogonal), so that the
    renormalisation after it is part of the rule, not a safety net.
    """
    return SparseAdam(Weights(**params.named()), AdamOptions(clip=config.grad_clip))


def lr_factor(step: int, config: TrainConfig) -> float:
    """Return the share of the peak learning rate at a step: linear rise, constant, linear fall to 0.

    The rise is a share of the run's first length and the fall one of its present length, so that a
    run and its extension are the same up to where the shorter one began to fall.
    """
    warmup = round(config.schedule.warmup_share * config.first_steps)
    decay = config.steps - config.branch_steps[-1]
    rising = (step + 1) / warmup if step < warmup else 1.0
    falling = (config.steps - step) / decay if decay and step > config.steps - decay else 1.0
    return min(rising, falling)
