"""Where the tools differ: each trap with files that one of them wrote, and with the mistake that would be made."""

from dataclasses import replace

import pytest
import torch
from interop_cases import case, errors

from saelab.interop.adopt import Belonging, adopt
from saelab.interop.foreign import ForeignSAE, Keep, Place, Scaling
from saelab.interop.read import load_foreign

TOLERANCE = 1e-5
PLACE = Belonging(hook="a.output")


def is_same(foreign, name):
    """Whether a description computes what the tool does; another one of it must not."""
    try:
        return max(errors(adopt(foreign, PLACE), case(name).expected())) < TOLERANCE
    except AssertionError:  # other features are active
        return False


@pytest.mark.parametrize(
    ("name", "on_input"),
    [
        ("saelens-standard", True),
        ("saelens-standard-no-input-bias", False),
        ("sparsify-topk", True),
        ("sparsify-transcoder", False),
        ("dictionary-learning-AutoEncoder", True),
        ("dictionary-learning-AutoEncoderNew", False),
        ("dictionary-learning-GatedAutoEncoder", True),
        ("dictionary-learning-JumpReluAutoEncoder", False),
        ("dictionary-learning-AutoEncoderTopK", True),
        ("dictionary-learning-BatchTopKSAE", True),
        ("dictionary-learning-MatryoshkaBatchTopKSAE", True),
        ("gemma-scope", False),
        ("llama-scope", False),
        ("openai-relu", True),
    ],
)
def test_the_decoder_bias_on_the_input(name, on_input):
    foreign = case(name).read().foreign
    assert foreign.apply_b_dec_to_input is on_input
    assert is_same(foreign, name)
    assert not is_same(replace(foreign, apply_b_dec_to_input=not on_input), name)


def test_units_of_thresholds():
    """After folding, a threshold is longer by the decoder's norm; Llama Scope's is in those units already."""
    for name in ("saelens-jumprelu", "gemma-scope", "llama-scope-without-norms"):
        foreign = case(name).read().foreign
        assert not is_same(replace(foreign, keep=replace(foreign.keep, by_decoder_norm=True)), name)
    foreign = case("llama-scope").read().foreign
    assert foreign.keep.by_decoder_norm
    assert not is_same(replace(foreign, keep=replace(foreign.keep, by_decoder_norm=False)), "llama-scope")
    # Scaling activations by s scales no threshold: pre-activations are those of training.
    name = "llama-scope-without-norms"
    foreign = case(name).read().foreign
    wrong = replace(foreign.keep, theta=foreign.keep.theta * foreign.scaling.factor)
    assert is_same(foreign, name) and not is_same(replace(foreign, keep=wrong), name)


def test_top_k_with_and_without_rescaling_by_decoder_norms():
    for name, rescaled in (("saelens-topk-rescaled", True), ("saelens-topk-free-norms", False)):
        foreign = case(name).read().foreign
        assert foreign.keep == Keep("topk", k=5, by_decoder_norm=rescaled)
        assert is_same(foreign, name)
        assert not is_same(replace(foreign, keep=Keep("topk", k=5, by_decoder_norm=not rescaled)), name)


def test_decoder_norms_are_folded_where_that_keeps_the_selection():
    for name, folded in (("saelens-topk-rescaled", True), ("saelens-topk-free-norms", False)):
        sae = load_foreign(case(name).read())
        norms = sae.W_dec.norm(dim=1)
        assert bool(((norms - 1).abs() < 1e-6).all()) is folded
        assert ("whose norm is not 1" in sae.config.units) is not folded


def test_a_relu_inside_or_outside_of_top_k():
    """With fewer than k positive pre-activations the others are 0 in every tool, and not active here."""
    d = 4
    foreign = ForeignSAE(
        architecture="topk",
        W_enc=torch.eye(d),
        b_enc=torch.zeros(d),
        W_dec=torch.eye(d),
        b_dec=torch.zeros(d),
        keep=Keep("topk", k=3),
        apply_b_dec_to_input=False,
        place=Place(),
        recipe="topk",
    )
    x = torch.tensor([[1.0, -2.0, -3.0, -4.0], [3.0, 2.0, 1.0, 0.5]])
    x_hat, code = adopt(foreign, PLACE).reconstruct(x)
    before = torch.relu(x)
    inside = torch.zeros_like(x).scatter_(1, before.topk(3).indices, before.topk(3).values)
    outside = torch.zeros_like(x).scatter_(1, x.topk(3).indices, x.topk(3).values.relu())
    torch.testing.assert_close(x_hat, inside)
    torch.testing.assert_close(x_hat, outside)
    assert (code.dense() > 0).sum(1).tolist() == [1, 3]


