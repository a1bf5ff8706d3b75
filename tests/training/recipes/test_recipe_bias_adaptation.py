"""Bias adaptation: the update on hand-made buffers, gradients of the tied weights, start, export and resume."""

import math

import pytest
import torch
from training_helpers import StopAfter, data_files, train_run

from saelab.activations.source import StoreSource
from saelab.api import train_config
from saelab.errors import Interrupted, UsageError
from saelab.sae.autoencoder import SAEParameters
from saelab.training.bias_groups import BiasStep, Firing, FrequencyRange, adapted_biases, peaks_of
from saelab.training.finish import finished_sae
from saelab.training.member import make_member
from saelab.training.optimiser import HeldGradients
from saelab.training.recipes.bias_adaptation import BiasAdaptation
from saelab.training.recipes.group_bias_adaptation import GroupBiasAdaptation
from saelab.training.recipes.moments import Clock, Inputs, Setup
from saelab.training.views import HookRows
from saelab_kernels.adam_state import AdamOptions, Weights
from saelab_kernels.code import SparseCode

BATCH, WIDTH = 64, 48
NAMES = ["bias-adaptation", "group-bias-adaptation"]


def config_of(store, name="group-bias-adaptation", steps=24, **options):
    small = {"width": WIDTH, "lr": 1e-2, "batch": BATCH, "checkpoint_every": 5, "log_every": 3}
    return train_config(
        store, name, tokens=steps * BATCH, recipe_options={"k": 6} | options, device="cpu", **small
    )


def member_of(store, folder, **how):
    return make_member("m", config_of(store, **how), StoreSource(store), folder)


def step_on(member, store, start):
    member.train_on({member.config.hook: HookRows(store.rows(None, "train", start, start + BATCH).x)})


def adapt(b, counts, peaks, *, tokens=1000, groups=1, target=0.1, lowest=None, floor=-1.0, epsilon=1e-6):
    firing = Firing(torch.tensor(counts), torch.tensor(peaks), torch.tensor(tokens))
    frequencies = FrequencyRange(groups, target, target if lowest is None else lowest)
    return adapted_biases(
        torch.tensor(b), firing, frequencies, BiasStep(0.01, epsilon, torch.tensor(floor))
    ).tolist()


def test_an_overactive_feature_loses_a_share_of_its_largest_pre_activation_bias_included():
    assert adapt([-0.2], [101], [0.7]) == pytest.approx([-0.2 - 0.01 * (0.7 - 0.2)])


def test_a_dead_feature_gains_a_share_of_its_groups_mean_over_those_that_fired():
    # r is 0.5, 0.3 and none; the dead one rises by 0.01 * mean(0.5, 0.3).
    found = adapt([-0.1, -0.2, -0.4], [50, 60, 0], [0.6, 0.5, 0.0])
    assert found == pytest.approx([-0.1, -0.2, -0.4 + 0.01 * 0.4])


def test_a_feature_at_its_target_or_below_stays():
    assert adapt([-0.3, -0.3], [100, 1], [0.6, 0.4]) == pytest.approx([-0.3, -0.3])


def test_biases_are_clamped_at_both_ends():
    assert adapt([-0.999], [500], [3.0]) == [-1.0]
    assert adapt([-2.499], [500], [5.0], floor=-2.5) == [-2.5]
    assert adapt([-0.001, -0.2], [0, 10], [0.0, 0.9]) == pytest.approx([0.0, -0.2])


def test_a_group_in_which_nothing_fired_stays_whatever_the_other_group_does():
    # Features 0 and 2 are group 0, 1 and 3 group 1, of which none fired.
    found = adapt([-0.1, -0.4, -0.1, -0.4], [50, 0, 0, 0], [0.6, 0.0, 0.0, 0.0], groups=2, lowest=0.01)
    assert found == pytest.approx([-0.1, -0.4, -0.1 + 0.01 * 0.5, -0.4])


def test_each_group_has_its_own_target():
    found = adapt([-0.1, -0.1], [50, 50], [0.6, 0.6], groups=2, lowest=0.01)
    assert found == pytest.approx([-0.1, -0.1 - 0.01 * 0.5])


