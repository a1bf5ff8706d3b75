"""Fixtures of the text tests."""

import pytest
from chat_helpers import with_marks
from tiny import byte_tokenizer


@pytest.fixture(scope="session")
def tokenizer():
    return byte_tokenizer(
        "def add(first, second): return first + second\n", 280, clean_up_tokenization_spaces=False
    )


@pytest.fixture(scope="module")
def letters():
    """Every byte is a token: a token never reaches over the edge of a turn."""
    return with_marks(byte_tokenizer("a", 257, clean_up_tokenization_spaces=False))


@pytest.fixture(scope="module")
def words():
    text = "user assistant system hello there how are you today fine thanks\n"
    return with_marks(byte_tokenizer(text, 300, clean_up_tokenization_spaces=False))
