import gzip
import json
import os
import random
import tracemalloc

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from saelab.errors import UsageError
from saelab.text import files
from saelab.text.documents import text_hash
from saelab.text.load import iter_documents, load_documents, text_identity
from saelab.text.spec import TextSpec


def records(first, last):
    return [
        {"id": f"n{i}", "text": f"text {i}", "year": 1900 + i, "ok": i % 2 == 0} for i in range(first, last)
    ]


def write_jsonl(path, content):
    lines = "".join(json.dumps(record) + "\n\n" for record in content).encode()
    path.write_bytes(gzip.compress(lines) if path.suffix == ".gz" else lines)
    return path


def write_parquet(path, content, group=7):
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(content), path, row_group_size=group)
    return path


def make_sources(folder):
    """One text in every shape that is read, 40 documents each but the plain text."""
    (folder / "several").mkdir()
    write_jsonl(folder / "several" / "a.jsonl", records(0, 15))
    write_jsonl(folder / "several" / "b.jsonl.gz", records(15, 40))
    (folder / "plain.txt").write_text("".join(f"Paragraph {i}\n" + "word " * 200 + "\n\n" for i in range(80)))
    parts = [write_parquet(folder / f"p{i}.parquet", records(20 * i, 20 * i + 20)) for i in range(2)]
    (folder / "std").mkdir()
    (folder / "std" / "module.py").write_text("def function():\n    return 1\n" * 20)
    (folder / "std" / "other.py").write_text("class Other:\n    x = 2\n" * 20)
    return {
        "jsonl": str(write_jsonl(folder / "all.jsonl", records(0, 40))),
        "gz": str(write_jsonl(folder / "all.jsonl.gz", records(0, 40))),
        "parquet": str(write_parquet(folder / "all.parquet", records(0, 40))),
        "folder": str(folder / "several"),
        "glob": str(folder / "p*.parquet"),
        "list": ",".join(map(str, parts)),
        "txt": str(folder / "plain.txt"),
        "stdlib": "stdlib",
    }


@pytest.fixture
def sources(tmp_path, monkeypatch):
    found = make_sources(tmp_path)
    monkeypatch.setattr("sysconfig.get_paths", lambda: {"stdlib": str(tmp_path / "std")})
    return found


def test_every_start_gives_the_rest_of_the_same_documents(sources):
    for kind, source in sources.items():
        spec = TextSpec(source=source, heldout_share=0.3)
        whole = load_documents(spec)
        assert len({d.id for d in whole}) == len(whole) > 1, kind
        for start in range(len(whole) + 2):
            assert list(iter_documents(spec, start)) == whole[start:], (kind, start)
        if kind not in ("txt", "stdlib"):
            assert [(d.id, d.text) for d in whole] == [(r["id"], r["text"]) for r in records(0, 40)]


def test_documents_without_id_have_different_names_in_several_files(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        write_jsonl(tmp_path / name / "a.jsonl", [{"text": "x"}, {"text": "y"}])
    found = load_documents(TextSpec(source=str(tmp_path)))
    assert [d.id for d in found] == ["one/a.jsonl:1", "one/a.jsonl:3", "two/a.jsonl:1", "two/a.jsonl:3"]
    assert [d.source for d in found] == ["one/a.jsonl"] * 2 + ["two/a.jsonl"] * 2


def test_the_identity_follows_content_names_and_everything_that_decides_documents(sources, tmp_path):
    for kind, source in sources.items():
        spec = TextSpec(source=source)
        first = text_identity(spec)
        assert first == text_identity(TextSpec(source=source))
        assert first != text_identity(TextSpec(source=source, heldout_share=0.5)), kind
    assert (
        len({text_identity(TextSpec(source=source)) for kind, source in sources.items() if kind != "list"})
        == 7
    )
    assert text_identity(TextSpec(source=sources["glob"])) == text_identity(TextSpec(source=sources["list"]))
    path = tmp_path / "all.jsonl"
    spec = TextSpec(source=str(path))
    before, stamp = text_identity(spec), path.stat()
    path.write_bytes(path.read_bytes().replace(b"text 7", b"text 8"))
    os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns + 1))
    changed = text_identity(spec)
    assert changed != before
    assert changed != text_identity(TextSpec(source=str(path), column="id"))


@pytest.mark.parametrize("kind", ["jsonl", "gz", "parquet", "glob"])
def test_kept_columns_stand_beside_their_documents(sources, kind):
    found = load_documents(TextSpec(source=sources[kind], keep_columns=("year", "ok")))
    assert [d.columns for d in found] == [{"year": 1900 + i, "ok": i % 2 == 0} for i in range(40)]
    plain = load_documents(TextSpec(source=sources[kind]))
    assert text_hash(found) != text_hash(plain)


