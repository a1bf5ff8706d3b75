import pytest
import torch
import torch.nn.functional as F

from saelab.errors import UsageError
from saelab.lm.hooks import Hookpoint, resolve
from saelab.lm.run import capture, capture_with_gradients, edited, final_hidden, unembedding


def logits(lm, ids, **more):
    with torch.no_grad():
        return lm.hf(input_ids=ids, use_cache=False, **more).logits


def at(lm, *names):
    return [resolve(name, lm.hookpoints) for name in names]


def aliased(lm):
    return [hookpoint for hookpoint in lm.hookpoints if hookpoint.alias]


def last_block(lm):
    return [h for h in lm.hookpoints if ".2." in h.module_path and h.alias]


def test_captured_residuals_equal_the_hidden_states_of_transformers_bit_for_bit(lm, ids):
    places = at(
        lm, "hook_embed", *(f"blocks.{layer}.hook_resid_post" for layer in range(3)), "ln_final.hook_out"
    )
    seen = capture(lm, ids, places)
    with torch.no_grad():
        states = lm.hf(input_ids=ids, output_hidden_states=True, use_cache=False).hidden_states
    pre = capture(lm, ids, at(lm, "blocks.0.hook_resid_pre"))
    assert torch.equal(next(iter(pre.values())), states[0])
    for place, state in zip(places[1:3], states[1:3], strict=True):
        assert torch.equal(seen[place], state)
    assert torch.equal(seen[places[-1]], states[-1])  # transformers' last one is after the norm
    assert list(seen) == places


def test_inputs_and_outputs_are_those_of_the_module(lm, ids):
    z, attention, post, mlp = at(
        lm,
        "blocks.1.attn.hook_z",
        "blocks.1.hook_attn_out",
        "blocks.1.mlp.hook_post",
        "blocks.1.hook_mlp_out",
    )
    seen = capture(lm, ids, [z, attention, post, mlp])
    for inside, outside in ((z, attention), (post, mlp)):
        projection = lm.hf.get_submodule(inside.module_path.removesuffix(".input"))
        with torch.no_grad():
            assert torch.equal(projection(seen[inside]), seen[outside])


def test_capture_stops_after_the_last_hookpoint(lm, ids):
    runs = []
    handles = [m.register_forward_hook(lambda m, *_: runs.append(m)) for m in lm.hf.modules()]
    try:
        capture(lm, ids, at(lm, "blocks.1.hook_mlp_out"))
        needed = {m for n, m in lm.hf.named_modules() if ".0." in n or ".1." in n}
        late = {m for n, m in lm.hf.named_modules() if ".2." in n} | {lm.hf.get_output_embeddings()}
        assert needed & set(runs)
        assert not late & set(runs)
        runs.clear()
        capture(lm, ids, at(lm, "blocks.2.hook_resid_pre"))
        assert not late & set(runs)
        capture(lm, ids, [])
        assert not late & set(runs)
    finally:
        for handle in handles:
            handle.remove()


def test_the_order_of_the_request_does_not_matter(lm, ids):
    backwards = capture(lm, ids, aliased(lm)[::-1])
    assert list(backwards) == aliased(lm)[::-1]
    for hookpoint in aliased(lm)[::4]:
        alone = capture(lm, ids, [hookpoint])[hookpoint]
        assert torch.equal(alone, backwards[hookpoint])
        assert alone.shape == (*ids.shape, hookpoint.d_in)


def test_asking_twice_for_a_hookpoint_gives_it_once(lm, ids):
    (place,) = at(lm, "blocks.0.hook_resid_post")
    assert list(capture(lm, ids, [place, place])) == [place]


def test_captured_tensors_can_enter_training(lm, ids):
    (place,) = at(lm, "blocks.1.hook_resid_post")
    x = capture(lm, ids, [place])[place]
    weight = torch.ones(24, requires_grad=True)
    F.mse_loss(x * weight, x * 2).backward()
    assert weight.grad is not None


def test_no_hook_is_left_behind(lm, ids):
    (place,) = at(lm, "blocks.1.hook_resid_post")
    before = logits(lm, ids)

    def explode(_):
        raise RuntimeError("inside the edit")

    with pytest.raises(RuntimeError, match="inside the edit"), edited(lm, {place: explode}):
        logits(lm, ids)
    with (
        pytest.raises(UsageError),
        edited(lm, {place: explode, Hookpoint("model.nothing.output", None, 24): explode}),
    ):
        logits(lm, ids)
    capture(lm, ids, [place])
    assert torch.equal(logits(lm, ids), before)
    assert not any(m._forward_pre_hooks for m in lm.hf.modules())


def test_right_padding_changes_nothing_before_it(lm, ids):
    (place,) = at(lm, "blocks.2.hook_resid_post")
    padded = ids.clone()
    padded[:, 12:] = 0
    mask = (torch.arange(ids.shape[1]) < 12).long().expand_as(ids)
    torch.testing.assert_close(
        capture(lm, padded, [place], attention_mask=mask)[place][:, :12],
        capture(lm, ids, [place])[place][:, :12],
    )


