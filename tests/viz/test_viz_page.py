"""The page is one file that asks for nothing, shows text as text, and cannot run what is in it."""

import base64
import hashlib
import json
import re
from html.parser import HTMLParser

import plotly.graph_objects as go
import pytest
from viz_helpers import EVIL, made_comparison, made_run

from saelab.viz.comparison import comparison_page
from saelab.viz.page import FigureOnPage, FiguresOnPage, TableOnPage, html_page, script_json


class Reader(HTMLParser):
    """Collects tags, attributes, text outside scripts, and the content of scripts."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.attributes, self.text, self.scripts = set(), [], [], []
        self._inside = None
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes += attrs
        self._inside = tag
        if tag == "script":
            self.scripts.append((dict(attrs), ""))

    def handle_endtag(self, tag):
        self._inside = None

    def handle_data(self, data):
        if self._inside == "script":
            attributes, said = self.scripts[-1]
            self.scripts[-1] = (attributes, said + data)
        elif self._inside != "style":
            self.text.append(data)


@pytest.fixture(scope="module")
def evil():
    comparison = made_comparison(
        recipes=(EVIL, "topk"),
        hook=EVIL,
        left_out=(f"{EVIL} was left out",),
        consistency=made_comparison(recipes=(EVIL,)).consistency,
    )
    runs = tuple(made_run(one.row, warnings=(f"odd {EVIL}",)) for one in comparison.runs)
    return comparison_page(type(comparison)(**{**vars(comparison), "runs": runs}))


def test_the_page_asks_for_nothing(evil):
    read = Reader(evil)
    assert not read.tags & {"link", "img", "iframe", "object", "embed", "base", "a", "form"}
    names = {name for name, _ in read.attributes}
    assert not names & {"src", "href", "srcset", "action", "data"} and not any(
        n.startswith("on") for n in names
    )
    assert "url(" not in re.search(r"<style>(.*?)</style>", evil, re.DOTALL).group(1)


def test_the_policy_lets_the_own_scripts_run_and_nothing_else(evil):
    read = Reader(evil)
    (policy,) = [dict(read.attributes)["content"]]
    running = [said for attributes, said in read.scripts if "type" not in attributes]
    digests = [base64.b64encode(hashlib.sha256(said.encode()).digest()).decode() for said in running]
    assert len(running) == 2 and "Plotly" in running[0]
    allowed = re.search(r"script-src ([^;]*);", policy).group(1)
    assert allowed == " ".join(f"'sha256-{digest}'" for digest in digests)
    assert policy.startswith("default-src 'none';") and "connect-src" not in policy


def test_text_is_text(evil):
    read = Reader(evil)
    said = "".join(read.text)
    assert f"SAEs of {EVIL}," in said and f"{EVIL} was left out" in said and f"odd {EVIL}" in said
    assert said.count(f"{EVIL}, k=8") == 2, "a row for each seed"
    assert "b" not in read.tags


def test_figures_are_data_that_can_be_read_again(evil):
    data = [json.loads(said) for attributes, said in Reader(evil).scripts if "type" in attributes]
    assert len(data) == 11 and all(figure["data"] and figure["layout"] for figure in data)
    places = re.findall(r'data-figure="([^"]+)"', evil)
    ids = [attributes["id"] for attributes, _ in Reader(evil).scripts if "type" in attributes]
    assert places == ids and len(set(ids)) == 11


def test_json_cannot_end_its_element():
    raw = json.dumps({"a": "</script><!-- & \u2028 >"}, ensure_ascii=False)
    safe = script_json(raw)
    assert not set("<>&\u2028") & set(safe)
    assert json.loads(safe) == json.loads(raw)


def test_tables_and_figures_stand_in_order():
    table = TableOnPage("A table", ["name", "value"], [["x", "1"]], note="A note")
    figures = FiguresOnPage("Some figures", [FigureOnPage(go.Figure(), "A caption")])
    page = html_page("Title", ["A line"], [table, figures])
    said = [text for text in Reader(page).text if text.strip()]
    order = [
        "Title",
        "Title",
        "A line",
        "A table",
        "name",
        "value",
        "x",
        "1",
        "A note",
        "Some figures",
        "A caption",
    ]
    assert said == order
    assert '<td class="text">x</td><td class="number">1</td>' in page


def test_equal_comparisons_give_equal_pages():
    assert comparison_page(made_comparison()) == comparison_page(made_comparison())


def test_a_single_front_has_no_table_at_a_common_l0():
    assert "At a common L0" in comparison_page(made_comparison())
    assert "At a common L0" not in comparison_page(made_comparison(recipes=("topk",)))
