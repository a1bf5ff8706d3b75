"""What a saved SAE is: every field explicit, none guessed. Imports no torch."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, get_args

from saelab.errors import DamagedFileError

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
    output_hooks: tuple[str, ...]
    """Module paths whose activations it reconstructs; equal to the input for an autoencoder."""
    hook_aliases: tuple[str, ...]
    """TransformerLens names of the input hooks, empty where there is none."""
    input_normalisation: Normalisation
    """Scaling before the encoder; ``none`` when it was folded into the weights."""
    target_normalisation: Normalisation
    """Scaling of the target that the decoder's output is in; ``none`` when folded."""
    apply_b_dec_to_input: bool
    """Whether the encoder sees ``x - b_dec``."""
    inference: dict[str, Any]
    """The allocation rule that `encode` applies, as data."""
    units: str
    """What an activation of 1 means, in words."""
    model_identity: str
    """Hash of the language model's configuration and weights; empty for activations without a model."""
    model_name: str
    """Name of the language model."""
    store_identity: str
    """Identity of the activation store that it was trained on."""

    def to_json(self) -> dict[str, Any]:
        """Return the configuration as plain JSON values."""
        return asdict(self)


def sae_config_from_json(raw: Any, where: str) -> SAEConfig:
    """Read a configuration strictly: an unknown, missing or mistyped field is an error, never a default.

    Raises:
        DamagedFileError: Naming the field and the file ``where`` it stands.
    """
    _check_fields(raw, SAEConfig, where)
    for name in ("d_in", "d_out", "d_sae"):
        if not isinstance(raw[name], int) or isinstance(raw[name], bool) or raw[name] < 1:
            raise DamagedFileError(f"{where}: {name} is {raw[name]!r}, not a positive whole number")
    for name in ("recipe", "units", "model_identity", "model_name", "store_identity"):
        if not isinstance(raw[name], str):
            raise DamagedFileError(f"{where}: {name} is {raw[name]!r}, not text")
    for name in ("input_hooks", "output_hooks", "hook_aliases"):
        if not isinstance(raw[name], list) or not all(isinstance(hook, str) for hook in raw[name]):
            raise DamagedFileError(f"{where}: {name} is {raw[name]!r}, not a list of names")
    if not isinstance(raw["apply_b_dec_to_input"], bool) or not isinstance(raw["inference"], dict):
        raise DamagedFileError(f"{where}: apply_b_dec_to_input or inference has the wrong type")
    return SAEConfig(
        **raw
        | {name: tuple(raw[name]) for name in ("input_hooks", "output_hooks", "hook_aliases")}
        | {
            name: _normalisation_from_json(raw[name], f"{where}: {name}")
            for name in ("input_normalisation", "target_normalisation")
        }
    )


def _normalisation_from_json(raw: Any, where: str) -> Normalisation:
    _check_fields(raw, Normalisation, where)
    if raw["kind"] not in get_args(NormalisationKind):
        raise DamagedFileError(
            f"{where}: kind {raw['kind']!r} is unknown; known: {get_args(NormalisationKind)}"
        )
    if not isinstance(raw["factor"], int | float) or not 0 < raw["factor"] < float("inf"):
        raise DamagedFileError(f"{where}: factor is {raw['factor']!r}, not a positive number")
    return Normalisation(kind=raw["kind"], factor=float(raw["factor"]))


def _check_fields(raw: Any, kind: type, where: str) -> None:
    if not isinstance(raw, dict):
        raise DamagedFileError(f"{where} is not a table of fields")
    expected = {field.name for field in fields(kind)}
    if missing := sorted(expected - raw.keys()):
        raise DamagedFileError(f"{where} lacks {', '.join(missing)}")
    if unknown := sorted(raw.keys() - expected):
        raise DamagedFileError(f"{where} has unknown fields: {', '.join(unknown)}")
