import pytest
from export_helpers import run_to_export

from saelab.features.index import open_index


@pytest.fixture(scope="session")
def exported_run(known, tmp_path_factory):
    return run_to_export(tmp_path_factory.mktemp("to-export"), known)


@pytest.fixture
def exported(exported_run):
    with open_index(exported_run) as index:
        yield index
