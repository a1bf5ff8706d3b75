"""A small store of the embedded model, an SAE on it, and what it does by brute force on a dense matrix."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from build_helpers import HOOK, SMALL, Dense, World

from saelab import api
from saelab.evaluation.autoencoder import encode_tile
from saelab.features.building.encode import TILE
from saelab.features.indexing import HowToIndex, index_runs
from saelab.features.spec import IndexConfig
from saelab.lm.load import load_model
from saelab.lm.spec import ModelSpec


@pytest.fixture(scope="session")
def world(tmp_path_factory) -> World:
    folder = tmp_path_factory.mktemp("index-world")
    lm = load_model(ModelSpec(device="cpu"))
    store = api.cache(
        "embedded", "stdlib", at=HOOK, tokens=12_000, out=folder / "store", context=64, quiet=True
    )
    run = api.train(
        store,
        "topk",
        recipe_options={"k": 8},
        width=96,
        tokens=20_000,
        batch=512,
        out=folder / "run",
        quiet=True,
    )
    return World(run, store, lm)


@pytest.fixture(scope="session")
def dense(world) -> Dense:
    sae, store = world.run.sae(), world.store
    n = store.n_rows(None, None)
    found, positions = [], []
    for start in range(0, n, TILE):
        rows = store.rows(None, None, start, min(start + TILE, n))
        found.append(encode_tile(sae, rows.x, TILE).dense())
        positions.append(rows.token_index)
    return Dense(
        torch.cat(found).numpy(),
        torch.cat(positions).numpy(),
        np.array(store.tokens),
        np.array(store.row_starts),
        store.sequences.documents.starts,
    )


@pytest.fixture(scope="session")
def build(world):
    """Return a function that indexes the run into a folder and returns the index's folder."""

    def make(out: Path, config: IndexConfig = SMALL, stop=None, **options) -> Path:
        how = HowToIndex(config=config, out=out, quiet=True, **options)
        (place,) = index_runs([world.run], how=how, lm=world.lm, stop=stop)
        return place

    return make


@pytest.fixture(scope="session")
def built(build, tmp_path_factory) -> Path:
    return build(tmp_path_factory.mktemp("index"))
