"""The Triton selection against the float64 reference. See `triton_select_checks`, which runs these."""

from __future__ import annotations

import math
from dataclasses import replace
from unittest import mock

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from saelab_kernels.backends.reference import BACKEND as REFERENCE
from saelab_kernels.backends.triton import (
    select_lists,
    select_per_batch,
    select_per_token,
    select_threshold,
)
from saelab_kernels.backends.triton.select import triton_select
from saelab_kernels.backends.triton.select_bound import BoundedTiles
from saelab_kernels.backends.triton.select_lists import RowLists
from saelab_kernels.backends.triton.tiles import SelectPlan, operands_of
from saelab_kernels.request import Attribution, Selection, SelectRequest
from saelab_kernels.rules import PerBatch, PerFeature, PerToken, Rule, Threshold

DEVICE = torch.device("cpu")
PLAN = SelectPlan(height=4, chunk=64, list_block=64, tile_bytes=4 * 128 * 4, row_room=4)
FULL = replace(PLAN, precision="full")


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32, whole: int = 0) -> Tensor:
    """Normal numbers, or whole ones up to `whole`."""
    generator = torch.Generator().manual_seed(seed)
    if whole:
        return torch.randint(-whole, whole + 1, shape, generator=generator).to(DEVICE, dtype)
    return torch.randn(*shape, generator=generator).to(DEVICE, dtype)


def request(x: Tensor, W_enc: Tensor, b_enc: Tensor, rule: Rule, **given) -> SelectRequest:
    options = dict.fromkeys(("budgets", "theta", "scale", "attribution", "columns"))
    return SelectRequest(
        x=x,
        W_enc=W_enc,
        b_enc=b_enc,
        rule=rule,
        **options | {"band": 0.0, "boundary": not isinstance(rule, Threshold)} | given,
    )


def random_request(rule: Rule, rows=6, d_in=40, d_sae=300, dtype=torch.float32, **given) -> SelectRequest:
    if isinstance(rule, PerFeature):
        given.setdefault("budgets", draw(d_sae, seed=4, dtype=torch.int64, whole=2).abs())
    if isinstance(rule, Threshold):
        given.setdefault("theta", draw(d_sae, seed=5, dtype=dtype).abs() * 5)
    W_enc = draw(d_sae, d_in, seed=1, dtype=dtype).t()
    return request(draw(rows, d_in, dtype=dtype), W_enc, draw(d_sae, seed=2, dtype=dtype), rule, **given)


def assert_same(ours: Selection, theirs: Selection, exact: bool = False) -> None:
    """The same pairs in the same order, except where entries are padding; values to rounding or exactly."""
    close = {"rtol": 0, "atol": 0} if exact else {"rtol": 2e-5, "atol": 2e-5}
    for a, b in ((ours.code, theirs.code), (ours.band, theirs.band)):
        assert (a is None) == (b is None)
        if a is None or b is None:
            continue
        a = a.trimmed()
        used = b.values != 0
        assert a.shape == b.shape and a.values.dtype == b.values.dtype
        torch.testing.assert_close(a.values, b.values, equal_nan=True, **close)
        assert torch.equal(a.columns[used], b.columns[used])
        assert a.columns.numel() == 0 or 0 <= a.columns.min() <= a.columns.max() < a.d_sae
        assert a.is_uniform or torch.equal(a.offsets, b.offsets)
    for name in ("boundary", "attribution_mean"):
        torch.testing.assert_close(getattr(ours, name), getattr(theirs, name), rtol=2e-5, atol=2e-5)


def assert_right(asked: SelectRequest, plan: SelectPlan = PLAN, exact: bool = False) -> Selection:
    ours = triton_select(asked, plan)
    assert_same(ours, REFERENCE.encode_select(asked), exact)
    return ours


