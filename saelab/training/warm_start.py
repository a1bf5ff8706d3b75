"""Start a run from the weights of a finished SAE, for example a base model's SAE on its fine-tune."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from saelab.activations.source import ActivationSource
from saelab.errors import UsageError
from saelab.sae.autoencoder import SAEParameters, SparseAutoencoder
from saelab.sae.config import Normalisation
from saelab.sae.files import load_sae, sae_identity
from saelab.sae.fold import unfold_scale
from saelab.sae.model_match import ModelMismatch, require_same_model
from saelab.training.config import TrainConfig

SAE_FOLDER = "sae"


@dataclass(frozen=True)
class WarmStart:
    """A finished SAE and its identity."""

    sae: SparseAutoencoder
    identity: str
    """What the new run's configuration records."""
    path: Path

    def mismatch_with(self, source: ActivationSource, *, allow: bool) -> ModelMismatch | None:
        """Return how the SAE's model differs from the source's, or None where it is the same.

        Raises:
            UsageError: It is another model and that is not allowed, or it does not fit.
        """
        return require_same_model(
            self.sae.config,
            source.model_identity,
            {hook.module_path: hook.d_in for hook in source.hooks},
            doing=f"--init-from {self.path}",
            allow_mismatch=allow,
        )

    def describe(self, source: ActivationSource) -> dict[str, Any]:
        """Return what a run records of the SAE that it started from."""
        mismatch = self.mismatch_with(source, allow=True)
        return {
            "sae": self.identity,
            "name": self.path.name,
            "model_mismatch": None if mismatch is None else mismatch.to_json(),
        }


def open_warm_start(path: Path) -> WarmStart:
    """Open the SAE of a run folder, or an SAE folder.

    Raises:
        DamagedFileError: There is none, or its files are not what its manifest says.
    """
    folder = path / SAE_FOLDER if (path / SAE_FOLDER).is_dir() else path
    return WarmStart(load_sae(folder), sae_identity(folder), path)


def require_warm_start(warm: WarmStart | None, config: TrainConfig, source: ActivationSource) -> None:
    """Refuse an SAE that the configuration does not name, or one of another model where that is not allowed.

    Raises:
        UsageError: Saying what does not belong together and what to do.
    """
    if (warm.identity if warm else None) != config.init_from:
        raise UsageError(
            f"the configuration starts from the SAE {config.init_from}, given was {warm.identity if warm else None}; "
            "give the SAE that it names with --init-from"
        )
    if warm is not None:
        warm.mismatch_with(source, allow=config.allow_model_mismatch)
        _require_same_form(warm, config)


def parameters_from(warm: WarmStart, normalisation: Normalisation) -> SAEParameters:
    """Return the SAE's weights in the units of the new run."""
    names = ("W_enc", "b_enc", "W_dec", "b_dec")
    saved = SAEParameters(**{name: getattr(warm.sae, name).detach() for name in names})
    return unfold_scale(saved, normalisation)


def _require_same_form(warm: WarmStart, config: TrainConfig) -> None:
    theirs = warm.sae.config
    if theirs.d_sae != config.width:
        raise UsageError(
            f"--init-from {warm.path} has {theirs.d_sae:,} features, this run is to have {config.width:,}; "
            f"leave --width out, or give --width {theirs.d_sae}"
        )
    if not config.recipe.traits.warm_start:
        raise UsageError(f"--init-from: {config.recipe.name} cannot go on from the weights of a finished SAE")
    if theirs.apply_b_dec_to_input != config.recipe.traits.input_bias or theirs.has_skip:
        raise UsageError(
            f"--init-from {warm.path} was trained as {theirs.recipe}, whose weights mean something else than those "
            f"of {config.recipe.name}"
        )
    if theirs.input_hooks != config.input_hooks or theirs.output_hooks != config.target_hooks:
        raise UsageError(
            f"--init-from {warm.path} reads {', '.join(theirs.input_hooks)}, this run {', '.join(config.input_hooks)}; "
            "start from an SAE of the same hookpoint"
        )
    kinds = (theirs.input_normalisation.kind, config.normalisation)
    if kinds[0] != kinds[1] and not {*kinds} <= {"none", "scale"}:
        raise UsageError(
            f"--init-from {warm.path} was trained with --normalisation {kinds[0]}, which cannot become {kinds[1]}"
        )