def test_below_epsilon_counts_as_dead():
    assert adapt([-0.1], [5], [0.6], epsilon=0.006) == pytest.approx([-0.1 + 0.01 * 0.5])
    assert adapt([-0.1], [6], [0.6], epsilon=0.006) == pytest.approx([-0.1])


def test_targets_fall_geometrically_and_sum_to_k():
    found = FrequencyRange(3, 0.4, 0.1)
    torch.testing.assert_close(found.targets(), torch.tensor([0.4, 0.2, 0.1]))
    assert found.group_of(5).tolist() == [0, 1, 2, 0, 1]
    ranged = FrequencyRange.for_mean_l0(32.0, 4096, groups=10, ratio=1 / 25)
    rho = 25 ** (-1 / 9)
    # Not exactly 10 equal groups: 4096 = 409 * 10 + 6, so that the first six have one feature more.
    assert ranged.highest == pytest.approx(32 / (4096 * sum(rho**j for j in range(10)) / 10), rel=1e-3)
    assert ranged.targets()[ranged.group_of(4096)].sum().item() == pytest.approx(32, rel=1e-5)
    assert ranged.lowest == pytest.approx(ranged.highest / 25)
    assert BiasAdaptation(k=32.0).frequencies(4096) == (1, 32 / 4096, 32 / 4096)


def test_a_buffer_holds_five_firings_of_the_rarest_group_or_a_400th_of_the_run():
    recipe = GroupBiasAdaptation(highest_frequency=0.05, lowest_frequency=0.002)
    assert recipe.interval(256, Clock(0, 14_000, 512)) == 35
    assert recipe.interval(256, Clock(0, 400, 512)) == math.ceil(5 / (0.002 * 512))
    assert GroupBiasAdaptation(adapt_every=7).interval(256, Clock(0, 14_000, 512)) == 7


def test_features_end_at_or_below_their_targets_when_biases_alone_move():
    generator = torch.Generator().manual_seed(0)
    frequencies, n, features = FrequencyRange(4, 0.1, 0.005), 4096, 32
    w = torch.randn(features, 8, generator=generator)
    w /= w.norm(dim=1, keepdim=True)

    def activations():
        x = torch.randn(n, 8, generator=generator)
        return (x / x.norm(dim=1, keepdim=True)) @ w.T

    b = torch.zeros(features)
    for _ in range(500):
        u = activations()
        active = u + b > 0
        firing = Firing(active.sum(0), (u * active).amax(0), torch.tensor(n))
        b = adapted_biases(b, firing, frequencies, BiasStep(0.01, 1e-6, torch.tensor(-1.0)))
    assert (b >= -1).all() and (b < 0).all()
    seen = torch.stack([(activations() + b > 0).float().mean(0) for _ in range(8)]).mean(0)
    target = frequencies.targets()[frequencies.group_of(features)]
    assert (seen <= target + 4 * (target / (8 * n)).sqrt()).all()
    assert (seen > 0.3 * target).all()


@pytest.mark.parametrize("spare", [0, 3])
def test_peaks_are_the_largest_values_of_each_column(spare):
    x = torch.rand(50, 9, generator=torch.Generator().manual_seed(0)) - 0.5
    code = SparseCode.from_dense(x.clamp_min(0))
    if spare:
        full = torch.tensor(len(code.values))
        values = torch.cat([code.values, torch.full((spare,), 9.0)])
        columns = torch.cat([code.columns, torch.zeros(spare, dtype=torch.int32)])
        code = SparseCode(values, columns, 9, code.offsets, full, torch.tensor(False))
    assert torch.equal(peaks_of(code), x.clamp_min(0).amax(0))


def doubles(d_in=10, d_sae=30, rows=40):
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    W = draw(d_sae, d_in)
    W /= W.norm(dim=1, keepdim=True)
    a, b, c, x = 1 + 0.5 * draw(d_sae), -draw(d_sae).abs(), 0.3 * draw(d_in), draw(rows, d_in)
    return W, a, b, c, x


