"""Backend "reference": dense float64, written for reading. Results are cast back to the input's dtype."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from saelab_kernels.adam_state import AdamOptions, AdamState, Weights
from saelab_kernels.buffers import GradientBuffers, Gradients, GradientTerm, Parts
from saelab_kernels.code import SparseCode
from saelab_kernels.contract import Backend
from saelab_kernels.request import Attribution, Selection, SelectRequest
from saelab_kernels.rules import PerBatch, PerFeature, PerToken
from saelab_kernels.shapes import Bool, Float, Int, Tensor


class _Reference:
    """Makes every dense tensor that the other backends avoid."""

    def encode_select(self, request: SelectRequest) -> Selection:
        dtype = request.x.dtype
        z = request.x.double() @ request.of_columns(request.W_enc.t()).t().double()
        z = z + request.of_columns(request.b_enc).double()
        score, mean = _score(request, z)
        rank = score.nan_to_num(nan=torch.inf, posinf=torch.inf, neginf=-torch.inf)
        rule, boundary, band = request.rule, None, None
        if isinstance(rule, PerToken):
            code, boundary = _per_token(request, z, rank, rule.k)
        else:
            if isinstance(rule, PerBatch):
                kept, boundary = _per_batch(rank, rule.budget(z.shape[0]))
            elif isinstance(rule, PerFeature):
                assert request.budgets is not None
                kept = _largest(rank.t(), request.of_columns(request.budgets)).t()
                boundary = _next_best(rank, kept, dim=0)
            else:
                assert request.theta is not None
                theta = request.theta.double()
                theta = request.of_columns(theta) if theta.ndim else theta
                kept = (rank > theta) & (rank > 0)
                if request.band:
                    band = _ragged(request, z, (score - theta).abs() < request.band / 2)
            code = _ragged(request, z, kept)
        return Selection(
            code,
            boundary=boundary.to(dtype) if request.boundary and boundary is not None else None,
            band=band,
            attribution_mean=None if mean is None else mean.to(dtype),
        )

    def decode(self, code: SparseCode, W_dec: Tensor, b_dec: Tensor | None) -> Tensor:
        x_hat = code.dense().double() @ W_dec.double()
        if b_dec is not None:
            x_hat = x_hat + b_dec.double()
        return x_hat.to(W_dec.dtype)

    def decode_error(
        self, code: SparseCode, W_dec: Tensor, b_dec: Tensor | None, target: Tensor
    ) -> tuple[Tensor, Tensor]:
        error = code.dense().double() @ W_dec.double() - target.double()
        if b_dec is not None:
            error = error + b_dec.double()
        return error.to(W_dec.dtype), error.square().sum(dim=1).to(W_dec.dtype)

    def pair_products(self, code: SparseCode, W_dec: Tensor, g_out: Tensor) -> Tensor:
        exact = code.ragged()
        products = (g_out.double() @ W_dec.double().t())[exact.row_ids(), exact.columns.long()]
        return _as_values(code, products)

    def code_gradients(
        self, term: GradientTerm, W_dec: Tensor, buffers: GradientBuffers, accumulate: bool, parts: Parts
    ) -> Gradients:
        found, d_values = _gradients(term, W_dec)
        for name, gradient in found.items():
            if parts == "both" or (name == "W_dec") == (parts == "decoder"):
                buffer = getattr(buffers, name)
                buffer.copy_(buffer + gradient if accumulate else gradient)
        return Gradients(buffers.W_enc, buffers.b_enc, buffers.W_dec, d_values)

    def adam_step(
        self,
        terms: Sequence[GradientTerm],
        weights: Weights,
        state: AdamState,
        options: AdamOptions,
        lr: float | Tensor,
    ) -> Tensor:
        g = {name: torch.zeros_like(tensor, dtype=torch.float64) for name, tensor in weights.named().items()}
        for term in (term.among_all(weights.W_dec.shape[0]) for term in terms):
            for name, gradient in _gradients(term, weights.W_dec)[0].items():
                g[name] += gradient
            if term.adds_b_dec and term.g_out is not None:
                g["b_dec"] += term.g_out.double().sum(dim=0)
        if options.input_bias:
            g["b_dec"] -= weights.W_enc.double() @ g["b_enc"]
        if options.unit_rows:
            W_dec = weights.W_dec.double()
            g["W_dec"] -= (g["W_dec"] * W_dec).sum(dim=1, keepdim=True) * W_dec
        norm = torch.sqrt(sum((gradient.square().sum() for gradient in g.values()), torch.zeros(())))
        factor = 1.0 if options.clip is None else (options.clip / (norm + 1e-6)).clamp(max=1.0)
        state.steps += 1
        t = float(state.steps)
        for name, weight in weights.named().items():
            mean, square = getattr(state.exp_avg, name), getattr(state.exp_avg_sq, name)
            gradient = factor * g[name]
            mean.copy_(options.beta1 * mean.double() + (1 - options.beta1) * gradient)
            square.copy_(options.beta2 * square.double() + (1 - options.beta2) * gradient.square())
            spread = (square.double() / (1 - options.beta2**t)).sqrt() + options.eps
            weight.copy_(weight.double() - lr * mean.double() / (1 - options.beta1**t) / spread)
        if options.unit_rows:
            length = weights.W_dec.double().norm(dim=1, keepdim=True).clamp_min(1e-12)
            weights.W_dec.copy_(weights.W_dec.double() / length)
        return norm.to(weights.W_dec.dtype)


def _gradients(term: GradientTerm, W_dec: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """Dense float64 gradients by name, and that of the code's values in their own shape."""
    code, x = term.code, term.x
    exact = code.ragged()
    rows, columns, values = exact.row_ids(), exact.columns.long(), exact.values
    g_out = x.new_zeros(x.shape[0], W_dec.shape[1]) if term.g_out is None else term.g_out
    dz = (g_out.double() @ W_dec.double().t())[rows, columns]
    if term.g_values is not None:
        dz = dz + term.g_values.reshape(-1)[: values.shape[0]].double()
    dz = dz.where(values > 0, 0)
    dense_dz = torch.zeros(code.shape, dtype=torch.float64, device=x.device)
    dense_dz.index_put_((rows, columns), dz, accumulate=True)
    dense_values = torch.zeros_like(dense_dz)
    dense_values.index_put_((rows, columns), values.double(), accumulate=True)
    found = {
        "W_enc": x.double().t() @ dense_dz,
        "b_enc": dense_dz.sum(dim=0),
        "W_dec": dense_values.t() @ g_out.double(),
    }
    return found, _as_values(code, dz)


