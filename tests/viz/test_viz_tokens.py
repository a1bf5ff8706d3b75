"""Rows of tokens: all text is shown, none becomes markup; colours follow numbers and can be read."""

import re
from html.parser import HTMLParser

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from saelab.viz.token_style import PALETTES, STEPS, contrast, mixed, step_colour, token_style
from saelab.viz.tokens import SCALES, TokenRow, number_text, token_class, token_html
from saelab.viz.visible import visible_parts, visible_text

TAGS = {"div", "span", "br", "details", "summary", "table", "thead", "tbody", "tr", "th", "td"}
ATTRIBUTES = {"class", "title", "dir", "role", "aria-label"}
CLASSES = {
    "saelab-tokens", "number", "row", "note", "text", "t", "peak", "special", "mark", "chip", "nan", "legend", "n",
    *(f"a{step}" for step in range(16)),
}  # fmt: skip
PAYLOADS = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "' onmouseover='alert(1)",
    "javascript:alert(1)",
    "</span></div><style>*{display:none}</style>",
    "<!-- --><![CDATA[",
    "&lt;b&gt; &amp; &#x3c;",
    "$x$ :red[x] ![i](http://example.invalid/x.png)",
    "\u202eevil\u202c",
    "\x00\x1b[31m",
    "a\u200bb\u200d\ufeff",
    "\U000e0041\U000e0042",
    "\ud800",
    "line\r\nnext\ttab\u2028sep",
    "{{7*7}} ${7*7} {%x%}",
)


