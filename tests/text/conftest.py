"""Fixtures of the text tests."""

import pytest
from tiny import byte_tokenizer


@pytest.fixture(scope="session")
def tokenizer():
    return byte_tokenizer(
        "def add(first, second): return first + second\n", 280, clean_up_tokenization_spaces=False
    )
