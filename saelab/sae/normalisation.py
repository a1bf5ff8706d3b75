"""Scaling of activations. Every function returns what undoes it: nothing is remembered in between."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch

from saelab.errors import SaelabError
from saelab.sae.config import Normalisation
from saelab_kernels.shapes import Float, Tensor

LAYER_NORM_EPS = 1e-5  # the value of OpenAI's reference code


class TokenScale(NamedTuple):
    """What undoes a normalisation: ``x = x_normalised / scale + shift``."""

    scale: Tensor | float
    """What a reconstruction is divided by: a number, or ``[tokens, 1]``; inf for a token without variance."""
    shift: Tensor | float
    """What was subtracted before it: a number, or ``[tokens, 1]``."""


def scale_to_unit_coordinates(mean_square_norm: float, d_in: int) -> Normalisation:
    """Return the scaling that makes the mean squared norm of activations equal to ``d_in``.

    Coordinates are then of order 1 at any layer of any model, so that one learning rate serves.

    Raises:
        SaelabError: All activations are zero.
    """
    if not mean_square_norm > 0:
        raise SaelabError("cannot normalise activations that are all zero; check the hook and the mask")
    return Normalisation(kind="scale", factor=math.sqrt(d_in / mean_square_norm))


def normalise(
    x: Float[Tensor, "tokens d"], how: Normalisation
) -> tuple[Float[Tensor, "tokens d"], TokenScale]:
    """Scale activations and return what undoes it."""
    match how.kind:
        case "none":
            return x, TokenScale(1.0, 0.0)
        case "scale":
            return x * how.factor, TokenScale(how.factor, 0.0)
        case "layer_norm":
            mean, std = x.mean(-1, keepdim=True), x.std(-1, keepdim=True)
            # As the reference does: what keeps the division finite is not multiplied by on the way back.
            return (x - mean) / (std + LAYER_NORM_EPS), TokenScale(1.0 / std, mean)
        case "unit_norm":
            scale = 1.0 / torch.linalg.vector_norm(x, dim=-1, keepdim=True).clamp_min(1e-12)
            return x * scale, TokenScale(scale, 0.0)


def denormalise(x: Float[Tensor, "tokens d"], stats: TokenScale) -> Float[Tensor, "tokens d"]:
    """Undo a normalisation."""
    if isinstance(stats.scale, float) and stats.scale == 1.0 and isinstance(stats.shift, float):
        return x
    return x / stats.scale + stats.shift
