"""What an evaluation finds: every metric of one SAE, why some are not defined, and the record of it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

from saelab.evaluation.gradients import LEAK, NO_LEAK, TRUE
from saelab.evaluation.loss_recovered import LossMetrics
from saelab.evaluation.origin import Origin
from saelab.evaluation.reconstruction import ReconstructionMetrics
from saelab.evaluation.spec import EvaluationConfig
from saelab.sae.feature_statistics import FeatureStatistics
from saelab.sae.model_match import ModelMismatch


@dataclass(frozen=True, kw_only=True)
class FormMetrics:
    """Every metric of one inference form of an SAE."""

    reconstruction: ReconstructionMetrics
    """Sparsity and reconstruction of the target."""
    loss: LossMetrics
    """Loss of the language model with and without the SAE; all None without a model that has one."""
    fvu_by_hook: dict[str, float | None]
    """FVU of each hookpoint by itself, where the target is several joined; empty otherwise. The ``fvu`` of the
    joined vector weights each by its variance, in raw units."""
    undefined: dict[str, str]
    """Each metric that is not defined, with the reason."""

    def metrics_json(self) -> dict[str, Any]:
        """Return the metrics as plain JSON values; ``fvu_by_hook`` only where the target is several hookpoints."""
        by_hook = {"fvu_by_hook": self.fvu_by_hook} if self.fvu_by_hook else {}
        return {**asdict(self.reconstruction), **by_hook, **asdict(self.loss), "undefined": self.undefined}


@dataclass(frozen=True, kw_only=True)
class WithGradients(FormMetrics):
    """The metrics of a g-SAE whose features are ranked with gradients, beside those of inference without."""

    gradients_from: Literal["store", "model"]
    """Where the gradients of the reconstruction come from; those of the loss are always the model's."""
    labels: str
    """Whose loss the gradients are of."""

    @property
    def warning(self) -> str:
        """What these numbers are not."""
        return LEAK if self.labels == TRUE else NO_LEAK

    def to_json(self) -> dict[str, Any]:
        """Return the record as plain JSON values."""
        return {
            **self.metrics_json(),
            "gradients_from": self.gradients_from,
            "labels": self.labels,
            "warning": self.warning,
        }


@dataclass(frozen=True, kw_only=True)
class Evaluation(FormMetrics):
    """Every metric of one SAE on one set of tokens, features being ranked without gradients."""

    with_gradients: WithGradients | None
    """The same with gradients; None for all but g-SAEs, and where there are none (``undefined`` says why)."""
    warnings: tuple[str, ...]
    """What makes the numbers doubtful, one sentence each."""
    outlier_ratio: float | None
    """Largest norm of an evaluated target / their median norm."""
    origin: Origin
    """Where the tokens come from; ``source`` in the JSON record."""
    hook: str
    """Module path of what is reconstructed; several are joined by commas."""
    input_hooks: tuple[str, ...]
    """Module paths of what the SAE reads."""
    output_hooks: tuple[str, ...]
    """Module paths of what it reconstructs."""
    tokens_hash: str
    """Digest of the evaluated tokens and positions; evaluations compare only where it is equal."""
    store_identity: str
    """Identity of the store."""
    model_identity: str
    """Identity of the model whose activations were evaluated; empty for activations without one."""
    model_mismatch: ModelMismatch | None
    """The two models, where the SAE was trained on another one than it was evaluated on."""
    config: EvaluationConfig
    """How much was evaluated, and how."""
    features: FeatureStatistics
    """How often and how strongly each feature fired, without gradients; not part of the JSON record."""

    def to_json(self) -> dict[str, Any]:
        """Return the record as plain JSON values, metrics at the top level.

        ``with_gradients`` is there for a g-SAE alone, ``fvu_by_hook`` for a target of several hookpoints.
        """
        metrics = self.metrics_json()
        own = {field.name for field in fields(Evaluation)} - {field.name for field in fields(FormMetrics)}
        special = {"with_gradients", "features", "origin"}
        is_ranked = self.with_gradients is not None or "with_gradients" in self.undefined
        ranked = None if self.with_gradients is None else self.with_gradients.to_json()
        return {
            **metrics,
            **({"with_gradients": ranked} if is_ranked else {}),
            **{name: getattr(self, name) for name in sorted(own - special)},
            "source": self.origin.to_json(),
            "warnings": list(self.warnings),
            "input_hooks": list(self.input_hooks),
            "output_hooks": list(self.output_hooks),
            "model_mismatch": None if self.model_mismatch is None else self.model_mismatch.to_json(),
            "config": asdict(self.config),
        }


def undefined_metrics(
    reconstruction: ReconstructionMetrics,
    fvu_by_hook: dict[str, float | None],
    loss: LossMetrics,
    why_no_loss: str,
) -> dict[str, str]:
    """Say for each metric that is None why it is.

    Args:
        reconstruction: Its metrics.
        fvu_by_hook: The FVU of each hookpoint, where there are several.
        loss: Its metrics.
        why_no_loss: Why none was measured at all; empty where it was.
    """
    reasons: dict[str, str] = {}
    for name, value in asdict(reconstruction).items():
        if value is None:
            reasons[name] = _why_no_reconstruction(name, reconstruction)
    for hook, value in fvu_by_hook.items():
        if value is None:
            reasons[f"fvu_by_hook.{hook}"] = _why_no_reconstruction("fvu", reconstruction)
    for name, value in asdict(loss).items():
        if value is None:
            reasons[name] = why_no_loss or _why_no_loss(name, loss)
    return reasons


def _why_no_reconstruction(name: str, metrics: ReconstructionMetrics) -> str:
    if metrics.n_tokens == 0:
        return "no held-out tokens"
    if metrics.mse is None:
        return "the reconstruction holds values that are not finite"
    if name == "cosine":
        return "every evaluated activation is zero"
    return "the evaluated activations are all equal"


def _why_no_loss(name: str, metrics: LossMetrics) -> str:
    if metrics.n_predictions == 0:
        return "no prediction counts in the evaluated tokens"
    if name in ("ce_recovered_zero", "ce_recovered_mean") and metrics.ce_spliced is not None:
        return "the ablation does not change the loss"
    return "the loss is not finite"