def test_heads_of_hook_z_are_side_by_side():
    """The case was made from [tokens, heads, d_head]; o_proj reads the same numbers in one row."""
    found = case("saelens-jumprelu-hook-z").read()
    assert load_foreign(found).config.input_hooks == ("transformer.h.1.attn.c_proj.input",)
    x = case("saelens-jumprelu-hook-z").expected()["x"]
    other = x.reshape(len(x), 2, -1).transpose(1, 2).reshape(len(x), -1)
    assert not torch.allclose(load_foreign(found)(x), load_foreign(found)(other))


def test_a_layer_norm_is_undone_for_each_token_whatever_came_between():
    for name in ("saelens-standard-layer-norm", "openai-topk"):
        sae, expected = load_foreign(case(name).read()), case(name).expected()
        first, second = expected["x"][:5], expected["x"][5:]
        sae.encode(first)  # nothing of it may stay
        torch.testing.assert_close(sae(second), expected["x_hat"][5:], atol=TOLERANCE, rtol=0)
        sae.encode(second)
        torch.testing.assert_close(sae(first), expected["x_hat"][:5], atol=TOLERANCE, rtol=0)
        assert "relative to each token's scale" in sae.config.units


def test_a_layer_norm_divides_by_the_deviation_of_a_sample():
    name = "openai-topk"
    foreign, expected = case(name).read().foreign, case(name).expected()
    x, n = expected["x"].double(), expected["x"].shape[1]
    population = (x - x.mean(1, keepdim=True)) / x.std(1, keepdim=True, correction=0)
    wrong = (population - foreign.b_dec) @ foreign.W_enc.double() + foreign.b_enc
    right = (population * ((n - 1) / n) ** 0.5 - foreign.b_dec) @ foreign.W_enc.double() + foreign.b_enc
    top = expected["features"] > 0
    torch.testing.assert_close(expected["features"][top].double(), right[top], atol=1e-4, rtol=0)
    assert not torch.allclose(expected["features"][top].double(), wrong[top], atol=1e-2)


def test_square_matrices_are_not_turned_round():
    """The orientation is the format's; a loader of another tool turns this decoder round without a word."""
    name = "sparsify-topk-square"
    foreign = case(name).read().foreign
    assert foreign.W_enc.shape == (8, 8) and is_same(foreign, name)
    assert not is_same(replace(foreign, W_dec=foreign.W_dec.T.contiguous()), name)


def test_scales_of_input_and_target_may_differ():
    name = "llama-scope-transcoder"
    foreign = case(name).read().foreign
    assert foreign.scaling.factor != foreign.scaling.target_factor and is_same(foreign, name)
    assert not is_same(replace(foreign, scaling=Scaling(factor=foreign.scaling.factor)), name)


@pytest.mark.parametrize("on_input", [True, False])
def test_folding_two_scales_and_norms_by_the_closed_form(on_input):
    generator = torch.Generator().manual_seed(3)
    W_enc, W_dec = torch.randn(6, 9, generator=generator), torch.randn(9, 6, generator=generator)
    b_enc, b_dec, theta = (torch.randn(n, generator=generator) for n in (9, 6, 9))
    foreign = ForeignSAE(
        architecture="",
        W_enc=W_enc,
        b_enc=b_enc,
        W_dec=W_dec,
        b_dec=b_dec,
        keep=Keep("threshold", theta=theta.abs(), by_decoder_norm=True),
        apply_b_dec_to_input=on_input,
        scaling=Scaling(factor=0.3, target_factor=2.5),
        place=Place(),
        recipe="jumprelu",
    )
    x = torch.randn(50, 6, generator=generator)
    z = (0.3 * x - on_input * b_dec) @ W_enc + b_enc
    z = torch.where((z * W_dec.norm(dim=1) > theta.abs()) & (z > 0), z, 0)
    x_hat, code = adopt(foreign, PLACE).reconstruct(x)
    torch.testing.assert_close(x_hat, (z @ W_dec + b_dec) / 2.5, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(code.dense(), z * (W_dec / 2.5).norm(dim=1), atol=1e-5, rtol=1e-5)


def test_a_dead_row_of_the_decoder_stays_dead():
    foreign = case("saelens-jumprelu").read().foreign
    W_dec = foreign.W_dec.clone()
    W_dec[3] = 0
    sae = adopt(replace(foreign, W_dec=W_dec), PLACE)
    assert torch.isfinite(sae(case("saelens-jumprelu").expected()["x"])).all()
    assert float(sae.W_dec[3].abs().max()) == 0
