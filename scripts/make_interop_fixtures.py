"""Write the small files of other tools that the tests read, with what those tools themselves compute from them.

Runs in an environment of its own, beside ours, since SAELens needs an older TransformerLens:

    python -m venv peers && peers/bin/pip install torch sae-lens "transformer-lens<4" eai-sparsify dictionary-learning
    PYTHONPATH=.:kernels peers/bin/python scripts/make_interop_fixtures.py --out tests/interop/fixtures

Each case is a folder: `sae/` as the tool saves it, `expected.safetensors` with inputs ``x``, feature activations,
reconstructions and ``length`` (what one unit of a feature adds to the output, by the tool's own decoder), and
`about.json`. Formats without a library are written from their definition, and what they compute is computed here in
float64 by other code than the package's. Then runs of ours are exported, and the tools read what was written.
"""

# pyright: reportMissingImports=false, reportAttributeAccessIssue=false
# The tools are not in the environment that is checked.
from __future__ import annotations

import argparse
import json
import os
import shutil
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

D_IN, D_SAE, D_OUT, TOKENS, K = 8, 20, 6, 12, 5
Tensor = torch.Tensor


def main() -> None:
    """Write every case anew."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    out = parser.parse_args().out
    shutil.rmtree(out, ignore_errors=True)
    torch.manual_seed(0)
    torch.set_num_threads(1)
    os.environ["SPARSIFY_DISABLE_TRITON"] = "1"  # its sparse decoder needs a GPU
    for make in (saelens_cases, saelens_old, saelens_scaled, sparsify_cases, dictionary_cases):
        make(out)
    from interop_definitions import write_all

    write_all(out, record)
    from interop_exports import export_all

    export_all(out, record)


def record(
    folder: Path, x: Tensor, features: Tensor, x_hat: Tensor, length: Tensor, made_by: str, **about: Any
) -> None:
    """Write what a tool computes, and what it was."""
    found = {"x": x, "features": features, "x_hat": x_hat, "length": length}
    save_file({n: t.detach().float().contiguous() for n, t in found.items()}, folder / "expected.safetensors")
    facts = {"made_by": made_by, "sae": "sae", "options": {}} | about
    (folder / "about.json").write_text(json.dumps(facts, indent=1, sort_keys=True) + "\n")


def lengths(decode: Callable[[Tensor], Tensor], d_sae: int) -> Tensor:
    """Return how far one unit of each feature moves a decoder's output."""
    zero = decode(torch.zeros(1, d_sae))
    return torch.stack([(decode(row[None]) - zero).norm() for row in torch.eye(d_sae)])


def randomise(module: torch.nn.Module, *, unit_decoder: bool = False) -> None:
    """Give every parameter values of its own; decoder rows get different norms unless told otherwise."""
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            values = torch.randn(parameter.shape) * (0.2 if parameter.dim() == 1 else 0.5)
            if "threshold" in name:
                values = 0.2 + 0.3 * torch.rand(parameter.shape)
            if unit_decoder and name == "W_dec":
                values = values / values.norm(dim=1, keepdim=True)
            if unit_decoder and name == "decoder.weight":
                values = values / values.norm(dim=0, keepdim=True)
            parameter.copy_(values)


def inputs(d_in: int = D_IN) -> Tensor:
    """Return activations with a mean that is not 0."""
    return 1.5 * torch.randn(TOKENS, d_in) + torch.randn(d_in)


# SAELens


def saelens_cases(out: Path) -> None:
    """Every architecture, each with a trap of its own."""
    from sae_lens.saes.gated_sae import GatedSAE, GatedSAEConfig
    from sae_lens.saes.jumprelu_sae import JumpReLUSAE, JumpReLUSAEConfig
    from sae_lens.saes.standard_sae import StandardSAE, StandardSAEConfig
    from sae_lens.saes.topk_sae import TopKSAE, TopKSAEConfig
    from sae_lens.saes.transcoder import (
        JumpReLUSkipTranscoder,
        JumpReLUSkipTranscoderConfig,
        JumpReLUTranscoder,
        JumpReLUTranscoderConfig,
        SkipTranscoder,
        SkipTranscoderConfig,
        Transcoder,
        TranscoderConfig,
    )

    def sae(name: str, kind: Any, config: Any, **options: Any) -> None:
        saelens_case(out / name, kind, config, **options)

    sae("saelens-standard", StandardSAE, StandardSAEConfig, hook="blocks.1.hook_resid_post")
    sae("saelens-standard-no-input-bias", StandardSAE, StandardSAEConfig, apply_b_dec_to_input=False)
    sae("saelens-standard-layer-norm", StandardSAE, StandardSAEConfig, normalize_activations="layer_norm")
    sae("saelens-topk-rescaled", TopKSAE, TopKSAEConfig, k=K, rescale_acts_by_decoder_norm=True)
    sae("saelens-topk-free-norms", TopKSAE, TopKSAEConfig, k=K, rescale_acts_by_decoder_norm=False)
    constant = {"k": K, "normalize_activations": "constant_norm_rescale"}
    sae("saelens-topk-constant-norm", TopKSAE, TopKSAEConfig, unit_decoder=True, **constant)
    sae("saelens-jumprelu", JumpReLUSAE, JumpReLUSAEConfig)
    sae("saelens-jumprelu-hook-z", JumpReLUSAE, JumpReLUSAEConfig, hook="blocks.1.attn.hook_z", heads=2)
    sae("saelens-gated", GatedSAE, GatedSAEConfig)
    for kind, config in (
        (Transcoder, TranscoderConfig),
        (SkipTranscoder, SkipTranscoderConfig),
        (JumpReLUTranscoder, JumpReLUTranscoderConfig),
        (JumpReLUSkipTranscoder, JumpReLUSkipTranscoderConfig),
    ):
        name = config.architecture().replace("_", "-")
        sae(f"saelens-{name}", kind, config, d_out=D_OUT, apply_b_dec_to_input=False)


