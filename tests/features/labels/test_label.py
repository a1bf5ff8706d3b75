"""What a label is, and which of several is shown."""

import pytest

from saelab.errors import UsageError
from saelab.features.labels.label import Label, make_label, shown_labels


def test_the_highest_score_is_shown_and_of_equal_ones_the_newest():
    labels = [
        Label(feature=2, text="first"),
        Label(feature=2, text="second"),
        Label(feature=1, text="0.5", score=0.5),
        Label(feature=1, text="0.9", score=0.9),
        Label(feature=1, text="0.9 again", score=0.9),
        Label(feature=1, text="0.1", score=0.1),
        Label(feature=1, text="no score"),
        Label(feature=3, text="below zero", score=-2.0),
        Label(feature=3, text="none"),
    ]
    assert shown_labels(labels) == {1: "0.9 again", 2: "second", 3: "below zero"}
    assert list(shown_labels(labels)) == [1, 2, 3]
    assert shown_labels([]) == {}


def test_values_as_files_write_them():
    made = make_label(" 12 ", "a\0b\n\t c ", "", "0.5", None, "m")
    assert made == Label(feature=12, text="a b c", score=0.5, model="m")
    assert Label.from_json(made.to_json()) == made


@pytest.mark.parametrize(
    ("values", "why"),
    [
        ((-1, "x"), "-1 is no index"),
        ((True, "x"), "True is no index"),
        ((1.0, "x"), "1.0 is no index"),
        (("\u0661", "x"), "is no index"),
        ((10**4000, "x"), "is no index"),
        ((1, " \0 "), "the label is empty"),
        ((1, ["x"]), "not text"),
        ((1, "x" * 4_001), "4,001 characters"),
        ((1, "\ud800"), "not Unicode"),
        ((1, "x", 7), "the author is 7"),
        ((1, "x", None, None, None, "m" * 201), "the model has 201"),
        ((1, "x", None, "high"), "the score 'high'"),
        ((1, "x", None, float("nan")), "the score nan"),
        ((1, "x", None, 10**400), "the score 1000"),
        ((1, "x", None, True), "the score True"),
    ],
)
def test_what_is_no_label(values, why):
    with pytest.raises(UsageError, match=why) as refused:
        make_label(*values)
    assert len(str(refused.value)) < 120


def test_a_kept_label_has_exactly_its_fields():
    raw = Label(feature=1, text="x").to_json()
    for wrong in (raw | {"more": 1}, {"feature": 1, "text": "x"}):
        with pytest.raises(UsageError, match="has the fields author, created, feature, model, score, text"):
            Label.from_json(wrong)
