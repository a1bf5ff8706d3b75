import json
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from activation_helpers import RESID_0, RESID_1, all_rows, data_files
from safetensors import safe_open

from saelab.activations.plan import plan_cache
from saelab.activations.request import saved_config
from saelab.activations.spec import CacheConfig
from saelab.activations.store import Store
from saelab.errors import SaelabError, UsageError
from saelab.text.packing import predictions_that_count
from saelab.text.spec import TextSpec


def token_rows(store):
    return [torch.from_numpy(store.tokens[a:b].astype(np.int64)) for a, b in pairwise(store.row_starts)]


def test_a_store_has_the_documented_layout(store):
    n = len(store.manifest.content["shards"])
    assert n > 1
    hooks = [f"hooks/model.layers.{i}.output/shard-{s:06d}.safetensors" for i in (0, 1) for s in range(n)]
    others = ["config.json", "documents.parquet", "keep.bin", "loss.bin", "rows.bin", "tokens.bin"]
    statistics = [f"statistics/model.layers.{i}.output.safetensors" for i in (0, 1)]
    assert sorted(store.manifest.files) == sorted(hooks + others + statistics)
    assert set(data_files(store.path)) == {*store.manifest.files, "manifest.json"}
    assert (store.path / "tokens.bin").stat().st_size == 4 * len(store.tokens)
    assert store.documents.column_names == ["id", "start", "length", "source", "split"]
    with safe_open(store.path / hooks[0], "pt") as file:
        assert sorted(file.keys()) == ["activations", "gradients", "token_index"]


def test_exactly_the_wanted_number_of_rows_is_stored(store):
    assert [hook.n_rows for hook in store.hooks] == [600, 600]
    assert store.n_rows(RESID_0, "train") + store.n_rows(RESID_0, "heldout") == 600
    assert store.n_rows(RESID_0, "heldout") > 50
    assert store.keep.sum() == 600


@pytest.mark.parametrize("split", ["train", "heldout"])
def test_stored_activations_and_gradients_equal_a_plain_forward_pass(store, lm, split):
    counts = predictions_that_count(store.sequences)
    expected_x, expected_g = {0: {}, 1: {}}, {0: {}, 1: {}}
    for row, start in zip(token_rows(store), store.row_starts[:-1], strict=True):
        # The last of transformers' hidden states is behind the final norm, so blocks are read by hooks.
        hidden = []

        def record(_module, _inputs, output, hidden=hidden):
            hidden.append(output)

        handles = [layer.register_forward_hook(record) for layer in lm.hf.model.layers]
        embedded = lm.hf.get_input_embeddings()(row[None]).requires_grad_()
        output = lm.hf(inputs_embeds=embedded, use_cache=False)
        for handle in handles:
            handle.remove()
        count = torch.from_numpy(counts[start : start + len(row)])[:-1]
        losses = F.cross_entropy(output.logits[0, :-1], row[1:], reduction="none")
        gradients = torch.autograd.grad((losses * count).sum(), hidden)
        for layer in (0, 1):
            for t in range(len(row)):
                expected_x[layer][int(start) + t] = hidden[layer][0, t].detach()
                expected_g[layer][int(start) + t] = gradients[layer][0, t]
    for layer, hook in enumerate((RESID_0, RESID_1)):
        rows = all_rows(store, hook, split)
        index = rows.token_index.tolist()
        assert len(index) == store.n_rows(hook, split) > 0
        assert torch.allclose(rows.x, torch.stack([expected_x[layer][t] for t in index]), atol=1e-5)
        wanted = torch.stack([expected_g[layer][t] for t in index])
        assert wanted.abs().max() > 0.01
        assert torch.allclose(rows.gradients, wanted, atol=1e-5)


def test_token_indices_are_the_kept_tokens_in_document_order(store):
    found = np.concatenate(
        [all_rows(store, RESID_0, split).token_index.numpy() for split in ("train", "heldout")]
    )
    assert np.array_equal(np.sort(found), np.flatnonzero(store.keep))
    for split in ("train", "heldout"):
        index = all_rows(store, RESID_0, split).token_index.numpy()
        assert (np.diff(index) > 0).all()
        assert {store.split_of_token(int(t)) for t in index} == {split}


def test_stored_losses_are_the_models_own(store, lm):
    losses = store.losses
    for row, start in zip(token_rows(store), store.row_starts[:-1], strict=True):
        logits = lm.hf(input_ids=row[None]).logits[0, :-1]
        found = torch.from_numpy(losses[start : start + len(row)].copy())
        assert torch.allclose(found[:-1], F.cross_entropy(logits, row[1:], reduction="none"), atol=1e-5)
        assert found[-1].isnan()


def test_several_hooks_in_one_pass_give_the_files_of_single_hooks(store, make_store, tmp_path):
    together = data_files(store.path)
    for hook in (RESID_0, RESID_1):
        alone = make_store(tmp_path / hook, at=(hook,), dtype="float32", gradients=True)
        files = data_files(alone.path)
        for name in set(files) - {"manifest.json", "config.json"}:
            assert files[name] == together[name], name


def test_losses_and_gradients_leave_activations_unchanged_to_the_bit(store, make_store, tmp_path):
    plain = make_store(tmp_path / "plain", dtype="float32")
    for split in ("train", "heldout"):
        assert torch.equal(all_rows(plain, RESID_0, split).x, all_rows(store, RESID_0, split).x)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_rounds_to_nearest(store, make_store, tmp_path, dtype):
    half = make_store(tmp_path / "half", dtype=dtype)
    exact = all_rows(store, RESID_0).x
    assert torch.equal(all_rows(half, RESID_0).x, exact.to(getattr(torch, dtype)).float())


