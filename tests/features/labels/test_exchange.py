"""Labels from files to runs and back: nothing is lost, nothing of another SAE comes in."""

import gzip
import json

import pytest
from index_helpers import D_SAE, make_run

from saelab.errors import DamagedFileError, SaelabError, UsageError
from saelab.features.labels import places
from saelab.features.labels.exchange import export_labels, import_labels
from saelab.features.labels.label import Label
from saelab.features.labels.neuronpedia import CREATOR, Source
from saelab.features.labels.places import add_labels, labels_folder, read_labels
from saelab.sae.files import sae_identity
from saelab.storage.files import write_bytes
from saelab.storage.inspect import verify_folder
from saelab.storage.lock import locked
from saelab.text import files

EXPLANATION_KEYS = [
    "id",
    "modelId",
    "layer",
    "index",
    "description",
    "authorId",
    "embedding",
    "triggeredById",
    "typeName",
    "explanationModelName",
    "notes",
    "createdAt",
]
"""As Neuronpedia's importer reads them."""
THEIRS = Source(model_id="gpt2-small", source_id="6-res-jb")


@pytest.fixture
def run(tmp_path):
    return make_run(tmp_path / "run")


def lines_file(path, *lines):
    text = "".join(line if isinstance(line, str) else json.dumps(line) + "\n" for line in lines)
    path.write_text(text, encoding="utf-8")
    return path


def explanation(index, description, **more):
    return {
        "modelId": "gpt2-small",
        "layer": "6-res-jb",
        "index": str(index),
        "description": description,
    } | more


def plain(feature, label):
    return {"feature": feature, "label": label}


def test_explanation_lines_of_neuronpedia(run, tmp_path):
    lines = [
        explanation(
            3, "imports", authorId="ann", createdAt="2025-01-01T00:00:00.000Z", embedding=[0.5] * 100
        ),
        explanation(4, "dots", authorId=None, explanationModelName="gpt-4o-mini"),
        explanation(3, "imports", authorId="ann", createdAt="2026-01-01T00:00:00.000Z"),
    ]
    file = tmp_path / "batch-0.jsonl.gz"
    file.write_bytes(gzip.compress("\n".join(map(json.dumps, lines)).encode()))
    found = import_labels(run, file, allow_unknown_sae=True)
    assert (found.added, found.unchanged, found.refused, found.reasons) == (2, 1, 0, ())
    assert read_labels(run) == (
        Label(feature=3, text="imports", author="ann", created="2025-01-01T00:00:00.000Z"),
        Label(feature=4, text="dots", model="gpt-4o-mini"),
    )
    again = import_labels(run, file, allow_unknown_sae=True)
    assert (again.added, again.unchanged) == (0, 3)
    verified = verify_folder(run / "labels")
    assert verified.files == 1 and not verified.problems


def test_tables_and_what_is_there_stays(run, tmp_path):
    table = tmp_path / "mine.csv"
    table.write_bytes('\ufeffFeature,label,score\r\n1,"a, b\nc",0.5\r\n2,only\r\n3,three,\r\n'.encode())
    found = import_labels(run, table)
    assert (found.added, found.refused) == (2, 1)
    assert found.reasons == ("line 4: it has 2 columns, the header 3",)
    more = lines_file(tmp_path / "more.jsonl", plain(1, "new") | {"author": "bo"}, "\n", "{\n", "[]\n")
    found = import_labels(run, more)
    assert (found.added, found.refused) == (1, 2)
    assert found.reasons == ("line 3: it is no JSON", "line 4: it is no JSON object")
    assert [label.text for label in read_labels(run)] == ["a, b c", "three", "new"]
    assert read_labels(run)[0].score == 0.5


def test_a_feature_that_there_is_not(run, tmp_path):
    file = lines_file(tmp_path / "a.jsonl", plain(0, "x"), plain(D_SAE, "y"), plain(-1, "z"))
    found = import_labels(run, file)
    assert (found.added, found.refused) == (1, 2)
    assert found.reasons == (
        "line 2: there is no feature 40; the SAE has 40",
        "line 3: -1 is no index of a feature",
    )
    many = lines_file(tmp_path / "b.jsonl", *(plain(D_SAE + i, "y") for i in range(50)), plain(1, "x"))
    found = import_labels(run, many)
    assert found.refused == 50 and len(found.reasons) == 20
    none = lines_file(tmp_path / "c.jsonl", plain(D_SAE, "y"))
    with pytest.raises(UsageError, match="no label of this SAE \\(line 1: there is no feature 40"):
        import_labels(run, none)


