"""sparsify: `HOOKPOINT/cfg.json` and `HOOKPOINT/sae.safetensors`, top-k SAEs and transcoders alone."""

from __future__ import annotations

import re

from saelab.errors import UsageError
from saelab.interop.outgoing import Outgoing, notes_of, outgoing, require_plain_scale
from saelab.interop.readers.sparsify import CONFIG, WEIGHTS
from saelab.interop.writing import Exported, ExportRequest, require_new
from saelab.storage.files import write_json
from saelab.storage.tensors import write_tensors

_BASES = ("model", "transformer", "gpt_neox", "bert")
"""What the module paths of models begin with; sparsify leaves it out."""


def write(request: ExportRequest) -> Exported:
    """Write the SAE of a run.

    Raises:
        UsageError: sparsify has no such SAE, or the folder holds something.
    """
    require_new(request.out)
    parts = outgoing(request.run, "sparsify")
    require_plain_scale(parts, "sparsify")
    if parts.keep != "topk":
        raise UsageError(
            "export: sparsify has SAEs that keep the k largest of each token alone; saelens has this one"
        )
    if parts.config.d_in != parts.config.d_out:
        raise UsageError("export: sparsify has transcoders between places of one width alone")
    parts = parts.with_input_bias(not parts.is_transcoder)
    folder, notes = request.out / _hookpoint(parts), list(notes_of(parts))
    tensors = {
        "encoder.weight": parts.W_enc.T,
        "encoder.bias": parts.b_enc,
        "W_dec": parts.W_dec,
        "b_dec": parts.b_dec,
    }
    if parts.W_skip is not None:
        tensors["W_skip"] = parts.W_skip.T
    config = {
        "activation": "topk",
        "expansion_factor": max(1, parts.config.d_sae // parts.config.d_in),
        "normalize_decoder": True,
        "num_latents": parts.config.d_sae,
        "k": parts.k,
        "multi_topk": False,
        "skip_connection": parts.W_skip is not None,
        "transcode": parts.is_transcoder,
        "d_in": parts.config.d_in,
    }
    if not parts.config.input_hooks[0].endswith((".output", ".input")):
        notes.append(
            f"{parts.config.input_hooks[0]} is no module of a model; sparsify's folders are named after those"
        )
    target = parts.config.output_hooks[0]
    if parts.is_transcoder and target != _output_of(parts.config.input_hooks[0]):
        notes.append(
            f"sparsify's transcoders go from a module's input to its output; this one goes to {target}"
        )
    write_tensors(folder / WEIGHTS, tensors)
    write_json(folder / CONFIG, config)
    return Exported(
        files=(folder / WEIGHTS, folder / CONFIG),
        architecture="transcoder" if parts.is_transcoder else "topk",
        notes=tuple(notes),
    )


def _output_of(hook: str) -> str:
    return hook.removesuffix(".input") + ".output"


def _hookpoint(parts: Outgoing) -> str:
    """Return sparsify's name of the place: the module's path below the base model, without its side."""
    path = parts.config.input_hooks[0].removesuffix(".output").removesuffix(".input")
    first, _, rest = path.partition(".")
    name = rest if first in _BASES and rest else path
    return re.sub(r"[^\w.-]", "_", name).lstrip(".") or "sae"
