"""dictionary_learning: `ae.pt` (a pickle of weights, as their loader wants it) and `config.json`."""

from __future__ import annotations

import re

import torch

from saelab.errors import UsageError
from saelab.interop.outgoing import Outgoing, notes_of, outgoing, require_plain_scale
from saelab.interop.readers.dictionary_learning import CONFIG, NEVER_ESTIMATED, WEIGHTS
from saelab.interop.writing import Exported, ExportRequest, require_new
from saelab.storage.files import write_aside, write_json
from saelab_kernels.shapes import Tensor

_LAYER = re.compile(r"\.(\d+)\.")


def write(request: ExportRequest) -> Exported:
    """Write the SAE of a run.

    Raises:
        UsageError: dictionary_learning has no such SAE, or the folder holds something.
    """
    require_new(request.out)
    parts = outgoing(request.run, "dictionary-learning")
    require_plain_scale(parts, "dictionary-learning")
    if parts.is_transcoder or parts.W_skip is not None:
        raise UsageError("export: dictionary-learning has no transcoders; saelens and sparsify have")
    kind, tensors = _class(parts)
    tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
    layer = _LAYER.search(parts.config.input_hooks[0])
    trainer = {
        "dict_class": kind,
        "activation_dim": parts.config.d_in,
        "dict_size": parts.config.d_sae,
        "layer": None if layer is None else int(layer[1]),
        "lm_name": parts.config.model_name,
        "submodule_name": parts.config.input_hooks[0],
    } | ({"k": parts.k} if parts.k is not None else {})
    write_aside(request.out / WEIGHTS, lambda file: torch.save(tensors, file))
    write_json(
        request.out / CONFIG, {"trainer": trainer, "buffer": {"d_submodule": parts.config.d_in, "io": "out"}}
    )
    return Exported(
        files=(request.out / WEIGHTS, request.out / CONFIG), architecture=kind, notes=notes_of(parts)
    )


def _class(parts: Outgoing) -> tuple[str, dict[str, Tensor]]:
    """Return the class that computes the same, and its tensors."""
    if parts.keep == "topk":
        assert parts.k is not None
        own = parts.with_input_bias(True)
        numbers = {"k": torch.tensor(parts.k, dtype=torch.int), "threshold": torch.tensor(NEVER_ESTIMATED)}
        return "AutoEncoderTopK", _linear(own) | {"b_dec": own.b_dec} | numbers
    if parts.keep == "threshold" and parts.config.recipe == "gated":
        own = parts.with_input_bias(True)
        linear = _linear(own)
        b_mag = linear.pop("encoder.bias")
        gate = {"gate_bias": own.gate_bias(), "mag_bias": b_mag, "r_mag": torch.zeros_like(b_mag)}
        return "GatedAutoEncoder", linear | gate | {"decoder_bias": own.b_dec}
    if parts.theta is not None:
        own = parts.with_input_bias(False)
        tensors = {"W_enc": own.W_enc, "b_enc": own.b_enc, "W_dec": own.W_dec, "b_dec": own.b_dec}
        return "JumpReluAutoEncoder", tensors | {"threshold": parts.theta}
    if parts.subtracts_b_dec:
        return "AutoEncoder", _linear(parts) | {"bias": parts.b_dec}
    return "AutoEncoderNew", _linear(parts) | {"decoder.bias": parts.b_dec}


def _linear(parts: Outgoing) -> dict[str, Tensor]:
    return {"encoder.weight": parts.W_enc.T, "encoder.bias": parts.b_enc, "decoder.weight": parts.W_dec.T}
