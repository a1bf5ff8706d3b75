"""Conversations as they are read from files, and what is said of those that cannot be used."""

import json

import pytest
from chat_helpers import CHATML, chat, pack_chats

from saelab.errors import UsageError
from saelab.text.chat import chat_template_of
from saelab.text.documents import Document
from saelab.text.load import load_documents
from saelab.text.packing import pack
from saelab.text.spec import TextSpec


def test_conversations_are_read_in_both_spellings(tmp_path):
    messages = tmp_path / "a.jsonl"
    turns = [{"role": "user", "content": [{"type": "text", "text": "h"}, {"type": "text", "text": "i"}]}]
    turns += [
        {"role": "assistant", "content": None, "tool_calls": [{"name": "f"}]},
        {"role": "tool", "content": "x"},
    ]
    messages.write_text(json.dumps({"messages": turns, "topic": "t"}) + "\n")
    (found,) = load_documents(TextSpec(source=str(messages), column="messages", keep_columns=("topic",)))
    assert [(m["role"], m["content"]) for m in found.messages] == [
        ("user", "hi"),
        ("assistant", ""),
        ("tool", "x"),
    ]
    assert found.messages[1]["tool_calls"] == [{"name": "f"}]
    assert (found.text, found.columns) == ("", {"topic": "t"})
    shared = tmp_path / "b.jsonl"
    turns = [{"from": "human", "value": "hi"}, {"from": "GPT", "value": "yes"}]
    shared.write_text(json.dumps({"conversations": turns}) + "\n")
    (found,) = load_documents(TextSpec(source=str(shared), column="conversations"))
    assert list(found.messages) == [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "yes"},
    ]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([], "line 1: the conversation has no turns"),
        ("hi", "not a list of turns"),
        ([3], "line 1, turn 1: not a table"),
        (
            [{"role": "user", "content": "a"}, {"content": "b"}],
            "turn 2: the turn has no role; it has content",
        ),
        ([{"from": "alien", "value": "a"}], "unknown speaker 'alien'"),
        ([{"role": "user", "content": 3}], "content is not text"),
        ([{"role": "user", "content": [{"type": "image"}]}], "images and sounds are not read"),
        ([{"role": "user", "content": "\ud800"}], "not Unicode"),
    ],
)
def test_malformed_conversations_are_one_clear_line(tmp_path, value, message):
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"messages": value}) + "\n")
    with pytest.raises(UsageError, match=message) as caught:
        load_documents(TextSpec(source=str(path), column="messages"))
    assert "\n" not in str(caught.value)


def test_conversations_that_a_template_refuses_are_left_out_and_told(letters):
    template = (
        "{% if messages[0].role != 'user' %}{{ raise_exception('users come first.') }}{% endif %}" + CHATML
    )
    good, bad = chat("a"), chat("b", first=1)
    sequences = pack_chats(letters, good, bad, good, template=template)
    assert sequences.n_rows == 2
    (note,) = sequences.notes
    assert note.startswith("1 conversations were left out because the chat template refuses them (document ")
    assert note.endswith("users come first)")
    with pytest.raises(UsageError, match=r"no tokens; 2 conversations were left out.*users come first"):
        pack_chats(letters, bad, bad, template=template)


def test_a_missing_template_is_told_with_the_way_out(letters, tmp_path):
    with pytest.raises(UsageError, match=r"no chat template.*--chat-template FILE"):
        pack_chats(letters, chat("a"))
    with pytest.raises(UsageError, match="cannot read the chat template"):
        chat_template_of(TextSpec(chat_template=str(tmp_path / "none")))


def test_texts_and_conversations_are_not_taken_for_each_other(letters):
    with pytest.raises(UsageError, match="'t' is no conversation; read the column `messages`"):
        pack_chats(letters, Document(id="t", text="x", source="s"), template=CHATML)
    with pytest.raises(UsageError, match="is a conversation; choose the packing conversation"):
        pack([chat("a")], letters, context=9)


def test_a_template_does_not_see_what_day_it_is(letters):
    template = "{{ strftime_now('%Y-%m-%d') }}" + CHATML
    sequences = pack_chats(letters, chat("a"), template=template)
    assert letters.decode(sequences.tokens[1:11].tolist()) == "2024-07-26"


def test_kept_columns_travel_with_their_documents(letters):
    def document(text, **columns):
        return Document(id=text, text=text, source="s", columns=columns)

    documents = [
        document("a", n=1, s="x", b=True),
        document("", n=2, s="y", b=None),
        document("c", n=0.5, s=None, b=False),
    ]
    table = pack(documents, letters, context=9).documents
    assert table.columns == {"n": (1.0, 0.5), "s": ("x", None), "b": (True, False)}
    assert pack(documents, letters, context=9, max_kept=1).documents.columns["s"] == ("x", None)
    with pytest.raises(UsageError, match=r"'n' holds values of several kinds \(int, str\)"):
        pack([document("a", n=1), document("b", n="1")], letters, context=9)
    with pytest.raises(UsageError, match="none of the 1 documents has a value in the kept column 'n'"):
        pack([document("a", n=None)], letters, context=9)
