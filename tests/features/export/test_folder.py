"""What every export holds: whole or absent, over nothing, with names that are known."""

from dataclasses import replace

import pytest
from export_helpers import QUIET, run_to_export

from saelab.errors import SaelabError, UsageError
from saelab.features.export import facts, neuronpedia, saedashboard
from saelab.features.export.facts import clean, significant
from saelab.features.export.names import names_of
from saelab.features.export.options import IndexExportOptions
from saelab.features.export.registry import INDEX_EXPORTS, index_export
from saelab.features.index import open_index
from saelab.storage.lock import locked


def names_in(folder):
    return sorted(path.name for path in folder.iterdir())


def test_formats_are_found_by_name():
    assert index_export("saedashboard") is saedashboard and index_export("neuronpedia") is neuronpedia
    assert all(callable(index_export(name).write) for name in INDEX_EXPORTS)
    with pytest.raises(UsageError, match="known are saedashboard, neuronpedia"):
        index_export("other")


@pytest.mark.parametrize("name", INDEX_EXPORTS)
def test_nothing_is_overwritten(name, exported, tmp_path):
    write = index_export(name).write
    (tmp_path / "file").write_text("mine")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("mine")
    for place in ("file", "full"):
        with pytest.raises(UsageError, match="is there already"):
            write(exported, tmp_path / place, QUIET)
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(UsageError, match="is there already"):
        write(exported, tmp_path / "link", QUIET)
    (tmp_path / "empty").mkdir()
    assert write(exported, tmp_path / "empty", QUIET)
    assert names_in(tmp_path) == ["empty", "file", "full", "link"]


@pytest.mark.parametrize("name", INDEX_EXPORTS)
def test_an_interrupted_export_leaves_nothing(name, exported, tmp_path, monkeypatch):
    write = index_export(name).write
    module = saedashboard if name == "saedashboard" else neuronpedia

    def stop(index, features):
        if features.start == 32:
            raise KeyboardInterrupt
        return facts.decoder_rows(index, features)

    with monkeypatch.context() as patched:
        patched.setattr(module, "decoder_rows", stop)
        with pytest.raises(KeyboardInterrupt):
            write(exported, tmp_path / "out", QUIET)
    assert names_in(tmp_path) == []
    killed = tmp_path / ".writing-out" / "deep"
    killed.mkdir(parents=True)
    (killed / "half").write_text("half")
    with locked(tmp_path / ".writing-out", "export"), pytest.raises(SaelabError, match="in use"):
        write(exported, tmp_path / "out", QUIET)
    files = write(exported, tmp_path / "out", QUIET)
    assert sorted(path for path in (tmp_path / "out").rglob("*") if path.is_file()) == sorted(files)
    assert names_in(tmp_path) == ["out"]


def test_names_come_from_the_options_or_the_index(exported, index):
    found = names_of(exported, QUIET)
    assert (found.model, found.layer, found.hook) == ("small-2b", 3, "blocks.3.hook_resid_post")
    assert (found.source.model_id, found.source.source_id) == ("small-2b", "3-saelab")
    told = replace(QUIET, model_id="Gemma", layer=0, dataset="a\0b\ud800", suffix="x")
    found = names_of(index, told)
    assert (found.model, found.layer, found.dataset) == ("Gemma", 0, "a b?")
    assert found.source.source_id == "0-saelab__x"
    with pytest.raises(UsageError, match="name it with model_id"):
        names_of(index, QUIET)
    with pytest.raises(UsageError, match="give the number with layer"):
        names_of(index, replace(QUIET, model_id="m"))


def test_a_model_cannot_lead_out_of_the_folder(known, tmp_path):
    run = run_to_export(tmp_path, known, "org/..")
    with open_index(run) as index, pytest.raises(UsageError, match="name it with model_id"):
        neuronpedia.write(index, tmp_path / "out", QUIET)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "wrong",
    [
        {"sae_set": ""},
        {"sae_set": "../x"},
        {"suffix": "a/b"},
        {"model_id": ".."},
        {"layer": -1},
        {"batch": 0},
        {"context": -1},
        {"created": "yesterday"},
    ],
)
def test_options_are_checked(wrong):
    with pytest.raises(UsageError, match="export: "):
        IndexExportOptions(**wrong).check()


def test_text_and_numbers_for_any_database():
    assert clean("a\0\ud800\u202e") == "a ?\u202e"
    values = (1 / 3, 1e-9 / 3, 0.0, 123456789.0)
    assert [significant(value) for value in values] == [0.333333, 3.33333e-10, 0, 123457000]
