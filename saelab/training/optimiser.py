"""Adam under the constraint that decoder rows have norm 1, with clipping and a learning-rate schedule."""

from __future__ import annotations

import torch

from saelab.sae.autoencoder import SAEParameters
from saelab.training.config import TrainConfig
from saelab_kernels.buffers import GradientBuffers
from saelab_kernels.shapes import Float, Tensor


def lr_factor(step: int, config: TrainConfig) -> float:
    """Return the share of the peak learning rate at a step: linear rise, constant, linear fall to 0.

    The rise is a share of the run's first length and the fall one of its present length, so that a
    run and its extension are the same up to where the shorter one began to fall.
    """
    warmup = round(config.schedule.warmup_share * config.first_steps)
    decay = config.steps - config.branch_steps[-1]
    rising = (step + 1) / warmup if step < warmup else 1.0
    falling = (config.steps - step) / decay if decay and step > config.steps - decay else 1.0
    return min(rising, falling)


@torch.no_grad()
def project_out_rows(gradient: Float[Tensor, "d_sae d"], rows: Float[Tensor, "d_sae d"]) -> None:
    """Remove from each row of the gradient its part along the (unit) row of weights, in place."""
    along = torch.einsum("fd,fd->f", gradient, rows)
    gradient.addcmul_(along[:, None], rows, value=-1.0)


@torch.no_grad()
def normalise_rows(rows: Float[Tensor, "d_sae d"]) -> None:
    """Scale each row to norm 1, in place."""
    rows /= torch.linalg.vector_norm(rows, dim=1, keepdim=True).clamp_min(1e-12)


class ConstrainedAdam:
    """One optimiser step: project, clip by the norm of the projected gradient, Adam, renormalise.

    Adam moves rows a little off the sphere even with a projected gradient (its update is not
    orthogonal), so that the renormalisation after it is part of the rule, not a safety net.

    Args:
        params: Weights; updated in place.
        buffers: Gradients of `W_enc`, `b_enc` and `W_dec` are found here at every step.
        lr: Peak learning rate.
        grad_clip: Largest global gradient norm.
    """

    def __init__(self, params: SAEParameters, buffers: GradientBuffers, lr: float, grad_clip: float) -> None:
        self._params, self._lr, self._clip = params, lr, grad_clip
        self.b_dec_gradient = torch.zeros_like(params.b_dec)
        gradients = {
            "W_enc": buffers.W_enc,
            "b_enc": buffers.b_enc,
            "W_dec": buffers.W_dec,
            "b_dec": self.b_dec_gradient,
        }
        self._weights = {name: tensor.requires_grad_() for name, tensor in params.named().items()}
        for name, tensor in self._weights.items():
            tensor.grad = gradients[name]
        fused = all(tensor.device.type in ("cpu", "cuda") for tensor in self._weights.values())
        self._adam = torch.optim.Adam(
            self._weights.values(), lr=lr, betas=(0.9, 0.999), eps=1e-8, fused=fused
        )

    @torch.no_grad()
    def step(self, factor: float) -> Float[Tensor, ""]:
        """Update the weights with ``factor`` of the peak rate; return the norm of the gradient before clipping."""
        W_dec = self._weights["W_dec"]
        assert W_dec.grad is not None
        project_out_rows(W_dec.grad, W_dec)
        norm = torch.nn.utils.clip_grad_norm_(self._weights.values(), self._clip)
        self._adam.param_groups[0]["lr"] = self._lr * factor
        self._adam.step()
        normalise_rows(W_dec)
        return norm

    def state_tensors(self) -> dict[str, Tensor]:
        """Return the moments and the step count by name, for a checkpoint."""
        tensors = {}
        for name, weight in self._weights.items():
            state = self._adam.state.get(weight, {})
            for key, default in (("exp_avg", weight), ("exp_avg_sq", weight), ("step", weight.new_zeros(()))):
                tensors[f"{name}.{key}"] = state.get(key, torch.zeros_like(default))
        return tensors

    @torch.no_grad()
    def load_state_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Continue from saved moments, kept in the memory order of the weights."""
        for name, weight in self._weights.items():
            self._adam.state[weight] = {
                "exp_avg": torch.zeros_like(weight).copy_(tensors[f"{name}.exp_avg"]),
                "exp_avg_sq": torch.zeros_like(weight).copy_(tensors[f"{name}.exp_avg_sq"]),
                "step": tensors[f"{name}.step"].clone().to(weight.device if weight.is_cuda else "cpu"),
            }