def _as_values(code: SparseCode, per_entry: Tensor) -> Tensor:
    out = code.values.new_zeros(code.values.numel())
    out[: per_entry.shape[0]] = per_entry.to(out.dtype)
    return out.view(code.values.shape)


def _score(request: SelectRequest, z: Tensor) -> tuple[Tensor, Tensor | None]:
    """What the rule ranks, and the mean attribution of each row."""
    if request.scale is not None:
        return z * request.of_columns(request.scale).double(), None
    if request.attribution is None:
        return z, None
    attribution: Attribution = request.attribution
    c = (attribution.g.double() @ request.of_columns(attribution.W_dec).double().t()).abs()
    mean = c.mean(dim=1)
    divisor = mean.where(mean != 0, torch.inf) if attribution.norm == "token" else attribution.mean_c
    c = c / torch.as_tensor(divisor, dtype=c.dtype, device=c.device).reshape(-1, 1)
    return z * (1 + attribution.beta * c) if attribution.mode == "add" else z * c, mean


def _largest(rank: Tensor, budgets: Int[Tensor, " rows"]) -> Bool[Tensor, "rows n"]:
    """The `budgets[r]` largest positive entries of each row, of equal ones the lower columns."""
    order = rank.sort(dim=1, descending=True, stable=True).indices
    places = torch.arange(rank.shape[1], device=rank.device).expand_as(rank)
    place_of = torch.empty_like(order).scatter_(1, order, places)
    return (place_of < budgets.unsqueeze(1)) & (rank > 0)


def _next_best(rank: Tensor, kept: Tensor, dim: int) -> Tensor:
    """The largest positive score outside `kept` along `dim`, 0 where there is none."""
    outside = rank.masked_fill(kept, 0).clamp_min(0)
    return outside.amax(dim=dim) if rank.shape[dim] else outside.sum(dim=dim)


def _per_batch(rank: Tensor, budget: int) -> tuple[Tensor, Tensor]:
    flat = rank.reshape(1, -1)
    kept = _largest(flat, torch.tensor([budget], device=rank.device))
    return kept.view(rank.shape), _next_best(flat, kept, dim=1)[0]


def _per_token(request: SelectRequest, z: Tensor, rank: Tensor, k: int) -> tuple[SparseCode, Tensor]:
    rows, n = z.shape
    budgets = torch.full((rows,), k, device=z.device) if request.budgets is None else request.budgets
    kept = _largest(rank, budgets)
    local = rank.sort(dim=1, descending=True, stable=True).indices[:, : min(k, n)]
    values = z.where(kept, 0).gather(1, local).to(request.x.dtype)
    columns = local if request.columns is None else request.columns[local]
    code = SparseCode(values, columns.to(torch.int32), request.W_enc.shape[1])
    return code, _next_best(rank, kept, dim=1)


def _ragged(request: SelectRequest, z: Float[Tensor, "rows n"], kept: Bool[Tensor, "rows n"]) -> SparseCode:
    rows, local = kept.nonzero(as_tuple=True)
    columns = local if request.columns is None else request.columns[local]
    offsets = torch.zeros(z.shape[0] + 1, dtype=torch.int64, device=z.device)
    torch.cumsum(kept.sum(dim=1), dim=0, out=offsets[1:])
    return SparseCode(
        z[rows, local].to(request.x.dtype), columns.to(torch.int32), request.W_enc.shape[1], offsets
    )


BACKEND: Backend = _Reference()