@settings(max_examples=60, deadline=None, derandomize=True)
@given(data=st.data())
def check_ties_and_small_tiles(data: st.DataObject) -> None:
    """Whole numbers make exact ties in any arithmetic; tiny tiles and lists reach every branch."""
    rows, d_sae = data.draw(st.integers(0, 4)), data.draw(st.integers(1, 17))
    seed = data.draw(st.integers(0, 10**6))
    rule = data.draw(
        st.sampled_from([PerToken(1), PerToken(3), PerBatch(0.3), PerBatch(2.6), PerFeature(), Threshold()])
    )
    some = {}
    if isinstance(rule, PerFeature):
        some["budgets"] = draw(d_sae, seed=seed, dtype=torch.int64, whole=5).abs()
    elif isinstance(rule, PerToken) and data.draw(st.booleans()):
        some["budgets"] = draw(rows, seed=seed, dtype=torch.int64, whole=rule.k).abs()
    elif isinstance(rule, Threshold):
        some["theta"] = draw(d_sae, seed=seed, whole=2)
        some["band"] = data.draw(st.sampled_from([0.0, 3.0]))
    factor = data.draw(st.sampled_from(["none", "scale", "columns"]))
    if factor == "scale":
        some["scale"] = draw(d_sae, seed=seed + 1, whole=2).abs()
    if factor == "columns":
        mixed = torch.randperm(d_sae, generator=torch.Generator().manual_seed(seed))
        some["columns"] = mixed[: data.draw(st.integers(0, d_sae))].to(DEVICE)
    plan = SelectPlan(
        precision=data.draw(st.sampled_from(["rescored", "full"])),
        height=data.draw(st.integers(1, 3)),
        tile_bytes=data.draw(st.sampled_from([1, 64])),
        chunk=data.draw(st.sampled_from([2, 8])),
        list_block=data.draw(st.sampled_from([2, 8])),
        row_room=data.draw(st.integers(2, 5)),
    )
    x, W = draw(rows, 2, seed=seed + 2, whole=2), draw(d_sae, 2, seed=seed + 3, whole=2)
    asked = request(x, W.t(), draw(d_sae, seed=seed + 4, whole=1), rule, **some)
    assert_right(asked, plan, exact=True)


def check_ties_beyond_a_block() -> None:
    """All scores are equal or nearly all: cuts run through ties in lists of several blocks."""
    W = draw(150, 1, seed=3, whole=1).abs()
    for plan in (PLAN, replace(FULL, list_block=16)):
        for rule in (PerToken(9), PerToken(40), PerBatch(5.2)):
            asked = request(torch.ones(3, 1, device=DEVICE), W.t(), draw(150, whole=1).abs(), rule)
            assert_right(asked, plan, exact=True)


def check_random_numbers() -> None:
    for rule in (PerToken(5), PerToken(1), PerBatch(3), PerFeature(), Threshold()):
        d_sae = 20 if isinstance(rule, PerFeature) else 300
        assert_right(random_request(rule, d_sae=d_sae, band=0.5 if isinstance(rule, Threshold) else 0.0))
    for sigmas in (1e-3, 1, math.inf):
        assert_right(random_request(PerToken(5), rows=2), replace(PLAN, sigmas=sigmas))


def check_default_plan() -> None:
    assert_right(random_request(PerToken(5), rows=3), SelectPlan())


def check_many_or_all_columns_kept() -> None:
    for rule in (PerToken(70), PerToken(100), PerToken(1000), PerBatch(100)):
        assert_right(random_request(rule, rows=2, d_sae=100))
    everything = torch.full((8,), 9, device=DEVICE)
    assert_right(random_request(PerFeature(), d_sae=8, budgets=everything))


def check_nothing_positive_and_nothing_at_all() -> None:
    for rule in (PerToken(2), PerBatch(2), PerFeature(), Threshold()):
        low = random_request(rule, rows=2, d_sae=20)
        assert_right(replace(low, W_enc=low.W_enc * 0, b_enc=-low.b_enc.abs() - 0.1))
        assert_right(random_request(rule, rows=0, d_sae=20))
        none = torch.zeros(0, dtype=torch.int64, device=DEVICE)
        assert_right(random_request(rule, rows=2, d_sae=20, columns=none))


def check_memory_orders_and_lengths() -> None:
    """No order of memory is special, and no length needs to be a multiple of anything."""
    asked = random_request(PerToken(3), rows=5, d_in=131, d_sae=93)
    wide = torch.zeros(10, 262, device=DEVICE)
    wide[::2, ::2] = asked.x
    for plan in (PLAN, FULL):
        first = assert_right(asked, plan)
        for other in (
            replace(asked, x=wide[::2, ::2], W_enc=asked.W_enc.contiguous()),
            replace(asked, x=asked.x.t().contiguous().t()),
        ):
            again = assert_right(other, plan)
            torch.testing.assert_close(again.code.values, first.code.values)


