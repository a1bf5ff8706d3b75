"""Conversations and kept columns in a store, and files of theirs that a stranger changed."""

import json
import shutil

import numpy as np
import pyarrow.parquet
import pytest
from activation_helpers import RESID_0, all_rows, data_files

from saelab.activations.cache import cache_activations
from saelab.activations.layout import DOCUMENTS, ROLES
from saelab.activations.store import Store
from saelab.cli.main import run
from saelab.errors import DamagedFileError, UsageError
from saelab.storage.manifest import MANIFEST_NAME, read_manifest, write_manifest
from saelab.text.chat import ROLES as NAMES
from saelab.text.chat import SPECIAL
from saelab.text.spec import TextSpec

TEMPLATE = "{% for m in messages %}{{ m.role[0] }}:{{ m.content }}\n{% endfor %}"


@pytest.fixture(scope="module")
def chats(tmp_path_factory):
    folder = tmp_path_factory.mktemp("chats")
    (folder / "template.jinja").write_text(TEMPLATE)
    lines = []
    for number in range(12):
        turns = [
            {"role": "user", "content": f"q{number}"},
            {"role": "assistant", "content": "a" * (number + 1)},
        ]
        record = {"id": f"chat {number}", "messages": turns, "topic": f"t{number % 3}", "score": number / 2}
        lines.append(json.dumps(record | {"ok": number % 2 == 0}))
    (folder / "chats.jsonl").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture(scope="module")
def text(chats):
    return TextSpec(
        source=str(chats / "chats.jsonl"),
        column="messages",
        keep_columns=("topic", "score", "ok"),
        chat_template=str(chats / "template.jinja"),
        heldout_share=0.3,
    )


@pytest.fixture(scope="module")
def chat_store(make_config, lm, text, tmp_path_factory):
    config = make_config(text=text, packing="conversation", tokens=10_000)
    return cache_activations(config, tmp_path_factory.mktemp("stores") / "chats", progress=False, lm=lm)


def test_roles_and_rows_stand_beside_the_tokens(chat_store, lm):
    store = chat_store
    assert len(store.roles) == len(store.tokens)
    assert np.array_equal(store.row_starts[:-1], store.documents["start"].to_numpy())
    for number, (a, b) in enumerate(zip(store.row_starts, store.row_starts[1:], strict=False)):
        names = [NAMES[code & 0x7F] for code in store.roles[a:b]]
        text = dict.fromkeys(NAMES, "")
        for token, name in zip(store.tokens[a + 1 : b].tolist(), names[1:], strict=True):
            text[name] += lm.tokenizer.decode([token])
        assert text["user"] == f"q{number}"
        answer = "a" * (number + 1)
        assert text["assistant"] == answer[: len(text["assistant"])]
        assert store.roles[a] == SPECIAL
        assert store.tokens[a] == lm.tokenizer.bos_token_id
    assert not store.keep[store.roles >= SPECIAL].any()
    assert np.array_equal(store.sequences.roles, store.roles)
    assert store.chat_template == store.sequences.chat_template == TEMPLATE
    assert any("conversations are cut at the context of 16 tokens" in note for note in store.notes)


def test_one_conversation_does_not_see_another(chat_store, make_config, lm, chats, text, tmp_path):
    """A conversation alone has the activations that it has among others."""
    lines = (chats / "chats.jsonl").read_text().splitlines()
    (tmp_path / "one.jsonl").write_text(lines[5] + "\n")
    alone = make_config(
        text=TextSpec(**{**vars_of(text), "source": str(tmp_path / "one.jsonl"), "heldout_share": 0.0}),
        packing="conversation",
        dtype="float32",
    )
    config = make_config(text=text, packing="conversation", dtype="float32", tokens=10_000)
    one = cache_activations(alone, tmp_path / "one", progress=False, lm=lm)
    many = cache_activations(config, tmp_path / "many", progress=False, lm=lm)
    start, stop = many.row_starts[5], many.row_starts[6]
    split = many.split_of_token(int(start))
    rows = all_rows(many, RESID_0, split)
    here = (rows.token_index >= int(start)) & (rows.token_index < int(stop))
    assert here.sum() == one.n_rows(RESID_0, "train") > 3
    assert np.allclose(rows.x[here].numpy(), all_rows(one, RESID_0).x.numpy(), atol=1e-5)


def vars_of(spec):
    return {name: getattr(spec, name) for name in spec.__dataclass_fields__}


def test_kept_columns_are_columns_of_the_documents(chat_store):
    table = chat_store.documents
    assert table.column_names == ["id", "start", "length", "source", "split", "topic", "score", "ok"]
    assert table["topic"].to_pylist() == [f"t{n % 3}" for n in range(12)]
    assert table["score"].to_pylist() == [n / 2 for n in range(12)]
    assert table["ok"].to_pylist() == [n % 2 == 0 for n in range(12)]
    assert chat_store.sequences.documents.columns["score"] == tuple(n / 2 for n in range(12))


def test_the_same_command_gives_the_same_bytes(chat_store, make_config, lm, text, tmp_path):
    config = make_config(text=text, packing="conversation", tokens=10_000)
    again = cache_activations(config, tmp_path / "again", progress=False, lm=lm)
    assert data_files(again.path) == data_files(chat_store.path)


