"""Compiling what a training step needs before it is needed, so that it is no part of what is timed or shown."""

from __future__ import annotations

import torch

from saelab_kernels.adam import SparseAdam
from saelab_kernels.adam_state import AdamOptions, Weights
from saelab_kernels.buffers import GradientTerm
from saelab_kernels.decode import decode_error
from saelab_kernels.dispatch import choose_backend
from saelab_kernels.rules import PerToken
from saelab_kernels.select import encode_select


def is_cold(device: str) -> bool:
    """Whether the kernels for a device have never been compiled on this machine; only "cpu" knows."""
    if not choose_backend(device).startswith("cpu"):
        return False
    from saelab_kernels.backends.cpu.compiled import FOLDER

    return not any(FOLDER.rglob("*.nbi"))


def warm_up(device: str) -> None:
    """Do two tiny steps in float32, with clipping and AuxK, one of them by bfloat16 products where that is done."""
    for k, d_in, d_sae in ((1, 128, 64), (2, 16, 64)):
        x = torch.ones(4, d_in, device=device)
        W_dec = torch.nn.functional.normalize(
            torch.arange(1.0, d_sae * d_in + 1, device=device).view(d_sae, d_in)
        )
        weights = Weights(
            W_dec.clone().t(), torch.zeros(d_sae, device=device), W_dec, torch.zeros(d_in, device=device)
        )
        code = encode_select(x, weights.W_enc, weights.b_enc, PerToken(k), sort=False).code
        error, _ = decode_error(code, weights.W_dec, weights.b_dec, x)
        some = torch.arange(4, device=device)
        aux = encode_select(x, weights.W_enc.t()[some].t(), weights.b_enc[some], PerToken(4), sort=False).code
        aux_error, _ = decode_error(aux, weights.W_dec[some], None, x)
        terms = [
            GradientTerm(code, x, error),
            GradientTerm(aux, x, aux_error, adds_b_dec=False, features=some),
        ]
        SparseAdam(weights, AdamOptions(clip=1.0)).step(terms, 1e-3)