def check_scale_and_attribution() -> None:
    g, W_dec = draw(5, 7, seed=7), draw(60, 7, seed=8)
    columns = torch.randperm(60, generator=torch.Generator().manual_seed(2))[:44].to(DEVICE)
    for rule in (PerToken(3), PerBatch(2.4), PerFeature(), Threshold()):
        assert_right(random_request(rule, rows=5, d_sae=60, scale=draw(60, seed=9).abs(), columns=columns))
        for mode, norm in (("add", "token"), ("mul", "global")):
            effect = Attribution(g=g, W_dec=W_dec, beta=0.7, mode=mode, norm=norm, mean_c=1.7)
            assert_right(random_request(rule, rows=5, d_sae=60, attribution=effect, columns=columns))
    silent = Attribution(g=g * 0, W_dec=W_dec, beta=0.7, mode="mul")
    assert_right(random_request(PerToken(3), rows=5, d_sae=60, attribution=silent))


def check_attribution_with_beta_zero_is_plain() -> None:
    effect = Attribution(g=draw(5, 7, seed=7), W_dec=draw(300, 7, seed=8), beta=0.0)
    plain, ours = (
        triton_select(random_request(PerToken(3), rows=5, attribution=a), PLAN) for a in (None, effect)
    )
    assert torch.equal(ours.code.values, plain.code.values)
    assert torch.equal(ours.code.columns, plain.code.columns)
    assert ours.attribution_mean is not None


def check_other_dtypes() -> None:
    for dtype in (torch.float64, torch.bfloat16, torch.float16):
        asked = random_request(PerToken(4), rows=3, dtype=dtype)
        ours, theirs = triton_select(asked, PLAN), REFERENCE.encode_select(asked)
        assert torch.equal(ours.code.columns, theirs.code.columns)
        torch.testing.assert_close(ours.code.values, theirs.code.values, rtol=1e-2, atol=0)
    for rule in (PerToken(4), PerBatch(3), Threshold()):
        assert_right(random_request(rule, rows=3, dtype=torch.float64, d_sae=90))


def check_nan_and_infinity() -> None:
    """A NaN ranks first, ties with infinity, is kept, and takes nothing else with it."""
    for rule in (PerToken(3), PerBatch(1.5), PerFeature(), Threshold()):
        asked = random_request(rule, rows=4, d_sae=40)
        if asked.budgets is not None:
            asked = replace(asked, budgets=asked.budgets.clamp_min(1))
        x, W, b = asked.x.clone(), asked.W_enc.clone(), asked.b_enc.clone()
        W[:, 17] = torch.nan
        b[5], b[6] = torch.inf, -torch.inf
        assert_right(replace(asked, W_enc=W, b_enc=b))
        x[1], x[2, 0] = torch.nan, torch.inf
        assert_right(replace(asked, x=x), FULL)
    x = draw(4, 40)
    x[1], x[2, 0] = torch.nan, torch.inf
    assert_right(replace(random_request(PerToken(3), rows=4, d_sae=60), x=x))


def check_lost_rows_are_done_again() -> None:
    """Rows with more candidates than room: equal scores, no positive ones, NaN."""
    asked = random_request(PerToken(3), rows=4, d_sae=90)
    x, W, b = asked.x.clone(), asked.W_enc.clone(), asked.b_enc.clone()
    x[0], x[2] = 0, torch.nan
    W[:, 20:80] = W[:, 19:20]
    b[20:80] = b[19] = 30.0
    made: list[RowLists] = []
    allocate = RowLists.allocate

    def note(*args, **kwargs):
        made.append(allocate(*args, **kwargs))
        return made[-1]

    plan = replace(PLAN, chunk=8)
    with (
        mock.patch.object(select_lists, "_CANDIDATES", 16),
        mock.patch.object(RowLists, "allocate", note),
    ):
        assert_right(replace(asked, x=x, W_enc=W, b_enc=b), plan)
    assert made[0].lost.tolist() == [1, 1, 1, 1]
    with mock.patch.object(RowLists, "allocate", note):
        assert_right(asked)
    assert made[1].lost.tolist() == [0, 0, 0, 0]


def check_scores_closer_than_bfloat16_can_tell() -> None:
    """Nearly equal features: the order of the bfloat16 products is noise, that of the code must not be."""
    asked = random_request(PerToken(5), rows=3)
    W = asked.W_enc[:, :1] + 2e-3 * asked.W_enc
    asked = replace(asked, W_enc=W, b_enc=asked.b_enc * 0 + 20)
    rounded = (asked.x.bfloat16() @ W.bfloat16()).topk(5).indices.sort().values
    code = assert_right(asked).code
    assert not torch.equal(rounded, code.columns.long().sort().values)


