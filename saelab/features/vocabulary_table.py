"""A vocabulary as the table that an index keeps, so that its tokens can be shown without the tokenizer."""

from __future__ import annotations

import pyarrow as pa

from saelab.features.schema import VOCABULARY_SCHEMA
from saelab.text.vocabulary import Vocabulary


def vocabulary_table(vocabulary: Vocabulary) -> pa.Table:
    """Return a vocabulary as a table of ``VOCABULARY_SCHEMA``, a row a token; `Vocabulary.from_table` reads it back."""
    tokens = range(len(vocabulary))
    return pa.table(
        {
            "token_id": list(tokens),
            "bytes": [vocabulary.bytes_of(token) for token in tokens],
            "text": [vocabulary.text(token) for token in tokens],
            "is_special": [vocabulary.is_special(token) for token in tokens],
            "is_partial": [vocabulary.is_partial(token) for token in tokens],
        },
        schema=VOCABULARY_SCHEMA,
    )
