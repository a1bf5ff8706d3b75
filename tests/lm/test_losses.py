import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from saelab.errors import SaelabError
from saelab.lm.load import load_model
from saelab.lm.losses import loss_gradient, losses_and_kl, next_token_losses
from saelab.lm.run import unembedding
from saelab.lm.spec import ModelSpec
from saelab.lm.unembedding import Unembedding

N, D, V = 700, 16, 1003


def head(bias=False, soft_cap=None):
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(V, D, generator=generator)
    return Unembedding(weight, torch.randn(V, generator=generator) if bias else None, soft_cap)


@pytest.fixture
def problem():
    generator = torch.Generator().manual_seed(1)
    clean = torch.randn(N, D, generator=generator)
    other = clean + 0.3 * torch.randn(N, D, generator=generator)
    return clean, other, torch.randint(0, V, (N,), generator=generator)


HEADS = [head(), head(bias=True), head(bias=True, soft_cap=5.0)]


def dense_logits(hidden, map_):
    logits = hidden.double() @ map_.weight.double().T + (0 if map_.bias is None else map_.bias.double())
    return logits if map_.soft_cap is None else map_.soft_cap * torch.tanh(logits / map_.soft_cap)


@pytest.mark.parametrize("map_", HEADS)
def test_losses_and_kl_equal_dense_float64(problem, map_):
    clean, other, targets = problem
    a, b = dense_logits(clean, map_), dense_logits(other, map_)
    ce_clean, ce_other, kl = losses_and_kl(clean, other, map_, targets)
    assert ce_clean.dtype == kl.dtype == torch.float32
    expected_kl = F.kl_div(b.log_softmax(1), a.log_softmax(1), reduction="none", log_target=True).sum(1)
    for found, expected in (
        (ce_clean, F.cross_entropy(a, targets, reduction="none")),
        (ce_other, F.cross_entropy(b, targets, reduction="none")),
        (kl, expected_kl),
        (next_token_losses(clean, map_, targets), F.cross_entropy(a, targets, reduction="none")),
    ):
        torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("map_", HEADS)
def test_the_gradient_equals_autograd_in_float64(problem, map_):
    hidden, _, targets = problem
    leaf = hidden.double().requires_grad_()
    F.cross_entropy(dense_logits(leaf, map_), targets, reduction="sum").backward()
    losses, gradient = loss_gradient(hidden, map_, targets, row_tile=100, vocabulary_tile=300)
    torch.testing.assert_close(gradient.double(), leaf.grad, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(losses, next_token_losses(hidden, map_, targets), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("row_tile", "vocabulary_tile"), [(1, 5000), (25, 1), (64, 100), (5000, 1002)])
def test_any_tile_size_gives_the_same(problem, row_tile, vocabulary_tile):
    clean, other, targets = (x[:50] for x in problem)
    map_ = head(soft_cap=5.0)
    tiles = {"row_tile": row_tile, "vocabulary_tile": vocabulary_tile}
    for found, expected in zip(
        losses_and_kl(clean, other, map_, targets, **tiles),
        losses_and_kl(clean, other, map_, targets),
        strict=True,
    ):
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


def test_the_loss_of_a_token_does_not_depend_on_the_others(problem):
    clean, other, targets = problem
    together = losses_and_kl(clean, other, head(), targets)
    for start, stop in ((0, 1), (511, 514), (300, 699)):
        apart = losses_and_kl(clean[start:stop], other[start:stop], head(), targets[start:stop])
        for whole, part in zip(together, apart, strict=True):
            assert torch.equal(whole[start:stop], part)


def test_equal_inputs_have_a_divergence_of_exactly_zero(problem):
    clean, _, targets = problem
    ce_clean, ce_other, kl = losses_and_kl(clean, clean.clone(), head(bias=True), targets)
    assert torch.equal(kl, torch.zeros(N))
    assert torch.equal(ce_clean, ce_other)


def test_a_small_divergence_keeps_its_digits(problem):
    clean, _, targets = problem
    other = clean + 1e-3 * torch.randn(N, D, generator=torch.Generator().manual_seed(2))
    kl = losses_and_kl(clean, other, head(), targets)[2]
    a, b = dense_logits(clean, head()), dense_logits(other, head())
    expected = F.kl_div(b.log_softmax(1), a.log_softmax(1), reduction="none", log_target=True).sum(1)
    assert expected.mean() < 1e-4
    assert kl.min() >= 0
    torch.testing.assert_close(kl.mean().double(), expected.mean(), rtol=2e-2, atol=0)


def test_huge_logits_do_not_overflow():
    hidden, weight = torch.tensor([[1.0]]), torch.tensor([[-1e4], [1e4], [1e4 - 1]])
    expected = 1 + torch.log1p(torch.exp(torch.tensor([-1.0])))
    found = next_token_losses(hidden, Unembedding(weight), torch.tensor([2]), vocabulary_tile=1)
    torch.testing.assert_close(found, expected)


def test_half_precision_inputs_are_computed_in_float32(problem):
    clean, _, targets = problem
    half = Unembedding(head().weight.bfloat16())
    found = next_token_losses(clean.bfloat16(), half, targets)
    expected = F.cross_entropy(dense_logits(clean.bfloat16(), half), targets, reduction="none")
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)


def test_no_tokens_give_no_losses():
    empty, none = torch.zeros(0, D), torch.zeros(0, dtype=torch.int64)
    assert [x.shape for x in losses_and_kl(empty, empty, head(), none)] == [(0,)] * 3
    assert loss_gradient(empty, head(), none)[1].shape == (0, D)


@pytest.mark.parametrize("wrong", [-100, V])
def test_a_target_outside_the_vocabulary_is_refused(problem, wrong):
    clean, _, targets = problem
    targets[3] = wrong
    with pytest.raises(ValueError, match="vocabulary has 1003 tokens"):
        next_token_losses(clean, head(), targets)


class LargestTensor(TorchDispatchMode):
    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for x in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(x, torch.Tensor):
                self.numel = max(self.numel, x.numel())
        return result


def test_no_tensor_of_all_logits_is_made(problem):
    clean, other, targets = problem
    tiles = {"row_tile": 256, "vocabulary_tile": 128}
    with LargestTensor() as largest:
        losses_and_kl(clean, other, head(), targets, **tiles)
        next_token_losses(clean, head(), targets, **tiles)
        loss_gradient(clean, head(), targets, **tiles)
    assert largest.numel == 256 * 128 < N * V / 20


def test_the_default_tiles_bound_the_memory():
    hidden = torch.zeros(2000, 8)
    with LargestTensor() as largest:
        next_token_losses(hidden, Unembedding(torch.zeros(9000, 8)), torch.zeros(2000, dtype=torch.int64))
    assert largest.numel <= 512 * 4096


def test_a_model_that_scales_its_logits_is_refused_for_losses_only(tmp_path, llama_folder):
    from transformers import AutoTokenizer, GraniteConfig, GraniteForCausalLM

    config = GraniteConfig(
        vocab_size=300,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=32,
        logits_scaling=4.0,
    )
    GraniteForCausalLM(config).save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(llama_folder).save_pretrained(tmp_path)
    lm = load_model(ModelSpec(name=str(tmp_path), device="cpu"))
    with pytest.raises(SaelabError, match="cannot compute its losses") as caught:
        unembedding(lm)
    assert "\n" not in str(caught.value)
