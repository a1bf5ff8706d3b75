"""Llama Scope (OpenMOSS): `hyperparams.json` and `checkpoints/final.safetensors`, later `config.json` and
`sae_weights.safetensors` (R1-Distill, 2025), with a threshold for each feature and average norms among the weights.

Format and mathematics from the published repositories and the code that wrote them; nothing is installable
that could be compared with. The threshold is compared with pre-activations of scaled activations, times the decoder's
norm where `sparsity_include_decoder_norm` says so; it is not scaled itself.
"""

from __future__ import annotations

import math

from saelab.errors import DamagedFileError, UsageError
from saelab.interop.answers import question
from saelab.interop.foreign import ForeignSAE, Keep, Place, Scaling
from saelab.interop.locations import Location
from saelab.interop.reading import Reading
from saelab.interop.settings import Settings
from saelab_kernels.shapes import Float, Tensor

FORMS = (("hyperparams.json", "checkpoints/final.safetensors"), ("config.json", "sae_weights.safetensors"))
LOG_THRESHOLD, AVERAGE_NORM = "log_jumprelu_threshold", "dataset_average_activation_norm"
MODEL, CONTEXT = "meta-llama/Llama-3.1-8B", 1024
_RECIPES = {"jumprelu": "jumprelu", "relu": "relu", "topk": "topk"}


def recognises(location: Location) -> bool:
    """Whether a place looks like such a folder."""
    return _form(location) is not None and "cfg.json" not in location.names


def read(reading: Reading) -> ForeignSAE:
    """Read an SAE or transcoder.

    Raises:
        UsageError: Its activation or normalisation is unknown or has no equal here.
        DamagedFileError: The files are not sound.
    """
    config, file = _form(reading.location) or FORMS[0]
    settings = reading.settings(config)
    kind = settings.need("act_fn", str).lower()
    if kind not in _RECIPES:
        raise UsageError(f"{settings.where}: act_fn is {kind}; jumprelu, topk and relu can be imported")
    if settings.optional("use_glu_encoder", bool):
        raise UsageError(f"{settings.where}: its encoder has a second gate (GLU), which cannot be imported")
    weights = reading.weights(file)
    d_in = settings.count("d_model")
    W_enc = weights.take("encoder.weight", None, d_in).T
    d_sae = W_enc.shape[1]
    W_dec = weights.take("decoder.weight", d_in, d_sae).T
    b_enc = weights.take("encoder.bias", d_sae)
    has_bias = settings.optional("use_decoder_bias", bool) is not False
    b_dec = weights.take("decoder.bias", d_in) if has_bias else W_dec.new_zeros(d_in)
    theta = weights.take(LOG_THRESHOLD, d_sae).exp() if LOG_THRESHOLD in weights.names else None
    start = f"{AVERAGE_NORM}."
    norms = {
        name.removeprefix(start): float(weights.take(name))
        for name in weights.names
        if name.startswith(start)
    }
    weights.require_nothing_left()
    hook, target = settings.optional("hook_point_in", str), settings.optional("hook_point_out", str)
    is_transcoder = target is not None and target != hook
    return ForeignSAE(
        architecture=kind,
        W_enc=W_enc,
        b_enc=b_enc,
        W_dec=W_dec,
        b_dec=b_dec,
        keep=_keep(kind, settings, W_dec, theta),
        apply_b_dec_to_input=settings.optional("apply_decoder_bias_to_pre_encoder", bool) or False,
        scaling=_scaling(settings, norms, d_in, is_transcoder),
        is_transcoder=is_transcoder,
        place=Place(hook=hook, target_hook=target if is_transcoder else None, model=MODEL, context=CONTEXT),
        recipe="transcoder" if is_transcoder else _RECIPES[kind],
    )


def _form(location: Location) -> tuple[str, str] | None:
    return next((form for form in FORMS if set(form) <= location.names), None)


def _keep(kind: str, settings: Settings, W_dec: Float[Tensor, "d_sae d_out"], theta: Tensor | None) -> Keep:
    if kind == "relu":
        return Keep("relu")
    by_norm = settings.optional("sparsity_include_decoder_norm", bool)
    if by_norm is None:
        norms = W_dec.norm(dim=1)
        if float((norms - 1).abs().max()) > 1e-3:
            raise DamagedFileError(
                f"{settings.where} does not say sparsity_include_decoder_norm, and the decoder's rows have norms from "
                f"{norms.min():.3g} to {norms.max():.3g}, with which it decides what is kept; add it to the file"
            )
        by_norm = False
    if kind == "topk":
        return Keep("topk", k=settings.count("top_k"), by_decoder_norm=by_norm)
    if theta is None:
        number = settings.need("jump_relu_threshold", float)
        if number < 0:
            raise UsageError(
                f"{settings.where}: jump_relu_threshold is {number}: it would keep activations below 0"
            )
        theta = W_dec.new_tensor(number)
    return Keep("threshold", theta=theta, by_decoder_norm=by_norm)


def _scaling(settings: Settings, norms: dict[str, float], d_in: int, is_transcoder: bool) -> Scaling:
    kind = settings.optional("norm_activation", str)
    if kind is None and AVERAGE_NORM not in settings and not norms:
        raise question(
            settings.where, "it does not say norm_activation", "--from with another format, or add it"
        )
    match kind:
        case "inference":
            return Scaling()
        case "dataset-wise" | None:
            read, given = _average_norms(settings, norms)
            return Scaling(factor=math.sqrt(d_in) / read, target_factor=math.sqrt(d_in) / given)
        case "token-wise" if not is_transcoder:
            return Scaling("unit_norm", factor=math.sqrt(d_in))
    raise UsageError(f"{settings.where}: norm_activation is {kind}, which cannot be imported")


def _average_norms(settings: Settings, norms: dict[str, float]) -> tuple[float, float]:
    """Return the average norms of what is read and of what is reconstructed, from the weights or the settings."""
    if norms:
        hooks = (settings.need("hook_point_in", str), settings.need("hook_point_out", str))
        missing = [hook for hook in hooks if hook not in norms]
        if missing:
            raise DamagedFileError(f"{settings.where}: there is no average norm of {', '.join(missing)}")
        read, given = (norms[hook] for hook in hooks)
    else:
        table = settings.table(AVERAGE_NORM)
        read, given = table.need("in", float), table.need("out", float)
    if not (0 < read < math.inf and 0 < given < math.inf):
        raise DamagedFileError(
            f"{settings.where}: average norms are {read} and {given}; they must be above 0"
        )
    return read, given
