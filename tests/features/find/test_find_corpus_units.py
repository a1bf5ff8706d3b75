"""Which lines, tokens and documents of a real corpus are in a set, against its texts."""

import re

import numpy as np
import pytest

from saelab.errors import Interrupted, UsageError
from saelab.features.find import corpus_units
from saelab.features.find.corpus_units import DocumentText, units_of_index
from saelab.features.find.spec import FindConfig, read_set
from saelab.features.find.watch import Watch
from saelab.features.index import open_index
from saelab.interrupts import StopRequest


@pytest.fixture(scope="module")
def index(text_world):
    return open_index(text_world.run.path)


def units_for(index, positive, negative=None, unit=None):
    second = None if negative is None else read_set(negative)
    return units_of_index(index, read_set(positive), second, FindConfig(unit=unit))


def pieces(index, units, wanted):
    """Return the bytes of each unit whose label is ``wanted``, in order."""
    vocabulary, found = index.vocabulary, {}
    for position in np.flatnonzero(units.of_token >= 0).tolist():
        number = int(units.of_token[position])
        if units.positive[number] == wanted:
            found.setdefault(number, []).append(vocabulary.bytes_of(int(index.tokens[position])))
    return [b"".join(found[number]) for number in sorted(found)]


def test_the_bytes_of_a_document_are_its_text(index, text_world):
    for number, one in enumerate(text_world.documents):
        start, length = (index.documents[name][number].as_py() for name in ("start", "length"))
        assert DocumentText(index, start, start + length).raw.decode() == one["text"]


def test_lines_are_those_in_which_the_regex_is_found(index, text_world):
    units = units_for(index, r"re:^\s*@\w+")
    lines = [line for one in text_world.documents for line in one["text"].split("\n")]
    wanted = [line for line in lines if re.search(r"^\s*@\w+", line)]
    found = [piece.decode().strip("\n") for piece in pieces(index, units, True)]
    assert found == wanted and len(wanted) == 24
    # The last token of a document is not kept, so that it has no unit of its own: the empty line behind it is none.
    assert int((~units.positive).sum()) == len([line for line in lines if line]) - len(wanted)
    assert units.size.sum() == (units.of_token >= 0).sum()


def test_documents_are_those_in_which_the_regex_is_found(index, text_world):
    units = units_for(index, r"re:@cached", unit="document")
    assert units.positive.tolist() == ["@cached" in one["text"] for one in text_world.documents]
    assert units.document.tolist() == list(range(len(text_world.documents)))


def test_of_a_match_the_first_token_is_positive_and_the_others_are_in_no_set(index, text_world):
    units = units_for(index, r"re:^@\w+", unit="token")
    found = [piece.decode() for piece in pieces(index, units, True)]
    assert len(found) == 24 and set(found) == {"@"}
    rest = b"".join(pieces(index, units, False)).decode(errors="replace")
    assert "cached" not in rest and "width" in rest


def test_a_regex_says_which_token_is_meant(index):
    units = units_for(index, r"re:(?<=@)\w+", unit="token")
    found = [piece.decode() for piece in pieces(index, units, True)]
    assert len(found) == 24 and "@" not in found
    assert all("cached".startswith(one) for one in found)
    assert "@" in [piece.decode(errors="replace") for piece in pieces(index, units, False)]


def test_white_space_at_the_beginning_of_a_match_is_not_meant(index):
    units = units_for(index, r"re:\s+return", unit="token")
    assert {piece.decode().strip() for piece in pieces(index, units, True)} == {"return"}


def test_a_character_that_tokens_cut_begins_in_the_first_of_them(index, text_world):
    units = units_for(index, "re:\N{SNOWMAN}", unit="token")
    vocabulary = index.vocabulary
    n_documents = sum("\N{SNOWMAN}" in one["text"] for one in text_world.documents)
    assert int(units.positive.sum()) == n_documents
    for number in np.flatnonzero(units.positive).tolist():
        position = int(np.flatnonzero(units.of_token == number)[0])
        assert vocabulary.is_partial(int(index.tokens[position]))
        raw = b"".join(vocabulary.bytes_of(int(one)) for one in index.tokens[position : position + 3])
        assert raw.startswith("\N{SNOWMAN}".encode())


def test_matches_behind_characters_of_several_bytes_are_in_place(index):
    units = units_for(index, "re:\u5b57", unit="token")
    first = pieces(index, units, True)
    assert first and all("\u5b57".encode().startswith(one) for one in first)


def test_empty_matches_have_the_token_behind_them(index):
    units = units_for(index, r"re:(?=@)|(?<=\n)\Z", unit="token")
    assert {piece.decode(errors="replace")[:1] for piece in pieces(index, units, True)} >= {"@"}


def test_a_column_of_the_documents_is_a_set(index, text_world):
    units = units_for(index, "column:kind=even")
    assert units.positive.tolist() == [one["kind"] == "even" for one in text_world.documents]
    both = units_for(index, "column:kind=even", "column:kind=odd")
    assert both.positive.tolist() == units.positive.tolist()
    lines = units_for(index, "column:kind=odd", r"re:^@", unit="line")
    assert lines.positive.any() and int((~lines.positive).sum()) == 24


def test_units_in_both_sets_are_left_out(index):
    units = units_for(index, "re:width", r"re:return|^@", unit="line")
    assert units.n_in_both > 0
    shown = [piece.decode() for piece in pieces(index, units, True)]
    assert all("width" in one and "return" not in one for one in shown)


@pytest.mark.parametrize(
    ("positive", "negative", "message"),
    [
        ("column:language=py", None, "no column 'language', only"),
        ("column:kind=prime", None, "nothing in the corpus"),
        ("re:nothing like it", None, "is in the positive set 're:nothing like it'"),
        ("re:width", "re:nothing like it", "is in the negative set 're:nothing like it'"),
        ("re:.", None, "no negative unit"),
    ],
)
def test_sets_that_are_not_there(index, positive, negative, message):
    with pytest.raises(UsageError, match=message):
        units_for(index, positive, negative)


@pytest.mark.parametrize("unit", ["document", "line", "token"])
def test_a_regex_that_takes_for_ever_is_refused(index, monkeypatch, unit):
    monkeypatch.setattr(corpus_units, "SECONDS", 0.2)
    with pytest.raises(UsageError, match=r"takes longer than 0\.2 s on one document"):
        units_for(index, r"re:((\w|[^A-Z])+)+[A-Z]{5}", unit=unit)


def test_a_stop_ends_the_reading_of_documents(index):
    stop = StopRequest()
    stop.ask()
    with pytest.raises(Interrupted):
        units_of_index(index, read_set("re:@"), None, FindConfig(), Watch(stop=stop))
