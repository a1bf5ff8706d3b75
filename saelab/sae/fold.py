"""Folding: rewrite the weights so that the SAE takes raw activations and speaks in their units."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from saelab.errors import SaelabError
from saelab.sae.autoencoder import SAEParameters
from saelab.sae.config import Normalisation
from saelab_kernels.shapes import Tensor

RAW_UNITS = "length along the decoder direction, in the model's own activation units"
PER_TOKEN_UNITS = "relative to each token's scale; multiply by it for the model's activation units"


@dataclass(frozen=True)
class Folded:
    """Weights after folding, and what remains to be done at each token."""

    parameters: SAEParameters
    theta: Tensor | None
    input_normalisation: Normalisation
    target_normalisation: Normalisation
    units: str


def fold_scale(
    parameters: SAEParameters,
    theta: Tensor | None,
    input_normalisation: Normalisation,
    target_normalisation: Normalisation,
    *,
    apply_b_dec_to_input: bool,
) -> Folded:
    """Fold constant scales into the weights; exact but for rounding (derived).

    With inputs scaled by ``s`` and targets by ``t``, dividing the code by ``t`` gives
    `W_enc * s / t`, `b_enc / t`, `b_dec / t` and `theta / t`, with the decoder rows unchanged. All
    pre-activations are divided by the same number, so every allocation keeps the same pairs. Where
    the encoder sees ``x - b_dec``, ``s`` and ``t`` must be equal. Normalisations that depend on the
    token are left as they are, and the units say so.

    Raises:
        SaelabError: The scales differ although the decoder bias is applied to the input.
    """
    if input_normalisation.is_per_token or target_normalisation.is_per_token:
        return Folded(parameters, theta, input_normalisation, target_normalisation, PER_TOKEN_UNITS)
    s, t = input_normalisation.factor, target_normalisation.factor
    if apply_b_dec_to_input and s != t:
        raise SaelabError(
            f"cannot fold input scale {s} and target scale {t} when b_dec is applied to the input"
        )
    folded = SAEParameters(
        W_enc=parameters.W_enc * (s / t) if s != t else parameters.W_enc,
        b_enc=parameters.b_enc / t,
        W_dec=parameters.W_dec,
        b_dec=parameters.b_dec / t,
    )
    none = Normalisation()
    return Folded(folded, None if theta is None else theta / t, none, none, RAW_UNITS)


def unfold_scale(parameters: SAEParameters, normalisation: Normalisation) -> SAEParameters:
    """Undo `fold_scale` for one scale of input and target: weights in raw units to weights in normalised ones.

    `W_enc` and the decoder rows are the same in both, `b_enc` and `b_dec` are multiplied by the scale.
    The tensors are copies; `W_enc` lies feature-major in memory, as in `initial_parameters`.
    """
    factor = normalisation.factor
    return SAEParameters(
        W_enc=parameters.W_enc.T.clone(memory_format=torch.contiguous_format).T,
        b_enc=parameters.b_enc * factor,
        W_dec=parameters.W_dec.clone(memory_format=torch.contiguous_format),
        b_dec=parameters.b_dec * factor,
    )
