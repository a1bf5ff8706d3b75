"""Files of formats that no installable library writes, and what they compute, in float64 from their definitions."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

D, F, N, K = 8, 20, 12, 5
BY = "the format's definition"
Array = np.ndarray
Record = Callable[..., None]


def write_all(out: Path, record: Record) -> None:
    """Write every case."""
    rng = np.random.default_rng(0)
    gemma_scope(out, record, rng)
    gemma_scope_2(out, record, rng)
    llama_scope(out, record, rng)
    openai(out, record, rng)
    llama_scope_later(out, record, rng)


def gemma_scope(out: Path, record: Record, rng: np.random.Generator) -> None:
    """JumpReLU without input bias; a transcoder; an embedding SAE, trained on embeddings times sqrt(d)."""
    for name, repository, place in (
        ("gemma-scope", "gemma-scope-2b-pt-res", "layer_3/width_16k/average_l0_7"),
        ("gemma-scope-attention", "gemma-scope-9b-it-att", "layer_12/width_16k/average_l0_7"),
        ("gemma-scope-transcoder", "gemma-scope-2b-pt-transcoders", "layer_3/width_16k/average_l0_7"),
        ("gemma-scope-embedding", "gemma-scope-2b-pt-res", "embedding/width_4k/average_l0_7"),
    ):
        w, x = _weights(rng), _inputs(rng)
        w["threshold"] = rng.uniform(0.2, 0.5, F)
        place = f"sae/{repository}/{place}"
        (out / name / place).mkdir(parents=True)
        arrays: dict[str, Any] = {key: _f32(value) for key, value in w.items()}
        np.savez(out / name / place / "params.npz", **arrays)
        w = {key: _f32(value).astype(np.float64) for key, value in w.items()}
        if "embedding" in place:
            w["W_enc"], w["W_dec"] = w["W_enc"] / np.sqrt(D), w["W_dec"] * np.sqrt(D)
        z = x @ w["W_enc"] + w["b_enc"]
        acts = np.where(z > w["threshold"], np.maximum(z, 0), 0)
        _record(record, out / name, x, acts, acts @ w["W_dec"] + w["b_dec"], _norms(w["W_dec"]), sae=place)


def gemma_scope_2(out: Path, record: Record, rng: np.random.Generator) -> None:
    """JumpReLU in safetensors; a transcoder with an affine map of its input."""
    for name, hooks in (
        ("gemma-scope-2", ("model.layers.3.output", "model.layers.3.output")),
        (
            "gemma-scope-2-affine-transcoder",
            (
                "model.layers.3.pre_feedforward_layernorm.output",
                "model.layers.3.post_feedforward_layernorm.output",
            ),
        ),
    ):
        raw, x = _weights(rng), _inputs(rng)
        w = {key.lower(): value for key, value in raw.items()} | {"threshold": rng.uniform(0.2, 0.5, F)}
        is_affine = hooks[0] != hooks[1]
        if is_affine:
            w["affine_skip_connection"] = rng.normal(size=(D, D)) * 0.3
        folder = out / name / "sae"
        folder.mkdir(parents=True)
        save_file(
            {key: torch.from_numpy(_f32(value)) for key, value in w.items()}, folder / "params.safetensors"
        )
        config = {
            "architecture": "jump_relu",
            "model_name": "gemma-v3-1b-pt",
            "hf_hook_point_in": hooks[0],
            "hf_hook_point_out": hooks[1],
            "affine_connection": is_affine,
        }
        (folder / "config.json").write_text(json.dumps(config))
        w = {key: _f32(value).astype(np.float64) for key, value in w.items()}
        z = x @ w["w_enc"] + w["b_enc"]
        acts = np.where(z > w["threshold"], np.maximum(z, 0), 0)
        x_hat = acts @ w["w_dec"] + w["b_dec"]
        if is_affine:
            x_hat = x_hat + x @ w["affine_skip_connection"]
        _record(record, out / name, x, acts, x_hat, _norms(w["w_dec"]))


def llama_scope(out: Path, record: Record, rng: np.random.Generator) -> None:
    """Activations scaled to an average norm, two in a transcoder; the threshold with and without decoder norms."""
    for name, by_norm, hooks, norms in (
        ("llama-scope", True, ("blocks.8.hook_resid_post",) * 2, (3.1, 3.1)),
        ("llama-scope-without-norms", False, ("blocks.8.hook_resid_post",) * 2, (6.3, 6.3)),
        (
            "llama-scope-transcoder",
            True,
            ("blocks.8.ln2.hook_normalized", "blocks.8.hook_mlp_out"),
            (4.0, 1.7),
        ),
    ):
        w, x, theta = _weights(rng), _inputs(rng), 0.31
        folder = out / name / "sae"
        (folder / "checkpoints").mkdir(parents=True)
        stored = {
            "encoder.weight": w["W_enc"].T,
            "encoder.bias": w["b_enc"],
            "decoder.weight": w["W_dec"].T,
            "decoder.bias": w["b_dec"],
        }
        tensors = {key: torch.from_numpy(_f32(value)) for key, value in stored.items()}
        save_file(tensors, folder / "checkpoints" / "final.safetensors")
        config = {
            "d_model": D,
            "d_sae": F,
            "act_fn": "jumprelu",
            "jump_relu_threshold": theta,
            "top_k": 50,
            "norm_activation": "dataset-wise",
            "dataset_average_activation_norm": {"in": norms[0], "out": norms[1]},
            "sparsity_include_decoder_norm": by_norm,
            "use_decoder_bias": True,
            "apply_decoder_bias_to_pre_encoder": False,
            "hook_point_in": hooks[0],
            "hook_point_out": hooks[1],
        }
        (folder / "hyperparams.json").write_text(json.dumps(config))
        w = {key: _f32(value).astype(np.float64) for key, value in w.items()}
        s, t = (np.sqrt(D) / norm for norm in norms)
        z = (x * s) @ w["W_enc"] + w["b_enc"]
        score = z * _norms(w["W_dec"]) if by_norm else z
        acts = np.where(score > theta, z, 0)
        x_hat = (acts @ w["W_dec"] + w["b_dec"]) / t
        _record(record, out / name, x, acts, x_hat, _norms(w["W_dec"]) / t)


def llama_scope_later(out: Path, record: Record, rng: np.random.Generator) -> None:
    """The form of R1-Distill: the logarithm of a threshold for each feature, average norms among the weights."""
    w, x, hook, norm = _weights(rng), _inputs(rng), "blocks.8.hook_resid_post", 5.2
    logarithm = np.log(rng.uniform(0.1, 0.4, F))
    folder = out / "llama-scope-r1-distill" / "sae"
    folder.mkdir(parents=True)
    stored = {
        "encoder.weight": w["W_enc"].T,
        "encoder.bias": w["b_enc"],
        "decoder.weight": w["W_dec"].T,
        "decoder.bias": w["b_dec"],
        "log_jumprelu_threshold": logarithm,
    }
    tensors = {key: torch.from_numpy(_f32(value)) for key, value in stored.items()}
    tensors[f"dataset_average_activation_norm.{hook}"] = torch.tensor(norm)
    save_file(tensors, folder / "sae_weights.safetensors")
    config = {
        "d_model": D,
        "expansion_factor": F / D,
        "act_fn": "jumprelu",
        "norm_activation": "dataset-wise",
        "sparsity_include_decoder_norm": True,
        "use_decoder_bias": True,
        "apply_decoder_bias_to_pre_encoder": False,
        "hook_point_in": hook,
        "hook_point_out": hook,
    }
    (folder / "config.json").write_text(json.dumps(config))
    w = {key: _f32(value).astype(np.float64) for key, value in w.items()}
    s = np.sqrt(D) / float(np.float32(norm))
    z = (x * s) @ w["W_enc"] + w["b_enc"]
    acts = np.where(z * _norms(w["W_dec"]) > np.exp(_f32(logarithm).astype(np.float64)), z, 0)
    x_hat = (acts @ w["W_dec"] + w["b_dec"]) / s
    _record(record, folder.parent, x, acts, x_hat, _norms(w["W_dec"]) / s)


def openai(out: Path, record: Record, rng: np.random.Generator) -> None:
    """ReLU on raw activations; TopK on tokens that are centred and divided by their standard deviation."""
    for name, folder, is_topk in (
        ("openai-relu", "resid_post_mlp_v4", False),
        ("openai-topk", "resid_post_mlp_v5_32k", True),
    ):
        w, x = _weights(rng), _inputs(rng)
        place = f"sae/gpt2-small/{folder}/autoencoders"
        (out / name / place).mkdir(parents=True)
        stored = {
            "pre_bias": w["b_dec"],
            "latent_bias": w["b_enc"],
            "encoder.weight": w["W_enc"].T,
            "decoder.weight": w["W_dec"].T,
            "latents_activation_frequency": np.ones(F),
            "latents_mean_square": np.zeros(F),
        }
        table: dict[str, Any] = {key: torch.from_numpy(_f32(value)) for key, value in stored.items()}
        table["stats_last_nonzero"] = torch.zeros(F, dtype=torch.int64)
        if is_topk:
            table |= {"activation": "TopK", "activation_state_dict": {"k": K, "postact_fn": "ReLU"}}
        torch.save(table, out / name / place / "6.pt")
        w = {key: _f32(value).astype(np.float64) for key, value in w.items()}
        mean, std = x.mean(1, keepdims=True), x.std(1, ddof=1, keepdims=True)
        given = (x - mean) / (std + 1e-5) if is_topk else x
        z = (given - w["b_dec"]) @ w["W_enc"] + w["b_enc"]
        acts = np.maximum(z, 0)
        if is_topk:
            cut = np.sort(z, axis=1)[:, -K][:, None]
            acts = np.where(z >= cut, acts, 0)
        x_hat = acts @ w["W_dec"] + w["b_dec"]
        x_hat = x_hat * std + mean if is_topk else x_hat
        path = f"{place}/6.pt"
        _record(record, out / name, x, acts, x_hat, _norms(w["W_dec"]), sae=path, allow_pickle=True)


def _weights(rng: np.random.Generator) -> dict[str, Array]:
    return {
        "W_enc": rng.normal(size=(D, F)) * 0.5,
        "b_enc": rng.normal(size=F) * 0.2,
        "W_dec": rng.normal(size=(F, D)) * 0.5,
        "b_dec": rng.normal(size=D) * 0.2,
    }


def _inputs(rng: np.random.Generator) -> Array:
    return _f32(1.5 * rng.normal(size=(N, D)) + rng.normal(size=D)).astype(np.float64)


def _norms(W_dec: Array) -> Array:
    return np.linalg.norm(W_dec, axis=1)


def _f32(array: Array) -> Array:
    return np.ascontiguousarray(array, dtype=np.float32)


def _record(record: Record, folder: Path, *found: Array, **about: Any) -> None:
    record(folder, *(torch.from_numpy(_f32(array)) for array in found), BY, **about)
