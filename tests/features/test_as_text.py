from saelab.features.as_text import example_line, features_as_text
from saelab.features.records import Example
from saelab.text.vocabulary import Vocabulary


def test_features_are_named_with_their_strongest_examples(index):
    text = features_as_text(index, [5, 1], examples=2)
    lines = text.splitlines()
    first = index.examples(5, "top", limit=2)
    assert lines[0].startswith(f"feature 5  {index.row(5).shown_name}")
    assert [line.split()[0] for line in lines[1:3]] == [f"{one.activation:.2f}" for one in first]
    assert all("«" in line and "»" in line for line in lines[1:3])
    assert lines[3].startswith("feature 1 ")


def test_a_dead_feature_says_so(index):
    dead = next(row.feature for row in index.rows() if row.is_dead)
    assert "never active on these tokens" in features_as_text(index, [dead])


def test_nothing_of_a_corpus_moves_the_cursor():
    words = ["a", "\x1b[2J", "\r\n", "\u202e", "é"]
    vocabulary = Vocabulary([word.encode() for word in words], words, [False] * 5)
    example = Example(
        feature=0,
        kind="top",
        bin=0,
        rank=0,
        activation=1.0,
        token_index=3,
        document=0,
        first=2,
        tokens=(0, 1, 2, 3, 4),
        activations=(0.0, 1.0, 0.0, 0.0, 0.0),
        window_hash=0,
    )
    assert example_line(example, vocabulary) == "a«\\x1b[2J»⏎\\u202eé"


def test_all_rows_come_page_by_page(index, monkeypatch):
    whole = index.rows()
    monkeypatch.setattr("saelab.features.index.MAX_PAGE", 5)
    assert index.rows() == whole and len(whole) == index.d_sae