def saelens_case(
    folder: Path,
    kind: Any,
    config: Any,
    *,
    hook: str = "blocks.2.hook_resid_post",
    heads: int | None = None,
    unit_decoder: bool = False,
    **options: Any,
) -> None:
    """Save an SAE of SAELens, load it again, and write what it computes."""
    from sae_lens import SAE
    from sae_lens.saes.sae import SAEMetadata

    facts = {"model_name": "gpt2-small", "hook_name": hook, "context_size": 128, "hook_head_index": None}
    if "d_out" in options:
        facts["hook_name_out"] = "blocks.2.hook_mlp_out"
    reshape = "none" if heads is None else "hook_z"
    made = kind(
        config(d_in=D_IN, d_sae=D_SAE, reshape_activations=reshape, metadata=SAEMetadata(**facts), **options)
    )
    randomise(made, unit_decoder=unit_decoder)
    made.save_model(folder / "sae")
    saelens_record(folder, SAE.load_from_disk(folder / "sae"), heads=heads)


def saelens_record(
    folder: Path, sae: Any, *, heads: int | None = None, d_in: int = D_IN, **about: Any
) -> None:
    """Write what an SAE of SAELens computes."""
    x = inputs(d_in)
    given = x if heads is None else x.reshape(TOKENS, heads, -1)
    with torch.no_grad():
        features = sae.encode(given)
        x_hat = sae(given).reshape(TOKENS, -1)
        norms = sae.W_dec.norm(dim=1)
        if getattr(sae.cfg, "rescale_acts_by_decoder_norm", False):
            norms = torch.ones_like(norms)  # their decoder divides by them
        if sae.cfg.normalize_activations == "constant_norm_rescale":
            norms = norms / sae.cfg.d_in**0.5
    record(folder, x, features, x_hat, norms, f"sae-lens {version('sae-lens')}", **about)


def saelens_old(out: Path) -> None:
    """A folder of version 5: top-k behind the architecture `standard`, no metadata."""
    from sae_lens import SAE

    folder = out / "saelens-5-topk"
    (folder / "sae").mkdir(parents=True)
    weights = {
        "W_enc": torch.randn(D_IN, D_SAE) * 0.5,
        "b_enc": torch.randn(D_SAE) * 0.2,
        "W_dec": torch.nn.functional.normalize(torch.randn(D_SAE, D_IN), dim=1),
        "b_dec": torch.randn(D_IN) * 0.2,
        "scaling_factor": torch.ones(D_SAE),
    }
    save_file(weights, folder / "sae" / "sae_weights.safetensors")
    config = {
        "architecture": "standard",
        "d_in": D_IN,
        "d_sae": D_SAE,
        "dtype": "torch.float32",
        "device": "cpu",
        "activation_fn_str": "topk",
        "activation_fn_kwargs": {"k": K},
        "apply_b_dec_to_input": True,
        "finetuning_scaling_factor": False,
        "normalize_activations": "none",
        "model_name": "gpt2-small",
        "hook_name": "blocks.3.hook_resid_pre",
        "hook_layer": 3,
        "hook_head_index": None,
        "context_size": 128,
        "prepend_bos": True,
        "dataset_path": "a/dataset",
        "sae_lens_training_version": "5.10.1",
    }
    (folder / "sae" / "cfg.json").write_text(json.dumps(config))
    saelens_record(folder, SAE.load_from_disk(folder / "sae"))


