"""What a saved SAE is: every field explicit, none guessed. Imports no torch."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from saelab.errors import DamagedFileError
from saelab.fields import read_fields

NormalisationKind = Literal["none", "scale", "layer_norm", "unit_norm"]


@dataclass(frozen=True, kw_only=True)
class Normalisation:
    """How activations are scaled before the encoder sees them.

    `scale` multiplies by one number and can be folded into the weights; `layer_norm` and
    `unit_norm` depend on each token, cannot be folded, and make feature activations relative to it.
    """

    kind: NormalisationKind = "none"
    """``none``, ``scale``, ``layer_norm`` or ``unit_norm``."""
    factor: float = 1.0
    """The number that ``scale`` multiplies by; 1 for the other kinds."""

    @property
    def is_per_token(self) -> bool:
        """Whether the scale differs between tokens, so that it cannot be folded into the weights."""
        return self.kind in ("layer_norm", "unit_norm")


@dataclass(frozen=True, kw_only=True)
class SAEConfig:
    """The configuration that is saved beside the weights."""

    recipe: str
    """Name of the recipe that trained it."""
    d_in: int
    """Width of the activations that it reads."""
    d_out: int
    """Width of the activations that it reconstructs."""
    d_sae: int
    """Number of features."""
    input_hooks: tuple[str, ...]
    """Module paths whose activations it reads."""
    input_widths: tuple[int, ...]
    """Width of each of them; they are joined side by side in ``d_in``."""
    output_hooks: tuple[str, ...]
    """Module paths whose activations it reconstructs; equal to the input for an autoencoder."""
    output_widths: tuple[int, ...]
    """Width of each of them; they are joined side by side in ``d_out``."""
    hook_aliases: tuple[str, ...]
    """TransformerLens names of the input hooks, empty where there is none."""
    input_normalisation: Normalisation
    """Scaling before the encoder; ``none`` when it was folded into the weights."""
    target_normalisation: Normalisation
    """Scaling of the target that the decoder's output is in; ``none`` when folded."""
    apply_b_dec_to_input: bool
    """Whether the encoder sees ``x - b_dec``."""
    has_skip: bool
    """Whether a linear map of the input, ``W_skip``, is added to what the features reconstruct."""
    inference: dict[str, Any]
    """The allocation rule that `encode` applies, as data."""
    attribution: dict[str, Any] | None
    """g-SAE's score (``beta``, ``mode``, ``norm``, ``mean_c``), used where gradients are given; null without one."""
    units: str
    """What an activation of 1 means, in words."""
    model_identity: str
    """Hash of the language model's configuration and weights; empty for activations without a model."""
    model_name: str
    """Name of the language model."""
    tokenizer_hash: str
    """Hash of the language model's tokenizer; empty for activations without one."""
    source_identity: str
    """Identity of the activation store, or of the live stream, that it was trained on."""

    def to_json(self) -> dict[str, Any]:
        """Return the configuration as plain JSON values."""
        return asdict(self)


def sae_config_from_json(raw: Any, where: str) -> SAEConfig:
    """Read a configuration strictly: an unknown, missing or mistyped field is an error, never a default.

    Raises:
        DamagedFileError: Naming the field and the file ``where`` it stands.
    """
    config = read_fields(SAEConfig, raw, where, DamagedFileError)
    for name in ("d_in", "d_out", "d_sae"):
        if getattr(config, name) < 1:
            raise DamagedFileError(f"{where}: {name} is {getattr(config, name)}; it must be at least 1")
    for side, total in (("input", config.d_in), ("output", config.d_out)):
        hooks, widths = getattr(config, f"{side}_hooks"), getattr(config, f"{side}_widths")
        if not hooks or len(hooks) != len(widths) or min(widths) < 1 or sum(widths) != total:
            raise DamagedFileError(
                f"{where}: the {side} widths {list(widths)} of {len(hooks)} hookpoint(s) do not make up {total}"
            )
    for name in ("input_normalisation", "target_normalisation"):
        how: Normalisation = getattr(config, name)
        if how.factor <= 0 or (how.kind != "scale" and how.factor != 1):
            raise DamagedFileError(f"{where}: {name} is {how.kind!r} with factor {how.factor}")
    if config.target_normalisation.is_per_token and config.target_normalisation != config.input_normalisation:
        raise DamagedFileError(
            f"{where}: the target is normalised by each token's {config.target_normalisation.kind}, which only "
            f"the same normalisation of the input gives, and that is {config.input_normalisation.kind!r}"
        )
    return config
