"""Bytes, bounds and ratios of the benchmark by hand."""

import pytest
import torch

from saelab_kernels.bench import traffic
from saelab_kernels.bench.bound import BOUND, PARTS, PRODUCT, PRODUCT_BF16, TRAFFIC, copy_call
from saelab_kernels.bench.options import BenchError, BenchOptions
from saelab_kernels.bench.problem import make_problem
from saelab_kernels.bench.rounds import Rounds, Sample, VariantFailed, clocks, interleave
from saelab_kernels.bench.variants import all_variants, is_float32, own_variants, peer_variants

# B = 5 tokens, d = 2, F = 3 features, n = 7 pairs on t = 2 features
SIZES = traffic.Sizes(batch=5, d_in=2, d_sae=3, pairs=7, touched=2)
CODE = 7 * (4 + 4)
GATHER = 7 * 2 * 4


def test_bytes_are_those_of_the_tensors_that_must_move():
    x = x_hat = target = 5 * 2 * 4
    W = 3 * 2 * 4
    bias = 3 * 4
    assert traffic.select_bytes(SIZES) == x + W + bias + CODE
    assert traffic.select_bytes(SIZES, columns=2) == x + 2 * 2 * 4 + 2 * 4 + CODE
    assert traffic.decode_bytes(SIZES) == CODE + GATHER + x_hat
    assert traffic.decode_error_bytes(SIZES) == CODE + GATHER + x_hat + target + 5 * 4
    touched_rows = 2 * 2 * 4
    assert traffic.gradient_bytes(SIZES) == CODE + 2 * GATHER + touched_rows + 2 * W + bias + 7 * 4
    parameters = 2 * 3 * 2 + 3 + 2
    assert SIZES.parameters == parameters
    assert traffic.adam_bytes(SIZES, clip=False) == 24 * parameters + CODE + 2 * GATHER
    norm_pass = CODE + 2 * GATHER + touched_rows
    assert traffic.adam_bytes(SIZES, clip=True) == traffic.adam_bytes(SIZES, clip=False) + norm_pass


def test_the_bound_is_one_product_and_24_bytes_a_matrix_parameter():
    assert traffic.product_flops(5, 2, 3) == 2 * 5 * 2 * 3
    assert traffic.matrix_traffic(2, 3) == 24 * (2 * 3 + 3 * 2)
    assert BOUND == (PRODUCT, TRAFFIC)


def test_the_copies_of_the_bound_move_the_bytes_that_are_counted(monkeypatch):
    moved = []
    copy = torch.Tensor.copy_

    def counted(target, source, *rest):
        moved.append(target.nbytes + source.nbytes)
        return copy(target, source, *rest)

    monkeypatch.setattr(torch.Tensor, "copy_", counted)
    PARTS[TRAFFIC](torch.randn(3, 2), torch.randn(5, 2))()
    assert sum(moved) == traffic.matrix_traffic(2, 3)
    moved.clear()
    call, n_bytes = copy_call(1, "cpu")
    call()
    assert moved == [n_bytes] == [2 * 2**20]


def test_the_product_of_the_bound_is_that_of_the_encoder():
    W_dec, x = torch.randn(3, 2), torch.randn(5, 2)
    for part, dtype, tolerance in ((PRODUCT, torch.float32, 1e-6), (PRODUCT_BF16, torch.bfloat16, 0.05)):
        found = PARTS[part](W_dec, x)()
        assert isinstance(found, torch.Tensor)
        assert found.dtype == dtype
        torch.testing.assert_close(found.float(), x @ W_dec.t(), rtol=tolerance, atol=tolerance)