def test_another_column_can_be_the_text(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", [{"body": "one", "text": "no"}])
    assert [d.text for d in load_documents(TextSpec(source=str(path), column="body"))] == ["one"]


@settings(max_examples=60, deadline=None)
@given(st.text("ab\n\ré", max_size=120), st.integers(1, 7))
def test_a_plain_text_is_cut_the_same_way_however_it_is_read(text, size):
    """The chunks in which a file is read never show: pieces are those of the whole text."""
    whole = list(files._pieces(iter([text * 400])))
    chunks = [(text * 400)[i : i + size * 997] for i in range(0, len(text) * 400, size * 997)]
    assert list(files._pieces(iter(chunks))) == whole
    assert "".join(whole) == text * 400
    assert all(len(piece) >= files.TEXT_PIECE_CHARACTERS for piece in whole[:-1])


def test_ends_of_lines_and_marks_are_read_as_python_reads_them(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "_CHUNK_BYTES", 3)
    path = tmp_path / "a.txt"
    path.write_bytes("\ufeffé one\r\ntwo\rthree\n".encode())
    assert [d.text for d in load_documents(TextSpec(source=str(path)))] == ["é one\ntwo\nthree\n"]
    path.write_bytes(b"abcdefg\xff\xfe")
    with pytest.raises(UsageError, match="byte 7"):
        load_documents(TextSpec(source=str(path)))


def test_a_large_table_is_never_held_as_a_whole(tmp_path):
    noise = random.Random(0)
    content = [{"text": noise.randbytes(2000).hex()} for _ in range(3000)]
    path = write_parquet(tmp_path / "a.parquet", content, group=200)
    assert path.stat().st_size > 5e6
    list(iter_documents(TextSpec(source=str(path)), 2990))  # imports and caches of the library
    before = pyarrow.total_allocated_bytes()
    tracemalloc.start()
    most = 0
    for number, _ in enumerate(iter_documents(TextSpec(source=str(path)))):
        if number % 100 == 0:
            most = max(most, pyarrow.total_allocated_bytes() - before)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 4e6
    assert most < 6e6


def test_a_gzip_bomb_is_refused_before_it_fills_the_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "GZIP_RATIO_FROM", 1 << 20)
    path = tmp_path / "bomb.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"text": "%s"}\n' % (b"a" * 1000) * 30_000))
    with pytest.raises(UsageError, match="unpacks to more than 200 times"):
        load_documents(TextSpec(source=str(path)))
    monkeypatch.setattr(files, "MAX_LINE_BYTES", 100_000)
    path.write_bytes(gzip.compress(b" " * 200_000))
    with pytest.raises(UsageError, match="line 1: longer than 100,000 bytes"):
        load_documents(TextSpec(source=str(path)))


@pytest.mark.parametrize(
    "damage", [lambda raw: raw[:-9], lambda raw: b"nonsense", lambda raw: raw[:40] + raw[60:]]
)
def test_a_damaged_gzip_file_is_one_clear_line(tmp_path, damage):
    path = write_jsonl(tmp_path / "a.jsonl.gz", records(0, 100))
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(UsageError, match="gzip"):
        load_documents(TextSpec(source=str(path)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"source": "{}/mixed"}, r"several kinds \(.jsonl, .txt\)"),
        ({"source": "{}/empty"}, "holds no .txt"),
        ({"source": "{}/a.jsonl", "subset": "en"}, "have no subset"),
        ({"source": "{}/a.jsonl", "revision": "main"}, "have no revision"),
        ({"source": "{}/mixed/a.txt", "column": "body"}, "plain text and has no column 'body'"),
        ({"source": "stdlib", "keep_columns": ("year",)}, "plain text and has no column 'year'"),
        ({"source": "{}/a.jsonl", "keep_columns": ("meta",)}, "line 1: the kept column 'meta' is list"),
        ({"source": "{}/a.parquet", "keep_columns": ("meta",)}, 'no column "meta"; it has text'),
        ({"source": "{}/a.jsonl", "column": "messages"}, 'line 1: no field "messages"; it has meta, text'),
    ],
)
def test_impossible_wishes_are_one_clear_line(tmp_path, options, message):
    (tmp_path / "mixed").mkdir()
    (tmp_path / "empty").mkdir()
    for name in ("a.jsonl", "mixed/a.jsonl"):
        write_jsonl(tmp_path / name, [{"text": "x", "meta": [1]}])
    (tmp_path / "mixed" / "a.txt").write_text("x")
    write_parquet(tmp_path / "a.parquet", [{"text": "x"}])
    spec = TextSpec(**{**options, "source": options["source"].format(tmp_path)})
    with pytest.raises(UsageError, match=message) as caught:
        load_documents(spec)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("options", [{"keep_columns": ("id",)}, {"keep_columns": ("a", "a")}, {"column": ""}])
def test_columns_that_clash_are_refused(options):
    with pytest.raises(UsageError, match="column"):
        TextSpec(**options)


def test_documents_are_numbered_from_0(tmp_path):
    with pytest.raises(UsageError, match="numbered from 0"):
        iter_documents(TextSpec(), -1)
