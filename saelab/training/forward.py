"""The forward pass that most recipes share, with the gradients of its small leaves."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from saelab.sae.autoencoder import SAEParameters
from saelab.training.recipes.moments import Forward, Inputs, Leaves, Loss
from saelab_kernels.buffers import GradientTerm
from saelab_kernels.decode import decode_error
from saelab_kernels.request import Selection
from saelab_kernels.shapes import Tensor


def sparse_forward(
    selection: Selection,
    inputs: Inputs,
    params: SAEParameters,
    own: Mapping[str, Tensor],
    objective: Callable[[Leaves], Loss],
) -> Forward:
    """Decode a selection, and find the gradients of the objective's leaves; no ``[tokens, d_sae]`` matrix is kept.

    Args:
        selection: What the encoder kept.
        inputs: The batch.
        params: The weights.
        own: The recipe's own parameters by name; whatever of them the objective uses gets a gradient.
        objective: The loss as a function of the leaves.
    """
    code = selection.code
    error, squares = decode_error(code, params.W_dec, params.b_dec, inputs.target)
    leaf = code.with_values(code.values.detach().requires_grad_())
    own_leaves = {name: tensor.detach().requires_grad_() for name, tensor in own.items()}
    loss = objective(Leaves(inputs.target, error.requires_grad_(), squares, leaf, own_leaves))
    loss.total.backward()
    return Forward(
        selection=selection,
        code=code,
        error=error.detach(),
        squares=squares,
        loss=Loss(loss.total.detach(), loss.terms),
        terms=[GradientTerm(code, inputs.encoder, error.grad, leaf.values.grad)],
        own={name: leaf.grad for name, leaf in own_leaves.items() if leaf.grad is not None},
    )
