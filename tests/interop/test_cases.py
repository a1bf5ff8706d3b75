"""Every format, read, computes what the tool that wrote it computes; every export what the tool that reads it does."""

import json

import pytest
import torch
from interop_cases import CASES, EXPORTS, FIXTURES, Case, case, errors

from saelab.interop.answers import Answers
from saelab.interop.formats import READERS, WRITERS, writer
from saelab.interop.importing import import_run
from saelab.interop.pickled import read_pickled
from saelab.interop.read import load_foreign, read_foreign
from saelab.interop.writing import ExportRequest
from saelab.storage.tensors import read_tensors

TOLERANCE = 1e-5
ROOT = FIXTURES.parents[2]
PLACES = {"at": "blocks.2.hook_resid_post"}


def places_of(name):
    return PLACES | ({"target_at": "blocks.2.hook_mlp_out"} if "transcoder" in name else {})


@pytest.mark.parametrize("name", CASES)
def test_what_is_read_computes_the_same(name):
    found = case(name).read()
    features, x_hat = errors(load_foreign(found), case(name).expected())
    assert features < TOLERANCE and x_hat < TOLERANCE


@pytest.mark.parametrize("name", CASES)
def test_an_imported_run_computes_the_same_and_is_in_our_units(name, tmp_path):
    run = import_run(case(name).read(**places_of(name)), tmp_path / "run").run
    sae = run.sae()
    assert max(errors(sae, case(name).expected())) < TOLERANCE
    norms = sae.W_dec.norm(dim=1)
    is_unit = bool(((norms - 1).abs() < 1e-6).all())
    assert is_unit != ("whose norm is not 1" in sae.config.units)
    if not is_unit:  # the k largest would be others if the norms were folded
        assert sae.config.inference["name"] == "per_token"


@pytest.mark.parametrize("name", EXPORTS)
def test_an_export_is_the_one_that_the_other_tool_was_given(name, tmp_path):
    golden = Case(FIXTURES / "exports" / name)
    about = golden.about
    run = import_run(case(about["case"]).read(**places_of(about["case"])), tmp_path / "run").run
    made = writer(about["to"]).write(ExportRequest(run=run, out=tmp_path / "out"))
    for path in made.files:
        wanted = golden.sae / path.relative_to(tmp_path / "out")
        if path.suffix == ".json":
            assert json.loads(path.read_text()) == json.loads(wanted.read_text())
            continue
        read = (
            read_tensors if path.suffix == ".safetensors" else lambda file: read_pickled(file, allowed=True)
        )
        found, tensors = read(path), read(wanted)
        assert found.keys() == tensors.keys()
        for key, tensor in found.items():
            torch.testing.assert_close(tensor, tensors[key], rtol=1e-6, atol=1e-6)
    assert max(errors(run.sae(), golden.expected())) < TOLERANCE


@pytest.mark.parametrize("name", EXPORTS)
def test_an_export_is_read_again_as_the_same(name):
    golden = Case(FIXTURES / "exports" / name)
    place = golden.sae if golden.about["to"] != "sparsify" else next(golden.sae.iterdir())
    found = read_foreign(place, answers=Answers(), allow_pickle=True)
    assert max(errors(load_foreign(found), golden.expected())) < TOLERANCE


def test_every_format_has_a_case():
    made = {case(name).read().format for name in CASES}
    assert made == set(READERS) - {"bare"}
    assert {Case(FIXTURES / "exports" / name).about["to"] for name in EXPORTS} == set(WRITERS)


def test_the_table_in_the_documentation_is_about_these_cases():
    rows = [line.split("|")[1:-1] for line in (ROOT / "docs" / "formats.md").read_text().splitlines()]
    table = {
        cells[0].strip(): cells
        for cells in rows
        if len(cells) == 5 and cells[0].strip() not in ("case", "---")
    }
    exports = {name.replace("-to-", " exported to ") for name in EXPORTS}
    assert table.keys() == set(CASES) | exports
    assert all(float(number) < TOLERANCE for cells in table.values() for number in cells[3:])
    for name in CASES:
        assert table[name][1].strip() == case(name).about["made_by"]
