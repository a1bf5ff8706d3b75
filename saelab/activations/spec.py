"""What to read from a model and what to cache: torch-free, so that the command line can show it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeVar

from saelab.errors import DamagedFileError, UsageError
from saelab.fields import read_fields
from saelab.lm.spec import ModelSpec
from saelab.text.spec import CHAT_COLUMNS, TextSpec

ConfigT = TypeVar("ConfigT", bound="HarvestConfig")
StoredDtype = Literal["bfloat16", "float16", "float32"]
GradientLabels = Literal["true", "sampled"]
ITEM_BYTES: dict[StoredDtype, int] = {"bfloat16": 2, "float16": 2, "float32": 4}


@dataclass(frozen=True, kw_only=True)
class HarvestConfig:
    """A model, a text, and what is read of it at which hookpoints: what a store and a live stream share."""

    model: ModelSpec = field(default_factory=ModelSpec)
    """The language model."""
    text: TextSpec = field(default_factory=TextSpec)
    """The text that it reads."""
    at: tuple[str, ...]
    """Hookpoints, in either spelling; all are read in one forward pass."""
    context: int = 256
    """Longest row of tokens that the model sees at once, BOS included."""
    packing: Literal["packed", "document", "conversation"] = "packed"
    """`packed` fills rows across documents; `document` begins a row with every document; `conversation` renders
    turns with a chat template, one conversation a row."""
    dtype: StoredDtype = "bfloat16"
    """Number format of the stored activations and gradients."""
    mask_bos: bool = True
    """Leave out BOS and other special tokens."""
    mask_first_positions: int = 0
    """Leave out so many first positions of every row, BOS included."""
    mask_norm_ratio: float | None = None
    """Leave out tokens whose norm, at any hookpoint, exceeds so many times the first batch's median norm."""
    loss: bool = False
    """Store the next-token loss of every token (needs the full forward pass)."""
    gradients: bool = False
    """Store the gradient of the summed loss at every activation (includes the losses)."""
    gradient_labels: GradientLabels = "true"
    """Labels of that loss: the tokens that follow, which tells the gradient what comes next, or tokens sampled from
    the model's own predictions, which does not."""
    gradient_seed: int = 0
    """With the position of a token in the token stream (live: of the pool) it decides the sampled label."""
    batch_rows: int = 16
    """Rows of tokens in one forward pass; part of the result to the last bit."""

    def __post_init__(self) -> None:
        self._require_at_least(context=2, batch_rows=1, mask_first_positions=0)
        if self.mask_first_positions >= self.context:
            raise UsageError(
                f"cache: mask_first_positions is {self.mask_first_positions}, which leaves nothing of a row; "
                f"it must be below the context, {self.context}"
            )
        if self.mask_norm_ratio is not None and not 1 < self.mask_norm_ratio < float("inf"):
            raise UsageError(f"cache: mask_norm_ratio is {self.mask_norm_ratio}, it must be a number above 1")
        if not self.at:
            raise UsageError("cache: name at least one hookpoint (--at); `saelab hooks MODEL` lists them")
        if self.packing not in ("packed", "document", "conversation"):
            raise UsageError(
                f"cache: packing {self.packing!r} is unknown; choose packed, document or conversation"
            )
        if self.packing == "conversation" and not self.text.is_chat:
            raise UsageError(
                f"cache: the packing `conversation` reads turns, and the column {self.text.column!r} holds none: "
                f"name the column that does ({' or '.join(f'--column {name}' for name in CHAT_COLUMNS)})"
            )
        if self.packing != "conversation" and self.text.is_chat:
            raise UsageError(
                f"cache: the column {self.text.column!r} holds conversations, which the packing {self.packing!r} "
                "does not read: choose --packing conversation"
            )
        if self.gradient_labels not in ("true", "sampled"):
            raise UsageError(
                f"cache: gradient_labels {self.gradient_labels!r} is unknown; choose true or sampled"
            )
        if not 0 <= self.gradient_seed < 2**63:
            raise UsageError(f"cache: gradient_seed is {self.gradient_seed}, it must be from 0 to 2^63 - 1")
        if self.dtype not in ITEM_BYTES:
            raise UsageError(f"cache: dtype {self.dtype!r} is unknown; choose one of {', '.join(ITEM_BYTES)}")

    def resolved(self: ConfigT) -> ConfigT:
        """Return the same with absolute paths for a local model and text, as it is to be recorded."""
        return replace(self, model=self.model.resolved(), text=self.text.resolved())

    @property
    def stores_loss(self) -> bool:
        """Whether losses are stored: asked for, or needed for gradients."""
        return self.loss or self.gradients

    def _require_at_least(self, **lowest: int) -> None:
        for name, least in lowest.items():
            if (value := getattr(self, name)) < least:
                raise UsageError(f"cache: {name} is {value}, it must be at least {least}")


@dataclass(frozen=True, kw_only=True)
class CacheConfig(HarvestConfig):
    """What an activation store is made of."""

    tokens: int
    """Activation rows to store for each hookpoint; fewer if the text ends before or outliers are masked."""
    shard_rows: int = 65_536
    """Activation rows in one file, approximately: a shard ends with the batch that fills it."""

    def __post_init__(self) -> None:
        HarvestConfig.__post_init__(self)
        self._require_at_least(tokens=1, shard_rows=1)

    @property
    def batches_per_shard(self) -> int:
        """Batches whose kept tokens make up one shard."""
        return max(1, self.shard_rows // (self.batch_rows * self.context))


@dataclass(frozen=True, kw_only=True)
class LiveConfig(HarvestConfig):
    """What a live stream is made of: the training documents of a text, through a model, pool after pool."""

    pool_rows: int = 131_072
    """Rows that are mixed in memory at a time, at least: a pool ends with a document."""

    def __post_init__(self) -> None:
        HarvestConfig.__post_init__(self)
        self._require_at_least(pool_rows=1)


def live_config_from_json(raw: Any, where: str) -> LiveConfig:
    """Read the configuration of a live stream strictly.

    Raises:
        DamagedFileError: A field is unknown, missing or mistyped, or has a value that cannot work.
    """
    try:
        return read_fields(LiveConfig, raw, where, DamagedFileError)
    except UsageError as error:
        raise DamagedFileError(f"{where}: {error}") from error