def test_caching_twice_elsewhere_gives_equal_bytes_and_identities(make_store, tmp_path):
    one, two = (make_store(tmp_path / name, loss=True) for name in ("a place", "ein Örtchen"))
    assert data_files(one.path) == data_files(two.path)
    assert one.identity == two.identity
    other = make_store(tmp_path / "other", tokens=599)
    assert other.identity != one.identity


def test_both_spellings_are_the_same_request(make_store, tmp_path):
    first = make_store(tmp_path / "s")
    before = (first.path / "manifest.json").stat().st_mtime_ns
    again = make_store(tmp_path / "s", at=("model.layers.0.output", RESID_0))
    assert again.hooks == first.hooks
    assert (first.path / "manifest.json").stat().st_mtime_ns == before


def test_a_finished_store_is_returned_without_running_the_model(make_store, tmp_path, monkeypatch):
    make_store(tmp_path / "s")
    monkeypatch.setattr("saelab.activations.harvest.Harvester.harvest", None)
    assert make_store(tmp_path / "s").hook().n_rows == 600


def test_another_configuration_is_refused_with_the_differing_keys(make_store, tmp_path):
    make_store(tmp_path / "s")
    with pytest.raises(UsageError, match="context: 16 there, 15 now") as caught:
        make_store(tmp_path / "s", context=15)
    assert "tokens" not in str(caught.value)


def test_another_text_of_the_same_name_is_refused(make_store, tmp_path, corpus):
    path = tmp_path / "text.jsonl"
    path.write_text(corpus.read_text())
    text = TextSpec(source=str(path), heldout_share=0.25)
    make_store(tmp_path / "s", text=text)
    path.write_text(corpus.read_text().replace("some", "more"))
    with pytest.raises(UsageError, match="was made from another text: its first 29 documents"):
        make_store(tmp_path / "s", text=text)
    path.write_text("".join(corpus.read_text().splitlines(keepends=True)[:20]))
    with pytest.raises(UsageError, match="was made from another text"):
        make_store(tmp_path / "s", text=text, tokens=700)


def test_a_folder_with_other_things_in_it_is_left_alone(make_store, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UsageError, match="not empty"):
        make_store(tmp_path)
    own = Store.from_tensors(tmp_path / "own", torch.ones(10, 2), dtype="float32")
    with pytest.raises(UsageError, match="not cached from a model"):
        make_store(own.path)


def test_the_end_of_the_text_is_noted(make_store, tmp_path):
    store = make_store(tmp_path / "s", tokens=1_000_000)
    assert store.hook().n_rows < 5000
    assert store.notes[0].endswith("of 1,000,000 rows")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"at": ("blocks.7.hook_resid_post",)}, "blocks"),
        ({"context": 17}, "at most 16"),
        ({"text": TextSpec(source="missing.jsonl")}, "no file"),
    ],
)
def test_impossible_requests_are_refused_before_anything_is_written(make_store, tmp_path, options, message):
    with pytest.raises(UsageError, match=message):
        make_store(tmp_path / "s", **options)
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize(
    "options",
    [
        {"tokens": 0},
        {"context": 1},
        {"at": ()},
        {"dtype": "int8"},
        {"packing": "tight"},
        {"mask_first_positions": 16},
        {"mask_norm_ratio": 1.0},
        {"batch_rows": 0},
        {"shard_rows": 0},
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_impossible_configurations_are_refused(make_config, options):
    with pytest.raises(UsageError, match="cache: "):
        make_config(**options)


def test_the_plan_bounds_the_store_without_loading_weights(make_config, make_store, tmp_path, monkeypatch):
    options = {"at": (RESID_0, RESID_1), "gradients": True}
    plan = plan_cache(make_config(**options))
    store = make_store(tmp_path / "s", **options)
    # Headers, statistics and tables are a few KB each and do not grow with the number of tokens.
    bulk = sum(p.stat().st_size - 4096 for p in store.path.rglob("shard-*"))
    assert bulk <= plan.disk_bytes <= 1.3 * bulk
    assert plan.rows == 600
    assert [hook.alias for hook in plan.hooks] == [RESID_0, RESID_1]
    assert plan.memory_bytes > 0


def test_too_little_space_is_said_before_the_start(make_store, tmp_path, monkeypatch):
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr("saelab.storage.files.shutil.disk_usage", lambda _: usage)
    with pytest.raises(SaelabError, match="only 1,000 are free"):
        make_store(tmp_path / "s")
    assert not (tmp_path / "s" / "config.json").exists()


def test_the_configuration_is_written_with_its_inputs(store, make_config, lm):
    request = json.loads((store.path / "config.json").read_text())
    assert request["config"]["at"] == ["model.layers.0.output", "model.layers.1.output"]
    assert request["inputs"]["model"] == lm.identity.to_json()
    assert request["environment"]["threads"] == torch.get_num_threads()
    paths = ("model.layers.0.output", "model.layers.1.output")
    assert saved_config(store.path) == make_config(at=paths, dtype="float32", gradients=True)
    assert store.model_identity == lm.identity
    assert store.model_spec() == make_config().model
    assert store.tokenizer_hash == lm.identity.tokenizer_hash


def test_config_modules_need_no_torch():
    code = (
        "import saelab.activations.spec, saelab.text.spec, sys; "
        "assert 'torch' not in sys.modules and 'transformers' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    assert isinstance(replace(CacheConfig(at=("x",), tokens=1), tokens=2), CacheConfig)
