"""Loss recovered against brute force, and its corner cases: masks, documents, batches, massive tokens."""

import copy
import dataclasses

import numpy as np
import pytest
import torch

from saelab.activations.store import Store
from saelab.evaluation.autoencoder import Form
from saelab.evaluation.evaluate import evaluate
from saelab.evaluation.loss_recovered import LossMetrics, loss_recovered
from saelab.evaluation.places import Places
from saelab.evaluation.tokens import padded_rows
from saelab.text.packing import predictions_that_count

HOOK = "model.layers.0.output"
MASSIVE = 100.0


def measure(world, sae, store, rows=None, mean=None, batch_rows=4):
    rows = store.sequence_rows("heldout") if rows is None else rows
    mean = store.statistics(HOOK).mean if mean is None else mean
    places = Places.of_sae(sae.config)
    (found,) = loss_recovered(
        [Form(sae)], world.lm, store, places, rows=rows, mean=mean, batch_rows=batch_rows, tile=64
    )
    return found


def shrunk(x):
    return 0.7 * x


def brute_force(world, store, replace):
    """Loop over sequences and predictions in float64; return cross entropies and KL divergences."""
    model = copy.deepcopy(world.lm.hf).double()
    counted = predictions_that_count(store.sequences)
    ce, kl = [], []
    for row in store.sequence_rows("heldout"):
        start, stop = int(store.row_starts[row]), int(store.row_starts[row + 1])
        ids = torch.from_numpy(np.array(store.tokens[start:stop])).long()[None]
        keep = torch.from_numpy(store.keep[start:stop])

        def hook(module, args, output, keep=keep):
            changed = output.clone()
            changed[0, keep] = replace(output[0, keep])
            return changed

        with torch.no_grad():
            clean = model(input_ids=ids).logits[0].log_softmax(-1)
            handle = model.model.layers[0].register_forward_hook(hook)
            other = model(input_ids=ids).logits[0].log_softmax(-1)
            handle.remove()
        at = torch.from_numpy(np.flatnonzero(counted[start:stop]))
        ce.append(-other[at, ids[0, at + 1]])
        kl.append((clean[at].exp() * (clean[at] - other[at])).sum(1))
    return float(torch.cat(ce).mean()), float(torch.cat(kl).mean()), len(torch.cat(ce))


def test_every_loss_equals_brute_force_in_float64(world, known_sae):
    store = world.masked
    mean = store.statistics(HOOK).mean
    metrics = measure(world, known_sae(shrunk, store), store)
    clean, _, n_predictions = brute_force(world, store, lambda x: x)
    spliced, kl, _ = brute_force(world, store, shrunk)
    zero, _, _ = brute_force(world, store, torch.zeros_like)
    ablated, _, _ = brute_force(world, store, lambda x: mean.expand_as(x))
    assert metrics.n_predictions == n_predictions > 300
    assert metrics.ce_clean == pytest.approx(clean, abs=1e-5)
    assert metrics.ce_spliced == pytest.approx(spliced, abs=1e-5)
    assert metrics.ce_zero_ablation == pytest.approx(zero, abs=1e-5)
    assert metrics.ce_mean_ablation == pytest.approx(ablated, abs=1e-5)
    assert metrics.kl == pytest.approx(kl, abs=1e-5)
    assert metrics.ce_recovered_zero == pytest.approx((zero - spliced) / (zero - clean), abs=1e-5)
    assert metrics.ce_recovered_mean == pytest.approx((ablated - spliced) / (ablated - clean), abs=1e-5)
    # Otherwise the comparison could not fail: every variant must differ from every other one.
    assert len({round(value, 2) for value in (clean, spliced, zero, ablated)}) == 4


def test_a_perfect_sae_costs_nothing(world, known_sae):
    metrics = measure(world, known_sae(lambda x: x, world.masked), world.masked)
    assert metrics.ce_spliced == metrics.ce_clean
    assert metrics.kl == 0.0
    assert metrics.ce_recovered_zero == metrics.ce_recovered_mean == 1.0


def test_an_sae_that_gives_zero_or_the_mean_recovers_nothing(world, known_sae):
    store = world.masked
    mean = store.statistics(HOOK).mean.float()
    zero = measure(world, known_sae(torch.zeros_like, store), store)
    assert zero.ce_recovered_zero == pytest.approx(0.0, abs=1e-6)
    constant = measure(world, known_sae(lambda x: mean.expand_as(x), store), store)
    assert constant.ce_recovered_mean == pytest.approx(0.0, abs=1e-6)


def test_an_ablation_that_changes_nothing_leaves_recovery_undefined(world, known_sae):
    store = world.masked
    nothing = dataclasses.replace(store.sequences, keep=np.zeros_like(store.keep))

    class NothingReplaced(Store):
        keep, sequences = nothing.keep, store.sequences

    class NothingKept(NothingReplaced):
        sequences = nothing

    rows, mean = store.sequence_rows("heldout")[:4], store.statistics(HOOK).mean
    nothing_kept = NothingKept(store.path, store.manifest)
    metrics = measure(world, known_sae(shrunk, store), nothing_kept, rows, mean)
    assert metrics.n_predictions == 0
    assert all(getattr(metrics, field.name) is None for field in dataclasses.fields(metrics)[:-1])

    nothing_replaced = NothingReplaced(store.path, store.manifest)
    metrics = measure(world, known_sae(shrunk, store), nothing_replaced, rows, mean)
    assert metrics.ce_zero_ablation == metrics.ce_clean
    assert metrics.ce_recovered_zero is None and metrics.ce_recovered_mean is None


