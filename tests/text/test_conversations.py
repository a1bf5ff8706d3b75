import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import byte_tokenizer

from saelab.errors import UsageError
from saelab.text.chat import ROLES, SPECIAL, chat_template_of
from saelab.text.documents import Document
from saelab.text.load import load_documents
from saelab.text.packing import KeepRule, bos_token_id, pack, predictions_that_count
from saelab.text.spec import TextSpec

START, END, BOS = "<|im_start|>", "<|im_end|>", "<|endoftext|>"
CHATML = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
TEMPLATES = {
    "chatml": CHATML,
    "with-bos": "{{ bos_token }}" + CHATML,
    "bos-twice": "{{ bos_token }}{{ bos_token }}" + CHATML,
    "default-system": (
        "{% if messages[0].role != 'system' %}<|im_start|>system\nYou help.<|im_end|>\n{% endif %}" + CHATML
    ),
    "stripping": CHATML.replace("{{ m.content }}", "{{ m.content | trim }}"),
    "system-inside-user": (
        "{{ bos_token }}{% if messages[0].role == 'system' %}{% set system = '<<' + messages[0].content + '>>' %}"
        "{% set turns = messages[1:] %}{% else %}{% set system = '' %}{% set turns = messages %}{% endif %}"
        "{% for m in turns %}{% if m.role == 'user' %}[I]{{ system if loop.first }}{{ m.content | trim }}[/I]"
        "{% else %} {{ m.content | trim }} <|im_end|>{% endif %}{% endfor %}"
    ),
    "bare": "{% for m in messages %}{{ m.content }}{% endfor %}",
}
STRIPS = {"stripping", "system-inside-user"}


def with_marks(tokenizer, template=None):
    tokenizer.add_special_tokens({"additional_special_tokens": [START, END]})
    tokenizer.chat_template = template
    return tokenizer


@pytest.fixture(scope="module")
def letters():
    """Every byte is a token: a token never reaches over the edge of a turn."""
    return with_marks(byte_tokenizer("a", 257, clean_up_tokenization_spaces=False))


@pytest.fixture(scope="module")
def words():
    text = "user assistant system hello there how are you today fine thanks\n"
    return with_marks(byte_tokenizer(text, 300, clean_up_tokenization_spaces=False))


def chat(*contents, roles=("user", "assistant"), first=0):
    turns = [{"role": roles[(first + i) % len(roles)], "content": c} for i, c in enumerate(contents)]
    return Document(id=f"chat {contents}", text="", source="test", messages=tuple(turns))


def pack_chats(tokenizer, *documents, template=None, context=10_000, **options):
    return pack(
        documents, tokenizer, context=context, packing="conversation", chat_template=template, **options
    )


def turns_of(sequences, tokenizer):
    """Role and text of every stretch of tokens of one role, in order, without the template's."""
    roles = sequences.roles & ~np.uint8(SPECIAL)
    edges = np.flatnonzero(np.diff(roles)) + 1
    stretches = zip(np.split(sequences.tokens, edges), np.split(roles, edges), strict=True)
    return [(ROLES[codes[0]], tokenizer.decode(ids.tolist())) for ids, codes in stretches if codes[0]]


contents = st.text(st.sampled_from("ab \né<|>"), min_size=1, max_size=8) | st.sampled_from(
    [END, f"a{END}\n{START}system\nb", f"{BOS}", f" {BOS}a ", "user", "[/I]", "]", "qZ"]
)


@pytest.mark.parametrize("name", [name for name in TEMPLATES if name != "bare"])
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_every_token_has_the_role_of_the_turn_that_wrote_it(letters, name, data):
    """With one token a byte, the tokens of a role are exactly the text of its turns, whatever users write."""
    texts = data.draw(st.lists(contents, min_size=1, max_size=4))
    system = data.draw(st.none() | contents)
    document = chat(*texts)
    if system is not None:
        document = chat(system, *texts, roles=("system", *["user", "assistant"] * 3))
    sequences = pack_chats(letters, document, template=TEMPLATES[name])
    wanted = [(m["role"], m["content"]) for m in document.messages]
    if name in STRIPS:
        wanted = [
            (role, text if name == "system-inside-user" and role == "system" else text.strip())
            for role, text in wanted
        ]
    assert turns_of(sequences, letters) == [(role, text) for role, text in wanted if text]
    assert sequences.notes == ()
    is_special = np.isin(sequences.tokens, letters.all_special_ids)
    assert np.array_equal(is_special, sequences.roles >= SPECIAL)
    assert set(sequences.roles[is_special]) == {SPECIAL}
    assert np.flatnonzero(sequences.tokens == letters.bos_token_id).tolist() == [0]


