"""What an index answers with. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from saelab.features.schema import DEAD, DENSE


@dataclass(frozen=True, kw_only=True)
class FeatureRow:
    """The numbers of one feature, a row of ``features.parquet``; None where a number is not defined."""

    feature: int
    """Index of the feature."""
    n_fires: int
    """Tokens on which it was active."""
    density: float
    """The same as a share of the kept tokens."""
    n_documents: int
    """Documents in which it was active."""
    max_act: float | None
    """Largest activation."""
    mean_active: float | None
    """Mean over the tokens on which it was active."""
    std_active: float | None
    """Standard deviation over them."""
    skew: float | None
    """Skewness over them."""
    kurtosis: float | None
    """Excess kurtosis over them."""
    p50: float | None
    """Median over them."""
    p90: float | None
    """90 % quantile over them."""
    p99: float | None
    """99 % quantile over them."""
    decoder_norm: float
    """Norm of its decoder row."""
    encoder_decoder_cosine: float | None
    """Cosine of its encoder column and its decoder row."""
    encoder_bias: float
    """Its encoder bias."""
    threshold: float | None
    """Its threshold at inference."""
    logit_max: float | None
    """Largest direct effect of its decoder row on a logit, for an activation of 1."""
    logit_min: float | None
    """Smallest such effect."""
    logit_kurtosis: float | None
    """Excess kurtosis of the effects on all logits."""
    top_token: int | None
    """Token with the largest share of its activation."""
    top_token_share: float | None
    """That share."""
    previous_token: int | None
    """Token that most often stands before, by activation."""
    previous_token_share: float | None
    """That share."""
    next_token: int | None
    """Token that most often follows, by activation."""
    next_token_share: float | None
    """That share."""
    first_position_share: float | None
    """Share of its activation on the first kept position of rows."""
    max_decoder_cosine: float | None
    """Largest cosine with another feature's decoder row."""
    max_decoder_cosine_feature: int | None
    """Which feature that is."""
    flags: int
    """Bits of `saelab.features.schema`."""
    name: str
    """What it is called where it has no label."""
    label: str | None = None
    """What a person or a program called it."""

    @property
    def is_dead(self) -> bool:
        """Whether it was never active."""
        return bool(self.flags & DEAD)

    @property
    def is_dense(self) -> bool:
        """Whether it was active on more than 10 % of the tokens."""
        return bool(self.flags & DENSE)

    @property
    def shown_name(self) -> str:
        """The label, or the name from token statistics."""
        return self.label or self.name


@dataclass(frozen=True, kw_only=True)
class Histogram:
    """Counts between edges."""

    edges: tuple[float, ...]
    """One more than counts, ascending; empty where nothing was counted."""
    counts: tuple[int, ...]
    """Values in [low, high); the last bin is closed."""


@dataclass(frozen=True, kw_only=True)
class TokenEffect:
    """What a feature does to the logit of a token."""

    token: int
    """Id of the token."""
    logit: float
    """Direct effect of the decoder row, for an activation of 1."""


@dataclass(frozen=True, kw_only=True)
class TokenShare:
    """How much of a feature's activation falls on a token."""

    token: int
    """Id of the token."""
    share: float
    """Share of the feature's activation."""
    n_fires: int
    """Occurrences on which it was active."""


@dataclass(frozen=True, kw_only=True)
class FeatureDetail:
    """The lists of one feature, a row of ``feature_detail.parquet``."""

    feature: int
    """Index of the feature."""
    activations: Histogram
    """Its activations where active, bins of equal width."""
    log_activations: tuple[int, ...]
    """The same in half octaves: see ``LOG_BINS``."""
    intervals: Histogram
    """The intervals from which examples were drawn, with exact counts."""
    promoted: tuple[TokenEffect, ...]
    """Tokens whose logits it raises most; empty without an unembedding."""
    suppressed: tuple[TokenEffect, ...]
    """Tokens whose logits it lowers most."""
    logits: Histogram
    """Its effect on all logits."""
    tokens: tuple[TokenShare, ...]
    """Tokens on which it is active most, by activation."""
    positions: tuple[float, ...]
    """Share of its firings in each sixteenth of the context."""


@dataclass(frozen=True, kw_only=True)
class Example:
    """A place in the corpus with a feature's activations around it."""

    feature: int
    """Index of the feature."""
    kind: str
    """``top``, ``interval``, ``random``, ``near-miss`` or ``non-active``."""
    bin: int
    """Number of the interval, from 0 for the lowest; 0 for other kinds."""
    rank: int
    """Place among the examples of the same kind and interval."""
    activation: float
    """Activation on the peak; 0 for a non-active one, the encoder's value for a near miss."""
    token_index: int
    """Position of the peak in the index's tokens."""
    document: int
    """Number of the document."""
    first: int
    """Position of the first token shown."""
    tokens: tuple[int, ...]
    """Ids of the tokens shown, of one row."""
    activations: tuple[float, ...]
    """The feature's activation on each of them, 0 where it is not active or not within the kept window."""
    window_hash: int
    """Equal for examples with the same 8 tokens on either side."""

    @property
    def peak(self) -> int:
        """Which of ``tokens`` is the peak."""
        return self.token_index - self.first


@dataclass(frozen=True, kw_only=True)
class Neighbor:
    """A feature that points the same way."""

    other: int
    """Its index."""
    cosine: float
    """Cosine of the decoder rows."""


@dataclass(frozen=True, kw_only=True)
class Companion:
    """A feature that is active on the same tokens, from a sample of a feature's active tokens."""

    other: int
    """Its index."""
    n_sampled: int
    """Active tokens that were looked at."""
    n_both: int
    """On how many of them the other was active."""
    p_other: float
    """The other's share of them."""
    lift: float
    """How many times as often as on all tokens."""
    phi: float
    """Correlation of the two features' firing."""


@dataclass(frozen=True, kw_only=True)
class FeatureView:
    """All that an index knows of one feature: what the card, the page and the report show."""

    row: FeatureRow
    detail: FeatureDetail
    examples: Mapping[str, tuple[Example, ...]]
    """By kind; intervals from the highest to the lowest."""
    neighbors: tuple[Neighbor, ...]
    companions: tuple[Companion, ...]
    names: Mapping[int, str]
    """Labels or names of the neighbors and companions."""
    n_tokens: int
    """Kept tokens of the corpus."""
    source: str
    """What the index was made from, in one line: SAE, model, hookpoint, corpus."""
