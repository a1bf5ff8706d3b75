"""Products, gradients and steps of the backend "cpu" against the reference where there are several blocks of both."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from saelab_kernels.adam import SparseAdam
from saelab_kernels.adam_state import AdamOptions, Weights
from saelab_kernels.buffers import GradientTerm
from saelab_kernels.code import SparseCode
from saelab_kernels.decode import decode_error
from saelab_kernels.gradients import code_gradients, pair_products


def random_code(rows: int, d_sae: int, share: float, uniform: bool, generator: torch.Generator) -> SparseCode:
    """Entries of both signs and zeros among them, also in empty rows; most features have none or a few."""
    if not uniform:
        dense = torch.randn(rows, d_sae, generator=generator, dtype=torch.float64)
        return SparseCode.from_dense(dense * (torch.rand(rows, d_sae, generator=generator) < share))
    width = max(1, int(share * d_sae))
    columns = torch.rand(rows, d_sae, generator=generator).topk(width, dim=1).indices.to(torch.int32)
    return SparseCode(
        torch.randn(rows, width, generator=generator, dtype=torch.float64).relu(), columns, d_sae
    )


@settings(max_examples=40, deadline=None)
@given(
    rows=st.sampled_from([1, 63, 64, 65, 150]),
    d_sae=st.sampled_from([1, 3, 255, 256, 257, 600]),
    d_in=st.sampled_from([1, 4, 15, 33]),
    share=st.sampled_from([0.0, 0.003, 0.02, 0.12, 0.5]),
    uniform=st.booleans(),
    clip=st.sampled_from([None, 0.3]),
    seed=st.integers(0, 10**6),
)
def test_as_the_reference(rows, d_sae, d_in, share, uniform, clip, seed):
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    code = random_code(rows, d_sae, share, uniform, generator)
    x, target, W_enc, b_enc, b_dec = (
        draw(rows, d_in),
        draw(rows, d_in),
        draw(d_sae, d_in),
        draw(d_sae),
        draw(d_in),
    )
    W_dec = torch.nn.functional.normalize(draw(d_sae, d_in))
    found = []
    for backend in ("cpu", "reference"):
        error, squares = decode_error(code, W_dec, b_dec, target, backend=backend)
        g_values = 0.1 * code.values.sign()
        g = code_gradients(code, x, W_dec, error, g_values=g_values, backend=backend)
        found.append([error, squares, pair_products(code, W_dec, target, backend=backend)])
        found[-1] += [g.W_enc, g.b_enc, g.W_dec, g.values]
        weights = Weights(W_enc.clone().t(), b_enc.clone(), W_dec.clone(), b_dec.clone())
        adam = SparseAdam(weights, AdamOptions(clip=clip), backend)
        spare = GradientTerm(code, x, -0.5 * target, adds_b_dec=False)
        found[-1] += [adam.step([GradientTerm(code, x, error, g_values), spare], 0.01)]
        found[-1] += list(weights.named().values())
    for mine, expected in zip(*found, strict=True):
        torch.testing.assert_close(mine, expected, rtol=1e-6, atol=1e-7)
