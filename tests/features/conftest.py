"""A run with an index made by hand, and one of a real model on known texts; once for all tests that only read."""

import pytest
from index_helpers import Known, make_known, make_run, write_index
from text_world_helpers import HOOK, TextWorld, write_documents

from saelab import api
from saelab.features.index import FeatureIndex, open_index
from saelab.lm.load import load_model
from saelab.lm.spec import ModelSpec
from saelab.text.spec import TextSpec


@pytest.fixture(scope="session")
def known() -> Known:
    return make_known()


@pytest.fixture(scope="session")
def run_with_index(known, tmp_path_factory):
    run = make_run(tmp_path_factory.mktemp("hand-made") / "it's a [run]")
    write_index(run / "indexes" / "main", known, run / "sae")
    return run


@pytest.fixture(scope="session")
def index(run_with_index) -> FeatureIndex:
    return open_index(run_with_index)


@pytest.fixture(scope="session")
def text_world(tmp_path_factory) -> TextWorld:
    folder = tmp_path_factory.mktemp("text-world")
    documents = write_documents(folder / "texts.jsonl")
    text = TextSpec(source=str(folder / "texts.jsonl"), keep_columns=("kind",))
    lm = load_model(ModelSpec(device="cpu"))
    options = {"context": 64, "packing": "document", "quiet": True}
    store = api.cache(lm, text, at=HOOK, tokens=100_000, out=folder / "store", **options)
    shape = {"width": 96, "tokens": 4_000, "batch": 256, "recipe_options": {"k": 8}}
    run = api.train(store, "topk", out=folder / "run", quiet=True, **shape)
    api.build_index(run, lm=lm, keep_codes=True, quiet=True)
    return TextWorld(run, lm, text, documents)
