"""A run with an index made by hand, once for all tests that only read."""

import pytest
from index_helpers import Known, make_known, make_run, write_index

from saelab.features.index import FeatureIndex, open_index


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
