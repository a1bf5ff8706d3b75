"""What cannot fit is refused before the start, with the largest setting that does."""

import re
from dataclasses import replace

import pytest
from activation_helpers import RESID_0, RESID_1

from saelab.activations import plan
from saelab.activations.cache import cache_activations
from saelab.activations.plan import plan_cache, require_memory, require_whole_plan
from saelab.errors import SaelabError
from saelab.lm.size import weights_bytes
from saelab.lm.spec import ModelSpec


def free_memory(monkeypatch, n_bytes):
    monkeypatch.setattr(plan, "available_memory_bytes", lambda device="cpu": n_bytes)


@pytest.mark.parametrize(("dtype", "item_bytes"), [("auto", 4), ("bfloat16", 2)])
def test_weights_are_measured_in_the_format_that_they_will_have(model_folder, lm, dtype, item_bytes):
    n_weights = sum(tensor.numel() for tensor in {id(p): p for p in lm.module.parameters()}.values())
    spec = ModelSpec(name=str(model_folder), device="cpu", dtype=dtype)
    assert weights_bytes(spec) == item_bytes * n_weights


def test_weights_that_are_not_here_or_unreadable_have_no_size(tmp_path, model_folder):
    (tmp_path / "config.json").write_text((model_folder / "config.json").read_text())
    assert weights_bytes(ModelSpec(name=str(tmp_path), device="cpu")) is None
    (tmp_path / "model.safetensors").write_bytes(b"\xff" * 100)
    assert weights_bytes(ModelSpec(name=str(tmp_path), device="cpu")) is None


@pytest.mark.parametrize(
    "options", [{}, {"gradients": True, "at": (RESID_0, RESID_1)}, {"shard_rows": 5_000}]
)
def test_a_batch_that_is_too_large_is_refused_with_one_that_fits(make_config, tmp_path, monkeypatch, options):
    config = make_config(batch_rows=500, tokens=100_000, **options)
    needed = plan_cache(config).memory_bytes
    free = (needed + plan_cache(replace(config, batch_rows=1)).memory_bytes) // 2
    free_memory(monkeypatch, free)
    with pytest.raises(
        SaelabError, match=r"in batches of 500 rows needs .* \d+ rows fit \(--batch-rows\)"
    ) as error:
        cache_activations(config, tmp_path / "s")
    assert not (tmp_path / "s").exists()
    fits = int(re.search(r"(\d+) rows fit", str(error.value)).group(1))
    assert 1 < fits < 500
    assert plan_cache(replace(config, batch_rows=fits)).memory_bytes <= free
    free_memory(monkeypatch, needed)
    require_memory(config, plan_cache(config))


def test_a_model_that_does_not_fit_is_said_to(make_config, monkeypatch):
    free_memory(monkeypatch, 1000)
    with pytest.raises(SaelabError, match="not even one row fits: choose a smaller model"):
        require_memory(make_config(), plan_cache(make_config()))


def test_memory_that_nobody_knows_is_not_refused(make_config, monkeypatch):
    free_memory(monkeypatch, None)
    config = make_config(batch_rows=10**6)
    found = plan_cache(config)
    require_memory(config, found)
    assert found.memory_bytes > 10**9


def test_a_dry_run_counts_all_tokens(make_config, tmp_path, monkeypatch):
    config = make_config(tokens=10**9)
    some = plan_cache(make_config())
    free_memory(monkeypatch, some.memory_bytes + 10**7)
    with pytest.raises(SaelabError, match=r"1,000,000,000 tokens need .* \d[\d,]* tokens fit"):
        require_whole_plan(config, tmp_path)
    free_memory(monkeypatch, None)
    usage = type("Usage", (), {"free": 10**6})
    monkeypatch.setattr("saelab.storage.files.shutil.disk_usage", lambda _: usage)
    with pytest.raises(SaelabError, match=r"only 1,000,000 are free; .* ask for [\d,]+ tokens") as error:
        require_whole_plan(config, tmp_path)
    fits = int(re.search(r"ask for ([\d,]+) tokens", str(error.value)).group(1).replace(",", ""))
    assert (
        plan_cache(make_config(tokens=fits)).disk_bytes
        <= 10**6
        < plan_cache(make_config(tokens=fits + 2)).disk_bytes
    )
