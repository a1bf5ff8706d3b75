"""Documents that a run was trained on are never evaluated as new ones, whatever file they are given in."""

import gzip
import json
import shutil
from pathlib import Path

import pytest
from run_helpers import evaluate, text_of

from saelab.errors import UsageError
from saelab.evaluation import seen
from saelab.evaluation.seen import TrainingText, Unseen, is_same_text
from saelab.text.documents import Document
from saelab.text.spec import TextSpec


def documents_in(path, texts, **fields):
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps({"text": text} | fields) + "\n" for text in texts))
    return path


def read(text, own, **training):
    """Return the texts that are left of one text for a run on another, and the warnings."""
    unseen = Unseen(TextSpec(source=str(text), heldout_share=1.0), TrainingText(text=own, **training))
    return [document.text for document in unseen], unseen.warnings()


@pytest.fixture
def own(tmp_path):
    """Forty documents in two files, half of them held out."""
    first = documents_in(tmp_path / "own" / "a.jsonl", [f"number {n}\n" for n in range(20)])
    documents_in(first.with_name("b.jsonl"), [f"number {n}\n" for n in range(20, 40)])
    return TextSpec(source=str(first.parent), heldout_share=0.5)


@pytest.fixture
def heldout(own):
    return [d.text for d in seen.iter_documents(own) if d.split == "heldout"]


def test_another_spelling_of_the_own_text_is_the_own_text(own, heldout, monkeypatch):
    folder = Path(own.source)
    monkeypatch.chdir(folder.parent)
    for spelling in ("own", "./own/", folder / "*.jsonl", f"{folder}/a.jsonl,own/b.jsonl"):
        assert is_same_text(TextSpec(source=str(spelling)), own), spelling
        assert read(spelling, own) == (heldout, ())


def test_one_file_a_copy_and_a_link_hold_no_training_document(own, heldout, tmp_path):
    folder = Path(own.source)
    packed = tmp_path / "a.jsonl.gz"
    packed.write_bytes(gzip.compress((folder / "a.jsonl").read_bytes()))
    (tmp_path / "linked.jsonl").symlink_to(folder / "a.jsonl")
    windows = documents_in(tmp_path / "windows.jsonl", [f"number {n}\r\n" for n in range(20)])
    of_a = [text for text in heldout if int(text.split()[1]) < 20]
    for path in (folder / "a.jsonl", packed, tmp_path / "linked.jsonl", windows):
        left, (warning,) = read(path, own)
        assert [text.strip() for text in left] == [text.strip() for text in of_a], path
        assert warning == (
            f"{20 - len(of_a)} of the 20 documents that were read of {path} were left out: the run was trained on them"
        )


def test_only_documents_that_were_read_for_the_training_are_left_out(own, tmp_path):
    copy = tmp_path / "copy.jsonl"
    shutil.copy(Path(own.source) / "a.jsonl", copy)
    own = TextSpec(source=own.source, heldout_share=0.0)
    assert len(read(copy, own, n_documents=5)[0]) == 15


def test_new_documents_are_all_read_without_a_word(own, tmp_path):
    new = documents_in(tmp_path / "new.jsonl", ["one", "two", "two"])
    assert read(new, own) == (["one", "two", "two"], ())


def test_conversations_are_compared_by_their_turns(tmp_path):
    turns = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}]
    own = tmp_path / "own.jsonl"
    own.write_text(json.dumps({"messages": turns}) + "\n")
    given = tmp_path / "given.jsonl"
    sharegpt = [{"from": "human", "value": "Why?"}, {"from": "gpt", "value": "So."}]
    other = [*sharegpt[:1], {"from": "gpt", "value": "No."}]
    given.write_text("".join(json.dumps({"conversations": found}) + "\n" for found in (sharegpt, other)))
    unseen = Unseen(
        TextSpec(source=str(given), column="conversations", heldout_share=1.0),
        TrainingText(text=TextSpec(source=str(own), column="messages", heldout_share=0.0)),
    )
    assert [document.messages[1]["content"] for document in unseen] == ["No."]


def test_a_larger_standard_library_holds_no_document_of_the_smaller_one(monkeypatch):
    """With tests or without, a document has one id; only its split may differ, as near copies move."""
    corpora = {
        "stdlib": [("a", "train"), ("b", "heldout"), ("c", "train")],
        "stdlib-with-tests": [("a", "train"), ("b", "heldout"), ("c", "heldout"), ("test/d", "heldout")],
    }

    def documents(spec):
        found = [Document(id=id, text=id, source="stdlib", split=split) for id, split in corpora[spec.source]]
        return [d for d in found if d.split == "heldout" or not spec.only_heldout]

    monkeypatch.setattr(seen, "iter_documents", documents)
    unseen = Unseen(TextSpec(source="stdlib-with-tests"), TrainingText(text=TextSpec()))
    assert [document.id for document in unseen] == ["b", "test/d"] and unseen.left_out == 1


