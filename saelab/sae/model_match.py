"""Whether an SAE may be used on a model: its own, or, where that is allowed, another one that fits.

An SAE of a base model on its fine-tune is a main use; an SAE on a model that reads text in another way,
or has other activations at its hookpoint, gives numbers without meaning and is always refused. Knows
hashes and shapes alone; whoever has a model, a store or a stream hands these in.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Protocol, runtime_checkable

from saelab.errors import UsageError
from saelab.sae.config import SAEConfig


@runtime_checkable
class IdentifiedModel(Protocol):
    """A model as it is recorded beside what was made from it, as `saelab.lm.identity.ModelIdentity` is one."""

    @property
    def hash(self) -> str:
        """Digest of configuration and weights."""
        ...

    @property
    def name(self) -> str:
        """Its name, for people."""
        ...

    @property
    def tokenizer_hash(self) -> str:
        """Digest of what its tokenizer does."""
        ...


@dataclass(frozen=True, kw_only=True)
class ModelMismatch:
    """An SAE on another model than its own; tokenizer, width and hookpoints are the same."""

    sae_model: str
    """Name of the model that the SAE was trained on."""
    sae_model_identity: str
    """Its identity."""
    model: str
    """Name of the model that it is used on."""
    model_identity: str
    """Its identity."""

    def to_json(self) -> dict[str, Any]:
        """Return the record as plain JSON values."""
        return asdict(self)

    def warning(self) -> str:
        """Say it in one sentence."""
        used = _named(self.model, self.model_identity)
        if not self.sae_model_identity and self.sae_model:
            return f"the SAE says that its model is {self.sae_model}, of which it holds no hash; it is used on {used}"
        return (
            f"the SAE was trained on {_named(self.sae_model, self.sae_model_identity)} and is used on "
            f"{used}, another model"
        )


def require_same_model(
    config: SAEConfig,
    model: IdentifiedModel | None,
    widths: Mapping[str, int],
    *,
    doing: str,
    allow_mismatch: bool = False,
) -> ModelMismatch | None:
    """Refuse an SAE that does not belong to a model; return the mismatch where it is another one and allowed.

    Args:
        config: What the SAE is.
        model: The model that it is to be used on; None for activations without one.
        widths: Width of the activations at each hookpoint that there is, by module path.
        doing: What begins the message, for example ``evaluate``.
        allow_mismatch: Accept another model of the same tokenizer, width and hookpoints.

    Raises:
        UsageError: Naming all that differs, both sides of it, and what to do.
    """
    found = "" if model is None else model.hash
    problems = _shape_problems(config, widths)
    tokenizer = "" if model is None else model.tokenizer_hash
    is_own = config.model_identity == found
    # An SAE from elsewhere may know its model and not its tokenizer, or its model by name alone.
    is_silent = not config.tokenizer_hash and (is_own or _names_model_alone(config))
    if config.tokenizer_hash != tokenizer and not is_silent:
        problems.append(
            f"its tokenizer is {config.tokenizer_hash or 'none'}, here it is {tokenizer or 'none'}"
        )
    if is_own and not problems:
        return None
    own = _own_model(config)
    used = _named("" if model is None else model.name, found)
    if is_own:
        raise UsageError(
            f"{doing}: the SAE was trained on this model, {own}, and does not fit: {'; '.join(problems)}; "
            "use the hookpoint and the tokenizer that it was trained with"
        )
    here = f"{doing}: the SAE was trained on {own}, here is {used}"
    if problems:
        raise UsageError(f"{here}, where it cannot be used: {'; '.join(problems)}; give the SAE's own model")
    if not allow_mismatch and _names_model_alone(config):
        raise UsageError(
            f"{here}; whether these are one model is not known: import the SAE again with --model to say so, or use it "
            "here all the same with --allow-model-mismatch (width and hookpoint fit)"
        )
    if not allow_mismatch:
        raise UsageError(
            f"{here}; give the SAE's own model, or use it here all the same with --allow-model-mismatch "
            "(tokenizer, width and hookpoint fit)"
        )
    return ModelMismatch(
        sae_model=config.model_name,
        sae_model_identity=config.model_identity,
        model="" if model is None else model.name,
        model_identity=found,
    )


def _shape_problems(config: SAEConfig, widths: Mapping[str, int]) -> list[str]:
    problems = []
    inputs = zip(config.input_hooks, config.input_widths, strict=True)
    outputs = zip(config.output_hooks, config.output_widths, strict=True)
    for hook, width in dict.fromkeys((*inputs, *outputs)):
        if hook not in widths:
            near = difflib.get_close_matches(hook, widths, n=1)
            problems.append(f"there is no hookpoint {hook}" + (f" but {near[0]}" if near else ""))
        elif widths[hook] != width:
            problems.append(f"its width at {hook} is {width}, here it is {widths[hook]}")
    return problems


def _names_model_alone(config: SAEConfig) -> bool:
    """Whether an SAE has the name of a model and no hash: it was imported without anybody looking at one."""
    return bool(config.model_name) and not config.model_identity


def _own_model(config: SAEConfig) -> str:
    if _names_model_alone(config):
        return f"a model that its files call {config.model_name}, of which it holds no hash"
    return _named(config.model_name, config.model_identity)


def _named(name: str, identity: str) -> str:
    return f"model {name} ({identity})" if identity else "activations without a model"