def test_another_sae_is_refused_whole(run, tmp_path):
    other = make_run(tmp_path / "other", seed=1)
    add_labels(other, [Label(feature=1, text="theirs")])
    for to in ("saelab", "neuronpedia"):
        file = tmp_path / f"{to}.jsonl"
        assert export_labels(other, file, to, THEIRS) == 1
        mixed = lines_file(tmp_path / f"{to}-mixed.jsonl", {"feature": 0, "label": "ok"}, file.read_text())
        for path in (file, mixed):
            with pytest.raises(UsageError, match=f"is of another SAE \\({sae_identity(other / 'sae')}"):
                import_labels(run, path, allow_unknown_sae=True)
    assert not (run / "labels").exists()
    two = lines_file(tmp_path / "two.jsonl", explanation(0, "x"), explanation(1, "y") | {"layer": "7-res-jb"})
    with pytest.raises(
        UsageError, match="line 2: it is of gpt2-small/7-res-jb, lines before of gpt2-small/6"
    ):
        import_labels(run, two, allow_unknown_sae=True)


def test_an_sae_that_cannot_be_compared_is_taken_at_a_word_alone(run, tmp_path):
    file = lines_file(tmp_path / "a.jsonl", explanation(0, "x"))
    with pytest.raises(
        UsageError, match=r"line 1: it is of gpt2-small/6-res-jb, which cannot .* --allow-unknown"
    ):
        import_labels(run, file)
    nameless = lines_file(tmp_path / "b.jsonl", {"index": 0, "description": "x"})
    with pytest.raises(UsageError, match="unnamed/unnamed, which cannot be compared"):
        import_labels(run, nameless)
    wider = lines_file(tmp_path / "c.jsonl", *(explanation(i, "x") for i in range(D_SAE + 1)))
    with pytest.raises(
        UsageError, match=r"line 41: it is of feature 40 of gpt2-small/6-res-jb; .* has 40, so"
    ):
        import_labels(run, wider, allow_unknown_sae=True)
    assert not (run / "labels").exists()
    assert import_labels(run, file, allow_unknown_sae=True).added == 1


@pytest.mark.parametrize("to", ["saelab", "neuronpedia"])
def test_there_and_back(run, tmp_path, to):
    labels = [
        Label(
            feature=1, text="</script> $x$ \u202e", author="ann", model="m", score=0.25, created="2026-01-01"
        ),
        Label(feature=1, text="two"),
    ]
    assert add_labels(run, labels) == (2, 0)
    file = tmp_path / "out.jsonl"
    assert export_labels(run, file, to, THEIRS) == 2
    copy = make_run(tmp_path / "copy")
    assert import_labels(copy, file).added == 2
    if to == "saelab":
        assert read_labels(copy) == tuple(labels)
    else:  # their lines have no score, and a date always
        assert [(one.feature, one.text, one.author, one.model) for one in read_labels(copy)] == [
            (1, labels[0].text, "ann", "m"),
            (1, "two", None, None),
        ]
    with pytest.raises(UsageError, match="is there already"):
        export_labels(run, file, to, THEIRS)


def test_lines_for_neuronpedia(run, tmp_path):
    add_labels(
        run,
        [
            Label(feature=1, text="a"),
            Label(feature=2, text="a", author="ann", created="2026-01-01T00:00:00Z"),
        ],
    )
    export_labels(run, tmp_path / "a.jsonl", "neuronpedia", THEIRS)
    export_labels(run, tmp_path / "b.jsonl", "neuronpedia", THEIRS)
    assert (tmp_path / "a.jsonl").read_bytes() == (tmp_path / "b.jsonl").read_bytes()
    first, second = map(json.loads, (tmp_path / "a.jsonl").read_text().splitlines())
    assert list(first) == list(second) == EXPLANATION_KEYS
    assert (
        first["index"] == "1"
        and first["layer"] == "6-res-jb"
        and first["createdAt"].startswith("1970-01-01T")
    )
    assert (
        second["createdAt"] == "2026-01-01T00:00:00Z" and second["authorId"] == first["authorId"] == CREATOR
    )
    identity = sae_identity(run / "sae")
    assert (first["notes"], second["notes"]) == (f"saelab sae {identity}", f"saelab sae {identity}, by ann")
    ids = [first["id"], second["id"]]
    assert len(set(ids)) == 2 and all(len(one) == 25 and one[0] == "c" and one.isalnum() for one in ids)
    with pytest.raises(UsageError, match="--model-id and --source-id"):
        export_labels(run, tmp_path / "c.jsonl", "neuronpedia", Source(model_id="m", source_id=""))