@pytest.mark.parametrize("centre", ["median", "zero", "trained"])
def test_gradients_of_rows_scales_and_centre_equal_dense_autograd(centre):
    W, a, b, c, x = doubles()
    recipe = GroupBiasAdaptation(centre=centre)
    zeros = torch.zeros(len(a), dtype=torch.float64)
    params = SAEParameters(W_enc=W.clone().T, b_enc=zeros, W_dec=a[:, None] * W, b_dec=c.clone())
    found = recipe.forward(Inputs(x - c, x), params, {"a": a, "b": b}, Clock(0, 10, len(x)), 3.0)
    options = AdamOptions(beta1=0.0, unit_rows=False)
    optimiser = HeldGradients(Weights(**params.named()), options, recipe.traits.trained)
    optimiser.step(found, 0.0)

    rows, scale, middle = (t.clone().requires_grad_() for t in (W, a, c))
    u = (x - middle) @ rows.T
    x_hat = (u * (u + b > 0) * scale) @ rows + middle
    loss = (x - x_hat).square().sum(1).mean() / 3.0
    loss.backward()
    torch.testing.assert_close(found.loss.total, loss.detach())
    moments = optimiser.state_tensors()
    torch.testing.assert_close(moments["W_enc.exp_avg"], rows.grad, rtol=1e-10, atol=1e-13)
    torch.testing.assert_close(found.own["a"], scale.grad, rtol=1e-10, atol=1e-13)
    expected = middle.grad if centre == "trained" else torch.zeros_like(c)
    torch.testing.assert_close(moments["b_dec.exp_avg"], expected, rtol=1e-10, atol=1e-13)


def test_a_step_moves_rows_and_scales_and_an_adaptation_moves_the_biases(store, tmp_path):
    member = member_of(store, tmp_path, adapt_every=3, centre="median")
    state, params = member.recipe_state, member.params
    before = {"W": params.W_enc.clone(), "a": state["a"].clone(), "b": state["b"].clone()}
    centre = params.b_dec.clone()
    for step in range(2):
        step_on(member, store, step * BATCH)
    assert torch.equal(state["b"], before["b"])
    assert state["tokens"] == 2 * BATCH
    assert state["counts"].sum() > 0
    assert not torch.equal(state["a"], before["a"])
    assert not torch.equal(params.W_enc, before["W"])
    assert torch.equal(params.b_dec, centre)
    torch.testing.assert_close(params.W_enc.norm(dim=0), torch.ones(WIDTH))
    assert torch.equal(params.W_dec, params.W_enc.T * state["a"][:, None])
    step_on(member, store, 2 * BATCH)
    assert not torch.equal(state["b"], before["b"])
    assert state["tokens"] == state["counts"].sum() == state["peaks"].sum() == 0


def test_scales_and_centre_move_only_where_they_are_trained(store, tmp_path):
    fixed = member_of(store, tmp_path, scale="fixed", centre="zero")
    step_on(fixed, store, 0)
    assert (fixed.recipe_state["a"] == 1).all()
    assert (fixed.params.b_dec == 0).all()
    trained = member_of(store, tmp_path, centre="trained")
    step_on(trained, store, 0)
    assert (trained.params.b_dec != 0).all()


def first_state(**options):
    x = torch.randn(8192, 24, generator=torch.Generator().manual_seed(1))
    x /= x.norm(dim=1, keepdim=True)
    W = torch.randn(200, 24, generator=torch.Generator().manual_seed(2))
    W /= W.norm(dim=1, keepdim=True)
    params = SAEParameters(W_enc=W.clone().T, b_enc=torch.zeros(200), W_dec=W, b_dec=torch.zeros(24))
    recipe = GroupBiasAdaptation(k=10.0, **options)
    clock = Clock(0, 10, BATCH)
    setup = Setup(clock, 24, 24, 200, 1.0, x, x, (24,), 0)
    state = recipe.init(params, setup)
    return recipe, state, recipe.select(Inputs(x, x), params, state, clock).code


