"""The tables of a feature index, column by column, and the names of its files.

```
INDEX/ manifest.json     written last: provenance, configuration, sizes and checksums
       tokens.bin rows.bin keep.bin roles.bin documents.parquet    the corpus, in the formats of an activation store
       vocabulary.parquet        one row a token of the vocabulary
       features.parquet          one row a feature, numbers
       feature_detail.parquet    one row a feature, lists
       examples.parquet          sorted by feature, kind, bin, rank
       near_miss.parquet         the same of the part near-miss
       logit_inverse.parquet     sorted by token, then by rank: which features promote a token most
       neighbors.parquet coactivation.parquet    sorted by feature, rank
       codes/shard-000000.safetensors            optional: every kept (token, feature) pair
```

Dead features have rows everywhere where a feature has one. Where a number is not defined (a mean over no tokens) it
is null, never NaN. Positions of tokens are those in ``tokens.bin``.
"""

from __future__ import annotations

from typing import Final

import pyarrow as pa

FEATURES, DETAIL, EXAMPLES = "features.parquet", "feature_detail.parquet", "examples.parquet"
NEAR_MISS, LOGIT_INVERSE = "near_miss.parquet", "logit_inverse.parquet"
NEIGHBORS, COACTIVATION, VOCABULARY = "neighbors.parquet", "coactivation.parquet", "vocabulary.parquet"
CODES = "codes"
"""Folder of the code shards."""
INDEXES = "indexes"
"""Folder of a run in which its indexes lie, by name."""

TOP, INTERVAL, RANDOM, NEAR, NON_ACTIVE = range(5)
"""Kinds of examples, as stored."""
KINDS: Final = {
    "top": TOP,
    "interval": INTERVAL,
    "random": RANDOM,
    "near-miss": NEAR,
    "non-active": NON_ACTIVE,
}

DEAD, DENSE, POSITION, ONE_TOKEN = 1, 2, 4, 8
"""Bits of ``flags``: never fired; fired on more than 10 %; most of its mass on the first position of rows; at least
90 % of its mass on one token."""
DENSE_ABOVE = 0.1
LOG_BINS = 64
"""Bins of the histogram of log2 of activations: bin i holds [2^((i - 32) / 2), 2^((i - 31) / 2)), ends clipped."""

VOCABULARY_SCHEMA = pa.schema(
    [
        ("token_id", pa.uint32()),
        ("bytes", pa.binary()),  # null where the tokenizer does not say
        (
            "text",
            pa.string(),
        ),  # what the token decodes to alone; replacement characters where it is no whole text
        ("is_special", pa.bool_()),
        ("is_partial", pa.bool_()),  # its bytes are no whole UTF-8
    ]
)

FEATURES_SCHEMA = pa.schema(
    [
        ("feature", pa.uint32()),
        ("n_fires", pa.uint64()),
        ("density", pa.float64()),
        ("n_documents", pa.uint32()),
        ("max_act", pa.float32()),
        ("mean_active", pa.float32()),
        ("std_active", pa.float32()),
        ("skew", pa.float32()),
        ("kurtosis", pa.float32()),  # excess over a normal distribution's
        ("p50", pa.float32()),
        ("p90", pa.float32()),
        ("p99", pa.float32()),
        ("decoder_norm", pa.float32()),
        ("encoder_decoder_cosine", pa.float32()),  # null where encoder and decoder are of different widths
        ("encoder_bias", pa.float32()),
        ("threshold", pa.float32()),  # null where the inference rule has none
        ("logit_max", pa.float32()),  # logit columns are null without an unembedding
        ("logit_min", pa.float32()),
        ("logit_kurtosis", pa.float32()),
        ("top_token", pa.uint32()),  # the token with the largest share of the feature's activation
        ("top_token_share", pa.float32()),
        ("previous_token", pa.uint32()),  # the same of the tokens right before active ones
        ("previous_token_share", pa.float32()),
        ("next_token", pa.uint32()),
        ("next_token_share", pa.float32()),
        ("first_position_share", pa.float32()),  # share of the activation on the first kept position of rows
        ("max_decoder_cosine", pa.float32()),  # null without the part neighbors
        ("max_decoder_cosine_feature", pa.uint32()),
        ("flags", pa.uint8()),
        ("name", pa.string()),  # from token statistics: what a person sees where there is no label
    ]
)

DETAIL_SCHEMA = pa.schema(
    [
        ("feature", pa.uint32()),
        ("histogram_edges", pa.list_(pa.float32())),  # bins + 1; empty for a dead feature
        ("histogram_counts", pa.list_(pa.uint64())),
        ("log_histogram_counts", pa.list_(pa.uint64())),
        ("interval_edges", pa.list_(pa.float32())),  # intervals + 1
        ("interval_counts", pa.list_(pa.uint64())),  # exact: [low, high), the last one closed
        ("promoted", pa.list_(pa.uint32())),  # token ids, strongest first
        ("promoted_logits", pa.list_(pa.float32())),
        ("suppressed", pa.list_(pa.uint32())),
        ("suppressed_logits", pa.list_(pa.float32())),
        ("logit_edges", pa.list_(pa.float32())),
        ("logit_counts", pa.list_(pa.uint64())),
        ("tokens", pa.list_(pa.uint32())),  # tokens with most of the feature's activation, at most 20
        ("token_shares", pa.list_(pa.float32())),
        ("token_fires", pa.list_(pa.uint64())),  # on how many of them it fired
        ("position_shares", pa.list_(pa.float32())),  # share of firings by sixteenths of the context
    ]
)

EXAMPLES_SCHEMA = pa.schema(
    [
        ("feature", pa.uint32()),
        ("kind", pa.uint8()),
        ("bin", pa.uint8()),  # number of the interval; 0 for other kinds
        ("rank", pa.uint8()),
        ("token_index", pa.uint64()),  # the peak
        ("document", pa.uint32()),
        ("activation", pa.float32()),  # on the peak; for near misses what the encoder gave
        ("window_hash", pa.uint64()),  # of the 8 tokens on either side: equal for duplicates
        ("offsets", pa.list_(pa.int16())),  # where the feature is active around the peak, ascending
        ("activations", pa.list_(pa.float32())),  # and how strongly
    ]
)

LOGIT_INVERSE_SCHEMA = pa.schema(
    [("token", pa.uint32()), ("rank", pa.uint32()), ("feature", pa.uint32()), ("logit", pa.float32())]
)

NEIGHBORS_SCHEMA = pa.schema(
    [("feature", pa.uint32()), ("rank", pa.uint8()), ("other", pa.uint32()), ("cosine", pa.float32())]
)

COACTIVATION_SCHEMA = pa.schema(
    [
        ("feature", pa.uint32()),
        ("rank", pa.uint8()),
        ("other", pa.uint32()),
        ("n_sampled", pa.uint32()),  # active tokens of the feature that were looked at
        ("n_both", pa.uint32()),  # on how many of them the other was active too
        ("p_other", pa.float32()),  # n_both / n_sampled
        ("lift", pa.float32()),  # p_other / density of the other
        ("phi", pa.float32()),  # correlation of firing, from p_other and the exact densities
    ]
)
