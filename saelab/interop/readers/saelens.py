"""SAELens folders: `cfg.json` and `sae_weights.safetensors`, of version 6, and of 5 where they leave nothing open."""

from __future__ import annotations

import torch

from saelab.errors import DamagedFileError, UsageError
from saelab.interop.answers import question
from saelab.interop.foreign import ForeignSAE, Keep, Place, Scaling, gated_keep
from saelab.interop.locations import Location
from saelab.interop.reading import Reading
from saelab.interop.settings import Settings
from saelab.interop.weights import Weights

CONFIG, WEIGHTS, SCALER = "cfg.json", "sae_weights.safetensors", "activation_scaler.json"
_TRANSCODERS = ("transcoder", "skip_transcoder", "jumprelu_transcoder", "jumprelu_skip_transcoder")
_KINDS = ("standard", "topk", "jumprelu", "gated", *_TRANSCODERS)
_RECIPES = {
    "standard": "relu",
    "skip_transcoder": "skip-transcoder",
    "jumprelu_skip_transcoder": "skip-transcoder",
}
_WITHOUT_EQUAL = {
    "abstopk": "it keeps activations below 0, and features here are on or off",
    "matching_pursuit": "its encoder is a search, not a map",
    "temporal": "it reads several tokens at once",
    "batchtopk": "this is a training checkpoint; SAELens saves it for inference as jumprelu",
    "matryoshka_batchtopk": "this is a training checkpoint; SAELens saves it for inference as jumprelu",
}
_RENAMED = {
    "hook_name": "hook_point",
    "hook_head_index": "hook_point_head_index",
    "activation_fn": "activation_fn_str",
}


def recognises(location: Location) -> bool:
    """Whether a place looks like such a folder."""
    return {CONFIG, WEIGHTS} <= location.names


def read(reading: Reading) -> ForeignSAE:
    """Read an SAE.

    Raises:
        UsageError: Something that decides what it computes is not said, or has no equal here.
        DamagedFileError: The files are not sound.
    """
    settings = reading.settings(CONFIG)
    is_new = "metadata" in settings
    about = settings.table("metadata") if is_new else settings
    kind = (
        settings.need("architecture", str) if is_new else settings.optional("architecture", str) or "standard"
    )
    if kind == "standard":
        kind = _standard_or_topk(settings, reading, is_new=is_new)
    if kind not in _KINDS:
        why = _WITHOUT_EQUAL.get(kind, "it is not known here")
        raise UsageError(f"{settings.where}: the architecture {kind} cannot be imported: {why}")
    weights = reading.weights(WEIGHTS)
    _drop_scaling_factor(weights)
    d_in, d_sae = settings.count("d_in"), settings.count("d_sae")
    d_out = settings.count("d_out") if kind in _TRANSCODERS else d_in
    W_enc, W_dec = weights.take("W_enc", d_in, d_sae), weights.take("W_dec", d_sae, d_out)
    b_dec = weights.take("b_dec", d_out)
    if kind == "gated":
        b_enc, r_mag = weights.take("b_mag", d_sae), weights.take("r_mag", d_sae)
        keep = gated_keep(weights.take("b_gate", d_sae), b_enc, r_mag)
        W_enc = W_enc * r_mag.exp()
    else:
        b_enc = weights.take("b_enc", d_sae)
        keep = _keep(kind, settings, weights, reading)
    W_skip = weights.take("W_skip", d_out, d_in).T if "skip" in kind else None
    weights.require_nothing_left()
    place, notes = _place(about)
    return ForeignSAE(
        architecture=kind,
        W_enc=W_enc,
        b_enc=b_enc,
        W_dec=W_dec,
        b_dec=b_dec,
        W_skip=W_skip,
        keep=keep,
        apply_b_dec_to_input=_b_dec_on_input(kind, settings, reading),
        scaling=_scaling(kind, settings, reading),
        is_transcoder=kind in _TRANSCODERS,
        place=place,
        recipe=_RECIPES.get(kind, "transcoder" if kind in _TRANSCODERS else kind),
        notes=notes,
    )


def _standard_or_topk(settings: Settings, reading: Reading, *, is_new: bool) -> str:
    """Return the architecture behind `standard`, which in version 5 says nothing of the activation."""
    activation = _renamed(settings, "activation_fn") or (None if is_new else reading.answers.activation)
    if activation is None and is_new:
        return "standard"
    if activation is None:
        raise question(
            settings.where, "it does not say the activation function", "--activation relu (or topk)"
        )
    if activation not in ("relu", "topk"):
        raise UsageError(f"{settings.where}: the activation function {activation} has no equal here")
    return "topk" if activation == "topk" else "standard"


def _renamed(settings: Settings, name: str) -> str | None:
    return settings.optional(name, str) or settings.optional(_RENAMED[name], str)


