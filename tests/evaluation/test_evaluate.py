"""One record with every metric: same for any tile, refuses what does not belong together, never NaN."""

import dataclasses
import json

import numpy as np
import pytest
import torch

from saelab.activations.store import Store
from saelab.errors import UsageError
from saelab.evaluation.autoencoder import reconstruct_tile
from saelab.evaluation.evaluate import evaluate
from saelab.evaluation.spec import EvaluationConfig
from saelab.evaluation.tokens import choose_tokens
from saelab.sae.autoencoder import SAEParameters, SparseAutoencoder

HOOK = "model.layers.0.output"


def topk_sae(config, k=4, d_sae=64):
    """Return a real, untrained SAE of the given configuration's hook and model."""
    generator = torch.Generator().manual_seed(0)
    W_dec = torch.randn(d_sae, config.d_in, generator=generator)
    W_dec /= W_dec.norm(dim=1, keepdim=True)
    config = dataclasses.replace(config, d_sae=d_sae, inference={"name": "per_token", "k": k})
    parameters = SAEParameters(W_dec.T.contiguous(), torch.zeros(d_sae), W_dec, torch.zeros(config.d_in))
    return SparseAutoencoder(config, parameters)


@pytest.fixture
def sae(world, known_sae):
    return topk_sae(known_sae(lambda x: x, world.masked).config)


def heldout(store, tokens=10**9):
    return store.rows(HOOK, "heldout", 0, choose_tokens(store, store.hook(HOOK), tokens).n_tokens)


def test_metrics_of_a_real_sae_equal_dense_float64(world, sae):
    metrics = evaluate(sae, world.masked, HOOK, progress=False).reconstruction
    x = heldout(world.masked).x
    x_hat, code = sae.reconstruct(x)
    target, output, dense = x.double(), x_hat.double(), code.dense()
    fvu = (target - output).square().sum() / (target - target.mean(0)).square().sum()
    assert metrics.n_tokens == len(x) == world.masked.n_rows(HOOK, "heldout")
    assert metrics.l0 == pytest.approx((dense > 0).sum(1).double().mean().item())
    assert metrics.fvu == pytest.approx(fvu.item(), rel=1e-12)
    assert metrics.mse == pytest.approx((target - output).square().mean().item(), rel=1e-12)
    assert metrics.cosine == pytest.approx(torch.cosine_similarity(target, output).mean().item(), rel=1e-12)
    assert metrics.dead_fraction == (dense == 0).all(0).double().mean().item()
    assert metrics.dense_fraction == ((dense > 0).double().mean(0) > 0.1).double().mean().item()


@pytest.mark.parametrize("tile", [37, 64, 5000])
def test_every_metric_is_the_same_for_any_tile(world, sae, tile):
    one, other = (
        evaluate(sae, world.masked, HOOK, config=EvaluationConfig(tile=size), progress=False)
        for size in (256, tile)
    )
    for name, value in dataclasses.asdict(one.reconstruction).items():
        assert getattr(other.reconstruction, name) == pytest.approx(value, rel=1e-12), name
    assert torch.equal(one.features.count, other.features.count)
    assert one.tokens_hash == other.tokens_hash


def test_a_token_has_the_same_bits_whatever_it_is_evaluated_with(world, known_sae):
    # A dense matrix product, whose rows round differently in batches of different heights.
    weight = torch.randn(32, 32, generator=torch.Generator().manual_seed(0)) / 6
    sae, store = known_sae(lambda x: x @ weight, world.masked), world.masked
    x = heldout(store).x[:100]
    full = reconstruct_tile(sae, x, 128).x_hat
    for n_rows in (1, 2, 3, 17, 99):
        assert torch.equal(reconstruct_tile(sae, x[:n_rows], 128).x_hat, full[:n_rows])


def test_evaluating_twice_gives_the_same_record(world, sae):
    records = [evaluate(sae, world.masked, HOOK, world.lm, progress=False).to_json() for _ in range(2)]
    assert records[0] == records[1]


def test_the_record_is_json_with_metrics_at_the_top(world, sae):
    record = evaluate(sae, world.masked, HOOK, world.lm, progress=False).to_json()
    assert json.loads(json.dumps(record, allow_nan=False)) == record
    assert record["undefined"] == {} and record["warnings"] == []
    assert 0 < record["fvu"] < 1 and 0 < record["ce_recovered_zero"] < 1
    assert record["n_tokens"] > record["n_predictions"] > 300
    assert record["hook"] == HOOK and record["store_identity"] == world.masked.identity
    assert record["model_identity"] == world.lm.identity.hash
    assert record["config"]["tile"] == 1024


def test_losses_without_a_model_are_undefined_with_a_reason(world, sae):
    record = evaluate(sae, world.masked, HOOK, progress=False).to_json()
    assert record["ce_clean"] is None and record["kl"] is None
    assert record["undefined"]["ce_recovered_zero"] == "no language model was given"
    assert "fvu" not in record["undefined"]


def test_mean_ablation_takes_a_given_mean(world, known_sae):
    sae, store = known_sae(lambda x: 0.7 * x, world.masked), world.masked
    given = evaluate(sae, store, lm=world.lm, mean=torch.zeros(32), progress=False).loss
    own = evaluate(sae, store, lm=world.lm, progress=False).loss
    assert given.ce_mean_ablation == given.ce_zero_ablation == own.ce_zero_ablation
    assert own.ce_mean_ablation != own.ce_zero_ablation


