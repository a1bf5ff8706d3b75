"""An SAE on disk: `config.json`, `weights.safetensors`, `feature_stats.safetensors` and a manifest."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from saelab.errors import DamagedFileError
from saelab.sae.autoencoder import SAEParameters, SparseAutoencoder
from saelab.sae.config import sae_config_from_json
from saelab.sae.feature_statistics import FeatureStatistics
from saelab.storage.files import read_json, write_json
from saelab.storage.manifest import check_file, digest_of, read_manifest, write_manifest
from saelab.storage.tensors import TensorFile, read_tensors, write_tensors
from saelab_kernels.shapes import Tensor

CONFIG, WEIGHTS, FEATURE_STATS = "config.json", "weights.safetensors", "feature_stats.safetensors"
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
) -> None:
    """Write an SAE as a finished folder.

    Args:
        folder: Where to write; made if it is missing.
        sae: Weights are written as float32 in their public shapes.
        statistics: Feature statistics over training tokens.
        optional_theta: A calibrated threshold that the inference rule does not use, for readers
            that want a batch-free threshold form.
    """
    tensors = {name: getattr(sae, name) for name in _PARAMETERS}
    if sae.theta is not None:
        tensors["theta"] = sae.theta
    if optional_theta is not None:
        tensors["optional_theta"] = optional_theta
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
    manifest = read_manifest(folder, "sae")
    for name in (CONFIG, WEIGHTS):
        if name not in manifest.files:
            raise DamagedFileError(f"{folder}: the manifest does not list {name}")
        check_file(folder, name, manifest)
    config = sae_config_from_json(read_json(folder / CONFIG), str(folder / CONFIG))
    tensors = read_tensors(folder / WEIGHTS)
    if missing := [name for name in _PARAMETERS if name not in tensors]:
        raise DamagedFileError(f"{folder / WEIGHTS} lacks {', '.join(missing)}")
    parameters = SAEParameters(**{name: tensors[name] for name in _PARAMETERS})
    return SparseAutoencoder(config, parameters, tensors.get("theta"))


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
        tensors = {name: file.read(name) for name in ("count", "density", "mean_active", "max_active")}
        return SavedFeatureStatistics(n_tokens=int(file.metadata["n_tokens"]), **tensors)


def sae_identity(folder: Path) -> str:
    """Return the identity of a saved SAE: the digest of its configuration's and weights' checksums."""
    manifest = read_manifest(folder, "sae")
    return digest_of("".join(manifest.files[name]["blake2b"] for name in (CONFIG, WEIGHTS)).encode())