def test_a_ratio_is_the_median_over_rounds_of_sums_within_a_round():
    walls = {"step": [6.0, 50.0, 7.0], "product": [1.0, 9.0, 3.0], "traffic": [1.0, 1.0, 0.5]}
    samples = {name: [Sample(wall=w, cpu=2 * w + 1) for w in found] for name, found in walls.items()}
    rounds = Rounds(samples, {}, {})
    assert rounds.ratio(["step"], ["product", "traffic"], "wall") == 3.0  # of 3, 5 and 2
    assert rounds.ratio(["step"], ["product"], "cpu") == pytest.approx(13 / 3)  # of 13/3, 101/19 and 15/7
    added = rounds.added("step", "traffic", ["product"], "cpu")
    assert added["wall"] == 5 / 1  # of 5, 49/9 and 13/6
    times = rounds.times("step")
    assert times["wall_ms"] == {"best": 6000.0, "median": 7000.0, "rounds": [6000.0, 50000.0, 7000.0]}
    assert clocks("cpu") == ("cpu", "wall")
    assert clocks("cuda") == ("wall",)


def test_rounds_take_turns_and_a_variant_that_fails_is_left_out_with_its_reason():
    order = []

    def variant(name):
        def run(batch):
            order.append(f"{name}{batch}")
            if name == "b" and len(order) > 5:
                raise VariantFailed("out of memory")
            return Sample(1.0, 1.0)

        return run

    rounds = interleave({name: variant(name) for name in "abc"}, rounds=3, n_batches=2, warm_up=1)
    assert order == ["a1", "b1", "c1", "a0", "b0", "c0", "a1", "b1", "c1", "a0", "c0"]
    assert rounds.failed == {"b": "in round 2: out of memory"}
    assert {name: len(found) for name, found in rounds.samples.items()} == {"a": 3, "c": 3}
    assert {name: len(found) for name, found in rounds.warm_up.items()} == {"a": 1, "c": 1}


def test_variants_follow_the_device_and_the_backend():
    clipped = {name: [name, f"{name}-clip"] for name in ("saelab", "saelab-float32", "saelab-graph")}
    assert own_variants("cpu", "torch") == (*clipped["saelab"], "saelab-auxk")
    assert own_variants("cpu", "cpu") == (*clipped["saelab"], *clipped["saelab-float32"], "saelab-auxk")
    assert own_variants("cpu", "cpu-float32") == own_variants("cpu", "triton") == own_variants("cpu", "torch")
    assert own_variants("cuda", "triton") == (*clipped["saelab"], *clipped["saelab-graph"], "saelab-auxk")
    assert own_variants("cuda", "torch") == own_variants("cpu", "torch")
    alone = [*PARTS, *own_variants("cpu", "cpu"), "dense", "dense-bf16"]
    assert all_variants("cpu", "cpu", peers=False) == alone
    assert set(all_variants("cpu", "cpu", peers=True)) > {*alone, "saelens", "sparsify-bf16"}
    assert peer_variants("sparsify", "cuda") == ("sparsify",)
    exact = [is_float32(name, device) for name in ("sparsify", "dense-bf16") for device in ("cpu", "cuda")]
    assert exact == [True, False, False, False]


def test_the_problem_is_always_the_same_and_has_frequent_and_rare_directions():
    options = BenchOptions(d_in=16, d_sae=128, k=4, batch=512)
    first, second = make_problem(options), make_problem(options)
    assert all(map(torch.equal, first.batches, second.batches))
    torch.testing.assert_close(first.W_dec.norm(dim=1), torch.ones(128))
    spread = torch.linalg.svdvals(first.batches[0])
    assert spread[0] > 3 * spread[-1]  # of white noise of this shape they lie within a factor of 1.5


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"rounds": 0}, "--rounds must be at least 1, not 0"),
        ({"d_sae": 16}, "--k 32 is more than the 16 features"),
        ({"threads": 0}, "--threads"),
        ({"dead_share": 0.0}, "--dead-share"),
    ],
)
def test_sizes_that_mean_nothing_are_refused(wrong, words):
    with pytest.raises(BenchError, match=words):
        BenchOptions(**wrong).check()
