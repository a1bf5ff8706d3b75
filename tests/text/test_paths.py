"""Local sources keep their meaning in every folder, and are never looked for on the hub."""

import json
import socket

import pytest

from saelab.errors import UsageError
from saelab.text.files import find_files
from saelab.text.load import load_documents
from saelab.text.spec import TextSpec


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder to work in, with two files in `texts`, and an empty one to change into."""
    home = tmp_path / "home"
    (home / "texts").mkdir(parents=True)
    for name in ("a", "b"):
        (home / "texts" / f"{name}.jsonl").write_text(json.dumps({"text": name}) + "\n")
    (home / "chat.jinja").write_text("{{ messages }}")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(home)
    return home


@pytest.mark.parametrize(
    ("typed", "texts"),
    [
        ("texts/a.jsonl", ["a"]),
        ("./texts/../texts/a.jsonl", ["a"]),
        ("texts", ["a", "b"]),
        ("texts/*.jsonl", ["a", "b"]),
        ("tex*/[b].jsonl", ["b"]),
        ("texts/b.jsonl, ./texts/a*.jsonl", ["b", "a"]),
    ],
)
def test_a_resolved_source_names_the_same_files_from_everywhere(here, monkeypatch, typed, texts):
    spec = TextSpec(source=typed, chat_template="chat.jinja").resolved()
    assert spec.resolved() == spec
    monkeypatch.chdir(here.parent / "elsewhere")
    assert [document.text for document in load_documents(spec)] == texts
    assert spec.resolved() == spec
    assert spec.chat_template == str(here / "chat.jinja")


def test_spellings_of_one_path_are_resolved_to_one(here):
    spellings = [
        "texts/a.jsonl",
        "./texts/a.jsonl",
        str(here / "texts" / "a.jsonl"),
        "texts/../texts/a.jsonl",
    ]
    assert len({TextSpec(source=typed, streaming=True).resolved() for typed in spellings}) == 1
    assert not TextSpec(source="texts/a.jsonl", streaming=True).resolved().streaming


@pytest.mark.parametrize("source", ["stdlib", "stdlib-with-tests", "someone/some-data", "missing.jsonl"])
def test_what_is_not_local_stays_as_it_is(here, source):
    (here / "stdlib").mkdir()
    spec = TextSpec(source=source, streaming=True)
    assert spec.resolved() == spec


def test_a_link_keeps_its_own_name(here):
    (here / "train.jsonl").symlink_to(here / "texts" / "a.jsonl")
    (here / "data").symlink_to(here / "texts")
    assert TextSpec(source="train.jsonl").resolved().source == str(here / "train.jsonl")
    assert TextSpec(source="data/b.jsonl").resolved().source == str(here / "texts" / "b.jsonl")


def test_folders_with_brackets_and_commas_in_their_names(tmp_path, monkeypatch):
    odd = tmp_path / "one [x], two"
    odd.mkdir()
    for name in ("a", "b"):
        (odd / f"{name}.txt").write_text(name)
    monkeypatch.chdir(odd)
    pattern = TextSpec(source="*.txt").resolved().source
    assert TextSpec(source="a.txt,b.txt").resolved().source == "a.txt,b.txt"  # cannot be written otherwise
    monkeypatch.chdir(tmp_path)
    assert find_files(pattern) == [odd / "a.txt", odd / "b.txt"]


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("{here}/gone", "there is no file or folder {here}/gone any more"),
        ("./text", "there is no file or folder ./text; did you mean texts?"),
        ("texts/aa", "texts is a folder here, so the hub is not asked"),
    ],
)
def test_a_local_name_that_is_not_there_is_not_looked_for_on_the_hub(here, monkeypatch, source, said):
    def refuse(*_, **__):
        raise AssertionError("the network was used")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    with pytest.raises(UsageError) as caught:
        load_documents(TextSpec(source=source.format(here=here)))
    assert said.format(here=here) in str(caught.value)


@pytest.mark.parametrize(
    ("record", "column", "said"),
    [
        ({"text": 5}, "text", 'the field "text" holds numbers, which is no text'),
        (
            {"text": "x", "topic": "y", "n": 3},
            "n",
            "holds numbers, which is no text; text stands in text, topic",
        ),
        ({"text": None}, "text", 'the field "text" holds nothing'),
        ({"text": {"a": 1}}, "text", "holds tables"),
        ({"text": True}, "text", "holds truth values"),
    ],
)
def test_a_field_that_holds_no_text_is_told_with_what_it_holds(tmp_path, record, column, said):
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps(record) + "\n")
    with pytest.raises(UsageError) as caught:
        load_documents(TextSpec(source=str(path), column=column))
    assert said in str(caught.value)
    assert "no fields" not in str(caught.value)
