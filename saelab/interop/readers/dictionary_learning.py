"""dictionary_learning folders: `ae.pt` (a pickle of weights) and `config.json`; all seven classes.

The feature activations of all classes are what `encode` of their own code returns with its defaults.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace

from saelab.errors import DamagedFileError, UsageError
from saelab.interop.answers import question
from saelab.interop.foreign import ForeignSAE, Keep, Place, gated_keep
from saelab.interop.locations import Location
from saelab.interop.reading import Reading
from saelab.interop.settings import Settings
from saelab.interop.weights import Weights

CONFIG, WEIGHTS = "config.json", "ae.pt"
NEVER_ESTIMATED = -1.0
"""Threshold of a top-k SAE that no step of training has estimated."""
_SUBMODULE = re.compile(r"(resid_post|resid_pre|mlp_out|attn_out|attention_out)_layer_(\d+)")
_SITES = {
    "resid_post": "hook_resid_post",
    "resid_pre": "hook_resid_pre",
    "mlp_out": "hook_mlp_out",
    "attn_out": "hook_attn_out",
    "attention_out": "hook_attn_out",
}


def recognises(location: Location) -> bool:
    """Whether a place looks like such a folder."""
    return {CONFIG, WEIGHTS} <= location.names


def read(reading: Reading) -> ForeignSAE:
    """Read a dictionary.

    Raises:
        UsageError: Reading `.pt` was not allowed, the class is unknown, or its threshold was never estimated.
        DamagedFileError: The files are not sound.
    """
    trainer = reading.settings(CONFIG).table("trainer")
    kind = trainer.need("dict_class", str)
    if kind not in _CLASSES:
        raise UsageError(f"{trainer.where}: the class {kind} is unknown; known are {', '.join(_CLASSES)}")
    weights = reading.weights(WEIGHTS)
    sae = _CLASSES[kind](weights, trainer, reading)
    weights.require_nothing_left()
    d_in, d_sae = trainer.optional("activation_dim", int), trainer.optional("dict_size", int)
    if (d_in or sae.W_enc.shape[0], d_sae or sae.W_enc.shape[1]) != tuple(sae.W_enc.shape):
        raise DamagedFileError(
            f"{weights.where}: the weights are {tuple(sae.W_enc.shape)}, {CONFIG} says ({d_in}, {d_sae})"
        )
    return replace(sae, architecture=kind, place=_place(reading.settings(CONFIG), trainer))


def _linear(weights: Weights, *, encoder_bias: bool = True) -> dict:
    W_enc = weights.take("encoder.weight", None, None).T
    d_in, d_sae = W_enc.shape
    found = {"W_enc": W_enc, "W_dec": weights.take("decoder.weight", d_in, d_sae).T}
    return found | ({"b_enc": weights.take("encoder.bias", d_sae)} if encoder_bias else {})


def _parameters(weights: Weights) -> dict:
    W_enc = weights.take("W_enc", None, None)
    d_in, d_sae = W_enc.shape
    return {
        "W_enc": W_enc,
        "W_dec": weights.take("W_dec", d_sae, d_in),
        "b_enc": weights.take("b_enc", d_sae),
        "b_dec": weights.take("b_dec", d_in),
    }


def _sae(found: dict, keep: Keep, recipe: str, *, b_dec_on_input: bool) -> ForeignSAE:
    return ForeignSAE(
        architecture="", **found, keep=keep, apply_b_dec_to_input=b_dec_on_input, place=Place(), recipe=recipe
    )


def _auto_encoder(weights: Weights, trainer: Settings, reading: Reading) -> ForeignSAE:
    found = _linear(weights)
    found["b_dec"] = weights.take("bias", found["W_enc"].shape[0])
    return _sae(found, Keep("relu"), "relu", b_dec_on_input=True)


def _auto_encoder_new(weights: Weights, trainer: Settings, reading: Reading) -> ForeignSAE:
    found = _linear(weights)
    found["b_dec"] = weights.take("decoder.bias", found["W_enc"].shape[0])
    return _sae(found, Keep("relu"), "relu", b_dec_on_input=False)


def _gated(weights: Weights, trainer: Settings, reading: Reading) -> ForeignSAE:
    found = _linear(weights, encoder_bias=False)
    d_in, d_sae = found["W_enc"].shape
    r_mag, b_mag = weights.take("r_mag", d_sae), weights.take("mag_bias", d_sae)
    keep = gated_keep(weights.take("gate_bias", d_sae), b_mag, r_mag)
    found |= {
        "b_enc": b_mag,
        "b_dec": weights.take("decoder_bias", d_in),
        "W_enc": found["W_enc"] * r_mag.exp(),
    }
    return _sae(found, keep, "gated", b_dec_on_input=True)


def _jumprelu(weights: Weights, trainer: Settings, reading: Reading) -> ForeignSAE:
    found = _parameters(weights)
    theta = weights.take("threshold", found["W_enc"].shape[1])
    return _sae(found, Keep("threshold", theta=theta), "jumprelu", b_dec_on_input=False)


def _top_k(weights: Weights, trainer: Settings, reading: Reading) -> ForeignSAE:
    found = _linear(weights)
    found["b_dec"] = weights.take("b_dec", found["W_enc"].shape[0])
    weights.drop(["threshold"])  # their encode uses it only where it is asked to
    return _sae(found, Keep("topk", k=_k(weights, trainer)), "topk", b_dec_on_input=True)


def _batch_top_k(weights: Weights, trainer: Settings, reading: Reading) -> ForeignSAE:
    found = _linear(weights)
    found["b_dec"] = weights.take("b_dec", found["W_enc"].shape[0])
    return _sae(found, _batch_keep(weights, trainer, reading), "batch-topk", b_dec_on_input=True)


def _matryoshka(weights: Weights, trainer: Settings, reading: Reading) -> ForeignSAE:
    found = _parameters(weights)
    weights.drop(["group_sizes"])
    return _sae(found, _batch_keep(weights, trainer, reading), "matryoshka", b_dec_on_input=True)


def _k(weights: Weights, trainer: Settings) -> int:
    k = weights.take_whole_number("k") if "k" in weights.names else trainer.count("k")
    said = trainer.optional("k", int)
    if k < 1 or (said is not None and said != k):
        raise DamagedFileError(f"{weights.where}: k is {k}, {trainer.where} says {said}")
    return k


def _batch_keep(weights: Weights, trainer: Settings, reading: Reading) -> Keep:
    k, theta = _k(weights, trainer), weights.take("threshold")
    if theta.item() >= 0:
        return Keep("threshold", theta=theta)
    match reading.answers.activation:
        case "topk":
            return Keep("topk", k=reading.answers.k or k)
        case "relu":
            return Keep("relu")
    what = f"its threshold is {theta.item():g}, so it was never estimated; their code then keeps everything above 0"
    raise question(
        weights.where, what, f"--activation topk (the {k} largest of each token) or --activation relu"
    )


def _place(settings: Settings, trainer: Settings) -> Place:
    submodule, layer = trainer.optional("submodule_name", str), trainer.optional("layer", int)
    hook = submodule
    if submodule and (match := _SUBMODULE.fullmatch(submodule)):
        hook = f"blocks.{match[2]}.{_SITES[match[1]]}"
    elif submodule in _SITES and layer is not None:
        hook = f"blocks.{layer}.{_SITES[submodule]}"
    return Place(
        hook=hook,
        model=trainer.optional("lm_name", str),
        context=settings.table("buffer").optional("ctx_len", int),
    )


_CLASSES: dict[str, Callable[[Weights, Settings, Reading], ForeignSAE]] = {
    "AutoEncoder": _auto_encoder,
    "AutoEncoderNew": _auto_encoder_new,
    "GatedAutoEncoder": _gated,
    "JumpReluAutoEncoder": _jumprelu,
    "AutoEncoderTopK": _top_k,
    "BatchTopKSAE": _batch_top_k,
    "MatryoshkaBatchTopKSAE": _matryoshka,
}