def test_tokens_are_whole_sequences_up_to_the_limit(world):
    store, hook = world.masked, world.masked.hook(HOOK)
    every = choose_tokens(store, hook, 10**9)
    assert every.n_tokens == store.n_rows(hook, "heldout")
    assert np.array_equal(every.sequence_rows, store.sequence_rows("heldout"))
    some = choose_tokens(store, hook, 200)
    assert 150 < some.n_tokens <= 200
    spans = zip(store.row_starts[some.sequence_rows], store.row_starts[some.sequence_rows + 1], strict=True)
    kept = np.concatenate([np.flatnonzero(store.keep[start:stop]) + start for start, stop in spans])
    assert np.array_equal(store.rows(hook, "heldout", 0, some.n_tokens).token_index.numpy(), kept)
    assert choose_tokens(store, hook, 1).n_tokens > 1, "one sequence at least"


def test_the_digest_tells_tokens_and_masks_apart(world):
    hook = world.masked.hook(HOOK)
    digests = {
        choose_tokens(world.masked, hook, 10**9).digest,
        choose_tokens(world.masked, hook, 200).digest,
        choose_tokens(world.masked, hook, 10**9, "train").digest,
        choose_tokens(world.unmasked, world.unmasked.hook(HOOK), 10**9).digest,
    }
    assert len(digests) == 4
    assert choose_tokens(world.masked, hook, 10**9).digest in digests


def test_activations_without_a_model_can_be_evaluated(tmp_path, known_sae):
    x = torch.randn(2_000, 6, generator=torch.Generator().manual_seed(0))
    x[-1] *= 1000
    store = Store.from_tensors(tmp_path / "own", x, heldout_share=0.5, dtype="float32")
    record = evaluate(known_sae(lambda x: 0.5 * x, store, 6, "custom"), store, progress=False).to_json()
    n = record["n_tokens"]
    found = store.rows(None, "heldout", 0, n).x.double()
    assert n == store.n_rows(None, "heldout")
    assert record["mse"] == pytest.approx((0.25 * found.square()).mean().item(), rel=1e-12)
    assert record["model_identity"] == "" and record["cosine"] == pytest.approx(1.0)


def test_constant_activations_are_explained_not_numbered(tmp_path, known_sae):
    store = Store.from_tensors(tmp_path / "own", torch.ones(2_000, 6), heldout_share=0.5, dtype="float32")
    record = evaluate(known_sae(torch.zeros_like, store, 6, "custom"), store, progress=False).to_json()
    assert record["fvu"] is None
    assert record["undefined"]["fvu"] == "the evaluated activations are all equal"
    assert record["mse"] == 1.0


def test_a_store_without_heldout_tokens_gives_no_numbers(tmp_path, known_sae):
    store = Store.from_tensors(tmp_path / "own", torch.randn(100, 6), heldout_share=0.0, dtype="float32")
    record = evaluate(known_sae(torch.zeros_like, store, 6, "custom"), store, progress=False).to_json()
    assert record["n_tokens"] == 0 and record["l0"] is None
    assert record["undefined"]["dead_fraction"] == "no held-out tokens"
    assert record["outlier_ratio"] is None and record["warnings"] == []


def test_an_sae_that_gives_nan_is_said_to(world, known_sae):
    sae = known_sae(lambda x: x * torch.nan, world.masked)
    record = evaluate(sae, world.masked, lm=world.lm, progress=False).to_json()
    assert record["fvu"] is None and record["ce_spliced"] is None and record["ce_clean"] > 0
    assert record["undefined"]["fvu"] == "the reconstruction holds values that are not finite"
    assert record["undefined"]["ce_spliced"] == "the loss is not finite"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"input_hooks": ("model.layers.1.output",)},
            r"masked has no activations of model.layers.1.output, which the SAE needs "
            r"\(model.layers.1.output to model.layers.0.output\); it has model.layers.0.output$",
        ),
        (
            {"output_hooks": ("model.layers.1.output",)},
            "no activations of model.layers.1.output, which the SAE",
        ),
        ({"input_widths": (31,)}, "its width at model.layers.0.output is 31, here it is 32"),
        ({"model_identity": "another"}, r"trained on model .*\(another\), here is model"),
    ],
)
def test_an_sae_of_something_else_is_refused(world, known_sae, change, message):
    sae = known_sae(lambda x: x, world.masked)
    sae.config = dataclasses.replace(sae.config, **change)
    with pytest.raises(UsageError, match=message):
        evaluate(sae, world.masked, progress=False)


def test_an_sae_that_reads_another_hookpoint_than_is_named_is_refused(world, known_sae):
    sae = known_sae(lambda x: x, world.masked)
    sae.config = dataclasses.replace(sae.config, input_hooks=("model.layers.1.output",))
    with pytest.raises(UsageError, match=r"the SAE reads model.layers.1.output, not model.layers.0.output"):
        evaluate(sae, world.masked, HOOK, progress=False)


def test_a_mean_of_another_width_is_refused(world, known_sae):
    with pytest.raises(UsageError, match="mean has 31 values; what is reconstructed has 32"):
        evaluate(known_sae(lambda x: x, world.masked), world.masked, mean=torch.zeros(31), progress=False)


def test_another_model_is_refused(world, known_sae):
    other = dataclasses.replace(world.lm, identity=dataclasses.replace(world.lm.identity, hash="0" * 32))
    with pytest.raises(UsageError, match="give the store's own model"):
        evaluate(known_sae(lambda x: x, world.masked), world.masked, lm=other, progress=False)


def test_impossible_sizes_are_refused():
    with pytest.raises(UsageError, match="tile is 0"):
        EvaluationConfig(tile=0)
