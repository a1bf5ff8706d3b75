from __future__ import annotations

import torch

from saelab_kernels.decode import decode
from saelab_kernels.rules import PerBatch, PerToken
from saelab_kernels.select import encode_select


def test_memory_made_in_inference_mode_serves_outside_of_it(problem):
    p = problem(300, 12, 80, dtype=torch.float32)

    def use():
        code = encode_select(*p.weights, PerToken(4), backend="cpu").code
        encode_select(*p.weights, PerBatch(4), backend="cpu")
        return decode(code, p.W_dec, backend="cpu")

    with torch.inference_mode():
        inside = use()
    assert torch.equal(use(), inside)


def test_weights_that_want_a_gradient_are_read_without_one(problem):
    p = problem(300, 12, 80, dtype=torch.float32)
    W_enc = p.W_enc.detach().requires_grad_()
    code = encode_select(p.x, W_enc, p.b_enc.requires_grad_(), PerToken(4), backend="cpu").code
    x_hat = decode(code, p.W_dec.requires_grad_(), backend="cpu")
    assert not code.values.requires_grad and not x_hat.requires_grad
