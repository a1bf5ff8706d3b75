"""The autoencoder: normalise, encode, allocate, decode, un-normalise."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import nn

from saelab.errors import SaelabError
from saelab.sae.config import SAEConfig
from saelab.sae.normalisation import TokenScale, denormalise, normalise
from saelab_kernels.code import SparseCode
from saelab_kernels.decode import decode
from saelab_kernels.request import Attribution
from saelab_kernels.rules import rule_from_json
from saelab_kernels.select import encode_select
from saelab_kernels.shapes import Float, Tensor


@dataclass(frozen=True)
class SAEParameters:
    """The four tensors that every autoencoder has, float32."""

    W_enc: Float[Tensor, "d_in d_sae"]
    b_enc: Float[Tensor, " d_sae"]
    W_dec: Float[Tensor, "d_sae d_out"]
    b_dec: Float[Tensor, " d_out"]

    def named(self) -> dict[str, Tensor]:
        """Return the tensors by their names."""
        return {"W_enc": self.W_enc, "b_enc": self.b_enc, "W_dec": self.W_dec, "b_dec": self.b_dec}


class Reconstruction(NamedTuple):
    """What an autoencoder makes of activations."""

    x_hat: Float[Tensor, "tokens d_out"]
    """The reconstruction, in the units of the input."""
    code: SparseCode
    """The features that are active on each token."""


class SparseAutoencoder(nn.Module):
    """A trained SAE over raw model activations.

    `x -> normalise -> (x - b_dec) W_enc + b_enc -> allocate -> code -> code W_dec + b_dec -> un-normalise`,
    with `+ x W_skip` where there is a linear part. Several hookpoints are joined side by side in ``x``.

    Args:
        config: What the SAE is; also its units.
        parameters: Weights, float32.
        theta: Threshold of the inference rule, one number or one for each feature, where it has one.
        W_skip: Linear map ``[d_in, d_out]`` beside the features, where it has one.
    """

    W_enc: nn.Parameter
    b_enc: nn.Parameter
    W_dec: nn.Parameter
    b_dec: nn.Parameter
    theta: Tensor | None
    W_skip: Tensor | None

    def __init__(
        self,
        config: SAEConfig,
        parameters: SAEParameters,
        theta: Tensor | None = None,
        W_skip: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        self.rule = rule_from_json(config.inference)
        expected = {
            "W_enc": (config.d_in, config.d_sae),
            "b_enc": (config.d_sae,),
            "W_dec": (config.d_sae, config.d_out),
            "b_dec": (config.d_out,),
        }
        for name, tensor in parameters.named().items():
            if tuple(tensor.shape) != expected[name]:
                raise SaelabError(f"{name} has shape {tuple(tensor.shape)}, the config says {expected[name]}")
            setattr(self, name, nn.Parameter(tensor.detach(), requires_grad=False))
        if config.has_skip != (W_skip is not None):
            raise SaelabError(f"the config says has_skip={config.has_skip}, W_skip is {W_skip is not None}")
        self.register_buffer("theta", theta)
        self.register_buffer("W_skip", W_skip)

    @torch.no_grad()
    def encode(
        self, x: Float[Tensor, "tokens d_in"], gradients: Float[Tensor, "tokens d_out"] | None = None
    ) -> SparseCode:
        """Return the active features of each token, bit for bit the same in any batch.

        Args:
            x: Raw activations.
            gradients: Of the model's summed loss with respect to ``x``, for an SAE that was trained to rank
                features by them too (g-SAE). With the true next token as label they tell the encoder what comes
                next: numbers that are made with them must say so.

        Raises:
            SaelabError: ``x`` does not have ``d_in`` columns, or this SAE has no use for gradients.
        """
        return self._encode(x, gradients)[0]

    @torch.no_grad()
    def decode(self, code: SparseCode) -> Float[Tensor, "tokens d_out"]:
        """Return what a code stands for, in the units of the model's activations.

        Raises:
            SaelabError: The SAE normalises each token by its own scale, which a code does not hold;
                use `reconstruct`.
        """
        if self.config.target_normalisation.is_per_token:
            raise SaelabError(
                f"decode: this SAE works relative to each token's scale ({self.config.target_normalisation.kind}), "
                "which a code does not hold; call reconstruct(x)"
            )
        if self.W_skip is not None:
            raise SaelabError(
                "decode: this SAE adds a linear map of its input, which a code does not hold; call reconstruct(x)"
            )
        return self._decode(code, None)

    @torch.no_grad()
    def reconstruct(
        self, x: Float[Tensor, "tokens d_in"], gradients: Float[Tensor, "tokens d_out"] | None = None
    ) -> Reconstruction:
        """Encode and decode in one call; for ``gradients`` see `encode`."""
        code, stats = self._encode(x, gradients)
        x_hat = self._decode(code, stats)
        if self.W_skip is not None:
            x_hat = x_hat + x.to(self.W_skip.dtype) @ self.W_skip
        return Reconstruction(x_hat, code)

    def forward(self, x: Float[Tensor, "tokens d_in"]) -> Float[Tensor, "tokens d_out"]:
        """Return the reconstruction of ``x``."""
        return self.reconstruct(x).x_hat

    def _encode(
        self, x: Float[Tensor, "tokens d_in"], gradients: Float[Tensor, "tokens d_out"] | None
    ) -> tuple[SparseCode, TokenScale]:
        if x.dim() != 2 or x.shape[1] != self.config.d_in:
            raise SaelabError(
                f"encode: x has shape {tuple(x.shape)}, this SAE reads [tokens, {self.config.d_in}]"
            )
        scaled, stats = normalise(x.to(self.W_enc.dtype), self.config.input_normalisation)
        if self.config.apply_b_dec_to_input:
            scaled = scaled - self.b_dec
        selection = encode_select(
            scaled,
            self.W_enc,
            self.b_enc,
            self.rule,
            theta=self.theta,
            attribution=None if gradients is None else self._attribution(gradients),
        )
        return selection.code, stats

    def _attribution(self, gradients: Float[Tensor, "tokens d_out"]) -> Attribution:
        if self.config.attribution is None:
            raise SaelabError(f"encode: an SAE of the recipe {self.config.recipe} has no use for gradients")
        return Attribution(g=gradients.to(self.W_dec.dtype), W_dec=self.W_dec, **self.config.attribution)

    def _decode(self, code: SparseCode, stats: TokenScale | None) -> Float[Tensor, "tokens d_out"]:
        target = self.config.target_normalisation
        if stats is None or not target.is_per_token:
            stats = TokenScale(target.factor, 0.0)
        return denormalise(decode(code, self.W_dec, self.b_dec), stats)
