"""Matryoshka BatchTopK: nested reconstructions with one ranking, their gradients, and what one prefix alone is."""

from pathlib import Path

import pytest
import torch
from memory_source import MemorySource

from saelab.errors import UsageError
from saelab.sae.autoencoder import SAEParameters
from saelab.sae.config import Normalisation
from saelab.training.dead import DeadFeatureTracker
from saelab.training.finish import finished_sae
from saelab.training.grid import Grid, make_configs
from saelab.training.member import make_member
from saelab.training.recipes import make_recipe
from saelab.training.recipes.batch_topk import BatchTopK
from saelab.training.recipes.matryoshka import Matryoshka, split_by_feature
from saelab.training.recipes.moments import Clock, Inputs
from saelab.training.step import Step
from saelab.training.views import HookRows, View, Views
from saelab_kernels.adam import SparseAdam
from saelab_kernels.adam_state import AdamOptions, Weights
from saelab_kernels.code import SparseCode
from saelab_kernels.rules import Threshold

D_IN, D_SAE, K, TOKENS, AUX_K, COEFFICIENT = 12, 40, 5.5, 64, 6, 1 / 32
CLOCK, VARIANCE = Clock(0, 100, TOKENS), 3.0
PREFIXES = (0.1, 0.35, 1.0)
SIZES = [4, 14, 40]
BATCH, WIDTH = 64, 48


@pytest.fixture
def params():
    generator = torch.Generator().manual_seed(0)
    W_dec = torch.randn(D_SAE, D_IN, generator=generator, dtype=torch.float64)
    W_dec /= W_dec.norm(dim=1, keepdim=True)
    return SAEParameters(
        W_enc=(W_dec + 0.1 * torch.randn(D_SAE, D_IN, generator=generator, dtype=torch.float64)).T,
        b_enc=0.1 * torch.randn(D_SAE, generator=generator, dtype=torch.float64),
        W_dec=W_dec,
        b_dec=torch.randn(D_IN, generator=generator, dtype=torch.float64),
    )


