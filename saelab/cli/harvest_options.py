"""Options of every command that reads a text through a model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from saelab.activations.spec import GradientLabels, StoredDtype
from saelab.cli.model_options import ModelOptions
from saelab.cli.text_options import TextOptions


@dataclass(frozen=True, kw_only=True)
class HarvestOptions(ModelOptions, TextOptions):
    """How a model reads a text, and which of its activations count."""

    context: int = 256
    """Tokens in a sequence."""
    packing: Literal["packed", "document", "conversation"] = "packed"
    """Fill sequences across documents, start each document in one of its own, or render conversations."""
    dtype: StoredDtype = "bfloat16"
    """Number format of the activations, on disk or in the mixing pool."""
    keep_bos: bool = False
    """Keep activations of the first token of a sequence, which models use as a sink."""
    mask_first_positions: int = 0
    """Leave out so many positions at the start of every sequence."""
    mask_norm_ratio: float | None = None
    """Leave out activations with a norm above this multiple of the median."""
    batch_rows: int = 16
    """Sequences in one forward pass."""
    gradient_labels: GradientLabels = "true"
    """Labels of the loss whose gradients are taken: the tokens that follow, or tokens sampled from the model."""
    gradient_seed: int = 0
    """Decides the sampled labels, with the position of the token."""

    def harvest_settings(self, model: str, text: str) -> dict[str, Any]:
        """Return the fields of a `HarvestConfig` that these options decide.

        Raises:
            UsageError: An option is impossible.
        """
        return {
            "model": self.model_spec(model),
            "text": self.text_spec(text),
            "context": self.context,
            "packing": self.packing,
            "dtype": self.dtype,
            "mask_bos": not self.keep_bos,
            "mask_first_positions": self.mask_first_positions,
            "mask_norm_ratio": self.mask_norm_ratio,
            "batch_rows": self.batch_rows,
            "gradient_labels": self.gradient_labels,
            "gradient_seed": self.gradient_seed,
        }
