"""The optimiser step of a sparse autoencoder, from the gradients of the kept pairs alone.

    dz[e]   = (<g_out[row e], W_dec[column e]> + g_values[e]) * (value e > 0)      summed over the terms below
    G_dec   = sum over terms of code^T g_out,   row i of it made orthogonal to row i of W_dec (unit_rows)
    G_enc   = sum over terms of x^T dz,         g_b_enc = column sums of dz
    g_b_dec = column sums of g_out (of terms that add b_dec)  -  W_enc g_b_enc (input_bias)
    norm    = |(G_enc, g_b_enc, G_dec, g_b_dec)|;  all are multiplied by min(1, clip / (norm + 1e-6))
    Adam, without weight decay, on all entries (also of features that no token used);
    rows of W_dec are divided by their norms (unit_rows)

The order (project, clip by the norm of the projected gradient, step, renormalise) is a reconstruction: the
papers say less. The backends `cpu` and `triton` do all of it in passes over features and never hold a gradient
matrix: one pass without clipping, two with it. `torch` fills reused gradient buffers and calls torch's Adam.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from saelab_kernels.adam_state import NAMES, AdamOptions, AdamState, Weights
from saelab_kernels.buffers import GradientTerm
from saelab_kernels.contract import Backend
from saelab_kernels.dispatch import get_backend
from saelab_kernels.gradients import check_term
from saelab_kernels.shapes import Float, Tensor


class SparseAdam:
    """Moves the weights of one sparse autoencoder; they are updated in place.

    Args:
        weights: `W_enc` feature-major, all of one floating point dtype, on one device.
        options: How they move.
        backend: A name of `dispatch.available_backends()`; None chooses by the device.
    """

    def __init__(self, weights: Weights, options: AdamOptions, backend: str | None = None) -> None:
        self.weights, self.options = weights, options
        self._backend = get_backend(backend, weights.W_dec)
        self._state = AdamState.new(weights)

    @torch.no_grad()
    def step(self, terms: Sequence[GradientTerm], lr: float | Tensor) -> Float[Tensor, ""]:
        """One step down the gradient of the sum of the terms.

        Args:
            terms: At least one; what their losses depend on besides the weights is constant.
            lr: Learning rate of this step; a 0-d tensor on the weights' device for a captured step.

        Returns:
            The norm of the (projected) gradient before clipping, on the weights' device.

        Raises:
            ValueError: No terms, or shapes or dtypes that do not fit together.
        """
        return checked_adam_step(terms, self.weights, self._state, self.options, lr, self._backend)

    def state_tensors(self) -> dict[str, Tensor]:
        """The moments and the step count by name: all that a checkpoint needs besides the weights."""
        state, tensors = self._state, {"step": self._state.steps}
        for name in NAMES:
            tensors[f"{name}.exp_avg"] = getattr(state.exp_avg, name)
            tensors[f"{name}.exp_avg_sq"] = getattr(state.exp_avg_sq, name)
        return tensors

    @torch.no_grad()
    def load_state_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Continue from what `state_tensors` gave, whatever the memory order of the saved tensors."""
        for name, tensor in self.state_tensors().items():
            tensor.copy_(tensors[name])


def checked_adam_step(
    terms: Sequence[GradientTerm],
    weights: Weights,
    state: AdamState,
    options: AdamOptions,
    lr: float | Tensor,
    backend: Backend,
) -> Float[Tensor, ""]:
    """Refuse terms that do not fit, then do the step: see `SparseAdam.step`."""
    if not terms:
        raise ValueError("SparseAdam.step: needs at least one term")
    for term in terms:
        check_term(term, weights.W_dec)
        if term.x.shape[1] != weights.W_enc.shape[0]:
            raise ValueError(
                f"SparseAdam.step: x {list(term.x.shape)} does not fit W_enc {list(weights.W_enc.shape)}"
            )
    return backend.adam_step(terms, weights, state, options, lr)
