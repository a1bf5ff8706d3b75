import pytest
import torch
from training_helpers import data_files, train_run

from saelab.activations.store import Store
from saelab.api import train_config
from saelab.evaluation.synthetic.generator import PlantedFeatures

D_IN, WIDTH, BATCH = 16, 48, 64


@pytest.fixture(scope="session")
def store(tmp_path_factory):
    """Activations with planted sparse structure, small enough for hundreds of runs."""
    planted = PlantedFeatures(n_features=32, d_in=D_IN, mean_active=3.0, seed=0)
    x = torch.cat([planted.batch(index, 512).x for index in range(8)])
    return Store.from_tensors(tmp_path_factory.mktemp("data") / "store", x + 0.5, dtype="float32")


@pytest.fixture
def make_config(store):
    """Return a maker of small configurations; options override the defaults."""

    def make(steps=24, k=4, **options):
        small = {"width": WIDTH, "lr": 1e-2, "batch": BATCH, "checkpoint_every": 5, "log_every": 3}
        small |= {"tokens": steps * BATCH}
        return train_config(store, "topk", recipe_options={"k": k}, **(small | options))

    return make


@pytest.fixture
def straight(make_config, store, tmp_path):
    """The files of a run that was never stopped."""
    train_run(make_config(), store, tmp_path / "straight")
    return data_files(tmp_path / "straight")
