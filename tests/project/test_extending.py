"""The page on extending: every block of it is written, imported and executed, in order."""

import re
import sys
from pathlib import Path

import pytest

from saelab.training import recipes

PAGE = (Path(__file__).parents[2] / "docs" / "extending.md").read_text()
BLOCK = re.compile(r"^```python(?: file=(?P<file>\S+))?\n(?P<code>.*?)^```$", re.DOTALL | re.MULTILINE)


def test_the_methods_of_the_page_train_and_do_what_they_say(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(recipes, "RECIPES", dict(recipes.RECIPES))
    blocks = list(BLOCK.finditer(PAGE))
    assert [block["file"] for block in blocks] == ["length_topk.py", None, "cosine_topk.py", None]
    seen: dict = {}
    for block in blocks:
        if block["file"]:
            (tmp_path / block["file"]).write_text(block["code"])
            monkeypatch.delitem(sys.modules, block["file"].removesuffix(".py"), raising=False)
        else:
            exec(compile(block["code"], "docs/extending.md", "exec"), seen)
    assert seen["found"] > 0.9
    assert seen["angles"]["cosine-topk"] > seen["angles"]["topk"]
    assert "of the planted directions, 4" in capsys.readouterr().out


def test_another_package_offers_recipes_by_an_entry_point(tmp_path, monkeypatch):
    folder = tmp_path / "others-1.0.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: others\nVersion: 1.0\n")
    (folder / "entry_points.txt").write_text(
        "[saelab.recipes]\ntheirs = saelab.training.recipes.topk:TopK\ntopk = nowhere:Nothing\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    assert "theirs" in recipes.recipe_names()
    assert recipes.make_recipe("theirs", {"k": 3}).k == 3
    assert recipes.make_recipe("topk", {}).k == 32  # our own names stay ours
    with pytest.raises(Exception, match=r"known: .*theirs"):
        recipes.make_recipe("nobody", {})