def test_another_template_is_another_store(chat_store, make_config, lm, text, chats, tmp_path):
    shutil.copytree(chat_store.path, tmp_path / "copy")
    template = chats / "template.jinja"
    try:
        template.write_text(TEMPLATE + "!")
        with pytest.raises(UsageError, match="chat_template"):
            cache_activations(
                make_config(text=text, packing="conversation", tokens=10_000),
                tmp_path / "copy",
                progress=False,
                lm=lm,
            )
    finally:
        template.write_text(TEMPLATE)


def damaged(store, tmp_path, change):
    """A copy with a changed file, whose manifest was written anew as a stranger would."""
    copy = tmp_path / "copy"
    shutil.copytree(store.path, copy)
    manifest = read_manifest(copy, "store")
    change(copy)
    (copy / MANIFEST_NAME).unlink()
    write_manifest(copy, "store", sorted(manifest.files), manifest.content)
    return Store.open(copy)


@pytest.mark.parametrize(
    "change", [lambda raw: raw[:-1], lambda raw: raw + b"\0", lambda raw: b"\x05" + raw[1:]]
)
def test_roles_that_lie_are_damage(chat_store, tmp_path, change):
    store = damaged(chat_store, tmp_path, lambda p: (p / ROLES).write_bytes(change((p / ROLES).read_bytes())))
    with pytest.raises(DamagedFileError, match="roles"):
        _ = store.roles


@pytest.mark.parametrize(
    ("values", "message"),
    [([[1]] * 12, "'topic' holds list"), ([b"x"] * 12, "'topic' holds binary")],
)
def test_columns_of_other_kinds_are_damage(chat_store, tmp_path, values, message):
    def change(path):
        table = pyarrow.parquet.read_table(path / DOCUMENTS)
        place = table.column_names.index("topic")
        pyarrow.parquet.write_table(table.set_column(place, "topic", [values]), path / DOCUMENTS)

    store = damaged(chat_store, tmp_path, change)
    with pytest.raises(DamagedFileError, match=message):
        _ = store.sequences


def test_a_store_of_text_has_no_roles(store):
    assert store.roles is None
    assert store.chat_template is None
    assert store.sequences.roles is None


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"packing": "conversation"}, "--column messages"),
        ({"text": TextSpec(source="x.jsonl", column="messages")}, "--packing conversation"),
    ],
)
def test_conversations_and_their_packing_go_together(make_config, options, named):
    with pytest.raises(UsageError, match=named):
        make_config(**options)


def test_packed_rows_are_refused_where_a_model_reads_both_ways(make_config, lm, tmp_path, monkeypatch):
    from dataclasses import replace

    both_ways = replace(lm, causal=False)
    with pytest.raises(UsageError, match=r"both directions.*--packing document"):
        cache_activations(make_config(), tmp_path / "s", progress=False, lm=both_ways)
    assert not (tmp_path / "s").exists()


def test_the_command_makes_a_store_of_conversations(chats, model_folder, tmp_path, capsys):
    arguments = ["cache", str(model_folder), str(chats / "chats.jsonl"), "--at", RESID_0, "--tokens", "60"]
    arguments += ["--packing", "conversation", "--column", "messages", "--keep-columns", "topic"]
    arguments += ["--chat-template", str(chats / "template.jinja"), "--context", "16", "--device", "cpu"]
    assert run([*arguments, "--out", str(tmp_path / "s"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    store = Store.open(tmp_path / "s")
    assert found["hooks"][0]["train_rows"] + found["hooks"][0]["heldout_rows"] == 60
    assert store.roles is not None
    assert "topic" in store.documents.column_names
    assert found["notes"] == list(store.notes)


def test_the_command_makes_a_store_of_a_file_of_activations(tmp_path, capsys):
    np.save(tmp_path / "acts.npy", np.random.default_rng(0).normal(size=(500, 4)).astype("f4"))
    arguments = ["cache", str(tmp_path / "acts.npy"), "--out", str(tmp_path / "s"), "--json"]
    assert run([*arguments, "--at", "retina", "--dtype", "float32", "--heldout-share", "0.2"]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    (hook,) = found["hooks"]
    assert (hook["hook"], hook["d_in"], hook["train_rows"] + hook["heldout_rows"]) == ("retina", 4, 500)
    assert 50 < hook["heldout_rows"] < 150
    for wrong, name in ((["stdlib"], "TEXT"), (["--context", "9"], "--context"), (["--loss"], "--loss")):
        assert run(["cache", str(tmp_path / "acts.npy"), *wrong, "--out", str(tmp_path / "t")]) == 2
        assert f"{name} says how a model reads text" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["embedded"], "TEXT is missing"), (["embedded", "stdlib"], "--tokens N is missing")],
)
def test_what_a_model_needs_is_asked_for(tmp_path, capsys, arguments, message):
    assert run(["cache", *arguments, "--at", RESID_0, "--out", str(tmp_path / "s")]) == 2
    assert message in capsys.readouterr().err
