"""SAELens 6: `cfg.json` and `sae_weights.safetensors` that every SAELens of version 6 reads."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from saelab.errors import UsageError
from saelab.interop.outgoing import Outgoing, notes_of, outgoing
from saelab.interop.readers.saelens import CONFIG, WEIGHTS
from saelab.interop.writing import Exported, ExportRequest, require_new
from saelab.storage.files import write_json
from saelab.storage.tensors import write_tensors
from saelab_kernels.shapes import Tensor

VERSION = "6.0.0"
"""The oldest SAELens that reads this form: an older number here makes it take the file for one of version 5."""
_NORMALISATION = {"none": "none", "layer_norm": "layer_norm", "unit_norm": "constant_norm_rescale"}


def write(request: ExportRequest) -> Exported:
    """Write the SAE of a run.

    Raises:
        UsageError: SAELens has no such SAE, or the folder holds something.
    """
    require_new(request.out)
    parts = outgoing(request.run, "saelens")
    kind, config, tensors = _transcoder(parts) if _is_transcoder(parts) else _autoencoder(parts)
    how = parts.config.input_normalisation.kind
    metadata: dict[str, Any] = {
        "sae_lens_version": VERSION,
        "sae_lens_training_version": VERSION,
        "model_name": parts.config.model_name,
        "hook_name": parts.hook,
        "hf_hook_name": parts.config.input_hooks[0],
    }
    if parts.config.source_identity and parts.config.model_identity:
        metadata["prepend_bos"] = True  # as in every row of our stores
    if _is_transcoder(parts):
        metadata |= {
            "hook_name_out": parts.config.output_hooks[0],
            "hf_hook_name_out": parts.config.output_hooks[0],
        }
    common = {
        "architecture": kind,
        "d_in": parts.config.d_in,
        "d_sae": parts.config.d_sae,
        "dtype": "float32",
        "device": "cpu",
        "normalize_activations": _NORMALISATION[how],
        "reshape_activations": "none",
        "metadata": metadata,
    }
    write_tensors(request.out / WEIGHTS, tensors)
    write_json(request.out / CONFIG, common | config)
    return Exported(
        files=(request.out / WEIGHTS, request.out / CONFIG), architecture=kind, notes=_notes(parts)
    )


def _is_transcoder(parts: Outgoing) -> bool:
    return parts.is_transcoder or parts.W_skip is not None


def _autoencoder(parts: Outgoing) -> tuple[str, dict[str, Any], dict[str, Tensor]]:
    parts = _for_constant_norm(parts)
    config: dict[str, Any] = {"apply_b_dec_to_input": parts.subtracts_b_dec}
    tensors = {"W_enc": parts.W_enc, "W_dec": parts.W_dec, "b_dec": parts.b_dec}
    if parts.keep == "threshold" and parts.config.recipe == "gated":
        gate = {
            "b_gate": parts.gate_bias(),
            "b_mag": parts.b_enc,
            "r_mag": parts.b_enc.new_zeros(len(parts.b_enc)),
        }
        return "gated", config, tensors | gate
    tensors["b_enc"] = parts.b_enc
    if parts.keep == "topk":
        return "topk", config | {"k": parts.k, "rescale_acts_by_decoder_norm": False}, tensors
    if parts.theta is not None:
        return "jumprelu", config, tensors | {"threshold": parts.theta}
    return "standard", config, tensors


def _transcoder(parts: Outgoing) -> tuple[str, dict[str, Any], dict[str, Tensor]]:
    if parts.keep == "topk":
        raise UsageError(
            "export: SAELens has no transcoder (nor an SAE with a skip) that keeps the k largest; sparsify has"
        )
    if parts.config.target_normalisation.kind != "none":
        raise UsageError(
            "export: SAELens' transcoders do not scale reconstructions back to each token, and this one does"
        )
    parts = parts.with_input_bias(False)
    kind = ("jumprelu_" if parts.theta is not None else "") + ("skip_" if parts.W_skip is not None else "")
    tensors = {"W_enc": parts.W_enc, "b_enc": parts.b_enc, "W_dec": parts.W_dec, "b_dec": parts.b_dec}
    if parts.theta is not None:
        tensors["threshold"] = parts.theta
    if parts.W_skip is not None:
        tensors["W_skip"] = parts.W_skip.T
    return f"{kind}transcoder", {"apply_b_dec_to_input": False, "d_out": parts.config.d_out}, tensors


def _for_constant_norm(parts: Outgoing) -> Outgoing:
    """Tokens of norm 1 become tokens of norm sqrt(d_in), which SAELens gives them."""
    if parts.config.input_normalisation.kind != "unit_norm":
        return parts
    c = math.sqrt(parts.config.d_in)
    return replace(parts, W_enc=parts.W_enc / c, W_dec=parts.W_dec * c, b_dec=parts.b_dec * c)


def _notes(parts: Outgoing) -> tuple[str, ...]:
    found = list(notes_of(parts))
    if not parts.config.hook_aliases[0]:
        found.append(
            f"{parts.config.input_hooks[0]} has no TransformerLens name, so that SAELens cannot put it into a model"
        )
    if parts.config.recipe == "gated" and parts.keep == "threshold":
        found.append(
            "the gate is written with r_mag 0: the same map with the magnitudes' scale in the encoder"
        )
    return tuple(found)