def test_an_identity_edit_everywhere_leaves_the_logits_bit_equal(lm, ids):
    with edited(lm, {hookpoint: lambda x: x.clone() for hookpoint in lm.hookpoints}):
        inside = logits(lm, ids)
    assert torch.equal(inside, logits(lm, ids))


def test_an_edit_changes_later_positions_and_layers_only(lm, ids):
    (place,) = at(lm, "blocks.1.hook_mlp_out")

    def zero_from_the_tenth(x):
        return torch.cat([x[:, :10], torch.zeros_like(x[:, 10:])], dim=1)

    watched = aliased(lm)
    before = capture(lm, ids, watched)
    with edited(lm, {place: zero_from_the_tenth}):
        after = capture(lm, ids, watched)
    assert after[place][:, 10:].abs().max() == 0
    for hookpoint in watched[: watched.index(place)]:
        assert torch.equal(before[hookpoint], after[hookpoint])
    for hookpoint in watched[watched.index(place) :]:
        assert torch.equal(before[hookpoint][:, :10], after[hookpoint][:, :10])
        assert not torch.equal(before[hookpoint][:, 10:], after[hookpoint][:, 10:])
    post, mid = at(lm, "blocks.1.hook_resid_post", "blocks.1.hook_attn_out")
    pre = after[at(lm, "blocks.1.hook_resid_pre")[0]]
    torch.testing.assert_close(after[post][:, 10:], (pre + after[mid])[:, 10:])


def test_editing_a_blocks_input_equals_editing_the_output_before_it(lm, ids):
    pre, post = at(lm, "blocks.2.hook_resid_pre", "blocks.1.hook_resid_post")
    with edited(lm, {pre: lambda x: 2 * x + 1}):
        through_input = logits(lm, ids)
    with edited(lm, {post: lambda x: 2 * x + 1}):
        assert torch.equal(through_input, logits(lm, ids))
    assert not torch.equal(through_input, logits(lm, ids))


def test_an_edit_may_compute_in_another_dtype_but_not_change_the_shape(lm, ids):
    (place,) = at(lm, "blocks.1.hook_resid_post")
    with edited(lm, {place: lambda x: x.double()}):
        inside = logits(lm, ids)
    assert torch.equal(inside, logits(lm, ids))
    with edited(lm, {place: lambda x: x[:1]}), pytest.raises(ValueError, match="returned shape"):
        logits(lm, ids)


def test_logits_are_the_unembedding_of_the_final_hidden_state(lm, ids):
    hidden = final_hidden(lm, ids)
    torch.testing.assert_close(unembedding(lm).logits(hidden), logits(lm, ids))
    (place,) = at(lm, "ln_final.hook_out")
    assert torch.equal(hidden, capture(lm, ids, [place])[place])


def test_gradients_equal_those_of_a_plain_forward_pass(lm, ids):
    counted = torch.rand(ids.shape, generator=torch.Generator().manual_seed(3)) < 0.6
    counted[:, -1] = False
    places = aliased(lm)
    activations, gradients, loss = capture_with_gradients(lm, ids, places, counted)

    clean = logits(lm, ids)
    expected_loss = F.cross_entropy(clean[:, :-1].flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
    expected_loss = F.pad(expected_loss.view(3, -1), (0, 1)) * counted
    torch.testing.assert_close(loss, expected_loss, rtol=1e-5, atol=1e-5)
    plain = capture(lm, ids, places)
    checked = at(
        lm, *(f"blocks.1.{p}" for p in ("hook_resid_pre", "attn.hook_z", "hook_mlp_out")), "ln_final.hook_out"
    )
    for place in checked:
        assert torch.equal(activations[place], plain[place])
        # Each place alone, edited by a leaf of zeros: what the gradient is documented to mean.
        leaf = torch.zeros_like(plain[place], requires_grad=True)
        with edited(lm, {place: lambda x, leaf=leaf: x + leaf}):
            found = lm.hf(input_ids=ids, use_cache=False).logits[:, :-1]
        total = (F.cross_entropy(found.flatten(0, 1), ids[:, 1:].flatten(), reduction="none")).view(3, -1)
        (total * counted[:, :-1]).sum().backward()
        torch.testing.assert_close(gradients[place], leaf.grad, rtol=1e-4, atol=1e-5)
        assert not gradients[place].requires_grad
        assert not activations[place].requires_grad
    assert all(p.grad is None for p in lm.hf.parameters())


def test_a_prediction_made_from_nothing_is_refused(lm, ids):
    with pytest.raises(ValueError, match="last column"):
        capture_with_gradients(lm, ids, last_block(lm)[:1], torch.ones_like(ids, dtype=torch.bool))


def test_wrong_requests_are_refused_in_one_line(lm, ids):
    elsewhere = Hookpoint("model.layers.7.output", None, 24)
    with pytest.raises(UsageError, match=r"no hookpoint model\.layers\.7\.output"):
        capture(lm, ids, [elsewhere])
    with pytest.raises(UsageError, match=r"60 tokens.*at most 32"):
        capture(lm, ids.repeat(1, 3), last_block(lm)[:1])
