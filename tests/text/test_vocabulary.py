"""Tokens as bytes and as text: byte-level BPE, SentencePiece, WordPiece, and tokenizers that do not say."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from saelab.errors import UsageError
from saelab.features.schema import VOCABULARY_SCHEMA
from saelab.features.vocabulary_table import vocabulary_table
from saelab.lm.embedded import model_folder
from saelab.text.tokens import plain_ids
from saelab.text.vocabulary import JOINED, Vocabulary

TEXTS = (
    "def f(self):\n\treturn x",
    "naïve café",
    "\N{GRINNING FACE}\N{GRINNING FACE}!",
    "مرحبا بالعالم",
    "한국어 \x00\u202e",
)


def fast(model, decoder, **more):
    tokenizer = Tokenizer(model)
    tokenizer.decoder = decoder
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **more)


def byte_level():
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({character: i for i, character in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>")
    wrapped.add_tokens("   ")
    return wrapped


def sentence_pieces():
    names = ["<s>", "\u2581the", "\u2581", "cat", "a\u2581b", *(f"<0x{byte:02X}>" for byte in range(256))]
    vocabulary = {name: number for number, name in enumerate(names)}
    space = decoders.Replace("\u2581", " ")
    decoder = decoders.Sequence([space, decoders.ByteFallback(), decoders.Fuse()])
    return fast(models.BPE(vocabulary, [], byte_fallback=True), decoder, bos_token="<s>"), vocabulary


@pytest.fixture(scope="module")
def embedded():
    return AutoTokenizer.from_pretrained(model_folder())


@pytest.mark.parametrize("text", TEXTS)
def test_the_bytes_of_tokens_joined_are_the_text(embedded, text):
    for tokenizer in (embedded, byte_level()):
        vocabulary = Vocabulary.of_tokenizer(tokenizer)
        ids = plain_ids(tokenizer, [text])[0].tolist()
        assert b"".join(vocabulary.bytes_of(token) or b"?" for token in ids).decode() == text
        shown = vocabulary.display(ids)
        assert len(shown) == len(ids)
        assert "".join(shown).replace(JOINED, "") == text


def test_a_character_of_several_tokens_is_shown_on_the_first():
    tokenizer = byte_level()
    vocabulary = Vocabulary.of_tokenizer(tokenizer)
    ids = plain_ids(tokenizer, ["a\N{GRINNING FACE}é"])[0].tolist()
    assert vocabulary.display(ids) == ["a", "\N{GRINNING FACE}", JOINED, JOINED, JOINED, "é", JOINED]
    assert [vocabulary.is_partial(token) for token in ids] == [False] + [True] * 6
    # A cut in the middle of a character leaves bytes that are no text.
    assert vocabulary.display(ids[2:]) == ["\ufffd"] * 3 + ["é", JOINED]
    assert vocabulary.text(ids[1]) == "\ufffd"


def test_a_token_may_end_one_character_and_begin_the_next():
    vocabulary = Vocabulary([b"x\xc3", b"\xa9y\xc3", b"\xa9", b"!"], ["", "", "", "!"], [False] * 4)
    assert vocabulary.display([0, 1, 2, 3]) == ["xé", f"{JOINED}yé", JOINED, "!"]


def test_no_character_is_joined_over_a_mark():
    vocabulary = Vocabulary([b"\xc3", b"<s>", b"\xa9"], ["\ufffd", "<s>", "\ufffd"], [False, True, False])
    assert vocabulary.display([0, 1, 2]) == ["\ufffd", "<s>", "\ufffd"]


def test_added_tokens_are_what_they_say():
    tokenizer = byte_level()
    vocabulary = Vocabulary.of_tokenizer(tokenizer)
    assert vocabulary.find("<|end|>") == [256]
    assert vocabulary.is_special(256)
    assert vocabulary.text(257) == "   "
    assert not vocabulary.is_special(257)


def test_sentence_pieces():
    tokenizer, ids = sentence_pieces()
    vocabulary = Vocabulary.of_tokenizer(tokenizer)
    assert vocabulary.text(ids["\u2581the"]) == " the"
    assert vocabulary.bytes_of(ids["a\u2581b"]) == b"a b"
    face = [ids[f"<0x{byte:02X}>"] for byte in "\N{GRINNING FACE}".encode()]
    assert vocabulary.display([ids["\u2581"], *face, ids["cat"]]) == [
        " ", "\N{GRINNING FACE}", JOINED, JOINED, JOINED, "cat"
    ]  # fmt: skip
    assert vocabulary.find("the") == [ids["\u2581the"]]
    assert vocabulary.is_special(ids["<s>"])


def test_metaspace_without_byte_fallback():
    tokenizer = fast(models.WordLevel({"\u2581a": 0, "<0x41>": 1}, "\u2581a"), decoders.Metaspace())
    vocabulary = Vocabulary.of_tokenizer(tokenizer)
    assert [vocabulary.text(token) for token in range(2)] == [" a", "<0x41>"]


def test_word_pieces():
    names = ["[UNK]", "play", "##ing", ".", "##", "日"]
    model = models.WordPiece({name: number for number, name in enumerate(names)}, unk_token="[UNK]")
    vocabulary = Vocabulary.of_tokenizer(fast(model, decoders.WordPiece(), unk_token="[UNK]"))
    assert vocabulary.display(range(6)) == ["[UNK]", " play", "ing", ".", "##", " 日"]


def test_where_the_tokenizer_does_not_say_there_are_no_bytes():
    tokenizer = fast(models.WordLevel({"one": 0, "two": 1}, "one"), decoders.BPEDecoder())
    vocabulary = Vocabulary.of_tokenizer(tokenizer, size=3)
    assert vocabulary.bytes_of(0) is None
    assert vocabulary.display([0, 1, 2, 7]) == ["one", "two", "[2]", "[7]"]


def test_tokens_without_a_tokenizer_are_shown_by_number():
    import numpy as np

    vocabulary = Vocabulary.of_ids(np.array([3, 1], dtype=np.int32))
    assert len(vocabulary) == 4
    assert vocabulary.display([3, 1]) == ["[3]", "[1]"]
    assert len(Vocabulary.of_ids(np.array([], dtype=np.int32))) == 0


def test_a_table_brings_everything_back(embedded):
    vocabulary = Vocabulary.of_tokenizer(embedded)
    table = vocabulary_table(vocabulary)
    assert table.schema.equals(VOCABULARY_SCHEMA)
    again = Vocabulary.from_table(table)
    assert vocabulary_table(again).equals(table)
    assert again.find(" import") == vocabulary.find(" import") != []
    assert again.is_special(0)
    with pytest.raises(UsageError, match="in order"):
        Vocabulary.from_table(table.slice(1))


@given(st.lists(st.binary(min_size=1, max_size=5), min_size=1, max_size=12))
def test_display_shows_what_the_bytes_say(pieces):
    vocabulary = Vocabulary(
        pieces, [piece.decode(errors="replace") for piece in pieces], [False] * len(pieces)
    )
    shown = vocabulary.display(range(len(pieces)))
    assert len(shown) == len(pieces)
    assert all(shown)
    raw = b"".join(pieces)
    try:
        text = raw.decode()
    except UnicodeDecodeError:
        return
    if JOINED not in text:
        assert "".join(shown).replace(JOINED, "") == text
