"""An SAE on disk: `config.json`, `weights.safetensors`, `feature_stats.safetensors` and a manifest."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from saelab.errors import DamagedFileError, UsageError
from saelab.sae.autoencoder import SAEParameters, SparseAutoencoder
from saelab.sae.config import SAEConfig, sae_config_from_json
from saelab.sae.feature_statistics import FeatureStatistics
from saelab.storage.files import read_json, write_json
from saelab.storage.manifest import (
    MANIFEST_NAME,
    Manifest,
    check_file,
    digest_of,
    read_manifest,
    write_manifest,
)
from saelab.storage.tensors import TensorFile, read_tensors, write_tensors
from saelab_kernels.rules import Threshold, rule_from_json
from saelab_kernels.shapes import Float, Tensor

CONFIG, WEIGHTS, FEATURE_STATS = "config.json", "weights.safetensors", "feature_stats.safetensors"
OPTIONAL_THETA = "optional_theta"
_PARAMETERS = ("W_enc", "b_enc", "W_dec", "b_dec")


@dataclass(frozen=True)
class SavedFeatureStatistics:
    """The per-feature statistics that are saved with an SAE; all ``[d_sae]``."""

    n_tokens: int
    count: Tensor
    density: Tensor
    mean_active: Tensor
    max_active: Tensor


def save_sae(
    folder: Path,
    sae: SparseAutoencoder,
    statistics: FeatureStatistics | None = None,
    optional_theta: Tensor | None = None,
    *,
    replace: bool = False,
) -> None:
    """Write an SAE as a finished folder.

    Args:
        folder: Where to write; made if it is missing.
        sae: Weights are written as float32 in their public shapes.
        statistics: Feature statistics over training tokens.
        optional_theta: A calibrated threshold that the inference rule does not use, for readers
            that want a batch-free threshold form.
        replace: Write over a finished SAE in this folder.

    Raises:
        UsageError: The folder holds a finished SAE, and it is not to be replaced.
    """
    if (folder / MANIFEST_NAME).exists():
        if not replace:
            raise UsageError(f"{folder} holds a finished SAE; choose another folder")
        (folder / MANIFEST_NAME).unlink()  # while files change the folder must not look complete
    tensors = {name: getattr(sae, name) for name in _PARAMETERS}
    if sae.theta is not None:
        tensors["theta"] = sae.theta
    if sae.W_skip is not None:
        tensors["W_skip"] = sae.W_skip
    if optional_theta is not None:
        tensors[OPTIONAL_THETA] = optional_theta
    write_json(folder / CONFIG, sae.config.to_json())
    write_tensors(folder / WEIGHTS, tensors)
    names = [CONFIG, WEIGHTS]
    if statistics is not None:
        write_tensors(folder / FEATURE_STATS, statistics.named(), {"n_tokens": str(statistics.n_tokens)})
        names.append(FEATURE_STATS)
    write_manifest(folder, "sae", names, {"d_in": sae.config.d_in, "d_sae": sae.config.d_sae})


def load_sae(folder: Path) -> SparseAutoencoder:
    """Read an SAE; its files are compared with their checksums first.

    Raises:
        DamagedFileError: A file is missing, damaged, or does not fit the configuration.
    """
    config = load_sae_config(folder)
    check_file(folder, WEIGHTS, _manifest(folder))
    tensors = read_tensors(folder / WEIGHTS)
    _check_tensors(config, tensors, folder / WEIGHTS)
    parameters = SAEParameters(**{name: tensors[name] for name in _PARAMETERS})
    return SparseAutoencoder(config, parameters, tensors.get("theta"), tensors.get("W_skip"))


def load_sae_config(folder: Path) -> SAEConfig:
    """Read the configuration of a saved SAE without its weights.

    Raises:
        DamagedFileError: It is missing or damaged.
    """
    check_file(folder, CONFIG, _manifest(folder))
    return sae_config_from_json(read_json(folder / CONFIG), str(folder / CONFIG))


def load_optional_theta(folder: Path) -> Float[Tensor, "*d_sae"] | None:
    """Read the calibrated threshold that the inference rule of a saved SAE does not use.

    Returns:
        One number or one for each feature, float32, in the units of the activations; None where none was saved.

    Raises:
        DamagedFileError: The weights are damaged, or it is not a threshold of this SAE.
    """
    config = load_sae_config(folder)
    check_file(folder, WEIGHTS, _manifest(folder))
    with TensorFile(folder / WEIGHTS) as file:
        if OPTIONAL_THETA not in file.names:
            return None
        theta = file.read(OPTIONAL_THETA)
    _check_tensor(OPTIONAL_THETA, theta, ((), (config.d_sae,)), folder / WEIGHTS)
    return theta


def _check_tensors(config: SAEConfig, tensors: dict[str, Tensor], where: Path) -> None:
    """Refuse weights that do not fit the configuration, or are not numbers, before anything uses them."""
    try:
        rule = rule_from_json(config.inference)
    except ValueError as error:
        raise DamagedFileError(f"{where.with_name(CONFIG)}: {error}") from error
    shapes: dict[str, tuple[tuple[int, ...], ...]] = {
        "W_enc": ((config.d_in, config.d_sae),),
        "b_enc": ((config.d_sae,),),
        "W_dec": ((config.d_sae, config.d_out),),
        "b_dec": ((config.d_out,),),
    }
    if isinstance(rule, Threshold):
        shapes["theta"] = ((), (config.d_sae,))
    if config.has_skip:
        shapes["W_skip"] = ((config.d_in, config.d_out),)
    if extra := tensors.keys() - shapes.keys() - {"theta", OPTIONAL_THETA}:
        raise DamagedFileError(
            f"{where} holds {', '.join(sorted(extra))}, which the config does not speak of"
        )
    for name, allowed in shapes.items():
        if name not in tensors:
            raise DamagedFileError(f"{where} lacks {name}")
        _check_tensor(name, tensors[name], allowed, where)


def _check_tensor(name: str, tensor: Tensor, allowed: tuple[tuple[int, ...], ...], where: Path) -> None:
    if tuple(tensor.shape) not in allowed or tensor.dtype != torch.float32:
        raise DamagedFileError(
            f"{where}: {name} is {tensor.dtype} of shape {tuple(tensor.shape)}; "
            f"the config says float32 of {allowed[-1]}"
        )
    if not torch.isfinite(tensor).all():
        raise DamagedFileError(f"{where}: {name} holds NaN or inf")


def load_feature_statistics(folder: Path) -> SavedFeatureStatistics:
    """Read the feature statistics that were saved with an SAE.

    Raises:
        DamagedFileError: There are none, or they are damaged.
    """
    manifest = read_manifest(folder, "sae")
    if FEATURE_STATS not in manifest.files:
        raise DamagedFileError(f"{folder} was saved without feature statistics")
    check_file(folder, FEATURE_STATS, manifest)
    with TensorFile(folder / FEATURE_STATS) as file:
        n_tokens = file.metadata.get("n_tokens", "")
        if not str(n_tokens).isdecimal():
            raise DamagedFileError(f"{folder / FEATURE_STATS} does not say over how many tokens it was taken")
        names = ("count", "density", "mean_active", "max_active")
        return SavedFeatureStatistics(n_tokens=int(n_tokens), **{name: file.read(name) for name in names})


def sae_identity(folder: Path) -> str:
    """Return the identity of a saved SAE: the digest of its configuration's and weights' checksums."""
    manifest = _manifest(folder)
    return digest_of("".join(manifest.files[name]["blake2b"] for name in (CONFIG, WEIGHTS)).encode())


def _manifest(folder: Path) -> Manifest:
    manifest = read_manifest(folder, "sae")
    if missing := {CONFIG, WEIGHTS} - manifest.files.keys():
        raise DamagedFileError(f"{folder}: the manifest does not list {', '.join(sorted(missing))}")
    return manifest
