"""What a training run is told. Imports no torch: the command line, the run folder and the app share it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, Literal

from saelab.errors import UsageError
from saelab.fields import read_fields
from saelab.training.recipes import recipe_from_json

if TYPE_CHECKING:
    from saelab.training.recipes.base import Recipe


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """How the learning rate moves; shares of the run, so that short and long runs behave alike."""

    warmup_share: float = 0.05
    """Share of the steps over which the learning rate rises linearly from 0."""
    decay_share: float = 0.3
    """Share of the steps, at the end, over which it falls linearly to 0."""


@dataclass(frozen=True, kw_only=True)
class DeadFeatures:
    """When a feature counts as dead, and how it is brought back (AuxK)."""

    min_tokens: int = 100_000
    """A feature is dead after at least so many tokens without firing."""
    share_of_run: float = 0.05
    """And after at least this share of the run's tokens."""
    aux_k: int | None = None
    """Dead features that try to explain the residual of each token; half of d_out where not given."""
    coefficient: float = 1 / 32
    """Weight of AuxK beside the normalised reconstruction loss; 0 switches it off."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """One training run: an SAE of one width on one hook of one store or live stream."""

    recipe: Recipe
    """Allocation, objective and their options."""
    hook: str
    """Module path of the activations that the encoder reads, as the store names it."""
    further_hooks: tuple[str, ...] = ()
    """Module paths that are read and reconstructed beside it (crosscoders)."""
    target_hook: str | None = None
    """Module path of the activations that are reconstructed, where they are others (transcoders)."""
    width: int
    """Number of features, d_sae."""
    tokens: int
    """Tokens to train on, passes over the data included."""
    extended_from: tuple[int, ...] = ()
    """Tokens of the run before each time it was extended, the first length first."""
    batch: int = 2048
    """Tokens in a step."""
    lr: float
    """Peak learning rate of Adam."""
    seed: int = 0
    """Seed of the weights."""
    data_seed: int = 0
    """Seed of the order of the data; the same for all SAEs that are trained on one pass."""
    pool_rows: int
    """Rows that are mixed in memory at a time, approximately; part of the order of the data."""
    init_from: str | None = None
    """Identity of the SAE whose weights this run starts from; random directions where not given."""
    allow_model_mismatch: bool = False
    """Let the SAE to start from come from another model of the same shapes and tokenizer."""
    normalisation: Literal["scale", "none", "layer_norm", "unit_norm"] = "scale"
    """How activations are scaled: ``scale`` and ``none`` fold into the weights, the others do not."""
    schedule: Schedule = field(default_factory=Schedule)
    """Warm-up and decay of the learning rate."""
    dead: DeadFeatures = field(default_factory=DeadFeatures)
    """The policy for dead features."""
    grad_clip: float | None = 1.0
    """Largest global norm of the (projected) gradient; null leaves it as it is."""
    checkpoint_every: int = 500
    """Steps between checkpoints."""
    log_every: int = 20
    """Steps between lines of metrics."""
    skip_nonfinite: bool = False
    """Leave out batches with NaN or inf instead of stopping."""
    device: str = "cpu"
    """Device to train on."""
    source_identity: str
    """Identity of the activation store, or of the live stream."""

    @property
    def input_hooks(self) -> tuple[str, ...]:
        """Hookpoints that the encoder reads, joined in this order."""
        return (self.hook, *self.further_hooks)

    @property
    def target_hooks(self) -> tuple[str, ...]:
        """Hookpoints that are reconstructed, joined in this order."""
        return self.input_hooks if self.target_hook is None else (self.target_hook,)

    @property
    def all_hooks(self) -> tuple[str, ...]:
        """Every hookpoint that is needed, once."""
        return tuple(dict.fromkeys((*self.input_hooks, *self.target_hooks)))

    @property
    def steps(self) -> int:
        """Number of optimiser steps."""
        return max(1, self.tokens // self.batch)

    @property
    def lengths(self) -> tuple[int, ...]:
        """Tokens of the run at first and after each extension, the present number last."""
        return (*self.extended_from, self.tokens)

    @property
    def first_steps(self) -> int:
        """Steps of the run's first length: what warm-up and the window of dead features are shares of."""
        return max(1, self.lengths[0] // self.batch)

    @property
    def branch_steps(self) -> tuple[int, ...]:
        """Steps before the learning rate falls, for each length: where a longer run branches off."""
        steps = [max(1, tokens // self.batch) for tokens in self.lengths]
        return tuple(n - round(self.schedule.decay_share * n) for n in steps)

    def extended(self, tokens: int) -> TrainConfig:
        """Return the configuration of this run made longer.

        Raises:
            UsageError: ``tokens`` is not more than the run has.
        """
        if tokens <= self.tokens:
            raise UsageError(f"a run of {self.tokens:,} tokens can be extended to more, not to {tokens:,}")
        return replace(self, tokens=tokens, extended_from=self.lengths)

    def check(self) -> None:
        """Refuse values that cannot work.

        Raises:
            UsageError: Naming the value and its bound.
        """
        train_config_from_json(self.to_json(), "training")  # types, as strictly as from a file
        for name in ("width", "tokens", "batch", "checkpoint_every", "log_every", "pool_rows"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.lengths[0] < self.batch:
            raise UsageError(f"tokens ({self.lengths[0]:,}) must be at least one batch ({self.batch:,})")
        if list(self.lengths) != sorted(set(self.lengths)):
            raise UsageError(f"the lengths of an extended run must grow, not be {self.lengths}")
        if not 0 < self.lr < float("inf"):
            raise UsageError(f"lr must be a positive number, not {self.lr}")
        if self.grad_clip is not None and not self.grad_clip > 0:
            raise UsageError(f"grad_clip must be positive, not {self.grad_clip}")
        shares = (self.schedule.warmup_share, self.schedule.decay_share)
        if min(shares) < 0 or sum(shares) > 1:
            raise UsageError(
                f"warm-up and decay take shares {shares} of the run; they must be >= 0 and sum to <= 1"
            )
        if self.dead.coefficient < 0 or self.dead.min_tokens < 1 or self.dead.share_of_run < 0:
            raise UsageError(
                "the dead-feature policy needs coefficient >= 0, min_tokens >= 1 and share_of_run >= 0"
            )
        if self.dead.aux_k is not None and self.dead.aux_k < 1:
            raise UsageError(
                f"aux_k must be at least 1, not {self.dead.aux_k}; a coefficient of 0 switches AuxK off"
            )
        self._check_hooks()
        self.recipe.check(self.width)

    def _check_hooks(self) -> None:
        name, traits = self.recipe.name, self.recipe.traits
        wanted = {
            "one": (self.target_hook is None and not self.further_hooks, "one hookpoint"),
            "input and target": (
                self.target_hook is not None and not self.further_hooks,
                "one hookpoint to read and one to reconstruct (--target-at)",
            ),
            "several": (self.target_hook is None, "hookpoints that it reads and reconstructs (--at A B ...)"),
        }
        fits, what = wanted[traits.hooks]
        if not fits:
            raise UsageError(f"{name} needs {what}")
        if self.normalisation not in traits.allowed_normalisations:
            raise UsageError(
                f"{name} is not defined for --normalisation {self.normalisation}; "
                f"choose one of {', '.join(traits.allowed_normalisations)}"
            )

    def to_json(self) -> dict[str, Any]:
        """Return the configuration as plain JSON values."""
        plain = {f.name: getattr(self, f.name) for f in fields(self)}
        return plain | {
            "recipe": self.recipe.to_json(),
            "extended_from": list(self.extended_from),
            "further_hooks": list(self.further_hooks),
            "schedule": asdict(self.schedule),
            "dead": asdict(self.dead),
        }


def train_config_from_json(raw: Any, where: str) -> TrainConfig:
    """Read a configuration strictly: unknown, missing and mistyped fields are errors.

    Raises:
        UsageError: Naming the field.
    """
    return read_fields(TrainConfig, raw, where, UsageError, {"recipe": recipe_from_json})
