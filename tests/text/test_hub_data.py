"""Data sets through `datasets`: local folders stand in for the hub, and its refusals are raised by hand."""

import json
import sys

import datasets
import pyarrow
import pyarrow.parquet
import pytest

from saelab.errors import SaelabError, UsageError
from saelab.text.load import iter_documents, load_documents, text_identity
from saelab.text.spec import TextSpec

HUB = "someone/stories"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A data set as it lies on the hub: two splits of two subsets."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    root = tmp_path / "set"
    for subset, n in (("en", 30), ("de", 20)):
        for split in ("train", "test"):
            path = root / subset / f"{split}-00000-of-00001.parquet"
            path.parent.mkdir(parents=True, exist_ok=True)
            numbers = list(range(n))
            texts = [f"{subset} {split} {i}" for i in numbers]
            pyarrow.parquet.write_table(pyarrow.table({"text": texts, "year": numbers}), path)
    configs = "\n".join(f"- config_name: {name}\n  data_dir: {name}" for name in ("en", "de"))
    (root / "README.md").write_text(f"---\nconfigs:\n{configs}\n---\n")
    return root


@pytest.fixture
def hub(folder, monkeypatch):
    """The same set under a hub name, at a commit that tests may move."""
    build = datasets.load_dataset_builder
    state = {"commit": "c0ffee"}

    def load(name, subset=None, revision=None):
        assert name == HUB
        builder = build(str(folder), subset)
        builder.hash = revision or state["commit"]
        return builder

    monkeypatch.setattr(datasets, "load_dataset_builder", load)
    return state


@pytest.mark.parametrize("streaming", [False, True])
def test_a_set_is_read_in_order_from_any_document_on(hub, streaming):
    spec = TextSpec(source=HUB, subset="en", streaming=streaming, keep_columns=("year",), heldout_share=0.3)
    whole = load_documents(spec)
    assert [(d.id, d.text, d.columns) for d in whole] == [
        (f"train:{i}", f"en train {i}", {"year": i}) for i in range(30)
    ]
    assert {d.split for d in whole} == {"train", "heldout"}
    assert {d.source for d in whole} == {f"{HUB}/en"}
    for start in (0, 1, 17, 29, 30, 31):
        assert list(iter_documents(spec, start)) == whole[start:]


def test_a_stream_and_a_download_are_the_same_documents(hub):
    one, other = (TextSpec(source=HUB, subset="de", split="test", streaming=s) for s in (False, True))
    assert load_documents(one) == load_documents(other)
    assert text_identity(one) == text_identity(other)


def test_the_identity_names_subset_split_column_and_commit(hub):
    def identity(**options):
        return text_identity(TextSpec(source=HUB, **{"subset": "en", **options}))

    first = identity()
    others = [
        identity(subset="de"),
        identity(split="test"),
        identity(column="year"),
        identity(revision="abc"),
    ]
    hub["commit"] = "decade"
    others.append(identity())
    assert len({first, *others}) == 6
    hub["commit"] = "c0ffee"
    assert identity() == first


def test_a_set_with_ids_keeps_them(tmp_path):
    datasets.Dataset.from_dict({"text": ["a", "b"], "id": [7, 9]}).save_to_disk(tmp_path / "saved")
    assert [d.id for d in load_documents(TextSpec(source=str(tmp_path / "saved")))] == ["7", "9"]


def test_saved_sets_are_read_by_split_and_known_by_their_content(tmp_path):
    splits = {"train": ["a", "b"], "test": ["c"]}
    for name in ("one", "two"):
        made = {split: datasets.Dataset.from_dict({"text": texts}) for split, texts in splits.items()}
        datasets.DatasetDict(made).save_to_disk(tmp_path / name / "set")
        splits["test"] = ["d"]
    specs = [TextSpec(source=str(tmp_path / name / "set"), split="test") for name in ("one", "two")]
    assert [[d.text for d in load_documents(spec)] for spec in specs] == [["c"], ["d"]]
    assert text_identity(specs[0]) != text_identity(specs[1])
    with pytest.raises(UsageError, match=r"no split 'tests'; did you mean test\?"):
        load_documents(TextSpec(source=str(tmp_path / "one" / "set"), split="tests"))


def test_a_local_folder_has_the_splits_of_a_data_set(folder):
    found = load_documents(TextSpec(source=str(folder), subset="de", split="test"))
    assert [d.text for d in found] == [f"de test {i}" for i in range(20)]


def test_chats_come_through_tables(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    path = tmp_path / "set" / "train.jsonl"
    path.parent.mkdir()
    turns = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes", "extra": 1}]
    path.write_text(json.dumps({"messages": turns}) + "\n")
    (found,) = load_documents(TextSpec(source=str(path.parent), split="train", column="messages"))
    assert list(found.messages) == turns


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "several subsets, choose one with --subset: en, de"),
        ({"subset": "eng"}, r"no subset 'eng'; did you mean en\?"),
        ({"subset": "fr"}, "no subset 'fr'; it has de, en"),
        ({"subset": "en", "split": "tset"}, r"no split 'tset'; did you mean test\?"),
        ({"subset": "en", "split": "valid"}, "no split 'valid'; it has test, train"),
        ({"subset": "en", "column": "txt"}, r'no column "txt"; it has text, year; did you mean text\?'),
        (
            {"subset": "en", "keep_columns": ("yeer",), "streaming": True},
            r'no column "yeer".*did you mean year\?',
        ),
        ({"subset": "en", "column": "year"}, 'train 0: the field "year" holds numbers, which is no text'),
    ],
)
def test_wrong_names_are_told_with_the_right_ones(hub, options, message):
    with pytest.raises(UsageError, match=message) as caught:
        load_documents(TextSpec(source=HUB, **options))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            datasets.exceptions.DatasetNotFoundError("Dataset 'x' is a gated dataset on the Hub."),
            "gated: accept",
        ),
        (
            datasets.exceptions.DatasetNotFoundError("Dataset 'x' doesn't exist on the Hub"),
            "no data set of that name",
        ),
        (datasets.exceptions.DatasetNotFoundError("Revision 'v9' doesn't exist"), "no revision 'v9'"),
        (
            RuntimeError("Dataset scripts are no longer supported, but found x.py"),
            "no code of a data set is run",
        ),
        (
            ConnectionError("Couldn't reach 'x' on the Hub\nmore"),
            r"\(Couldn't reach 'x' on the Hub\); check the net",
        ),
    ],
)
def test_what_the_hub_refuses_is_one_clear_line(monkeypatch, error, message):
    def refuse(*_, **__):
        raise error

    monkeypatch.setattr(datasets, "load_dataset_builder", refuse)
    with pytest.raises(SaelabError, match=message) as caught:
        load_documents(TextSpec(source=HUB, revision="v9"))
    assert "\n" not in str(caught.value)


def test_a_broken_connection_names_the_document(hub, monkeypatch):
    def broken(self):
        yield {"text": "one"}
        raise ConnectionResetError("gone")

    monkeypatch.setattr(datasets.IterableDataset, "__iter__", broken)
    documents = iter_documents(TextSpec(source=HUB, subset="en", streaming=True), 0)
    assert next(documents).text == "one"
    with pytest.raises(SaelabError, match=r"stopped at document 1 \(gone\)"):
        next(documents)


def test_without_the_package_the_line_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(SaelabError, match=r'pip install "saelab\[data\]"'):
        load_documents(TextSpec(source=HUB))