@pytest.mark.parametrize("name", TEMPLATES)
@settings(max_examples=20, deadline=None)
@given(texts=st.lists(st.text("helo user\n", min_size=1, max_size=20), min_size=1, max_size=4))
def test_tokens_are_those_of_transformers_behind_one_bos(words, name, texts):
    document = chat(*texts)
    sequences = pack_chats(words, document, template=TEMPLATES[name])
    rendered = words.apply_chat_template(
        list(document.messages), chat_template=TEMPLATES[name], tokenize=True, return_dict=False
    )
    while rendered[:1] == [words.bos_token_id]:
        rendered = rendered[1:]
    assert sequences.tokens.tolist() == [words.bos_token_id, *rendered]


def test_a_token_over_the_edge_of_a_turn_belongs_to_the_turn(words):
    """The template's space and the first word are one token."""
    template = "{% for m in messages %}{{ m.role }}: {{ m.content }}{% endfor %}"
    sequences = pack_chats(words, chat("hello"), template=template)
    assert turns_of(sequences, words) == [("user", " hello")]


def test_a_turn_that_spells_a_special_token_changes_no_other_token(words):
    plain = pack_chats(words, chat("hello you", "fine"), template=CHATML)
    spelled = pack_chats(words, chat(f"hello{END} you", "fine"), template=CHATML)
    inserted = words(END, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    assert len(inserted) > 1
    place = next(i for i, (a, b) in enumerate(zip(plain.tokens, spelled.tokens, strict=False)) if a != b)
    assert spelled.tokens[place : place + len(inserted)].tolist() == inserted
    rest = np.delete(spelled.tokens, np.arange(place, place + len(inserted)))
    assert rest.tolist() == plain.tokens.tolist()
    assert [text for _, text in turns_of(spelled, words)] == [f"hello{END} you", "fine"]


def test_a_template_that_shortens_turns_keeps_their_roles(letters):
    """As of models that think: earlier thoughts are dropped, and the last answer gets an empty thought."""
    template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' and not loop.last %}"
        "{{ m.content.split('</t>')[-1] }}{% elif m.role == 'assistant' and '</t>' not in m.content %}<t></t>"
        "{{ m.content }}{% else %}{{ m.content }}{% endif %}<|im_end|>\n{% endfor %}"
    )
    document = chat("a", "<t>long</t>b", "c", "<t>so</t>d")
    sequences = pack_chats(letters, document, template=template)
    expected = [("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "<t>so</t>d")]
    assert turns_of(sequences, letters) == expected
    sequences = pack_chats(letters, chat("a", "<t>long</t>b", "c", "d"), template=template)
    assert turns_of(sequences, letters) == [*expected[:3], ("assistant", "d")]


def test_turns_that_a_template_rewrites_count_as_template_and_are_told(letters):
    template = "{% for m in messages %}{{ 'X' if 'q' in m.content else m.content | reverse }}{% endfor %}"
    sequences = pack_chats(letters, chat("abc", "def"), template=template)
    assert sequences.notes == (
        "2 turns were not found in what the chat template made of them; their tokens count as template",
    )
    assert not (sequences.roles & ~np.uint8(SPECIAL)).any()


def test_an_inner_bos_of_the_template_stays_and_is_no_target(letters):
    template = "{% for m in messages %}{{ bos_token if m.role == 'user' }}{{ m.content }}{% endfor %}"
    sequences = pack_chats(letters, chat("ab", "cd", "ef"), template=template)
    bos = letters.bos_token_id
    assert np.flatnonzero(sequences.tokens == bos).tolist() == [0, 5]
    counts = predictions_that_count(sequences)
    assert counts.tolist() == [False, True, True, True, False, False, True, False]


def test_one_conversation_is_one_row_and_long_ones_are_cut_and_counted(letters):
    chats = [chat("a" * n) for n in (3, 30, 5)]
    sequences = pack_chats(letters, *chats, template=TEMPLATES["bare"], context=10)
    assert np.diff(sequences.row_starts).tolist() == [4, 10, 6]
    assert sequences.documents.starts.tolist() == sequences.row_starts[:-1].tolist()
    assert sequences.notes == ("1 of 3 conversations are cut at the context of 10 tokens",)
    assert len(sequences.roles) == len(sequences.tokens) == 20
    counts = predictions_that_count(sequences)
    expected = [0, *[1] * 2, 0, 0, *[1] * 8, 0, 0, *[1] * 4, 0]
    assert counts.astype(int).tolist() == expected
    assert np.array_equal(counts, sequences.keep)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.lists(contents, min_size=1, max_size=3), min_size=1, max_size=5),
    st.integers(4, 40),
    st.booleans(),
    st.integers(0, 3),
    st.integers(1, 60),
)
def test_kept_tokens_of_conversations_follow_their_definition(
    letters, corpus, context, mask_bos, mask_first, max_kept
):
    rule = KeepRule(mask_bos=mask_bos, mask_first_positions=mask_first)
    chats = [chat(*texts) for texts in corpus]
    options = {"template": CHATML, "context": context, "keep_rule": rule}
    whole = pack_chats(letters, *chats, **options)
    cut = pack_chats(letters, *chats, max_kept=max_kept, **options)
    position = np.arange(len(whole.tokens)) - np.repeat(whole.row_starts[:-1], np.diff(whole.row_starts))
    keep = position >= mask_first
    keep[whole.row_starts[1:] - 1] = False
    if mask_bos:
        keep &= whole.roles < SPECIAL
    assert np.array_equal(whole.keep, keep)
    assert cut.keep.sum() == min(max_kept, keep.sum())
    n = len(cut.tokens)
    assert np.array_equal(cut.tokens, whole.tokens[:n])
    assert np.array_equal(cut.roles, whole.roles[:n])


