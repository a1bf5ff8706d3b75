"""From a foreign SAE to one of ours: scales and decoder norms folded into the weights wherever that is exact.

Every step is derived, and keeps what each feature adds to the reconstruction and which features are active:

- a constant scale s of the input and t of the target: `W_enc s`, `W_dec / t`, `b_dec / t`. Where ``b_dec`` is
  subtracted from the input and s is not t, the subtraction becomes part of ``b_enc``;
- tokens of norm c (`x' = c x / |x|`): the same with c, relative to tokens of norm 1;
- row norms n of the decoder: `W_dec / n`, and `W_enc n`, `b_enc n`, `theta n`. A threshold for each feature keeps the
  same pairs. The k largest of `z n` are those of our `z`; the k largest of the foreign z are not, and such an SAE
  keeps its decoder as it is, which its units say.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from saelab.errors import DamagedFileError
from saelab.interop.foreign import ForeignSAE, Keep
from saelab.sae.autoencoder import SAEParameters, SparseAutoencoder
from saelab.sae.config import Normalisation, SAEConfig
from saelab.sae.fold import PER_TOKEN_UNITS, RAW_UNITS
from saelab_kernels.rules import PerToken, Rule, Threshold, rule_to_json
from saelab_kernels.shapes import Float, Tensor

UNIT = 1e-6
"""Row norms this near to 1 count as 1, and the decoder stays as it is to the last bit."""


@dataclass(frozen=True, kw_only=True)
class Belonging:
    """The places and the model that an SAE belongs to, in our spelling."""

    hook: str
    """Module path of what it reads, or the foreign name where that is all that is known."""
    alias: str = ""
    """TransformerLens name of it."""
    target_hook: str | None = None
    """What it reconstructs, where that is another place."""
    model_name: str = ""
    """Name of the language model."""
    model_identity: str = ""
    """Its hash; empty where nobody looked at it."""
    tokenizer_hash: str = ""
    """Hash of its tokenizer."""
    source_identity: str = ""
    """What the training data were; empty where that is not known."""


def adopt(foreign: ForeignSAE, belonging: Belonging) -> SparseAutoencoder:
    """Return a foreign SAE as one of ours.

    Raises:
        DamagedFileError: After folding, a weight is too large for float32.
    """
    scaled, input_how, target_how = _fold_scaling(foreign)
    folded, caveat = _fold_norms(scaled)
    units = caveat + (PER_TOKEN_UNITS if target_how.is_per_token else RAW_UNITS)
    parameters = SAEParameters(folded.W_enc, folded.b_enc, folded.W_dec, folded.b_dec)
    for name, tensor in parameters.named().items():
        if not torch.isfinite(tensor).all():
            raise DamagedFileError(
                f"after folding, {name} is too large for float32; the scales cannot be right"
            )
    rule, theta = _rule(folded.keep)
    d_in, d_sae = folded.W_enc.shape
    d_out = folded.W_dec.shape[1]
    config = SAEConfig(
        recipe=foreign.recipe,
        d_in=d_in,
        d_out=d_out,
        d_sae=d_sae,
        input_hooks=(belonging.hook,),
        input_widths=(d_in,),
        output_hooks=(belonging.target_hook or belonging.hook,),
        output_widths=(d_out,),
        hook_aliases=(belonging.alias,),
        input_normalisation=input_how,
        target_normalisation=target_how,
        apply_b_dec_to_input=folded.apply_b_dec_to_input,
        has_skip=folded.W_skip is not None,
        inference=rule_to_json(rule),
        attribution=None,
        units=units,
        model_identity=belonging.model_identity,
        model_name=belonging.model_name,
        tokenizer_hash=belonging.tokenizer_hash,
        source_identity=belonging.source_identity,
    )
    return SparseAutoencoder(config, parameters, theta, folded.W_skip)


def _fold_scaling(foreign: ForeignSAE) -> tuple[ForeignSAE, Normalisation, Normalisation]:
    """Fold what is constant of the scaling; return what remains for each token."""
    scaling, none = foreign.scaling, Normalisation()
    if scaling.kind == "layer_norm":
        how = Normalisation(kind="layer_norm")
        return foreign, how, how if scaling.back else none
    if scaling.kind == "unit_norm":
        how = Normalisation(kind="unit_norm")
        target = scaling.factor if scaling.back else 1.0
        return _scaled(foreign, scaling.factor, target), how, how if scaling.back else none
    return _scaled(foreign, scaling.factor, scaling.target_factor), none, none


def _scaled(foreign: ForeignSAE, s: float, t: float) -> ForeignSAE:
    """Fold a factor of the input and one of the target."""
    if s == t == 1:
        return foreign
    if foreign.apply_b_dec_to_input and s != t:
        foreign = replace(
            foreign,
            b_enc=_plus_product(foreign.b_enc, -foreign.b_dec, foreign.W_enc),
            apply_b_dec_to_input=False,
        )
    keep = foreign.keep
    if keep.theta is not None and keep.by_decoder_norm:  # by the rows as they are before they are divided
        keep = Keep("threshold", theta=(keep.theta.double() / _norms(foreign.W_dec)).float())
    return replace(
        foreign, W_enc=foreign.W_enc * s, W_dec=foreign.W_dec / t, b_dec=foreign.b_dec / t, keep=keep
    )


def _fold_norms(foreign: ForeignSAE) -> tuple[ForeignSAE, str]:
    """Give decoder rows norm 1 where that keeps what is kept; return what the units must say where it does not."""
    norms, keep = _norms(foreign.W_dec), foreign.keep
    if float((norms - 1).abs().max()) <= UNIT:
        return replace(foreign, keep=_own_units(keep, torch.ones_like(norms))), ""
    if keep.kind == "topk" and not keep.by_decoder_norm:
        spread = f"from {norms.min():.6g} to {norms.max():.6g}"
        return (
            foreign,
            f"multiples of the feature's decoder row, whose norm is not 1 ({spread}); times that norm: ",
        )
    n = norms.float()
    folded = replace(
        foreign,
        W_enc=foreign.W_enc * n,
        b_enc=foreign.b_enc * n,
        W_dec=foreign.W_dec / n[:, None],
        keep=_own_units(keep, norms),
    )
    return folded, ""


def _own_units(keep: Keep, norms: Float[Tensor, " d_sae"]) -> Keep:
    """Return the selection for activations that are longer by the norms, float64."""
    if keep.theta is None:
        return replace(keep, by_decoder_norm=False)
    theta = (
        keep.theta
        if keep.by_decoder_norm or bool((norms == 1).all())
        else (keep.theta.double() * norms).float()
    )
    return Keep("threshold", theta=theta)


def _norms(W_dec: Float[Tensor, "d_sae d_out"]) -> Float[Tensor, " d_sae"]:
    """Return the norms of the rows, float64; 1 for a row of zeros, which adds nothing at any length."""
    norms = torch.linalg.vector_norm(W_dec, dim=1, dtype=torch.float64)
    return norms.where(norms > 0, 1.0)


def _rule(keep: Keep) -> tuple[Rule, Tensor | None]:
    if keep.kind == "topk":
        assert keep.k is not None
        return PerToken(keep.k), None
    return Threshold(), torch.zeros(()) if keep.theta is None else keep.theta


def _plus_product(b: Tensor, row: Tensor, W: Tensor) -> Tensor:
    """Return `b + row W`, summed in float64."""
    return (b.double() + row.double() @ W.double()).float()