@pytest.fixture
def x():
    return torch.randn(TOKENS, D_IN, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def run_step(recipe, params, x, dead):
    view = View("hook", D_IN, Normalisation(kind="none"))
    step = Step(
        params=params,
        recipe=recipe,
        views=Views((view,), (view,)),
        variance=VARIANCE,
        aux_k=AUX_K,
        aux_coefficient=COEFFICIENT,
    )
    tracker = DeadFeatureTracker(torch.where(dead, 100, 0), after_tokens=50)
    result = step.run({"hook": HookRows(x)}, {}, tracker, CLOCK)
    copies = {name: t.clone(memory_format=torch.preserve_format) for name, t in params.named().items()}
    adam = SparseAdam(Weights(**copies), AdamOptions(beta1=0.0, unit_rows=False))
    adam.step(result.found.terms, 0.0)
    return result, {name: adam.state_tensors()[f"{name}.exp_avg"] for name in copies}


def dense_loss(params, x, dead):
    """Each prefix decoded by itself with dense matrices, and autograd over everything."""
    weights = {name: tensor.clone().requires_grad_() for name, tensor in params.named().items()}
    u = (x - weights["b_dec"]) @ weights["W_enc"] + weights["b_enc"]
    limit = u.detach().flatten().topk(round(K * TOKENS)).values[-1]
    f = torch.relu(u) * (u.detach() >= limit)
    losses, errors = [], []
    for size in SIZES:
        errors.append(f[:, :size] @ weights["W_dec"][:size] + weights["b_dec"] - x)
        losses.append(errors[-1].square().sum(1).mean() / VARIANCE)
    loss = sum(losses) / len(SIZES)
    if dead.any():
        e = -errors[-1].detach()
        spare = torch.where(dead, u, torch.tensor(-torch.inf, dtype=u.dtype))
        chosen = torch.zeros_like(u).scatter(1, spare.topk(min(AUX_K, int(dead.sum())), dim=1).indices, 1.0)
        e_hat = (torch.relu(u) * chosen) @ weights["W_dec"]
        loss = loss + COEFFICIENT * (e - e_hat).square().sum() / (e - e.mean(0)).square().sum()
    loss.backward()
    return loss.detach(), losses, {name: tensor.grad for name, tensor in weights.items()}


@pytest.mark.parametrize("n_dead", [0, 7])
def test_loss_and_gradients_equal_dense_autograd(params, x, n_dead):
    dead = torch.arange(D_SAE) >= D_SAE - n_dead
    result, gradients = run_step(Matryoshka(k=K, prefixes=PREFIXES), params, x, dead)
    loss, losses, expected = dense_loss(params, x, dead)
    torch.testing.assert_close(result.metrics["loss"], loss, rtol=1e-12, atol=0)
    torch.testing.assert_close(result.metrics["fvu"], losses[-1].detach(), rtol=1e-12, atol=0)
    for size, of_prefix in zip(SIZES[:-1], losses, strict=False):
        torch.testing.assert_close(
            result.metrics[f"fvu_first_{size}"], of_prefix.detach(), rtol=1e-12, atol=0
        )
    for name, gradient in expected.items():
        torch.testing.assert_close(gradients[name], gradient, rtol=1e-10, atol=1e-13, msg=name)


def test_one_prefix_of_all_features_is_batch_topk(params, x):
    dead = torch.zeros(D_SAE, dtype=torch.bool)
    whole, gradients = run_step(Matryoshka(k=K, prefixes=(1.0,)), params, x, dead)
    plain, expected = run_step(BatchTopK(k=K), params, x, dead)
    torch.testing.assert_close(whole.metrics, plain.metrics, rtol=1e-12, atol=0)
    for name, gradient in expected.items():
        torch.testing.assert_close(gradients[name], gradient, rtol=1e-12, atol=1e-15, msg=name)


def test_all_prefixes_share_the_ranking_of_the_whole_batch(params, x):
    inputs = Inputs(x - params.b_dec, x)
    codes = [
        recipe.forward(inputs, params, {}, CLOCK, VARIANCE).code.dense()
        for recipe in (Matryoshka(k=K, prefixes=PREFIXES), BatchTopK(k=K))
    ]
    assert torch.equal(*codes)
    assert int((codes[0] > 0).sum()) == round(K * TOKENS)


@pytest.mark.parametrize("form", ["uniform", "ragged"])
def test_a_code_is_split_into_disjoint_blocks_that_make_it_up(form):
    dense = torch.relu(torch.randn(9, 12, generator=torch.Generator().manual_seed(3)))
    dense[4] = 0
    code = SparseCode.from_dense(dense)
    if form == "uniform":
        code = SparseCode(dense, torch.arange(12, dtype=torch.int32).expand(9, 12).contiguous(), 12)
    blocks = split_by_feature(code, [3, 4, 12])
    for block, (low, high) in zip(blocks, ((0, 3), (3, 4), (4, 12)), strict=True):
        assert torch.equal(block.dense()[:, low:high], dense[:, low:high])
        assert block.dense().count_nonzero() == dense[:, low:high].count_nonzero()
    assert sum(len(block.values) for block in blocks) == code.values.numel()  # each entry is decoded once


def test_the_default_sizes_are_those_of_65536_features_scaled_and_small_widths_have_fewer():
    assert Matryoshka().sizes(65_536) == [2048, 6144, 14_336, 30_720, 65_536]
    assert Matryoshka().sizes(2048) == [64, 192, 448, 960, 2048]
    assert Matryoshka().sizes(4) == [1, 2, 4]


@pytest.mark.parametrize("prefixes", [(), (0.5,), (0.5, 0.5, 1.0), (0.0, 1.0), (0.6, 0.4, 1.0), (0.5, 2.0)])
def test_prefixes_that_do_not_rise_to_the_whole_are_refused(prefixes):
    with pytest.raises(UsageError, match="rising shares of the width"):
        Matryoshka(prefixes=prefixes).check(D_SAE)


def test_the_option_is_read_from_lists_as_the_command_line_and_files_give_it():
    recipe = make_recipe("matryoshka", {"k": 8, "prefixes": [0.25, 1]})
    assert recipe == Matryoshka(k=8.0, prefixes=(0.25, 1.0))
    with pytest.raises(UsageError, match="prefixes"):
        make_recipe("matryoshka", {"prefixes": 0.5})


def test_smaller_prefixes_explain_less_and_the_first_features_alone_more_than_those_of_batch_topk():
    source = MemorySource()
    share_of_first, fvu = {}, {}
    for name in ("matryoshka", "batch-topk"):
        grid = Grid(recipes=(name,), k=(4,), at=("a",), widths=(WIDTH,), lrs=(1e-2,))
        config = make_configs(source, grid, tokens=80 * BATCH, batch=BATCH, device="cpu")[0]
        member = make_member("a", config, source, Path("nowhere"))
        for step in range(80):
            rows = torch.arange(step * BATCH, (step + 1) * BATCH) % len(source.x["a"])
            member.train_on({"a": HookRows(source.x["a"][rows])})
        sae, _ = finished_sae(member, source)
        x = source.x["a"]
        code, spread = sae.encode(x), (x - x.mean(0)).square().sum()
        assert sae.rule == Threshold()
        assert float(code.l0().float().mean()) == pytest.approx(4, rel=0.05)
        sizes = Matryoshka().sizes(WIDTH)
        parts = [sae.decode(block) - sae.b_dec for block in split_by_feature(code, sizes)]
        fvus = [
            float((sum(parts[: n + 1]) + sae.b_dec - x).square().sum() / spread) for n in range(len(sizes))
        ]
        share_of_first[name], fvu[name] = 1 - fvus[2], fvus[-1]
        if name == "matryoshka":
            assert fvus == sorted(fvus, reverse=True)
    assert share_of_first["matryoshka"] > share_of_first["batch-topk"] + 0.1
    assert fvu["matryoshka"] < 0.4