def test_a_tokenizer_without_bos_gets_none_and_its_turn_ends_are_predicted(words):
    from transformers import PreTrainedTokenizerFast

    bare = PreTrainedTokenizerFast(
        tokenizer_object=words.backend_tokenizer,
        eos_token=END,
        pad_token=BOS,
        additional_special_tokens=[START],
    )
    assert bare.bos_token_id is None
    document = chat("hello", "fine")
    sequences = pack_chats(bare, document, template=CHATML)
    rendered = bare.apply_chat_template(
        list(document.messages), chat_template=CHATML, tokenize=True, return_dict=False
    )
    assert sequences.tokens.tolist() == rendered
    assert sequences.bos_token_id == bare.pad_token_id
    ends = np.flatnonzero(sequences.tokens == bare.eos_token_id)
    assert predictions_that_count(sequences)[ends - 1].all()
    assert bos_token_id(bare) == bare.eos_token_id


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [
        ({"bos_token": "a", "cls_token": "b", "eos_token": "c"}, "a"),
        ({"cls_token": "b", "eos_token": "c"}, "b"),
        ({"eos_token": "c"}, "c"),
        ({"bos_token": BOS, "eos_token": "c"}, BOS),
    ],
)
def test_rows_begin_with_bos_else_cls_else_eos(tokens, expected):
    from transformers import PreTrainedTokenizerFast

    bare = byte_tokenizer("a", 257).backend_tokenizer
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bare, **tokens)
    assert bos_token_id(tokenizer) == tokenizer.convert_tokens_to_ids(expected)
    if expected == BOS:
        assert bos_token_id(tokenizer) == 0


def test_a_tokenizer_without_any_mark_is_refused():
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast(tokenizer_object=byte_tokenizer("a", 257).backend_tokenizer)
    with pytest.raises(UsageError, match="neither a BOS, a CLS nor an EOS"):
        bos_token_id(tokenizer)


def test_a_metaspace_tokenizer_is_aligned_too():
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bare = Tokenizer(models.BPE(byte_fallback=False, unk_token="<unk>"))
    bare.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    trainer = trainers.BpeTrainer(vocab_size=60, special_tokens=["<unk>", "<s>", "</s>"], show_progress=False)
    bare.train_from_iterator(["hello there you are fine [I] [/I]"] * 3, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bare, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
    template = (
        "{% for m in messages %}{% if m.role == 'user' %}{{ bos_token }}[I] {{ m.content }} [/I]"
        "{% else %} {{ m.content }} {{ eos_token }}{% endif %}{% endfor %}"
    )
    sequences = pack_chats(tokenizer, chat("hello you", "fine </s>are"), template=template)
    pieces = tokenizer.convert_ids_to_tokens(sequences.tokens.tolist())
    roles = [ROLES[code & 0x7F] for code in sequences.roles]

    def said(role):
        return "".join(p for p, r in zip(pieces, roles, strict=True) if r == role).replace("▁", " ")

    assert pieces[0] == "<s>"
    assert said("user").split() == ["hello", "you"]
    assert said("assistant").strip().startswith("fine ")
    assert said("assistant").endswith("are")
    assert [p for p, r in zip(pieces, roles, strict=True) if p == "</s>" and r != "template"] == []


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
