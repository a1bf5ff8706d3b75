"""What a feature does to the logits directly: its decoder row through the final norm's gain and the unembedding.

For a feature's direction d (for an activation of 1), `logits = (gain * d') W_U`, where d' is d, less its mean where
the final norm takes means away, and gain is the norm's elementwise scale. Division by the norm of the whole residual
stream is left out: it is one positive number for all tokens, so that ranks are right and sizes are relative. Each
feature's logits are centred over the vocabulary, since adding a number to all of them changes no prediction. This is
the direct path alone (the "logit lens" of a direction; derived), not what later layers make of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from saelab.lm.load import LanguageModel
from saelab.sae.config import SAEConfig
from saelab_kernels.shapes import Float, Tensor

BLOCK = 1024
"""Features at once."""
BLOCK_NUMBERS = 2**27
"""Logits that are held at once at most: 0.5 GiB."""


@dataclass(frozen=True)
class FinalNorm:
    """What stands between the residual stream and the unembedding, as far as it is linear."""

    gain: Float[Tensor, " d"]
    """Elementwise scale."""
    centres: bool
    """Whether the mean over the width is taken away (LayerNorm)."""


@dataclass(frozen=True)
class LogitLens:
    """The map from directions of the residual stream to centred logits."""

    norm: FinalNorm
    weight: Float[Tensor, "V d"]
    """Rows of the unembedding."""

    def logits(self, rows: Float[Tensor, "n d"]) -> Float[Tensor, "n V"]:
        """Return what each row adds to the logits, float32, each row with mean 0."""
        x = rows.float()
        if self.norm.centres:
            x = x - x.mean(dim=1, keepdim=True)
        found = (x * self.norm.gain) @ self.weight.T.float()
        return found - found.mean(dim=1, keepdim=True)


@dataclass(frozen=True)
class LogitBlock:
    """The logit columns of consecutive features."""

    features: range
    promoted: NDArray[np.int64]
    """Token ids, `[n, logits]`, strongest first."""
    promoted_logits: NDArray[np.float32]
    suppressed: NDArray[np.int64]
    suppressed_logits: NDArray[np.float32]
    edges: NDArray[np.float32]
    """Of equal bins from the smallest to the largest logit, `[n, bins + 1]`."""
    counts: NDArray[np.int64]
    kurtosis: NDArray[np.float64]
    """Excess kurtosis over the vocabulary; NaN where all logits are equal."""


def find_lens(lm: LanguageModel | None, config: SAEConfig) -> LogitLens | str:
    """Return the lens of an SAE, or why it has none, as the end of a sentence: an index is useful without logits."""
    if lm is None:
        return "the activations have no model"
    if lm.unembedding is None:
        return f"the model {lm.no_losses}"
    if len(config.output_hooks) != 1:
        return "the SAE reconstructs several hookpoints"
    if config.target_normalisation.is_per_token:
        return "the SAE works relative to each token's scale"
    weight = lm.unembedding.weight
    hook = next((h for h in lm.hookpoints if h.module_path == config.output_hooks[0]), None)
    if hook is None or config.d_out != weight.shape[1]:
        return "the SAE's directions are not of the width of the residual stream"
    if not _is_residual(hook.alias, hook.module_path):
        return f"{hook.alias or hook.module_path} does not add to the residual stream"
    norm = final_norm(lm.module, weight.shape[1])
    if norm is None:
        return "the model's final norm was not recognised"
    return LogitLens(norm, weight.detach())


def _is_residual(alias: str | None, path: str) -> bool:
    """Whether what is written at a hookpoint is added to the residual stream as it is."""
    name = (alias or "").rpartition(".")[2]
    if name:
        return name in {
            "hook_resid_pre",
            "hook_resid_mid",
            "hook_resid_post",
            "hook_attn_out",
            "hook_mlp_out",
            "hook_embed",
        }
    parts = path.split(".")
    return parts[-2].isdigit()  # a whole block


def final_norm(model: nn.Module, width: int) -> FinalNorm | None:
    """Find the last norm before the unembedding, and measure what it does to a probe."""
    norms = [
        module
        for name, module in model.named_modules()
        if "norm" in type(module).__name__.lower() and not _inside_a_layer(name)
    ]
    if not norms or width % 2:  # the probe below has mean 0 for even widths
        return None
    module = norms[-1]
    weight = next(module.parameters(), None)
    device, dtype = (torch.device("cpu"), torch.float32) if weight is None else (weight.device, weight.dtype)
    probe = torch.ones(width, device=device, dtype=dtype)
    probe[1::2] = -1  # mean 0 and mean square 1: either kind of norm leaves it as it is
    try:
        with torch.no_grad():
            gain = (_apply(module, probe) - _apply(module, -probe)) / (2 * probe.float())
            shifted = _apply(module, probe + 1) - _apply(module, -probe - 1)
            as_centred = _apply(module, probe) - _apply(module, -probe)
    except (RuntimeError, TypeError):
        return None
    if gain.shape != (width,) or not torch.isfinite(gain).all():
        return None
    return FinalNorm(gain.cpu(), bool(torch.allclose(shifted, as_centred, rtol=1e-2, atol=1e-3)))


def _apply(module: nn.Module, x: Tensor) -> Tensor:
    return module(x[None, None])[0, 0].float()


def _inside_a_layer(name: str) -> bool:
    return any(part.isdigit() for part in name.split("."))


def logit_blocks(
    lens: LogitLens, W_dec: Float[Tensor, "d_sae d"], n_logits: int, bins: int
) -> Iterator[tuple[LogitBlock, Float[Tensor, "n V"]]]:
    """Yield the columns of consecutive features with their logits, a bounded number at a time."""
    n_tokens = lens.weight.shape[0]
    height = max(1, min(BLOCK, BLOCK_NUMBERS // n_tokens))
    k = min(n_logits, n_tokens)
    for start in range(0, len(W_dec), height):
        rows = W_dec[start : start + height].to(lens.weight.device)
        logits = lens.logits(rows).cpu()
        high, low = logits.topk(k, dim=1), logits.topk(k, dim=1, largest=False)
        edges, counts = _histograms(logits, bins)
        wide = logits.double()
        second, fourth = (wide**2).mean(1), (wide**4).mean(1)  # centred already
        yield (
            LogitBlock(
                range(start, start + len(rows)),
                high.indices.numpy(),
                high.values.numpy(),
                low.indices.numpy(),
                low.values.numpy(),
                edges,
                counts,
                np.where(second > 0, fourth / second.clamp_min(1e-300) ** 2 - 3, np.nan),
            ),
            logits,
        )


def _histograms(logits: Float[Tensor, "n V"], bins: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    low, high = logits.amin(1, keepdim=True), logits.amax(1, keepdim=True)
    edges = low + (high - low) * torch.linspace(0, 1, bins + 1)
    edges[:, -1:] = high
    place = torch.searchsorted(edges[:, 1:-1].contiguous(), logits, right=True)
    flat = place + torch.arange(len(logits))[:, None] * bins
    counts = torch.bincount(flat.reshape(-1), minlength=len(logits) * bins).reshape(-1, bins)
    return edges.numpy(), counts.numpy()


class TokenLeaders:
    """Keeps, for every token, the features that promote it most: exact over all features.

    Args:
        n_tokens: Size of the vocabulary.
        n: Features of each token.
    """

    def __init__(self, n_tokens: int, n: int) -> None:
        self._values = torch.full((n_tokens, n), -torch.inf)
        self._features = torch.zeros(n_tokens, n, dtype=torch.int64)

    def add(self, features: range, logits: Float[Tensor, "n V"]) -> None:
        """Take in the logits of consecutive features; equal ones stay in the order of the features."""
        ids = torch.arange(features.start, features.stop)
        k = min(self._values.shape[1], len(ids))
        new = logits.T.topk(k, dim=1)
        values = torch.cat([self._values, new.values], dim=1)
        owners = torch.cat([self._features, ids[new.indices]], dim=1)
        order = values.argsort(dim=1, descending=True, stable=True)[:, : self._values.shape[1]]
        self._values, self._features = values.gather(1, order), owners.gather(1, order)

    def result(self) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
        """Return tokens, features and logits, by token, strongest first."""
        found = torch.isfinite(self._values)
        tokens = torch.arange(len(found))[:, None].expand_as(found)[found]
        return tokens.numpy(), self._features[found].numpy(), self._values[found].numpy()
