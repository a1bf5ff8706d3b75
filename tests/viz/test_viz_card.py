"""The card of a feature: every number right and explained, text as text, and what is missing said."""

import re
from html.parser import HTMLParser

import pytest
from feature_helpers import EVIL, made_example, made_row, made_view, made_vocabulary

from saelab.errors import SaelabError, UsageError
from saelab.features.records import Histogram
from saelab.viz.bars import HEIGHT, WIDTH, bars_svg
from saelab.viz.card import html_feature_card
from saelab.viz.document import HtmlDoc, save_page
from saelab.viz.example_rows import example_groups
from saelab.viz.feature_numbers import explained_numbers, fired_line, percent


class Reader(HTMLParser):
    def __init__(self, html):
        super().__init__()
        self.tags, self.attributes, self.text = set(), set(), []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}

    def handle_data(self, data):
        self.text.append(data)


def card_text(view, **options):
    return " ".join("".join(Reader(html_feature_card(view, made_vocabulary(), **options).html).text).split())


def test_text_of_labels_and_corpora_is_text():
    view = made_view(row=made_row(label=f"label {EVIL}"))
    html = html_feature_card(view, made_vocabulary()).html
    read = Reader(html)
    assert not read.tags & {"script", "b onclick", "img", "a", "iframe", "style", "link", "form", "object"}
    assert not {name for name in read.attributes if name.startswith("on")} | (
        read.attributes & {"href", "src", "id", "style"}
    )
    said = "".join(read.text)
    assert said.count(EVIL) >= 10 and f"label {EVIL}" in said
    assert "\u202e" not in html and "U+202E" in said and "bytes f0 9f" in said
    assert "\N{GRINNING FACE}" in said  # two tokens that are one character together


def test_what_it_says():
    said = card_text(made_view(), parts={"neighbors", "coactivation"})
    assert "Fired on 6 of 1,000 tokens (density 0.6 %), in 2 documents." in said
    assert "largest activation4on any kept token" in said and "skewness\N{MINUS SIGN}0.25above 0" in said
    assert "0 to 2 drawn from 5 of 6 firings (83.3 %); 1 example; 1 with equal" not in said
    assert "0 to 2 drawn from 5 of 6 firings (83.3 %); 1 example" in said
    assert "2 to 4 drawn from 1 of 6 firings (16.7 %)" in said
    assert (
        "Random drawn from all tokens on which it is active; 1 example; 1 with equal surroundings left out"
        in said
    )
    assert "2 more" in said and "450 %50.25" not in said and "4on tabs50 %50.25" in said
    assert "run " in said and "1,000 tokens of a text" in said


def test_numbers_that_are_not_defined_are_left_out():
    names = [one.name for one in explained_numbers(made_row(n_fires=0), made_vocabulary())]
    assert names == ["decoder norm", "encoder bias"]
    told = {one.name: one for one in explained_numbers(made_row(), made_vocabulary())}
    assert told["first position"].value == "12.5 %" and all(one.meaning for one in told.values())


def test_a_dead_feature_says_what_that_bounds():
    # exp(-3) is 5 %: no event in 1,000 tokens bounds the rate by 3 / 1,000.
    assert "Never fired in 1,000 tokens: density below 0.003 with 95 % confidence" in fired_line(
        made_row(n_fires=0), 1000
    )
    assert pytest.approx(0.05, abs=0.001) == (1 - 0.003) ** 1000
    assert fired_line(made_row(n_fires=0), 0) == "No tokens were indexed."
    said = card_text(made_view(n_fires=0))
    assert "active on no kept token" in said and "Activations" not in said


def test_what_is_missing_names_its_command():
    bare = made_view(neighbors=(), companions=())
    assert "saelab index add RUN neighbors" in card_text(bare, parts=())
    assert "saelab index add RUN coactivation" in card_text(bare)
    assert "index add" not in card_text(bare, parts={"neighbors", "coactivation"})
    detail = type(bare.detail)(**{**vars(bare.detail), "promoted": (), "suppressed": ()})
    assert "without the model's unembedding" in card_text(made_view(detail=detail))


def test_groups_of_examples():
    groups = {group.key: group for group in example_groups(made_view(), made_vocabulary())}
    assert list(groups) == ["top", "interval-1", "interval-0", "random", "non-active"]
    assert [row.note for row in groups["interval-1"].rows] == ["3"]
    assert groups["random"].hidden == 1 and len(groups["random"].rows) == 1
    both = example_groups(made_view(), made_vocabulary(), duplicates=True, most=5)
    assert [len(group.rows) for group in both] == [5, 1, 1, 2, 1]
    row = groups["top"].rows[0]
    assert (
        row.peak == 1
        and row.values[1] == 4.0
        and row.special[-1]
        and row.texts[6:8] == ("\N{GRINNING FACE}", "⋯")
    )


def test_the_first_of_equal_surroundings_is_shown():
    same = tuple(made_example(rank=rank, activation=4.0 - rank, window_hash=1) for rank in range(3))
    (group,) = example_groups(made_view(examples={"top": same}), made_vocabulary())
    assert [row.note for row in group.rows] == ["4"] and group.hidden == 2


def test_bars():
    drawn = bars_svg(Histogram(edges=(-1.0, 0.0, 3.0), counts=(1, 3)), "Things", marks=(("p50", 1.0),))
    rects = re.findall(r'<rect x="([\d.]+)" y="([\d.]+)" width="([\d.]+)" height="([\d.]+)"', drawn)
    (x0, _, _, low), (x1, _, _, high) = [tuple(map(float, rect)) for rect in rects]
    assert (x0, x1) == (0, WIDTH / 4) and (low, high) == (HEIGHT / 2, HEIGHT)  # log 2 / log 4
    assert f'x1="{WIDTH / 2}"' in drawn and "fullest bin holds 3 values" in drawn
    assert bars_svg(Histogram(edges=(), counts=()), "x") == ""
    assert bars_svg(Histogram(edges=(1.0, 1.0), counts=(3,)), "x") == ""


def test_percent():
    assert [percent(share) for share in (0, 1, 0.12345, 1e-6)] == ["0 %", "100 %", "12.3 %", "0.0001 %"]


def test_a_card_shows_itself_and_is_saved_whole(tmp_path):
    card = html_feature_card(made_view(), made_vocabulary())
    assert card._repr_html_().startswith("<style>") and "</style>" in card._repr_html_()
    path = card.save(tmp_path / "card.html")
    page = path.read_text(encoding="utf-8")
    assert "default-src 'none'; script-src 'none'" in page and "<script" not in page
    assert page.count("<h1>") == 0 and '<html lang="en">' in page
    assert card.save(path) == path  # a page of ours is replaced
    other = tmp_path / "notes.html"
    other.write_text("mine")
    with pytest.raises(UsageError, match="is no page of saelab"):
        card.save(other)
    assert other.read_text() == "mine"
    save_page(other, "forced", force=True)
    assert other.read_text() == "forced"
    with pytest.raises(UsageError, match="is a folder"):
        card.save(tmp_path, force=True)
    (tmp_path / "file").write_text("x")
    with pytest.raises(SaelabError):
        HtmlDoc("t", "<p></p>", "").save(tmp_path / "file" / "x.html")