def check_bound_holds() -> None:
    """No pre-activation leaves its interval; shared massive coordinates and tiny weights included."""
    asked = random_request(PerToken(3), rows=40, d_in=200, d_sae=500)
    massive = asked.x.clone()
    massive[:, 7] += 300.0
    for x, W in ((asked.x, asked.W_enc), (massive, asked.W_enc), (asked.x * 1e-12, asked.W_enc * 1e-14)):
        exact = x.double() @ W.double() + asked.b_enc.double()
        for sigmas in (6.0, math.inf):
            plan = replace(PLAN, height=40, tile_bytes=2 * 40 * 1024, sigmas=sigmas)
            operands = operands_of(replace(asked, x=x, W_enc=W), plan)
            with mock.patch("saelab_kernels.backends.triton.select_bound.offer_bounded_tile") as offered:
                tiles = BoundedTiles.of(operands, plan)
                tiles.fill(mock.Mock(), 0, 40)
            tile, shift, (row, norm) = offered.call_args.args[3:6]
            acc = tile[:, :500].double()
            found = acc + shift
            error = row.double()[:, None] * norm + 2.0**-9 * 1.01 * acc.abs() + 2.0**-22 * shift.abs()
            assert ((found - exact).abs() <= error).all()
            # Tight enough to be of use: a small part of how much the scores differ.
            spread = (exact - asked.b_enc).sub((exact - asked.b_enc).mean(0)).std()
            assert error.mean() < (0.06 if sigmas == 6.0 else 0.15) * spread + 1e-5


def check_any_batch_gives_the_same_bits() -> None:
    asked = random_request(PerToken(4), rows=7)
    for plan, rule in ((PLAN, PerToken(4)), (FULL, PerToken(4)), (FULL, Threshold())):
        theta = torch.tensor(5.0, device=DEVICE) if isinstance(rule, Threshold) else None
        asked = replace(asked, rule=rule, theta=theta, boundary=theta is None)
        whole = triton_select(asked, plan)
        again = triton_select(asked, plan)
        assert torch.equal(again.code.values, whole.code.values)
        for first, last in ((0, 1), (3, 7)):
            part = triton_select(replace(asked, x=asked.x[first:last]), plan)
            expected = whole.code.slice_rows(first, last)
            assert torch.equal(part.code.values, expected.values)
            assert torch.equal(part.code.columns, expected.columns)
            if whole.boundary is not None:
                assert torch.equal(part.boundary, whole.boundary[first:last])


def check_rows_that_outgrow_their_room() -> None:
    """One row takes nearly all of the batch's quota; half of all scores pass the threshold."""
    asked = random_request(PerBatch(4), rows=6, d_sae=60)
    x = asked.x.clone()
    x[3] *= 100
    assert_right(replace(asked, x=x))
    assert_right(random_request(Threshold(), rows=3, theta=torch.tensor(0.0, device=DEVICE), band=0.4))


def check_capacity_while_a_graph_is_captured() -> None:
    """Nothing is read then: spare capacity and flags, and no offset beyond the capacity."""
    asked = random_request(PerBatch(0.5), rows=6, d_sae=60)
    x = asked.x.clone()
    x[3] *= 100
    below = replace(asked, rule=Threshold(), theta=torch.tensor(9.0, device=DEVICE), boundary=False)
    above = replace(below, theta=torch.tensor(0.0, device=DEVICE))
    with (
        mock.patch.object(select_per_batch, "capturing", lambda tensor: True),
        mock.patch.object(select_threshold, "capturing", lambda tensor: True),
    ):
        roomy = replace(PLAN, row_room=20)
        for fits in (replace(asked, x=x), below):
            ours = assert_right(fits, roomy)
            assert ours.code.count is not None and not ours.code.overflow
        for too_much in (replace(asked, x=x), above):
            with mock.patch.object(select_per_batch, "_MORE", 1):
                code = triton_select(too_much, replace(PLAN, row_room=2)).code
            assert code.overflow and code.offsets[-1] == code.count <= code.values.shape[0]


def check_captured_graph() -> None:
    """`PerToken` in a CUDA graph, replayed on other data; without a GPU it is not run and says so."""
    if DEVICE.type != "cuda":
        return
    asked = random_request(PerToken(5), rows=6)
    triton_select(asked)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = triton_select(asked)
    asked.x.copy_(draw(6, 40, seed=12))
    graph.replay()
    plain = select_per_token.select_per_token(asked, PerToken(5), SelectPlan())
    assert torch.equal(captured.code.values, plain.code.values)
    assert torch.equal(captured.code.columns, plain.code.columns)
