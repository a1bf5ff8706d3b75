"""Gemma Scope (2024): `params.npz` below `layer_L/width_W/average_l0_N`, JumpReLU; what it is stands in its path.

Format from the published repositories; nothing is installable that could be compared with.
"""

from __future__ import annotations

import math
import re
from dataclasses import replace

from saelab.errors import UsageError
from saelab.interop.foreign import ForeignSAE, Keep, Place
from saelab.interop.locations import Location
from saelab.interop.reading import Reading

_REPOSITORY = re.compile(r"gemma-scope-(2b|9b|27b)-(pt|it)-(res|mlp|att|transcoders)")
_LAYER = re.compile(r"/layer_(\d+)(?:/|$)")
_SITES = {"res": "hook_resid_post", "mlp": "hook_mlp_out", "att": "attn.hook_z"}
CONTEXT = 1024


def recognises(location: Location) -> bool:
    """Whether a place looks like such a file or folder."""
    return len(location.ending(".npz")) == 1


def read(reading: Reading) -> ForeignSAE:
    """Read a JumpReLU SAE or transcoder.

    Raises:
        DamagedFileError: The archive is not sound, or lacks a tensor.
    """
    weights = reading.weights(reading.location.ending(".npz")[0])
    big = "W" if "W_enc" in weights.names else "w"
    W_enc = weights.take(f"{big}_enc", None, None)
    d_sae = W_enc.shape[1]
    W_dec = weights.take(f"{big}_dec", d_sae, None)
    b_enc, b_dec = weights.take("b_enc", d_sae), weights.take("b_dec", W_dec.shape[1])
    theta = weights.take("threshold", d_sae)
    weights.require_nothing_left()
    address = reading.location.address
    repository, is_embedding = _REPOSITORY.search(address), "/embedding/" in f"{address}/"
    is_transcoder = bool(repository and repository[3] == "transcoders") or W_dec.shape[1] != W_enc.shape[0]
    if is_transcoder and is_embedding:
        raise UsageError(f"{address} names a transcoder and an embedding at once; no such SAE was published")
    if is_embedding:  # trained on embeddings that the model multiplies by sqrt(d) afterwards
        W_enc, W_dec = W_enc / math.sqrt(len(W_enc)), W_dec * math.sqrt(len(W_enc))
    sae = ForeignSAE(
        architecture="jumprelu",
        W_enc=W_enc,
        b_enc=b_enc,
        W_dec=W_dec,
        b_dec=b_dec,
        keep=Keep("threshold", theta=theta),
        apply_b_dec_to_input=False,
        is_transcoder=is_transcoder,
        place=_place(address, is_embedding),
        recipe="transcoder" if is_transcoder else "jumprelu",
    )
    if is_transcoder:
        note = "it reads ln2.hook_normalized, before the norm's own weights, which no module of the model gives out"
        return replace(sae, notes=(note,))
    return sae


def _place(address: str, is_embedding: bool) -> Place:
    repository, layer = _REPOSITORY.search(address), _LAYER.search(f"{address}/")
    if repository is None:
        return Place(context=CONTEXT)
    size, tuned, site = repository.groups()
    model = f"gemma-2-{size}" + ("-it" if tuned == "it" else "")
    if is_embedding:
        return Place(hook="hook_embed", model=model, context=CONTEXT)
    if layer is None:
        return Place(model=model, context=CONTEXT)
    block = f"blocks.{layer[1]}"
    if site == "transcoders":
        hook, target = f"{block}.ln2.hook_normalized", f"{block}.hook_mlp_out"
        return Place(hook=hook, target_hook=target, model=model, context=CONTEXT)
    return Place(hook=f"{block}.{_SITES[site]}", model=model, context=CONTEXT)
