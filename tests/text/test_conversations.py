import numpy as np
import pytest
from chat_helpers import BOS, CHATML, END, START, STRIPS, TEMPLATES, chat, pack_chats, turns_of
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import byte_tokenizer

from saelab.errors import UsageError
from saelab.text.chat import ROLES, SPECIAL
from saelab.text.packing import KeepRule, bos_token_id, predictions_that_count

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
