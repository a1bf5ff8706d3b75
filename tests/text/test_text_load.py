import json

import pyarrow
import pyarrow.parquet
import pytest

from saelab.errors import UsageError
from saelab.text import load
from saelab.text.documents import text_hash
from saelab.text.load import load_documents
from saelab.text.spec import TextSpec


def read(path, **options):
    return load_documents(TextSpec(source=str(path), **options))


def write_lines(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def test_a_txt_file_is_cut_at_blank_lines_and_nothing_is_lost(tmp_path):
    path = tmp_path / "a böok.txt"
    text = "".join(f"Paragraph {i}, " + "word " * 150 + "\n\n" for i in range(40))
    path.write_text(text, encoding="utf-8")
    documents = read(path)
    assert len(documents) > 4
    assert "".join(document.text for document in documents) == text
    assert all(document.text.startswith("Paragraph") for document in documents)
    assert len({document.id for document in documents}) == len(documents)


@pytest.mark.parametrize("text", ["x" * 9000, "ab\n" * 4000, "short"])
def test_a_txt_file_without_blank_lines_is_read_whole(tmp_path, text):
    path = tmp_path / "plain.txt"
    path.write_text(text)
    assert "".join(document.text for document in read(path)) == text


def test_jsonl_and_parquet_give_the_same_documents(tmp_path):
    records = [{"id": f"n{i}", "text": f"text\u2028{i}", "more": i} for i in range(30)]
    lines = write_lines(tmp_path / "a.jsonl", records)
    table = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(records), table)
    a, b = read(lines, heldout_share=0.3), read(table, heldout_share=0.3)
    assert [(d.id, d.text, d.split) for d in a] == [(d.id, d.text, d.split) for d in b]
    assert [(d.id, d.text) for d in a] == [(r["id"], r["text"]) for r in records]
    assert {d.split for d in a} == {"train", "heldout"}


def test_the_split_hangs_on_the_id_alone(tmp_path):
    records = [{"id": f"n{i}", "text": f"text {i}"} for i in range(50)]
    forward = {d.id: d.split for d in read(write_lines(tmp_path / "a.jsonl", records), heldout_share=0.3)}
    backward = read(write_lines(tmp_path / "b.jsonl", records[::-1]), heldout_share=0.3)
    assert forward == {d.id: d.split for d in backward}


def test_heldout_documents_can_be_read_alone(tmp_path):
    path = write_lines(tmp_path / "a.jsonl", [{"id": f"n{i}", "text": f"text {i}"} for i in range(50)])
    everything = read(path, heldout_share=0.3)
    alone = read(path, heldout_share=0.3, only_heldout=True)
    assert 0 < len(alone) < 50
    assert alone == [document for document in everything if document.split == "heldout"]


def test_lines_without_id_are_numbered(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "one"}\n\n{"text": "two"}\n')
    assert [d.id for d in read(path)] == ["a.jsonl:1", "a.jsonl:3"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"text": "x"}\n{"body": "y"}\n', 'line 2: no field "text".*body'),
        ("a.jsonl", b'{"text": 3}\n', "line 1.*holds numbers, which is no text"),
        ("a.jsonl", b'{"text": "x"}\nnonsense\n', "line 2: not valid JSON"),
        ("a.jsonl", b"[1]\n", "line 1: not a JSON object"),
        ("a.jsonl", b'{"text": "\\ud800"}\n', "line 1.*not Unicode"),
        ("a.jsonl", b'{"messages": []}\n', 'line 1: no field "text"; it holds conversations'),
        ("a.jsonl", b'{"text": "\xff"}\n', "line 1"),
        ("a.jsonl", b"", "no document"),
        ("a.txt", b"  \n ", "no document"),
        ("a.txt", b"\xff\xfe", "not UTF-8"),
        ("a.parquet", b"PAR1 not really", "cannot be read as Parquet"),
        ("a.csv", b"text\nx\n", "not a .txt, .jsonl, .jsonl.gz or .parquet"),
    ],
)
def test_what_cannot_be_read_is_one_clear_line(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(UsageError, match=message) as caught:
        read(path)
    assert "\n" not in str(caught.value)


def test_parquet_without_a_text_column_is_refused(tmp_path):
    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"body": ["x"]}), path)
    with pytest.raises(UsageError, match=r'no column "text"; it has body'):
        read(path)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("there/is/none.jsonl", "no file"),
        ("there/is/none-*.jsonl", "no file is named"),
        ("a.jsonl,b.jsonl", "no file a.jsonl"),
        ("no such name", "neither a file nor the name of a data set"),
        ("json", "neither a file nor the name of a data set"),
    ],
)
def test_missing_sources_say_what_is_possible(source, message):
    with pytest.raises(UsageError, match=message):
        read(source)


@pytest.mark.parametrize("options", [{"source": " "}, {"heldout_share": 1.1}, {"heldout_share": -0.1}])
def test_impossible_specs_are_refused(options):
    with pytest.raises(UsageError):
        TextSpec(**options)


def test_the_text_hash_sees_ids_texts_splits_and_order(tmp_path):
    documents = read(write_lines(tmp_path / "a.jsonl", [{"text": "one"}, {"text": "two"}]))
    assert text_hash(documents) == text_hash(list(documents))
    assert text_hash(documents) != text_hash(documents[::-1])
    for change in ({"id": "other"}, {"text": "other"}, {"split": "heldout"}):
        changed = [
            type(d)(**{"id": d.id, "text": d.text, "source": d.source, "split": "train"} | change)
            for d in documents
        ]
        unchanged = [type(d)(id=d.id, text=d.text, source=d.source, split="train") for d in documents]
        assert text_hash(changed) != text_hash(unchanged)


def test_the_standard_library_is_a_source(tmp_path, monkeypatch):
    (tmp_path / "module.py").write_text("def function():\n    return 1\n" * 20)
    monkeypatch.setattr("sysconfig.get_paths", lambda: {"stdlib": str(tmp_path)})
    assert [d.id for d in load_documents(TextSpec())] == ["module.py"]
    assert load.load_documents(TextSpec(heldout_share=0.9999))[0].split == "heldout"