def test_what_is_no_file_of_labels(run, tmp_path, monkeypatch):
    for name, content, why in (
        ("a.txt", b"", "not a .jsonl"),
        ("a.jsonl", b"", "holds no label"),
        ("a.jsonl.gz", b"no gzip", "not a whole gzip file"),
        ("cut.jsonl.gz", gzip.compress(b"{}\n" * 100)[:-9], "not a whole gzip file"),
        (
            "long.jsonl",
            b'{"feature": 1, "label": "' + b"x" * (1 << 20),
            "line 1: longer than 1,048,576 bytes",
        ),
        ("deep.jsonl", b"[" * 100_000, "it is no JSON"),
        ("head.csv", b"index,label\n", "does not name the columns"),
        ("open.csv", b'feature,label\n1,"never closed\n' + b"more\n" * 40_000, "field larger than"),
        ("latin.csv", "feature,label\n1,\xe9\n".encode("latin-1"), "line 2: it is not UTF-8"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UsageError, match=why):
            import_labels(run, tmp_path / name)
    with pytest.raises(UsageError, match="cannot read"):
        import_labels(run, tmp_path / "none.jsonl")
    monkeypatch.setattr(files, "GZIP_RATIO_FROM", 1 << 20)
    bomb = tmp_path / "bomb.jsonl.gz"
    bomb.write_bytes(gzip.compress(b"\n" * (8 << 20)))
    with pytest.raises(UsageError, match="unpacks to more than"):
        import_labels(run, bomb)
    monkeypatch.setattr(places, "MOST_LABELS", 1)
    two = lines_file(tmp_path / "two.jsonl", {"feature": 1, "label": "a"}, {"feature": 2, "label": "b"})
    with pytest.raises(UsageError, match="more than 1 labels"):
        import_labels(run, two)
    assert not (run / "labels").exists()


def test_an_overlay_by_the_identity_of_the_sae(run, tmp_path):
    file = lines_file(tmp_path / "a.jsonl", {"feature": 1, "label": "a"})
    found = import_labels(run, file, tmp_path / "overlay")
    identity = sae_identity(run / "sae")
    assert (
        found.folder == tmp_path / "overlay" / identity / "labels" == labels_folder(run, tmp_path / "overlay")
    )
    assert not (run / "labels").exists() and read_labels(run) == ()
    assert read_labels(run, tmp_path / "overlay") == (Label(feature=1, text="a"),)
    with pytest.raises(UsageError, match="holds none"):
        export_labels(run, tmp_path / "out.jsonl")


@pytest.mark.parametrize("fails_at", [1, 2, 3])
def test_an_interrupted_import_loses_nothing(run, monkeypatch, fails_at):
    add_labels(run, [Label(feature=1, text="old")])
    steps = 0

    def failing(write):
        def step(*arguments):
            nonlocal steps
            steps += 1
            if steps == fails_at:
                raise KeyboardInterrupt
            return write(*arguments)

        return step

    with monkeypatch.context() as patched:
        patched.setattr(places, "write_manifest", failing(places.write_manifest))
        patched.setattr(places, "write_bytes", failing(write_bytes))
        with pytest.raises(KeyboardInterrupt):
            add_labels(run, [Label(feature=2, text="new")])
    texts = [label.text for label in read_labels(run)]
    assert texts == (["old", "new"] if fails_at == 3 else ["old"])
    assert not verify_folder(run / "labels").problems
    assert sum(add_labels(run, [Label(feature=2, text="new")])) == 1
    assert [label.text for label in read_labels(run)] == ["old", "new"]


def test_damage_is_named(run):
    add_labels(run, [Label(feature=1, text="a")])
    file = run / "labels" / "labels.jsonl"
    whole = file.read_bytes()
    file.write_bytes(whole.replace(b'"a"', b'"b"'))
    with pytest.raises(DamagedFileError, match=r"labels\.jsonl is damaged"):
        read_labels(run)
    with pytest.raises(DamagedFileError):
        add_labels(run, [Label(feature=2, text="b")])
    file.write_bytes(whole)
    with locked(run / "labels", "labels"), pytest.raises(SaelabError, match="in use"):
        add_labels(run, [Label(feature=2, text="b")])
    places.write_manifest(run / "labels", "labels", [], {"sae_identity": "0" * 32})
    with pytest.raises(UsageError, match="labels of another SAE"):
        read_labels(run)
    places.write_manifest(run / "labels", "labels", [], {"sae_identity": sae_identity(run / "sae")})
    file.write_bytes(whole + b'{"feature": 1}\n')
    with pytest.raises(DamagedFileError, match=r"labels\.jsonl, line 2: a label has the fields"):
        read_labels(run)
