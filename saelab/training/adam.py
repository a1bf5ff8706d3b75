"""Adam by torch's own kernels on named tensors, for what the sparse optimiser does not hold."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch.optim.adam import adam

from saelab_kernels.adam_state import AdamOptions, Weights
from saelab_kernels.shapes import Float, Tensor

STEP, MEAN, SQUARE = "step", "exp_avg", "exp_avg_sq"


def in_memory_order(weights: Weights) -> dict[str, Tensor]:
    """Return the tensors by name, each contiguous: torch's Adam combines by place in memory, whatever strides say."""
    return {name: tensor.t() if name == "W_enc" else tensor for name, tensor in weights.named().items()}


def new_moments(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return zero moments of some tensors and a step count, by dotted names."""
    moments: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        moments[f"{name}.{MEAN}"] = torch.zeros_like(tensor, memory_format=torch.contiguous_format)
        moments[f"{name}.{SQUARE}"] = torch.zeros_like(tensor, memory_format=torch.contiguous_format)
        moments[STEP] = torch.zeros((), dtype=torch.float32, device=tensor.device)
    return moments


def clip_by_norm(gradients: Mapping[str, Tensor], largest: float | None) -> Float[Tensor, ""]:
    """Scale gradients in place so that their common norm is at most ``largest``; return the norm before."""
    norm = torch.nn.utils.get_total_norm(list(gradients.values()))
    if largest is not None:
        factor = (largest / (norm + 1e-6)).clamp(max=1.0)
        for gradient in gradients.values():
            gradient *= factor
    return norm


def plain_adam(
    tensors: Mapping[str, Tensor],
    gradients: Mapping[str, Tensor],
    moments: Mapping[str, Tensor],
    lr: float,
    options: AdamOptions,
) -> None:
    """Do one step of Adam in place (Kingma and Ba 2015, arXiv 1412.6980), without weight decay."""
    names = list(tensors)
    moments[STEP].add_(1)
    adam(
        [tensors[name] for name in names],
        [gradients[name].contiguous() for name in names],
        [moments[f"{name}.{MEAN}"] for name in names],
        [moments[f"{name}.{SQUARE}"] for name in names],
        [],
        [moments[STEP].clone() - 1 for _ in names],
        fused=tensors[names[0]].device.type in ("cpu", "cuda"),
        amsgrad=False,
        beta1=options.beta1,
        beta2=options.beta2,
        lr=lr,
        weight_decay=0.0,
        eps=options.eps,
        maximize=False,
    )