def _keep(kind: str, settings: Settings, weights: Weights, reading: Reading) -> Keep:
    if "jumprelu" in kind:
        return Keep("threshold", theta=weights.take("threshold", settings.count("d_sae")))
    if kind != "topk":
        return Keep("relu")
    options = settings.table("activation_fn_kwargs") if "k" not in settings else settings
    k = options.count("k") if "k" in options else reading.answers.k
    if k is None:
        raise question(settings.where, "it does not say how many features topk keeps", "--k")
    return Keep("topk", k=k, by_decoder_norm=settings.optional("rescale_acts_by_decoder_norm", bool) or False)


def _b_dec_on_input(kind: str, settings: Settings, reading: Reading) -> bool:
    said = settings.optional("apply_b_dec_to_input", bool)
    if kind in _TRANSCODERS:
        if said:
            raise DamagedFileError(f"{settings.where}: a transcoder cannot have apply_b_dec_to_input")
        return False
    said = reading.answers.b_dec_on_input if said is None else said
    if said is None:
        what = "it does not say whether b_dec is subtracted from the input (apply_b_dec_to_input)"
        raise question(settings.where, what, "--b-dec-on-input yes or no")
    return said


def _scaling(kind: str, settings: Settings, reading: Reading) -> Scaling:
    said = settings.raw("normalize_activations")
    if isinstance(said, bool):
        said = "expected_average_only_in" if said else "none"
    back = kind not in _TRANSCODERS
    match said:
        case "none":
            return Scaling()
        case "layer_norm":
            return Scaling("layer_norm", back=back)
        case "constant_norm_rescale":
            return Scaling("unit_norm", factor=settings.count("d_in") ** 0.5, back=back)
        case "expected_average_only_in":
            factor = _factor_beside(reading) or reading.answers.scale
            if factor is None:
                what = "activations were scaled to an average norm, and the factor is not saved with it"
                raise question(settings.where, what, f"--scale FACTOR, or put {SCALER} beside it")
            return Scaling(factor=factor, target_factor=factor)  # as SAELens folds it, transcoders too
        case None:
            if reading.answers.normalisation is None and reading.answers.scale is None:
                what = "it does not say how activations were normalised"
                raise question(
                    settings.where, what, "--normalisation none (or layer_norm, unit_norm) or --scale"
                )
            return answered_scaling(reading, settings.count("d_in"), back=back)
    raise UsageError(f"{settings.where}: normalize_activations is {said!r}, which cannot be imported")


def answered_scaling(reading: Reading, d_in: int, *, back: bool = True) -> Scaling:
    """Return the scaling that the user named; none where nothing was said."""
    kind, scale = reading.answers.normalisation, reading.answers.scale
    if kind == "layer_norm":
        return Scaling("layer_norm", back=back)
    if kind == "unit_norm":
        return Scaling("unit_norm", factor=scale or 1.0, back=back)
    return Scaling(factor=scale or 1.0, target_factor=scale or 1.0)


def _factor_beside(reading: Reading) -> float | None:
    if SCALER not in reading.location.names:
        return None
    scaler = reading.settings(SCALER)
    if scaler.optional("has_whitening", bool):
        raise UsageError(f"{scaler.where}: activations were whitened, which cannot be imported")
    factor = scaler.optional("scaling_factor", float)
    if factor is not None and not factor > 0:
        raise DamagedFileError(f"{scaler.where}: scaling_factor is {factor}")
    return factor


def _drop_scaling_factor(weights: Weights) -> None:
    """Leave out the factors of fine-tuning of version 5 where they are all 1."""
    if "scaling_factor" in weights.names:
        factors = weights.take("scaling_factor", None)
        if not torch.allclose(factors, torch.ones_like(factors)):
            raise UsageError(
                f"{weights.where} holds scaling_factor, a fine-tuning of activations that is not read"
            )


def _place(about: Settings) -> tuple[Place, tuple[str, ...]]:
    heads = [about.raw(name) for name in ("hook_head_index", "hook_head_index_out", "hook_point_head_index")]
    if any(head is not None for head in heads):
        raise UsageError(f"{about.where}: it reads one attention head alone, which is no hookpoint here")
    place = Place(
        hook=about.optional("hf_hook_name", str) or _renamed(about, "hook_name"),
        target_hook=about.optional("hf_hook_name_out", str) or about.optional("hook_name_out", str),
        model=about.optional("model_name", str),
        context=about.optional("context_size", int),
    )
    notes = []
    if not about.is_null("model_from_pretrained_kwargs"):
        notes.append(
            f"its model was loaded with {about.raw('model_from_pretrained_kwargs')}, "
            "which changes activations and is not done here"
        )
    if about.raw("seqpos_slice") not in (None, [None], [None, None]):
        notes.append(f"it was trained on the positions {about.raw('seqpos_slice')} of each row alone")
    return place, tuple(notes)
