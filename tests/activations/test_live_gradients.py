"""Training by gradients live: the same SAE as from a store, and a clear refusal where there are none."""

from dataclasses import replace

import pytest
from activation_helpers import RESID_0

from saelab.activations.live import LiveSource
from saelab.activations.source import StoreSource
from saelab.activations.spec import LiveConfig
from saelab.api import train_config
from saelab.errors import UsageError
from saelab.training.passes import HowToTrain
from saelab.training.single import train_run

BATCH, POOL = 32, 10**5


@pytest.fixture
def make_live(lm, make_config):
    def make(**options):
        config = make_config()
        text = replace(config.text, heldout_share=0.0)
        shared = {"model": config.model, "text": text, "at": config.at, "context": config.context}
        return LiveSource(LiveConfig(**(shared | {"batch_rows": 4, "pool_rows": POOL} | options)), lm)

    return make


def config_of(source):
    config = train_config(
        source, "gradient", recipe_options={"k": 4}, width=24, tokens=12 * BATCH, batch=BATCH, log_every=4
    )
    return replace(config, pool_rows=POOL)


@pytest.mark.parametrize("labels", ["true", "sampled"])
def test_an_sae_trained_live_by_gradients_equals_one_from_the_store(
    make_live, make_store, make_config, tmp_path, labels
):
    text = replace(make_config().text, heldout_share=0.0)
    store = make_store(
        tmp_path / "store", text=text, tokens=10**6, shard_rows=10**6, gradients=True, gradient_labels=labels
    )
    runs = {}
    for name, source in {
        "live": make_live(gradients=True, gradient_labels=labels),
        "store": StoreSource(store),
    }.items():
        runs[name] = train_run(config_of(source), source, tmp_path / name / "run", HowToTrain(quiet=True))
    for part in ("sae/weights.safetensors", "metrics.jsonl"):
        live, stored = ((runs[name].path / part).read_bytes() for name in ("live", "store"))
        assert live == stored, part
    assert runs["live"].live.gradient_labels == labels


def test_a_live_source_without_gradients_is_refused_before_anything_is_read_or_written(make_live, tmp_path):
    source = make_live()
    config = config_of(source)
    with pytest.raises(UsageError, match=r"gradient ranks by gradients .* gradients=True") as found:
        train_run(config, source, tmp_path / "run", HowToTrain(quiet=True))
    assert "\n" not in str(found.value)
    assert not (tmp_path / "run").exists()
    assert source._first is None


def test_gradients_beside_the_rows_leave_a_stream_the_same_and_other_labels_make_another(make_live):
    plain, with_gradients = make_live(), make_live(gradients=True)
    assert plain.identity == with_gradients.identity
    assert make_live(gradients=True, gradient_labels="sampled").identity != plain.identity
    hooks = [hook.module_path for hook in plain.hooks]
    assert with_gradients.pool_bytes(hooks, 100) == 2 * plain.pool_bytes(hooks, 100)


@pytest.mark.parametrize(("arch", "wanted"), [(("topk",), False), (("topk", "gradient"), True)])
def test_the_command_takes_gradients_where_a_recipe_asks_for_them(
    model_folder, corpus, tmp_path, arch, wanted
):
    from saelab.cli.train import Options, _open_live

    options = Options(
        source=(str(model_folder), str(corpus)),
        tokens=100,
        out=tmp_path,
        at=(RESID_0,),
        arch=arch,
        context=16,
        device="cpu",
        gradient_labels="sampled",
        gradient_seed=3,
    )
    source = _open_live(options, *options.source, ())
    config = source.config
    assert (config.gradients, config.gradient_labels, config.gradient_seed) == (wanted, "sampled", 3)
    assert source.hook(None).has_gradients is wanted