def test_with_biases_of_zero_half_of_all_pairs_of_centred_data_are_active():
    _, state, code = first_state(start="zero")
    assert (state["b"] == 0).all()
    assert (code.firing_counts() / 8192).mean().item() == pytest.approx(0.5, abs=0.02)
    assert state["floor"].item() == pytest.approx(-1, abs=1e-5)


def test_biases_at_the_targets_let_each_feature_fire_as_often_as_it_may():
    recipe, state, code = first_state(start="target")
    frequencies = recipe.frequencies(200)
    target = frequencies.targets()[frequencies.group_of(200)]
    torch.testing.assert_close(code.firing_counts() / 8192, target, rtol=0, atol=1.5 / 8192)
    assert (state["b"] < 0).all()


@pytest.mark.parametrize("normalisation", ["unit_norm", "scale"])
def test_the_exported_threshold_form_equals_the_tied_forward_with_negative_scales_too(
    store, tmp_path, normalisation
):
    source = StoreSource(store)
    config = train_config(
        store,
        "group-bias-adaptation",
        width=WIDTH,
        tokens=10 * BATCH,
        batch=BATCH,
        normalisation=normalisation,
        recipe_options={"k": 6},
        device="cpu",
    )
    member = make_member("m", config, source, tmp_path)
    a = member.recipe_state["a"]
    a.copy_(torch.linspace(-2, 2, WIDTH))
    a[7] = 0.0
    # The first biases are pre-activations of the sample itself: ties, which rounding would decide.
    member.recipe_state["b"].mul_(0.99)
    member.params.W_dec.copy_(a[:, None] * member.params.W_enc.T)
    x = store.rows(None, "train", 0, 300).x
    inputs = member.views.batch({config.hook: HookRows(x)}, member.params.b_dec, gradients=False)
    found = config.recipe.forward(inputs, member.params, member.recipe_state, member.clock, 1.0)
    sae, _ = finished_sae(member, source)
    x_hat, code = sae.reconstruct(x)
    factor = (
        1 / x.norm(dim=1, keepdim=True)
        if normalisation == "unit_norm"
        else member.views.inputs[0].normalisation.factor
    )
    torch.testing.assert_close(x_hat * factor, found.error + inputs.target, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.ones(WIDTH))
    counts = found.code.firing_counts()
    counts[7] = 0  # a scale of 0 adds nothing, and its feature is never active
    assert torch.equal(code.firing_counts(), counts)


@pytest.mark.parametrize("name", NAMES)
def test_an_interrupted_run_ends_with_the_same_bits(store, tmp_path, name):
    # Adaptations every 4 steps: the stop after step 10 falls into a half-filled buffer.
    config = config_of(store, name, adapt_every=4)
    train_run(config, store, tmp_path / "straight")
    with pytest.raises(Interrupted):
        train_run(config, store, tmp_path / "run", stop=StopAfter(9))
    train_run(config, store, tmp_path / "run")
    assert data_files(tmp_path / "run") == data_files(tmp_path / "straight")


def test_one_group_is_bias_adaptation(store, tmp_path):
    saved = []
    for name, options in (("bias-adaptation", {}), ("group-bias-adaptation", {"groups": 1})):
        run = train_run(config_of(store, name, **options), store, tmp_path / name)
        saved.append((run.path / "sae" / "weights.safetensors").read_bytes())
    assert saved[0] == saved[1]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"k": 0}, "k must be above 0 and at most the width 48"),
        ({"k": 40}, "k 40 may be too large"),
        ({"gamma": 1.0}, "gamma must be between 0 and 1"),
        ({"adapt_every": 0}, "adapt_every must be at least 1"),
        ({"epsilon": 0.5}, "below the lowest target frequency"),
        ({"groups": 49}, "groups must be from 1 to the width 48"),
        ({"ratio": 0.0}, "ratio must be above 0"),
        ({"highest_frequency": 0.1}, "together"),
        ({"highest_frequency": 0.1, "lowest_frequency": 0.2}, "must fall"),
    ],
)
def test_options_that_cannot_work_are_refused(store, options, words):
    with pytest.raises(UsageError, match=words):
        config_of(store, **options)
