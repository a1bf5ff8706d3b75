"""Gemma Scope 2 (2025): `params.safetensors` and `config.json`, JumpReLU SAEs and transcoders with affine skips.

Format from the published repositories; nothing is installable that could be compared with.
"""

from __future__ import annotations

import re

from saelab.errors import UsageError
from saelab.interop.answers import question
from saelab.interop.foreign import ForeignSAE, Keep, Place
from saelab.interop.locations import Location
from saelab.interop.reading import Reading

CONFIG, WEIGHTS = "config.json", "params.safetensors"
_REPOSITORY = re.compile(r"gemma-scope-2-([\w.]+)-(pt|it)")
CONTEXT = 1024


def recognises(location: Location) -> bool:
    """Whether a place looks like such a folder."""
    return WEIGHTS in location.names


def read(reading: Reading) -> ForeignSAE:
    """Read a JumpReLU SAE or transcoder.

    Raises:
        UsageError: Its architecture is not said, unknown, or that of a cross-layer transcoder.
        DamagedFileError: The files are not sound.
    """
    address = reading.location.address
    if CONFIG not in reading.location.names:
        if reading.answers.activation != "jumprelu":
            raise question(
                address, f"there is no {CONFIG} that says what the SAE is", "--activation jumprelu --at HOOK"
            )
        return _read(reading, Place(context=CONTEXT), is_transcoder=reading.answers.target_at is not None)
    settings = reading.settings(CONFIG)
    kind = settings.need("architecture", str)
    if kind != "jump_relu":
        raise UsageError(f"{settings.where}: the architecture {kind} cannot be imported; jump_relu can")
    hook, target = settings.optional("hf_hook_point_in", str), settings.optional("hf_hook_point_out", str)
    place = Place(
        hook=hook,
        target_hook=None if target == hook else target,
        model=settings.optional("model_name", str) or _model(address),
        context=CONTEXT,
    )
    return _read(reading, place, is_transcoder=place.target_hook is not None)


def _read(reading: Reading, place: Place, *, is_transcoder: bool) -> ForeignSAE:
    weights = reading.weights(WEIGHTS)
    W_enc = weights.take("w_enc", None, None)
    d_in, d_sae = W_enc.shape
    if len(weights.shape("w_dec")) == 3:
        raise UsageError(
            f"{weights.where}: a cross-layer transcoder writes to many layers, which cannot be imported"
        )
    W_dec = weights.take("w_dec", d_sae, None)
    d_out = W_dec.shape[1]
    b_enc, b_dec = weights.take("b_enc", d_sae), weights.take("b_dec", d_out)
    theta = weights.take("threshold", d_sae)
    has_skip = "affine_skip_connection" in weights.names
    W_skip = weights.take("affine_skip_connection", d_in, d_out) if has_skip else None
    weights.require_nothing_left()
    is_transcoder = is_transcoder or d_in != d_out
    return ForeignSAE(
        architecture="jump_relu",
        W_enc=W_enc,
        b_enc=b_enc,
        W_dec=W_dec,
        b_dec=b_dec,
        W_skip=W_skip,
        keep=Keep("threshold", theta=theta),
        apply_b_dec_to_input=False,
        is_transcoder=is_transcoder,
        place=place,
        recipe=("skip-transcoder" if has_skip else "transcoder") if is_transcoder else "jumprelu",
    )


def _model(address: str) -> str | None:
    found = _REPOSITORY.search(address)
    return f"gemma-3-{found[1]}-{found[2]}" if found else None
