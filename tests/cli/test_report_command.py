"""saelab report: one page of what a run has, never in place of something else."""

import shutil

import pytest

from saelab.api.reporting import report, show
from saelab.errors import UsageError


@pytest.fixture(scope="module")
def measured(store_and_run, tmp_path_factory):
    """A copy of the run, indexed on 4,000 tokens and evaluated."""
    from saelab.cli.main import run

    folder = tmp_path_factory.mktemp("reported") / "run"
    shutil.copytree(store_and_run[1], folder)
    store = ["--store", str(store_and_run[0])]
    assert run(["index", str(folder), *store, "--tokens", "4k", "--parts", "neighbors"]) == 0
    assert run(["evaluate", str(folder), *store, "--tokens", "1k"]) == 0
    return folder


def test_a_page_of_all_that_there_is(saelab_json, measured, tmp_path):
    page = tmp_path / "out" / "report.html"
    found = saelab_json("report", measured, "--out", page, "--features", "2")
    assert found["out"] == str(page) and found["bytes"] == page.stat().st_size
    text = page.read_text(encoding="utf-8")
    assert "Clear features" in text and "loss recovered (zeros)" in text and "Density of" in text
    assert text.count('<div class="saelab-card">') <= 2
    assert "default-src 'none'" in text and "saelab index add RUN coactivation" in text
    assert str(tmp_path) not in text and str(measured.parent) not in text
    again = page.read_bytes()
    saelab_json("report", measured, "--out", page, "--features", "2")
    assert page.read_bytes() == again


def test_what_is_not_there_is_said(saelab, store_and_run, measured, tmp_path):
    bare = tmp_path / "bare"
    shutil.copytree(measured, bare)
    shutil.rmtree(bare / "indexes")
    code, _, _ = saelab("report", bare, "--out", tmp_path / "page.html")
    assert code == 0 and "saelab index bare" in (tmp_path / "page.html").read_text(encoding="utf-8")
    code, _, err = saelab("report", bare, "--out", tmp_path / "x.html", "--index", "other")
    assert code == 2 and "no index 'other'" in err
    shutil.rmtree(bare / "evaluations")
    code, _, err = saelab("report", bare, "--out", tmp_path / "x.html")
    assert code == 2 and "nothing to report" in err and not (tmp_path / "x.html").exists()


def test_nothing_else_is_replaced(saelab, measured, tmp_path):
    (tmp_path / "mine.html").write_text("mine")
    code, _, err = saelab("report", measured, "--out", tmp_path / "mine.html")
    assert code == 2 and "--force" in err and (tmp_path / "mine.html").read_text() == "mine"
    code, _, err = saelab("report", measured, "--out", tmp_path)
    assert code == 2 and "is a folder" in err
    assert saelab("report", measured, "--out", tmp_path / "mine.html", "--force", "--features", "0")[0] == 0
    with pytest.raises(UsageError, match="from 0 to"):
        report(measured, out=tmp_path / "y.html", features=-1)


def test_a_damaged_record_stops_the_report(saelab, measured, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(measured, broken)
    record = next(file for file in (broken / "evaluations").glob("*.json") if file.name != "manifest.json")
    record.write_text(record.read_text().replace("l0", "l1", 1))
    code, _, err = saelab("report", broken, "--out", tmp_path / "x.html")
    assert code == 1 and record.name in err and not (tmp_path / "x.html").exists()


def test_a_card_in_python(measured):
    card = show(measured, 0, most=2)
    assert card.title.startswith("Feature 0: ") and "saelab index add RUN coactivation" in card.html
    with pytest.raises(UsageError, match="no feature 99999"):
        show(measured, 99_999)
