"""Folding: rewrite the weights so that the SAE takes raw activations and speaks in their units."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from saelab.errors import SaelabError
from saelab.sae.autoencoder import SAEParameters
from saelab.sae.config import Normalisation
from saelab_kernels.shapes import Float, Tensor

RAW_UNITS = "length along the decoder direction, in the model's own activation units"
PER_TOKEN_UNITS = "relative to each token's scale; multiply by it for the model's activation units"


@dataclass(frozen=True)
class Scales:
    """How the activations that weights were trained on were scaled, hookpoint by hookpoint."""

    inputs: tuple[tuple[int, Normalisation], ...]
    """Width and scaling of each hookpoint of the input."""
    targets: tuple[tuple[int, Normalisation], ...]
    """The same of the target."""
    apply_b_dec_to_input: bool
    """Whether the encoder sees ``x - b_dec``."""

    @property
    def is_per_token(self) -> bool:
        """Whether one of them depends on the token."""
        return any(how.is_per_token for _, how in (*self.inputs, *self.targets))

    def common(self) -> tuple[float, float] | None:
        """Return the one factor of all inputs and that of all targets, where there is one of each."""
        inputs, targets = ({how.factor for _, how in side} for side in (self.inputs, self.targets))
        return (inputs.pop(), targets.pop()) if len(inputs) == len(targets) == 1 else None


@dataclass(frozen=True)
class Folded:
    """Weights after folding, and what remains to be done at each token."""

    parameters: SAEParameters
    theta: Tensor | None
    optional_theta: Tensor | None
    """None where the units depend on the token."""
    W_skip: Tensor | None
    input_normalisation: Normalisation
    target_normalisation: Normalisation
    units: str


def fold(
    parameters: SAEParameters,
    theta: Tensor | None,
    optional_theta: Tensor | None,
    W_skip: Tensor | None,
    scales: Scales,
) -> Folded:
    """Fold constant scales into the weights; exact but for rounding (derived).

    With one input scale ``s`` and one target scale ``t``, dividing the code by ``t`` gives
    `W_enc * s / t`, `b_enc / t`, `b_dec / t` and `theta / t`, with the decoder rows unchanged. All
    pre-activations are divided by the same number, so every allocation keeps the same pairs. With a
    scale for each of several hookpoints see `_fold_joined`. Normalisations that depend on the token are
    left as they are, and the units say so.

    Args:
        parameters: Weights in normalised units.
        theta: Threshold of the inference rule, where it has one.
        optional_theta: A threshold that it does not use.
        W_skip: Linear map of the normalised input to the normalised target, ``[d_in, d_out]``.
        scales: What the activations were multiplied by.

    Raises:
        SaelabError: The scales differ although the decoder bias is applied to the input.
    """
    if scales.is_per_token:
        (_, how_in), (_, how_out) = scales.inputs[0], scales.targets[0]
        return Folded(parameters, theta, None, W_skip, how_in, how_out, PER_TOKEN_UNITS)
    if (factors := scales.common()) is None:
        return _fold_joined(parameters, theta, W_skip, scales)
    s, t = factors
    if scales.apply_b_dec_to_input and s != t:
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
    thetas = [None if found is None else found / t for found in (theta, optional_theta)]
    skip = None if W_skip is None else W_skip * (s / t)
    return Folded(folded, thetas[0], thetas[1], skip, none, none, RAW_UNITS)


def _fold_joined(
    parameters: SAEParameters, theta: Tensor | None, W_skip: Tensor | None, scales: Scales
) -> Folded:
    """Fold a scale for each hookpoint (derived).

    With ``s [d_in]`` and ``t [d_out]``, row i of the decoder becomes `W_dec[i] / t`, of norm n_i; it is
    divided by n_i again, and `W_enc * s * n_i`, `b_enc * n_i`, `theta * n_i` keep what a feature adds. A
    threshold for each feature keeps the same pairs; a ranking of features would not.
    """
    s, t = (_per_coordinate(side, parameters.W_dec) for side in (scales.inputs, scales.targets))
    rows = parameters.W_dec / t
    norms = torch.linalg.vector_norm(rows, dim=1).clamp_min(1e-12)
    folded = SAEParameters(
        W_enc=parameters.W_enc * s[:, None] * norms,
        b_enc=parameters.b_enc * norms,
        W_dec=rows / norms[:, None],
        b_dec=parameters.b_dec / t,
    )
    skip = None if W_skip is None else W_skip * s[:, None] / t
    none = Normalisation()
    return Folded(folded, None if theta is None else theta * norms, None, skip, none, none, RAW_UNITS)


def _per_coordinate(side: tuple[tuple[int, Normalisation], ...], like: Tensor) -> Float[Tensor, " d"]:
    return torch.cat([like.new_full((width,), how.factor) for width, how in side])


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