def saelens_scaled(out: Path) -> None:
    """A checkpoint that was trained on scaled activations, with the factor in a file beside it."""
    from sae_lens import SAE
    from sae_lens.saes.jumprelu_sae import JumpReLUSAE, JumpReLUSAEConfig
    from sae_lens.saes.sae import SAEMetadata

    folder = out / "saelens-jumprelu-scaled"
    facts = SAEMetadata(model_name="gpt2-small", hook_name="blocks.2.hook_resid_post")
    made = JumpReLUSAE(
        JumpReLUSAEConfig(
            d_in=D_IN, d_sae=D_SAE, normalize_activations="expected_average_only_in", metadata=facts
        )
    )
    randomise(made)
    made.save_model(folder / "sae")
    factor = 0.37
    (folder / "sae" / "activation_scaler.json").write_text(
        json.dumps({"scaling_factor": factor, "has_whitening": False})
    )
    sae = SAE.load_from_disk(folder / "sae")
    sae.fold_activation_norm_scaling_factor(factor)
    saelens_record(folder, sae)


# sparsify


def sparsify_cases(out: Path) -> None:
    """Top-k SAEs and transcoders; one is square, which SAELens' own loader of this format turns round."""
    from sparsify import SparseCoder, SparseCoderConfig

    def case(name: str, hookpoint: str, **options: Any) -> None:
        folder = out / name
        made = SparseCoder(D_IN, SparseCoderConfig(k=K, **options))
        randomise(made, unit_decoder=not options.get("transcode", False))
        made.save_to_disk(folder / "sae" / hookpoint)
        sae = SparseCoder.load_from_disk(folder / "sae" / hookpoint)
        sparsify_record(folder, sae, sae=f"sae/{hookpoint}")

    case("sparsify-topk", "layers.2", num_latents=D_SAE)
    case("sparsify-topk-square", "layers.1.mlp", num_latents=D_IN)
    case("sparsify-transcoder", "layers.2.mlp", expansion_factor=2, transcode=True)
    case("sparsify-skip-transcoder", "layers.2.mlp", num_latents=D_SAE, transcode=True, skip_connection=True)


def sparsify_record(folder: Path, made: Any, **about: Any) -> None:
    """Write what a coder of sparsify computes."""
    x = inputs()
    with torch.no_grad():
        values, indices, _ = made.encode(x)
        features = torch.zeros(TOKENS, made.num_latents).scatter_(1, indices, values)
        x_hat = made(x).sae_out
    by = f"eai-sparsify {version('eai-sparsify')}"
    record(folder, x, features, x_hat, made.W_dec.norm(dim=1), by, **about)


# dictionary_learning


def dictionary_cases(out: Path) -> None:
    """All seven classes, loaded by the tool's own `load_dictionary`."""
    from dictionary_learning import dictionary
    from dictionary_learning.trainers.batch_top_k import BatchTopKSAE
    from dictionary_learning.trainers.matryoshka_batch_top_k import MatryoshkaBatchTopKSAE
    from dictionary_learning.trainers.top_k import AutoEncoderTopK

    for made in (
        dictionary.AutoEncoder(D_IN, D_SAE),
        dictionary.AutoEncoderNew(D_IN, D_SAE),
        dictionary.GatedAutoEncoder(D_IN, D_SAE),
        dictionary.JumpReluAutoEncoder(D_IN, D_SAE),
        AutoEncoderTopK(D_IN, D_SAE, K),
        BatchTopKSAE(D_IN, D_SAE, K),
        MatryoshkaBatchTopKSAE(D_IN, D_SAE, K, [8, 12]),
    ):
        is_free = isinstance(made, dictionary.AutoEncoderNew | dictionary.JumpReluAutoEncoder)
        randomise(made, unit_decoder=not is_free)
        if isinstance(made, BatchTopKSAE | MatryoshkaBatchTopKSAE):
            made.threshold.fill_(0.4)
        name = type(made).__name__
        folder = out / f"dictionary-learning-{name}"
        (folder / "sae").mkdir(parents=True)
        torch.save(made.state_dict(), folder / "sae" / "ae.pt")
        trainer = {
            "dict_class": name,
            "activation_dim": D_IN,
            "dict_size": D_SAE,
            "layer": 3,
            "lm_name": "EleutherAI/pythia-70m-deduped",
            "submodule_name": "resid_post_layer_3",
        } | ({"k": K} if hasattr(made, "k") else {})
        config = {"trainer": trainer, "buffer": {"d_submodule": D_IN, "io": "out", "ctx_len": 128}}
        (folder / "sae" / "config.json").write_text(json.dumps(config))
        dictionary_record(folder, folder / "sae", allow_pickle=True)


def dictionary_record(folder: Path, path: Path, **about: Any) -> None:
    """Write what a dictionary computes."""
    from dictionary_learning.utils import load_dictionary

    made, _ = load_dictionary(str(path), "cpu")
    x = inputs()
    with torch.no_grad():
        features = made.encode(x)
        x_hat = made.decode(features)
        length = lengths(made.decode, features.shape[1])
    record(
        folder, x, features, x_hat, length, f"dictionary-learning {version('dictionary-learning')}", **about
    )


def as_tensor(array: np.ndarray) -> Tensor:
    """Return an array as float32."""
    return torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32))


if __name__ == "__main__":
    main()