class Reader(HTMLParser):
    """Collects tags, attributes, and the text of rows."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.attributes, self.rows, self.depth = set(), [], [], 0
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes += attrs
        if ("class", "text") in attrs:
            self.rows.append("")
            self.depth = 1
        elif self.depth and tag != "br":
            self.depth += 1

    def handle_endtag(self, tag):
        self.depth = max(0, self.depth - 1)

    def handle_data(self, data):
        if self.depth:
            self.rows[-1] += data


def shown(text):
    return "".join(part for _, part in visible_parts(text))


def check(rows, **options):
    html = token_html(rows, **options)
    html.encode()  # no surrogate is left
    read = Reader(html)
    assert read.tags <= TAGS
    assert {name for name, _ in read.attributes} <= ATTRIBUTES
    assert {one for name, value in read.attributes if name == "class" for one in value.split()} <= CLASSES
    assert read.rows == ["".join(map(shown, row.texts)) for row in rows]
    assert not re.search("[\u202a-\u202e\u2066-\u2069\u200b-\u200f\ufeff]", html)
    return html


@pytest.mark.parametrize("payload", PAYLOADS)
def test_hostile_text_is_text(payload):
    row = TokenRow(
        texts=(payload, "x"), values=(1.0, -1.0), title=payload, note=payload, peak=0, raw=(b"\xff", None)
    )
    html = check([row], breaks=True)
    assert "<script" not in html and "<img" not in html and "style=" not in html


@settings(max_examples=300, deadline=None)
@given(
    st.lists(
        st.lists(st.tuples(st.text(max_size=8), st.floats(width=32)), min_size=1, max_size=6),
        max_size=3,
    ),
    st.sampled_from(SCALES),
    st.booleans(),
)
def test_any_text_is_text(content, scale, breaks):
    rows = [
        TokenRow(texts=tuple(t for t, _ in row), values=tuple(v for _, v in row), title="Example")
        for row in content
    ]
    check(rows, scale=scale, breaks=breaks)


def test_what_cannot_be_seen_is_named():
    assert visible_text("a\nb\tc") == "a↵b→c"
    assert visible_text("\u202e\x00\xa0") == "⟨U+202E⟩⟨U+0000⟩⟨U+00A0⟩"
    assert visible_text("") == "⟨empty⟩"
    assert visible_text("\N{HEAVY BLACK HEART}\ufe0f") == "\N{HEAVY BLACK HEART}\ufe0f"
    assert visible_text("\ufe0f") == "⟨U+FE0F⟩"
    assert visible_text("مرحبا e\u0301 日本\u3000語") == "مرحبا e\u0301 日本\u3000語"


def test_lines_break_where_it_is_asked_for():
    row = TokenRow(texts=("a\n", "b"), values=(0.0, 1.0))
    assert "<br>" not in token_html([row])
    assert token_html([row], breaks=True).count("<br>") == 1


def test_steps_of_values():
    assert [token_class(value, 3.0) for value in (0.0, 0.01, 0.2, 0.21, 1.5, 3.0, 9.0)] == [
        "a0", "a1", "a1", "a2", "a8", "a15", "a15"
    ]  # fmt: skip
    assert token_class(-3.0, 3.0) == "a15 n"
    assert token_class(float("nan"), 3.0) == "nan"
    assert token_class(float("-inf"), 3.0) == "a15 n"
    assert token_class(1.0, 0.0) == "a0"


def classes(html):
    return re.findall(r'<span class="t (a\d+)', html)


def test_scales():
    rows = [TokenRow(texts=("a", "b"), values=(1.0, 0.5)), TokenRow(texts=("c",), values=(2.0,))]
    own = {scale: classes(token_html(rows, scale=scale, legend=False)) for scale in SCALES}
    assert own["row"] == ["a15", "a8", "a15"]
    assert own["feature"] == ["a8", "a4", "a15"]
    assert classes(token_html(rows, reference=4.0, legend=False)) == ["a4", "a2", "a8"]
    many = [TokenRow(texts=("x",) * 200, values=(*([1.0] * 199), 50.0))]
    assert set(classes(token_html(many, scale="p99", legend=False))) == {"a15"}
    assert "50" not in token_html(many, scale="p99", disclose=False).split("row")[0]
    assert "</span> 50; strongest colour: the largest activation" in token_html(many)


def test_labels_hovers_and_values():
    row = TokenRow(
        texts=(" the", " Brigade", "\N{GRINNING FACE}"), values=(0.0, 4.2061, -1.0), title="Example 3", peak=1,
        raw=(b" the", b" Brigade", b"\xf0"), special=(True, False, False),
    )  # fmt: skip
    html = token_html([row])
    assert 'aria-label="Example 3, peak 4.206 on &#x27;Brigade&#x27;"' in html
    assert 'title=" Brigade  4.206"' in html and "(bytes f0)" in html
    assert 'class="t a15 peak"' in html and 'class="t a0 special"' in html
    assert (
        '<td class="number">2</td><td><span class="mark">·</span>Brigade</td><td class="number">4.206</td>'
        in html
    )
    assert '<td class="number">3</td>' in html and '<td class="number">1</td>' not in html
    assert "\N{MINUS SIGN}4.206" in html  # the legend of signed values is symmetric
    assert 'dir="auto"' in html


def test_numbers():
    assert [number_text(v) for v in (None, float("nan"), 0.0, 1234.5, 1_234_567, -0.001234)] == [
        "\N{EN DASH}", "\N{EN DASH}", "0", "1234", "1,234,567", "\N{MINUS SIGN}0.001234"
    ]  # fmt: skip


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("negative", [False, True])
def test_every_step_can_be_read_and_told_from_the_last(theme, negative):
    palette = PALETTES[theme]
    colours = [step_colour(palette, step, negative=negative) for step in range(STEPS + 1)]
    assert all(contrast(colour, palette.ink) >= 4.5 for colour in colours)
    away = [contrast(colour, palette.paper) for colour in colours]
    assert away == sorted(away) and len(set(colours)) == STEPS + 1
    assert contrast(palette.quiet, palette.paper) >= 4.5


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_marks_of_a_step_can_be_seen(theme):
    palette = PALETTES[theme]
    for negative, border in ((False, palette.positive_border), (True, palette.negative_border)):
        assert contrast(border, palette.paper) >= 3
        # Line breaks and tabs are written with three quarters of the ink on any step.
        for step in range(STEPS + 1):
            ground = step_colour(palette, step, negative=negative)
            assert contrast(mixed(ground, palette.ink, 0.75), ground) >= 3


def test_contrast_is_that_of_the_guidelines():
    assert contrast((0, 0, 0), (255, 255, 255)) == pytest.approx(21)
    assert contrast((119, 119, 119), (255, 255, 255)) == pytest.approx(4.478, abs=1e-3)
    assert mixed((0, 0, 0), (100, 200, 50), 0.5) == (50, 100, 25)


def test_the_stylesheet_asks_for_nothing():
    style = token_style()
    assert "url(" not in style and "@import" not in style and "</" not in style
    assert "prefers-color-scheme: dark" in style and "prefers-color-scheme" not in token_style("dark")
    assert all(f".a{step} " in style and f".a{step}.n " in style for step in range(1, 16))
