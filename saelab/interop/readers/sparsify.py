"""sparsify (EleutherAI) folders: `cfg.json` and `sae.safetensors`, the folder's name being the hookpoint's."""

from __future__ import annotations

import re

from saelab.errors import UsageError
from saelab.interop.answers import question
from saelab.interop.foreign import ForeignSAE, Keep, Place
from saelab.interop.locations import Location
from saelab.interop.reading import Reading

CONFIG, WEIGHTS = "cfg.json", "sae.safetensors"
_HOOKPOINT = re.compile(r"(?:\w+\.)+\d+(?:\.\w+)*|embed_tokens|wte")
_SEED = re.compile(r"seed\d+")


def recognises(location: Location) -> bool:
    """Whether a place looks like such a folder."""
    return {CONFIG, WEIGHTS} <= location.names


def read(reading: Reading) -> ForeignSAE:
    """Read a sparse coder.

    Its ReLU comes before top-k: entries that are kept beyond the positive ones are 0, as in every tool.

    Raises:
        UsageError: Its activation has no equal here.
        DamagedFileError: The files are not sound.
    """
    settings = reading.settings(CONFIG)
    activation = settings.optional("activation", str)
    if settings.optional("signed", bool):
        raise UsageError(
            f"{settings.where}: signed top-k keeps activations below 0, which cannot be imported"
        )
    if activation is None and "k" not in settings:
        raise question(settings.where, "it names neither an activation nor k", "--from with another format")
    if activation not in (None, "topk"):
        raise UsageError(f"{settings.where}: the activation {activation} cannot be imported; topk can")
    weights = reading.weights(WEIGHTS)
    d_in = settings.count("d_in")
    d_sae = settings.optional("num_latents", int) or d_in * settings.count("expansion_factor")
    is_transcoder = settings.optional("transcode", bool) or False
    has_skip = settings.optional("skip_connection", bool) or False
    W_enc, b_enc = weights.take("encoder.weight", d_sae, d_in).T, weights.take("encoder.bias", d_sae)
    W_dec, b_dec = weights.take("W_dec", d_sae, d_in), weights.take("b_dec", d_in)
    W_skip = weights.take("W_skip", d_in, d_in).T if has_skip else None
    weights.require_nothing_left()
    return ForeignSAE(
        architecture="transcoder" if is_transcoder else "topk",
        W_enc=W_enc,
        b_enc=b_enc,
        W_dec=W_dec,
        b_dec=b_dec,
        W_skip=W_skip,
        keep=Keep("topk", k=settings.count("k")),
        apply_b_dec_to_input=not is_transcoder,
        is_transcoder=is_transcoder,
        place=_place(reading.location.address, is_transcoder),
        recipe=("skip-transcoder" if has_skip else "transcoder") if is_transcoder else "topk",
    )


def _place(address: str, is_transcoder: bool) -> Place:
    """Return the place that the folder is named after: a module's output, or the way from its input to it."""
    parts = [part for part in address.rstrip("/").split("/") if not _SEED.fullmatch(part)]
    name = parts[-1] if parts else ""
    if not _HOOKPOINT.fullmatch(name):
        return Place()
    return (
        Place(hook=f"{name}.input", target_hook=f"{name}.output")
        if is_transcoder
        else Place(hook=f"{name}.output")
    )
