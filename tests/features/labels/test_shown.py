"""Labels of a run are shown by the indexes of that run."""

import shutil

import pytest
from index_helpers import D_SAE

from saelab.errors import UsageError
from saelab.features.index import open_index
from saelab.features.labels.label import Label
from saelab.features.labels.places import add_labels
from saelab.features.queries.filters import FeatureFilter


def test_an_index_shows_the_labels_of_its_run(run_with_index, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(run_with_index, run)
    with open_index(run) as index:
        assert index.labels == {}
    add_labels(run, [Label(feature=4, text="weak", score=0.1), Label(feature=4, text="Imports", score=0.5)])
    add_labels(run, [Label(feature=5, text="dots")], tmp_path / "overlay")
    for place in (run, run / "sae", run / "indexes" / "main"):
        with open_index(place) as index:
            assert index.labels == {4: "Imports"} and index.row(4).shown_name == "Imports"
            assert [row.feature for row in index.features(FeatureFilter(text="imports")).rows][:1] == [4]
    identity = index.sae_identity
    shutil.copytree(run / "indexes", tmp_path / "overlay" / identity / "indexes")
    with open_index(run, out=tmp_path / "overlay") as index:
        assert index.labels == {4: "Imports", 5: "dots"}
    add_labels(run, [Label(feature=D_SAE, text="beyond")])
    with pytest.raises(UsageError, match="there is no feature 40"):
        open_index(run)