def test_batches_change_the_losses_by_rounding_only(world, known_sae):
    store, sae = world.masked, known_sae(shrunk, world.masked)
    rows = store.sequence_rows("heldout")[:7]
    expected = dataclasses.astuple(measure(world, sae, store, rows, batch_rows=4))
    for batch_rows in (1, 7, 16):
        found = dataclasses.astuple(measure(world, sae, store, rows, batch_rows=batch_rows))
        assert found == pytest.approx(expected, abs=2e-6), batch_rows


def test_a_sequence_has_the_same_bits_whatever_follows_it(world, known_sae):
    store, sae = world.masked, known_sae(shrunk, world.masked)
    rows = store.sequence_rows("heldout")[:5]
    whole = measure(world, sae, store, rows)
    parts = [measure(world, sae, store, rows[piece]) for piece in (slice(0, 4), slice(4, 5))]
    for name in ("ce_clean", "ce_spliced", "ce_zero_ablation", "ce_mean_ablation", "kl"):
        total = sum(getattr(part, name) * part.n_predictions for part in parts)
        assert getattr(whole, name) == pytest.approx(total / whole.n_predictions, rel=1e-12), name


def test_predictions_across_documents_and_of_padding_never_count(world):
    store = world.masked
    counts = predictions_that_count(store.sequences)
    rows = store.sequence_rows("heldout")
    batch = padded_rows(store, counts, rows, len(rows) + 3)
    bos = world.lm.tokenizer.bos_token_id
    targets = batch.ids.roll(-1, dims=1)
    assert (targets[batch.kept] == bos).any(), "the rows must hold a border between documents"
    assert not (targets[batch.counted] == bos).any(), "a document's last token predicts the next document"
    assert not (batch.ids[batch.counted] == bos).any(), "BOS is masked"
    assert not batch.counted[:, -1].any()
    assert not batch.counted[-3:].any() and not batch.kept[-3:].any()
    lengths = np.diff(store.row_starts)[rows]
    for index, length in enumerate(lengths):
        assert not batch.counted[index, length - 1 :].any() and not batch.kept[index, length:].any()
    inside = store.sequences.document_of_token
    position = np.concatenate([np.arange(store.row_starts[row], store.row_starts[row + 1]) for row in rows])
    position = position[counts[position]]
    assert np.array_equal(inside(position), inside(position + 1))
    assert len(position) == int(batch.counted.sum())


def good_but_for_massive_tokens(x):
    """Perfect on ordinary tokens; gives nothing for massive ones."""
    return torch.where(x.norm(dim=1, keepdim=True) > MASSIVE, torch.zeros_like(x), x)


def good_for_massive_tokens_alone(x):
    """Useless on ordinary tokens; perfect for massive ones."""
    return torch.where(x.norm(dim=1, keepdim=True) > MASSIVE, x, torch.zeros_like(x))


def test_a_massive_first_token_does_not_spoil_the_numbers_when_it_is_masked(world, known_sae):
    store = world.masked
    good = evaluate(known_sae(good_but_for_massive_tokens, store), store, lm=world.lm, progress=False)
    assert good.reconstruction.fvu == 0.0
    assert good.loss.ce_recovered_zero == 1.0 and good.loss.kl == 0.0
    useless = evaluate(known_sae(good_for_massive_tokens_alone, store), store, lm=world.lm, progress=False)
    assert useless.loss.ce_recovered_zero == pytest.approx(0.0, abs=1e-6)
    assert good.warnings == useless.warnings == ()
    assert good.outlier_ratio < 10


def test_a_massive_first_token_is_reported_when_it_is_not_masked(world, known_sae):
    store = world.unmasked
    good = evaluate(known_sae(good_but_for_massive_tokens, store), store, lm=world.lm, progress=False)
    assert good.reconstruction.fvu > 0.99, "a handful of tokens hides a perfect SAE"
    assert good.loss.ce_recovered_zero < 0.99 and good.loss.kl > 0.05
    useless = evaluate(known_sae(good_for_massive_tokens_alone, store), store, lm=world.lm, progress=False)
    assert useless.reconstruction.fvu < 0.01, "or makes a useless one look perfect"
    for evaluation in (good, useless):
        assert len(evaluation.warnings) == 1
        assert "at position 0 of their sequence" in evaluation.warnings[0]
        assert evaluation.outlier_ratio > 50


def test_an_ablation_that_does_no_harm_is_warned_of():
    harmless = LossMetrics(ce_clean=2.0, ce_spliced=1.9, ce_zero_ablation=1.5, ce_mean_ablation=3.0)
    (warning,) = harmless.warnings()
    assert warning == (
        "ce_recovered_zero means nothing here: the model is better with zeros put in (1.5000 nats/token) than as "
        "it is (2.0000), so there is no loss to recover"
    )
    assert LossMetrics().warnings() == ()


def test_the_record_carries_that_warning(world, known_sae):
    """An unembedding that says the opposite: knowing nothing is better."""
    store = world.masked
    lm = dataclasses.replace(
        world.lm, unembedding=dataclasses.replace(world.lm.unembedding, weight=-world.lm.unembedding.weight)
    )
    record = evaluate(known_sae(lambda x: x, store), store, lm=lm, progress=False).to_json()
    assert record["ce_zero_ablation"] < record["ce_clean"]
    assert any(warning.startswith("ce_recovered_zero means nothing here") for warning in record["warnings"])