def test_what_cannot_be_compared_is_said(own, tmp_path, monkeypatch):
    new = documents_in(tmp_path / "new.jsonl", ["one", "number 3"])
    left, (warning,) = read(new, TextSpec(source="somebody/corpus", streaming=True))
    assert len(left) == 2 and "could not be checked: its own text, somebody/corpus, is a data set" in warning
    left, (warning,) = read(new, TextSpec(source=str(tmp_path / "gone.jsonl")))
    assert len(left) == 2 and "could not be checked: text: there is no file" in warning
    monkeypatch.setattr(seen, "MAX_DOCUMENTS", 3)
    left, warnings = read(new, TextSpec(source=own.source, heldout_share=0.0))
    assert len(left) == 2 and "beyond the first 3 different training documents" in warnings[0]
    assert "has changed since" in read(new, own, has_changed=True)[1][0]


def test_a_run_is_not_evaluated_on_a_copy_of_its_training_text(trained, world, tmp_path, loads):
    packed = tmp_path / "copy.jsonl.gz"
    # Without ids, which would put the same documents into the same split.
    lines = [json.loads(line)["text"] for line in Path(text_of(world)).read_text().splitlines()]
    documents_in(tmp_path / "bare.jsonl", lines)
    packed.write_bytes(gzip.compress((tmp_path / "bare.jsonl").read_bytes()))
    (own,) = evaluate([trained / "live"], tokens=10**6)
    (copied,) = evaluate([trained / "live"], tokens=10**6, text=str(packed))
    assert copied["tokens_hash"] == own["tokens_hash"]
    assert copied["warnings"][0].endswith("were left out: the run was trained on them")
    assert "of the 120 documents" in copied["warnings"][0]


def test_a_live_run_whose_text_has_changed_since_is_not_evaluated_on_it(
    trained, world, copy, tmp_path, loads
):
    text = tmp_path / Path(text_of(world)).name
    shutil.copy(text_of(world), text)
    run = copy("live")
    rewrite(run, text)
    assert evaluate([run])[0]["source"]["kind"] == "own", "a copy of the text is the same text"
    with text.open("a") as file:
        file.write(json.dumps({"id": "later", "text": "ka mi to"}) + "\n")
    with pytest.raises(UsageError, match=r"is not the text that .* was trained on any more; .* with --text"):
        evaluate([run])
    (record,) = evaluate([run], text=str(text), name="later")
    assert "has changed since" in record["warnings"][0]
    text.unlink()
    with pytest.raises(UsageError, match="there is no file"):
        evaluate([run])


def rewrite(run, text):
    """Let the manifest of a live run name another place of its text."""
    from saelab.storage.manifest import read_manifest, write_manifest

    found = read_manifest(run, "run")
    live = found.content["live"]
    content = found.content | {"live": live | {"text": live["text"] | {"source": str(text)}}}
    write_manifest(run, "run", [], content, found.files)


def test_a_run_on_a_store_whose_text_has_changed_is_warned_of(trained, world, loads, monkeypatch):
    real = seen.iter_documents

    def other(spec, start=0):
        return (Document(id=d.id, text=d.text + "!", source="", split=d.split) for d in real(spec, start))

    monkeypatch.setattr("saelab.activations.request.iter_documents", other)
    with pytest.raises(UsageError, match=r"is not the text that .* was trained on any more"):
        evaluate([trained / "alone"], model=world.lm.spec.name)
    (record,) = evaluate([trained / "alone"], text=text_of(world))
    assert "has changed since" in record["warnings"][0]


def test_texts_without_a_document_to_evaluate_are_named_with_what_to_do(trained, world, tmp_path, loads):
    lines = Path(text_of(world)).read_text().splitlines()
    ids = {json.loads(line)["id"]: line for line in lines}
    own = TextSpec(source=text_of(world), heldout_share=0.5)
    train = [ids[d.id] for d in seen.iter_documents(own) if d.split == "train"][:4]
    (tmp_path / "seen.jsonl").write_text("\n".join(train) + "\n")
    with pytest.raises(
        UsageError, match=r"every document .* was trained on \(4 of them\); give another text"
    ):
        evaluate([trained / "live"], text=str(tmp_path / "seen.jsonl"))
    nothing = TextSpec(source=str(tmp_path / "seen.jsonl"), heldout_share=0.0)
    with pytest.raises(UsageError, match=r"has no held-out document with tokens .* give another text"):
        evaluate([trained / "live"], text=nothing)
